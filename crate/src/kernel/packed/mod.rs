//! An integer matrix in the order in which multiply-add instructions of four bytes read it.
//!
//! | file | holds |
//! |---|---|
//! | this one | the layout, and the way back |
//! | `columns` | where columns lie |
//! | [`path`] | which instructions there are |
//! | [`product`] | y = x Wᵀ for integer activations on all of them, and its floating-point end |
//! | `portable`, `avx`, `vnni`, `amx` | the sums of one path; of `avx` two, with AVX-VNNI and without |
//! | [`float`] | y = x Wᵀ for few rows of f32 activations |
//! | `widen` | rows as what they stand for |
//!
//! Sixteen rows make a panel. A panel is a sequence of lines of 64 bytes: four columns of its first row, four of its
//! second, and so on, then the next four columns. Integers of 8 bits take a byte each; those that fit into 4 bits take
//! half of one, so that a line holds columns c … c+3 in its low halves and c+4 … c+7 in its high ones. They are stored
//! without sign, moved by an offset: the products of that offset depend on the activations alone, and no sums over
//! weights have to be kept.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx;
mod columns;
#[cfg(target_arch = "x86_64")]
pub mod float;
pub mod path;
mod portable;
pub mod product;
#[cfg(target_arch = "x86_64")]
mod vnni;
mod widen;

use super::integer::{IntegerRows, Integers, Run};
use super::line::Line;
use columns::{Columns, places};
pub use product::forward;
use rayon::prelude::*;

/// Rows of a panel.
pub(in crate::kernel) const PANEL: usize = 16;

/// A matrix [rows, cols] of integers with a scale, and perhaps a zero point, for every row or every group of columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    rows: usize,
    columns: Columns,
    /// Two integers a byte.
    half: bool,
    /// A stored integer is the integer plus this.
    offset: i32,
    /// \[panels\]\[columns.padded / 4, or / 8 if half\].
    lines: Vec<Line>,
    /// \[panels\]\[groups\]\[16\].
    scales: Vec<[f32; PANEL]>,
    /// Like the scales; empty if all are zero.
    zeros: Vec<[f32; PANEL]>,
}

impl Packed {
    /// Lays a matrix [rows, cols] out; none if its rows are not cut into groups of one size, the last of them excepted.
    pub fn new(rows: usize, cols: usize, w: &impl IntegerRows) -> Option<Self> {
        if rows == 0 || cols == 0 {
            return None;
        }
        let runs = |row: usize, to: &mut Vec<Run>| {
            to.clear();
            w.runs(row, to);
        };
        let mut first = Vec::new();
        runs(0, &mut first);
        let columns = Columns::new(cols, first.first()?.end);
        let (low, high) = w.range();
        let half = i32::from(high) - i32::from(low) < 16;
        let (panels, groups) = (rows.div_ceil(PANEL), columns.groups);
        let panel_lines = columns.padded() / if half { 8 } else { 4 };
        let mut packed = Self {
            rows,
            columns,
            half,
            offset: -i32::from(low),
            lines: vec![Line([0; 64]); panels * panel_lines],
            scales: vec![[0.0; PANEL]; panels * groups],
            zeros: vec![[0.0; PANEL]; panels * groups],
        };
        let parts = packed.lines.par_chunks_mut(panel_lines).enumerate();
        let parts = parts.zip(packed.scales.par_chunks_mut(groups).zip(packed.zeros.par_chunks_mut(groups)));
        let regular = parts.all(|((panel, lines), (scales, zeros))| {
            let (mut integers, mut found) = (vec![0; cols], Vec::new());
            for lane in 0..PANEL.min(rows - panel * PANEL) {
                let row = panel * PANEL + lane;
                runs(row, &mut found);
                let regular = found.len() == groups
                    && found.iter().enumerate().all(|(g, run)| run.end == columns.of(g).end);
                if !regular {
                    return false;
                }
                for ((scale, zero), run) in scales.iter_mut().zip(zeros.iter_mut()).zip(&found) {
                    (scale[lane], zero[lane]) = (run.scale, run.zero);
                }
                w.integers(row, &mut integers);
                for (line, byte, shift, column) in places(columns, half, lane) {
                    let stored = (i32::from(integers[column]) - i32::from(low)) as u8;
                    lines[line].0[byte] |= stored << shift;
                }
            }
            true
        });
        if packed.zeros.iter().flatten().all(|zero| *zero == 0.0) {
            packed.zeros = Vec::new();
        }
        regular.then_some(packed)
    }

    /// A matrix of nothing, for [`refill`](Self::refill).
    pub(in crate::kernel) fn empty() -> Self {
        let columns = Columns::new(1, 1);
        Self { rows: 0, columns, half: false, offset: 0, lines: vec![], scales: vec![], zeros: vec![] }
    }

