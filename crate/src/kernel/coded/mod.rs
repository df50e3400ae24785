//! A matrix of f32 or bf16 in fewer bits, with every bit of it: exponents as half bytes.
//!
//! Sign and mantissa of a weight are as good as random, but its exponent is not: nearly all weights of a row lie within a
//! factor of 2¹⁵ of its largest. So a row has a base, and a weight the distance of its exponent from it in 4 bits instead of
//! 8: a bf16 takes 12 bits, an f32 28. (Entropy codes of exponents, as in DFloat11, Zhang et al. 2025, arXiv:2504.11651, are
//! a bit shorter, but have to be read one after the other; these are looked up, 64 at once, while memory brings the next.)
//!
//! | file | holds |
//! |---|---|
//! | this one | the layout, the way there, and one weight back |
//! | `vectors` | rows back, and their products with few rows of x, as fast as memory gives the codes |
//!
//! The code 15 stands for the exponent field 0: zeros and subnormal numbers. What fits no code of its row is told apart, by
//! its column and its exponent.
//!
//! 128 neighbours of a row make a group, so many cache lines one behind the other: codes (half bytes, the first 64 weights in
//! the low halves), sign and upper mantissa of the first 64 weights, of the others, and for f32 the 16 bits below, 32 weights a
//! line. In a line the 64 (32) weights lie such that interleaving bytes (words) of two lines within 128 bits, as the
//! instructions do it, gives them in their order; the rest of a row is filled up with zeros.

mod vectors;

use super::kept::Kept;
use super::packed::Line;
use super::pages::large;
use super::round::fake_bf16;
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;
pub(super) use vectors::{Grouped, Rows};

/// Weights of a group.
const GROUP: usize = 128;
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
    /// The matrix [rows, cols] of these f32.
    ///
    /// # Panics
    /// If they are not so many, or a row has 2²⁴ or more.
    pub fn of_f32(rows: usize, cols: usize, values: &[f32]) -> Self {
        Self::new(rows, cols, true, values, |value| value.to_bits())
    }

    /// The matrix [rows, cols] of these bf16.
    ///
    /// # Panics
    /// As [`of_f32`](Self::of_f32).
    pub fn of_bf16(rows: usize, cols: usize, values: &[bf16]) -> Self {
        Self::new(rows, cols, false, values, |value| u32::from(value.to_bits()) << 16)
    }

    fn new<T: Sync>(rows: usize, cols: usize, single: bool, values: &[T], bits: fn(&T) -> u32) -> Self {
        assert!(values.len() == rows * cols && cols > 0 && cols < 1 << 24);
        let mut coded = Self {
            rows,
            cols,
            single,
            lines: vec![],
            bases: vec![0; rows],
            starts: vec![0],
            exceptions: vec![],
        };
        let row_lines = coded.row_lines();
        coded.lines = large(rows * row_lines);
        coded.lines.resize(rows * row_lines, Line([0; 64]));
        let parts = coded.lines.par_chunks_mut(row_lines).zip(&mut coded.bases).zip(values.par_chunks(cols));
        let exceptions: Vec<Vec<Exception>> = parts
            .map(|((lines, base), values)| {
                let row: Vec<u32> = values.iter().map(bits).collect();
                *base = best_base(&row);
                encode(&row, *base, single, lines)
            })
            .collect();
        for exceptions in exceptions {
            coded.exceptions.extend(exceptions);
            coded.starts.push(coded.exceptions.len() as u32);
        }
        coded.exceptions.push(Exception::NONE);
        coded
    }

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
        let whole = rest.is_empty() && (single || lines.len() == count * group_lines(false)) && count > 0;
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

/// The exponent field from which on downward 15 of them have codes, so that the fewest weights have none.
fn best_base(row: &[u32]) -> u8 {
    let mut counts = [0u32; 256];
    row.iter().for_each(|bits| counts[(bits >> 23 & 0xff) as usize] += 1);
    let with_code = |base: usize| counts[(base + 1).saturating_sub(15).max(1)..=base].iter().sum::<u32>();
    (1..=255u8).max_by_key(|base| with_code(usize::from(*base))).unwrap_or(255)
}

