//! A matrix of f32 or bf16 in fewer bits, with every bit of it: exponents as half bytes.
//!
//! Sign and mantissa of a weight are as good as random, but its exponent is not: nearly all weights of a row lie within a
//! factor of 2¹⁵ of its largest. So a row has a base, and a weight the distance of its exponent from it in 4 bits instead of
//! 8: a bf16 takes 12 bits, an f32 28. (Entropy codes of exponents, as in DFloat11, Zhang et al. 2025, arXiv:2504.11651, are
//! a bit shorter, but have to be read one after the other; these are looked up, 64 at once, while memory brings the next.)
//!
//! | file | holds |
//! |---|---|
//! | this one | the layout, and the way back |
//! | `encode` | the way there |
//! | `vectors` | rows back |
//! | `dots` | products of rows with few rows of x, as fast as memory gives the codes |
//!
//! The code 15 stands for the exponent field 0: zeros and subnormal numbers. What fits no code of its row is told apart, by
//! its column and its exponent.
//!
//! 128 neighbours of a row make a group, so many cache lines one behind the other: codes (half bytes, the first 64 weights in
//! the low halves), sign and upper mantissa of the first 64 weights, of the others, and for f32 the 16 bits below, 32 weights a
//! line. In a line the 64 (32) weights lie such that interleaving bytes (words) of two lines within 128 bits, as the
//! instructions do it, gives them in their order; the rest of a row is filled up with zeros.

mod dots;
mod encode;
#[cfg(test)]
mod tests;
mod vectors;

use super::kept::Kept;
use super::line::Line;
use super::pages::large;
use super::round::fake_bf16;
pub(super) use dots::{Rows, Streamed};
use half::bf16;
use std::mem::MaybeUninit;
use std::ops::Range;
pub(super) use vectors::Grouped;

/// Weights of a group.
const GROUP: usize = 128;
/// Columns of a matrix are fewer: the group of [`Exception::NONE`] is none of its groups.
const MOST_COLS: usize = 1 << 23;
/// The code of the exponent field 0.
const NOUGHT: u8 = 15;
/// Bits of f32: its exponent field.
const EXPONENT: u32 = 0x7f80_0000;

/// A matrix [rows, cols] of f32, or of bf16.
#[derive(Clone, Debug, PartialEq)]
pub struct Coded {
    rows: usize,
    cols: usize,
    /// Whether it is of f32.
    single: bool,
    /// \[rows\]\[groups\]\[lines of a group\].
    lines: Vec<Line>,
    /// The exponent field with code 0, by row.
    bases: Vec<u8>,
    /// Where the exceptions of each row begin, and where the last ones end.
    starts: Vec<u32>,
    /// By row and column; behind them all, one that no row has.
    exceptions: Vec<Exception>,
}

/// A weight whose exponent has no code: its column times 256 plus its exponent field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exception(u32);

impl Exception {
    /// In a column that no matrix has.
    const NONE: Self = Self(u32::MAX);

    fn col(self) -> usize {
        (self.0 >> 8) as usize
    }

    /// Its exponent, as bits of an f32.
    fn bits(self) -> u32 {
        (self.0 & 0xff) << 23
    }

    /// The weight, of which all but the exponent is right.
    fn mend(self, value: f32) -> f32 {
        f32::from_bits(value.to_bits() & !EXPONENT | self.bits())
    }
}

/// Where a weight of a group lies.
struct Place {
    /// Its half of the group, and its byte in the lines of that half.
    half: usize,
    byte: usize,
    /// Its line and its word among those of the lower bits.
    line: usize,
    word: usize,
}

impl Place {
    fn of(weight: usize) -> Self {
        let (half, vector, lane, at) = (weight / 64, weight / 16 % 4, weight / 4 % 4, weight % 4);
        Self {
            half,
            byte: 16 * lane + 4 * vector + at,
            line: 2 * half + vector / 2,
            word: 8 * lane + 4 * (vector % 2) + at,
        }
    }
}

impl Coded {
    /// (rows, cols).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Whether it is of f32; else of bf16.
    pub fn is_f32(&self) -> bool {
        self.single
    }