    /// Lays the rows of `of` out, each with its scale, in the memory of what was here before; as `half` bytes integers of −7 … 7, else
    /// those of −127 … 127. On the calling thread.
    pub(in crate::kernel) fn refill(&mut self, of: &Integers, half: bool) {
        let Self { rows, columns, lines, scales, offset, zeros, .. } = self;
        (*rows, *columns, *offset, self.half) =
            (of.scales.len(), Columns::new(of.k, of.k), if half { 7 } else { 127 }, half);
        zeros.clear();
        let (panels, panel_lines) = (rows.div_ceil(PANEL), columns.padded() / if half { 8 } else { 4 });
        lines.clear();
        lines.resize(panels * panel_lines, Line([0; 64]));
        scales.clear();
        scales.resize(panels, [0.0; PANEL]);
        for (row, (codes, scale)) in of.codes.chunks_exact(of.k).zip(&of.scales).enumerate() {
            let (panel, lane) = (row / PANEL, row % PANEL);
            scales[panel][lane] = *scale;
            let lines = &mut lines[panel * panel_lines..][..panel_lines];
            let stored = |code: i8| (code as u8).wrapping_add(*offset as u8);
            let last = |codes: &[i8]| -> [u8; 8] {
                std::array::from_fn(|i| codes.get(i).map_or(0, |code| stored(*code)))
            };
            if half {
                let both = |all: [u8; 8]| -> [u8; 4] { std::array::from_fn(|i| all[i] | all[i + 4] << 4) };
                let (whole, rest) = codes.as_chunks::<8>();
                for (line, codes) in lines.iter_mut().zip(whole) {
                    line.0[lane * 4..][..4].copy_from_slice(&both(codes.map(stored)));
                }
                if let Some(line) = lines.get_mut(whole.len()) {
                    line.0[lane * 4..][..4].copy_from_slice(&both(last(rest)));
                }
            } else {
                let (whole, rest) = codes.as_chunks::<4>();
                for (line, codes) in lines.iter_mut().zip(whole) {
                    line.0[lane * 4..][..4].copy_from_slice(&codes.map(stored));
                }
                if let Some(line) = lines.get_mut(whole.len()) {
                    line.0[lane * 4..][..4].copy_from_slice(&last(rest)[..4]);
                }
            }
        }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that are held, filling included.
    pub fn held(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.scales) + size_of_val(&*self.zeros)
    }

    fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// All lines of a panel.
    #[cfg(target_arch = "x86_64")]
    fn panel_lines(&self, panel: usize) -> &[Line] {
        let lines = self.columns.padded() / if self.half { 8 } else { 4 };
        &self.lines[panel * lines..][..lines]
    }

    /// The lines of group `g` of a panel.
    #[inline(always)]
    fn group_lines(&self, panel: usize, g: usize) -> &[Line] {
        let lines = self.columns.span() / if self.half { 8 } else { 4 };
        &self.lines[(panel * self.columns.groups + g) * lines..][..lines]
    }
}

impl Packed {
    /// The integers of a row, each less the least one of [`IntegerRows::range`].
    pub fn stored(&self, row: usize, to: &mut [u8]) {
        let lane = row % PANEL * 4;
        for g in 0..self.columns.groups {
            let (lines, to) = (self.group_lines(row / PANEL, g), &mut to[self.columns.of(g)]);
            for (line, to) in lines.iter().zip(to.chunks_mut(if self.half { 8 } else { 4 })) {
                let four = &line.0[lane..lane + 4];
                if self.half {
                    let both: [u8; 8] = std::array::from_fn(|i| four[i % 4] >> (i / 4 * 4) & 15);
                    to.copy_from_slice(&both[..to.len()]);
                } else {
                    to.copy_from_slice(&four[..to.len()]);
                }
            }
        }
    }
}

/// What was packed, exactly.
impl IntegerRows for Packed {
    fn integers(&self, row: usize, to: &mut [i8]) {
        let mut stored = vec![0; self.columns.count];
        self.stored(row, &mut stored);
        for (to, stored) in to.iter_mut().zip(stored) {
            *to = (i32::from(stored) - self.offset) as i8;
        }
    }

    fn runs(&self, row: usize, to: &mut Vec<Run>) {
        let (groups, lane) = (self.columns.groups, row % PANEL);
        to.extend((0..groups).map(|g| {
            let at = row / PANEL * groups + g;
            let zero = self.zeros.get(at).map_or(0.0, |zeros| zeros[lane]);
            Run { end: self.columns.of(g).end, scale: self.scales[at][lane], zero }
        }));
    }