/// Writes the groups of a row of f32 bits, and gives what has no code.
fn encode(row: &[u32], base: u8, single: bool, lines: &mut [Line]) -> Vec<Exception> {
    let mut exceptions = vec![];
    for (g, (group, lines)) in row.chunks(GROUP).zip(lines.chunks_mut(group_lines(single))).enumerate() {
        // Beyond the end of the row: zeros.
        lines[0] = Line([NOUGHT << 4 | NOUGHT; 64]);
        for (i, bits) in group.iter().enumerate() {
            let Place { half, byte, line, word } = Place::of(i);
            let exponent = (bits >> 23) as u8;
            let code = match base.checked_sub(exponent) {
                _ if exponent == 0 => NOUGHT,
                Some(code) if code < NOUGHT => code,
                _ => {
                    exceptions.push(Exception(((g * GROUP + i) as u32) << 8 | u32::from(exponent)));
                    0
                }
            };
            let codes = &mut lines[0].0[byte];
            *codes = *codes & !(15 << (4 * half)) | code << (4 * half);
            lines[1 + half].0[byte] = (bits >> 24) as u8 & 0x80 | (bits >> 16) as u8 & 0x7f;
            if single {
                lines[3 + line].0[2 * word..][..2].copy_from_slice(&(*bits as u16).to_le_bytes());
            }
        }
    }
    exceptions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::linear::{Weight, forward};
    use crate::kernel::stream::FEW_ROWS;

    fn value(i: usize) -> f32 {
        let hashed = (i as u32).wrapping_mul(2_654_435_761);
        ((hashed >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.5f32.powi((hashed >> 3 & 7) as i32)
    }

    /// Values of every kind: of one size, of all sizes, zeros, subnormal ones, and what is no number.
    fn rows(cols: usize, seed: usize) -> Vec<f32> {
        let odd = [0.0, -0.0, 1e-39, -1e-44, 1e-20, 3e38, f32::MIN_POSITIVE, -1e-30];
        let kinds = [
            (0..cols).map(|i| value(i + seed)).collect::<Vec<_>>(),
            (0..cols).map(|i| if i % 29 == seed % 29 { odd[i % 8] } else { value(i + seed) }).collect(),
            (0..cols).map(|i| value(i) * 2.0f32.powi((i * 37 % 250) as i32 - 125)).collect(),
            vec![0.0; cols],
            (0..cols).map(|i| if i == cols / 2 { 1e30 } else { value(i + seed) * 1e-6 }).collect(),
        ];
        kinds.concat()
    }

    const COLS: [usize; 8] = [1, 31, 64, 127, 128, 129, 300, 768];

    #[test]
    fn every_bit_comes_back() {
        for cols in COLS {
            let mut values = rows(cols, 5);
            values[0] = f32::NEG_INFINITY;
            values[cols - 1] = f32::NAN;
            let narrow: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
            let widened: Vec<f32> = narrow.iter().map(|v| v.to_f32()).collect();
            let single = Coded::of_f32(5, cols, &values);
            for (coded, values) in [(&single, &values), (&Coded::of_bf16(5, cols, &narrow), &widened)] {
                let mut back = vec![9.0; values.len()];
                coded.widen(0, &mut back);
                for (i, value) in values.iter().enumerate() {
                    assert_eq!(back[i].to_bits(), value.to_bits(), "{cols} columns, weight {i}: {value}");
                    assert_eq!(coded.at(i / cols, i % cols).to_bits(), value.to_bits());
                }
                coded.widen(3, &mut back[..cols]);
                assert!(back[..cols].iter().all(|x| x.to_bits() == 0));
            }
            let coded = Coded::of_bf16(5, cols, &narrow);
            let mut back = vec![bf16::ONE; narrow.len()];
            coded.narrow(0, &mut back);
            assert!(back.iter().zip(&narrow).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    #[test]
    fn parts_are_put_together_again_or_refused() {
        let coded = Coded::of_f32(5, 300, &rows(300, 5));
        let (groups, bases, starts, exceptions) = coded.parts();
        let again = |groups: &[u8], bases: &[u8], starts: &[u32], exceptions: &[u32]| {
            Coded::from_parts(5, 300, groups, bases.to_vec(), starts.to_vec(), exceptions)
        };
        assert_eq!(again(groups, bases, starts, &exceptions).as_ref(), Some(&coded));
        let (mut late, mut far) = (starts.to_vec(), exceptions.clone());
        late[2] = late[5] + 1;
        far[exceptions.len() - 1] = 300 << 8;
        let turned: Vec<u32> = exceptions.iter().rev().copied().collect();
        for (case, wrong) in [
            again(&groups[64..], bases, starts, &exceptions),
            again(&groups[1..], bases, starts, &exceptions),
            again(groups, &bases[1..], starts, &exceptions),
            again(groups, bases, &late, &exceptions),
            again(groups, bases, starts, &exceptions[1..]),
            again(groups, bases, starts, &far),
            again(groups, bases, starts, &turned),
            Coded::from_parts(0, 300, &[], vec![], vec![0], &[]),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(wrong, None, "{case}");
        }
    }

    /// y = x Wᵀ of the coded matrix is that of the plain one, bit for bit, for few rows of x and for many.
    #[test]
    fn products_are_those_of_the_plain_matrix() {
        for cols in [32, 128, 160, 768] {
            let n = 5 * 9;
            let finite = |v: f32| if v.abs() < 1e20 { v } else { 1e20 };
            let w: Vec<f32> = (0..9).flat_map(|i| rows(cols, i)).map(finite).collect();
            let narrow: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
            let (single, half) = (Coded::of_f32(n, cols, &w), Coded::of_bf16(n, cols, &narrow));
            for m in [1, 2, FEW_ROWS, 5, 33, 70] {
                let x: Vec<f32> = (0..m * cols).map(|i| value(i + 77)).collect();
                let pairs = [
                    (Weight::Coded(&single), Weight::F32(&w)),
                    (Weight::Coded(&half), Weight::Bf16(&narrow)),
                ];
                for (coded, plain) in pairs {
                    let (mut found, mut expected) = (vec![f32::NAN; m * n], vec![0.0; m * n]);
                    forward(m, cols, n, &x, coded, &mut found);
                    forward(m, cols, n, &x, plain, &mut expected);
                    for (ij, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        assert_eq!(
                            found.to_bits(),
                            expected.to_bits(),
                            "{m}×{cols}, {ij}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }

    /// Sums of rows that are not cut into whole vectors differ by their order alone.
    #[test]
    fn products_of_odd_rows_are_the_definition() {
        for (m, k, n) in [(1, 1, 1), (1, 37, 70), (3, 129, 33), (4, 300, 5)] {
            let (x, w): (Vec<f32>, Vec<f32>) =
                ((0..m * k).map(value).collect(), (0..n * k).map(value).collect());
            let coded = Coded::of_f32(n, k, &w);
            let mut y = vec![f32::NAN; m * n];
            forward(m, k, n, &x, Weight::Coded(&coded), &mut y);
            for (ij, y) in y.iter().enumerate() {
                let (x, w) = (&x[ij / n * k..][..k], &w[ij % n * k..][..k]);
                let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((f64::from(*y) - expected).abs() < 1e-6, "{m}×{k}×{n} at {ij}: {y} not {expected}");
            }
        }
    }

    #[test]
    fn normal_weights_take_12_and_28_bits() {
        let (rows, cols) = (64, 768);
        let bell =
            |i: usize| (0..12).map(|j| value(12 * i + j).signum() * 0.5 + value(7 * i + j)).sum::<f32>();
        let values: Vec<f32> = (0..rows * cols).map(bell).collect();
        let narrow: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
        let bits = |coded: Coded| 8.0 * coded.bytes() as f64 / (rows * cols) as f64;
        let (single, half) =
            (bits(Coded::of_f32(rows, cols, &values)), bits(Coded::of_bf16(rows, cols, &narrow)));
        assert!((28.0..28.2).contains(&single) && (12.0..12.2).contains(&half), "{single}, {half}");
    }
}