    /// Bytes of it all.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
            + size_of_val(&*self.bases)
            + size_of_val(&*self.starts)
            + size_of_val(self.all_exceptions())
    }

    /// The bytes of the groups, the bases of the rows, where the exceptions of each row begin, and the exceptions: each a
    /// column times 256 plus an exponent field.
    pub fn parts(&self) -> (&[u8], &[u8], &[u32], Vec<u32>) {
        let exceptions = self.all_exceptions().iter().map(|exception| exception.0).collect();
        // SAFETY: lines are arrays of bytes, without gaps.
        let (_, bytes, _) = unsafe { self.lines.align_to::<u8>() };
        (bytes, &self.bases, &self.starts, exceptions)
    }

    /// The reverse; none if these are not the parts of a matrix [rows, cols].
    pub fn from_parts(
        rows: usize,
        cols: usize,
        groups: &[u8],
        bases: Vec<u8>,
        starts: Vec<u32>,
        exceptions: &[u32],
    ) -> Option<Self> {
        let (lines, rest) = groups.as_chunks::<64>();
        let count = rows * cols.div_ceil(GROUP);
        let single = lines.len() == count * group_lines(true);
        let whole = rest.is_empty()
            && cols < MOST_COLS
            && (single || lines.len() == count * group_lines(false))
            && count > 0;
        let mut all = large(lines.len());
        all.extend(lines.iter().map(|bytes| Line(*bytes)));
        let exceptions =
            exceptions.iter().map(|exception| Exception(*exception)).chain([Exception::NONE]).collect();
        let coded = Self { rows, cols, single, lines: all, bases, starts, exceptions };
        let rows_begin = coded.bases.len() == rows
            && coded.starts.len() == rows + 1
            && coded.starts.is_sorted()
            && coded.starts[0] == 0
            && coded.starts[rows] as usize + 1 == coded.exceptions.len();
        let in_order = |row: usize| {
            let exceptions = coded.exceptions_of(row);
            exceptions.is_sorted_by(|a, b| a.col() < b.col())
                && exceptions.last().is_none_or(|exception| exception.col() < cols)
        };
        (whole && rows_begin && (0..rows).all(in_order)).then_some(coded)
    }

    /// A weight.
    pub fn at(&self, row: usize, col: usize) -> f32 {
        let lines = &self.lines(row..row + 1)[col / GROUP * group_lines(self.single)..];
        let value = one(lines, self.exponents(row), self.single, col % GROUP);
        let exception = self.exceptions_of(row).iter().find(|exception| exception.col() == col);
        exception.map_or(value, |exception| exception.mend(value))
    }

    /// The rows from `first` on, as many as `to` has room for, in f32.
    pub fn widen(&self, first: usize, to: &mut [f32]) {
        self.decode(first, to, vectors::widen, Exception::mend);
    }

    /// The same of bf16, as such.
    pub(super) fn narrow(&self, first: usize, to: &mut [bf16]) {
        let mend = |exception: Exception, value: bf16| {
            bf16::from_bits((exception.mend(value.to_f32()).to_bits() >> 16) as u16)
        };
        self.decode(first, to, vectors::narrow, mend);
    }

    fn decode<T: Copy>(
        &self,
        first: usize,
        to: &mut [T],
        row: fn(&Self, usize, &mut [T]),
        mend: impl Fn(Exception, T) -> T,
    ) {
        assert!(to.len().is_multiple_of(self.cols) && first + to.len() / self.cols <= self.rows);
        for (at, to) in (first..).zip(to.chunks_mut(self.cols)) {
            row(self, at, to);
            for exception in self.exceptions_of(at) {
                to[exception.col()] = mend(*exception, to[exception.col()]);
            }
        }
    }

    /// The rows of `x` as products take them: of a bf16 matrix each value the nearest bf16, filled up to whole groups; none if
    /// they are as they should be.
    pub(super) fn factors(&self, x: &[f32]) -> Option<Kept<f32>> {
        let row = self.cols.next_multiple_of(GROUP);
        if self.single && row == self.cols {
            return None;
        }
        let fill = |places: &mut [MaybeUninit<f32>]| {
            for (x, to) in x.chunks(self.cols).zip(places.chunks_mut(row)) {
                to.fill(MaybeUninit::new(0.0));
                to[..x.len()].write_copy_of_slice(x);
            }
        };
        // SAFETY: all rows are written.
        let mut factors = unsafe { Kept::filled(x.len() / self.cols * row, fill) };
        if !self.single {
            fake_bf16(&mut factors);
        }
        Some(factors)
    }

    /// The cache lines of some rows.
    #[inline(always)]
    pub(super) fn lines(&self, rows: Range<usize>) -> &[Line] {
        &self.lines[rows.start * self.row_lines()..rows.end * self.row_lines()]
    }

    /// The exponent fields of the 16 codes in a row.
    #[inline(always)]
    fn exponents(&self, row: usize) -> [u8; 16] {
        let mut fields = [0; 16];
        for (code, field) in (0..NOUGHT).zip(&mut fields) {
            *field = self.bases[row].wrapping_sub(code);
        }
        fields
    }

    fn all_exceptions(&self) -> &[Exception] {
        &self.exceptions[..self.exceptions.len() - 1]
    }

    #[inline(always)]
    fn exceptions_of(&self, row: usize) -> &[Exception] {
        &self.exceptions[self.starts[row] as usize..self.starts[row + 1] as usize]
    }

    #[inline(always)]
    fn row_lines(&self) -> usize {
        self.cols.div_ceil(GROUP) * group_lines(self.single)
    }
}

/// A weight of a group, unless it is an exception.
#[inline(always)]
fn one(lines: &[Line], exponents: [u8; 16], single: bool, weight: usize) -> f32 {
    let Place { half, byte, line, word } = Place::of(weight);
    let exponent = exponents[usize::from(lines[0].0[byte] >> (4 * half) & 15)];
    let upper = u32::from(lines[1 + half].0[byte]);
    let mut bits = (upper & 0x80) << 24 | u32::from(exponent) << 23 | (upper & 0x7f) << 16;
    if single {
        let words = &lines[3 + line].0;
        bits |= u32::from(u16::from_le_bytes([words[2 * word], words[2 * word + 1]]));
    }
    f32::from_bits(bits)
}

/// Cache lines of a group.
const fn group_lines(single: bool) -> usize {
    if single { 7 } else { 3 }
}