    fn range(&self) -> (i8, i8) {
        let low = -self.offset;
        (low as i8, (low + if self.half { 15 } else { 255 }).min(127) as i8)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Some integers of `low` … `high` in groups.
    pub struct Plain {
        pub cols: usize,
        pub group: usize,
        pub range: (i8, i8),
        pub zeros: bool,
        pub seed: usize,
    }

    impl IntegerRows for Plain {
        fn integers(&self, row: usize, to: &mut [i8]) {
            let (low, high) = (i32::from(self.range.0), i32::from(self.range.1));
            for (column, to) in to.iter_mut().enumerate() {
                let noise = ((row * self.cols + column + self.seed) * 7919 + 13) % 257;
                *to = (low + noise as i32 % (high - low + 1)) as i8;
            }
        }

        fn runs(&self, row: usize, to: &mut Vec<Run>) {
            let ends = (0..self.cols).step_by(self.group).map(|at| (at + self.group).min(self.cols));
            to.extend(ends.enumerate().map(|(i, end)| Run {
                end,
                scale: 0.01 + ((i * 31 + row * 17) % 29) as f32 * 0.013,
                zero: if self.zeros { (row % 13) as f32 - 2.0 } else { 0.0 },
            }));
        }

        fn range(&self) -> (i8, i8) {
            self.range
        }
    }

    #[test]
    fn what_is_packed_comes_back() {
        for (rows, cols, group) in
            [(1, 1, 1), (16, 64, 64), (17, 65, 65), (33, 300, 300), (5, 100, 40), (70, 200, 96)]
        {
            for (range, zeros) in
                [((-127, 127), false), ((-128, 127), true), ((-8, 7), false), ((0, 15), true)]
            {
                let plain = Plain { cols, group, range, zeros, seed: 3 };
                let packed = Packed::new(rows, cols, &plain).unwrap();
                assert_eq!(packed.half, range.1 < 16);
                for row in 0..rows {
                    let of = |w: &dyn IntegerRows| {
                        let (mut integers, mut runs) = (vec![0; cols], vec![]);
                        w.integers(row, &mut integers);
                        w.runs(row, &mut runs);
                        (integers, format!("{runs:?}"))
                    };
                    assert_eq!(of(&packed), of(&plain), "{rows}×{cols} g{group} {range:?} row {row}");
                }
                for (first, count) in [(0, rows), (rows - 1, 1), (rows / 2, rows.div_ceil(3))] {
                    let mut values = vec![f32::NAN; count * cols];
                    packed.widen(first, &mut values);
                    for (row, values) in (first..).zip(values.chunks(cols)) {
                        let (mut integers, mut runs) = (vec![0; cols], vec![]);
                        plain.integers(row, &mut integers);
                        plain.runs(row, &mut runs);
                        for (c, value) in values.iter().enumerate() {
                            let run = runs.iter().find(|run| c < run.end).unwrap();
                            let expected = (f32::from(integers[c]) - run.zero) * run.scale;
                            assert_eq!(value.to_bits(), expected.to_bits(), "{rows}×{cols} {row},{c}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn refilled_memory_is_what_was_packed_last() {
        let mut packed = Packed::empty();
        for (rows, cols, bits) in [(48, 128, 8), (16, 64, 4), (1, 5, 4), (33, 100, 8), (40, 20, 2)] {
            let x: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 + 13) % 257) as f32 - 128.0).collect();
            let of = super::super::integer::quantize_rows(&x, cols, bits, None);
            packed.refill(&of, bits <= 4);
            assert_eq!((packed.rows, packed.half), (rows, bits <= 4));
            for (row, codes) in of.codes.chunks(cols).enumerate() {
                let (mut integers, mut runs) = (vec![0; cols], vec![]);
                packed.integers(row, &mut integers);
                packed.runs(row, &mut runs);
                assert_eq!(integers, codes, "{rows}×{cols} row {row}");
                assert_eq!((runs.len(), runs[0].scale, runs[0].zero), (1, of.scales[row], 0.0));
            }
        }
    }

    #[test]
    fn groups_across_rows_stay_as_they_are() {
        struct Blocks;
        impl IntegerRows for Blocks {
            fn integers(&self, _: usize, to: &mut [i8]) {
                to.fill(1);
            }
            fn runs(&self, row: usize, to: &mut Vec<Run>) {
                let run = |end| Run { end, scale: 1.0, zero: 0.0 };
                to.extend(if row == 0 { [run(6), run(10)] } else { [run(2), run(10)] });
            }
        }
        assert!(Packed::new(2, 10, &Blocks).is_none());
        assert!(Packed::new(1, 10, &Blocks).is_some());
    }
}
