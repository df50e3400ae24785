//! Where the columns of a matrix lie in its packed form.

/// The longest piece of a row that one tile of a matrix unit takes.
pub const DEPTH: usize = 64;

/// Where columns lie: every group is cut into pieces of one depth, a multiple of 8, and filled up to them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Columns {
    /// Columns of the matrix.
    pub count: usize,
    /// Columns of a group; the last one may have fewer.
    pub group: usize,
    pub groups: usize,
    /// Of a group.
    pub pieces: usize,
    /// Columns of a piece.
    pub depth: usize,
}

impl Columns {
    pub fn new(count: usize, group: usize) -> Self {
        let pieces = group.div_ceil(DEPTH);
        let depth = group.div_ceil(pieces).next_multiple_of(8);
        Self { count, group, groups: count.div_ceil(group), pieces, depth }
    }

    /// Columns of a group, filled up.
    pub fn span(&self) -> usize {
        self.pieces * self.depth
    }

    /// Columns of a row, filled up.
    pub fn padded(&self) -> usize {
        self.groups * self.span()
    }

    /// The columns of group `g`.
    pub fn of(&self, g: usize) -> std::ops::Range<usize> {
        g * self.group..((g + 1) * self.group).min(self.count)
    }
}

/// Where the columns of row `lane` of a panel lie: line, byte, bit, and which column it is.
pub fn places(columns: Columns, half: bool, lane: usize) -> impl Iterator<Item = (usize, usize, u32, usize)> {
    (0..columns.groups).flat_map(move |g| {
        columns.of(g).enumerate().map(move |(i, column)| {
            let (at, byte) = (g * columns.span() + i, lane * 4 + i % 4);
            if half { (at / 8, byte, (at / 4 % 2 * 4) as u32, column) } else { (at / 4, byte, 0, column) }
        })
    })
}
