//! Activations rounded to integers, and their products with integer weights, exact in i32.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Weight rows of one task.
const ROWS: usize = 8;

/// Rows of activations as integers: x ≈ code · scale.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Integers {
    /// [m, k].
    pub codes: Vec<i8>,
    /// `[m]`.
    pub scales: Vec<f32>,
    /// Length of a row.
    pub k: usize,
}

/// The rows of x [m, k] as [`Integers::round`] leaves them.
pub fn quantize_rows(x: &[f32], k: usize, bits: u8, fixed: Option<f32>) -> Integers {
    let mut integers = Integers::default();
    integers.round(x, k, bits, fixed);
    integers
}

impl Integers {
    /// Rounds every row of x [m, k] to integers −top … top, top = 2^(bits−1) − 1, to even: with the scale |row|_max / top, or
    /// with a fixed one, beyond whose range values are clipped. What was here before is overwritten.
    ///
    /// No integer stands for NaN or an infinity: a row that holds one has a scale that is not finite, and every product
    /// with it is NaN.
    pub fn round(&mut self, x: &[f32], k: usize, bits: u8, fixed: Option<f32>) {
        let Self { codes, scales, k: width } = self;
        *width = k;
        codes.resize(x.len(), 0);
        scales.resize(x.len() / k, 0.0);
        let top = ((1i32 << (bits - 1)) - 1) as f32;
        let rows = codes.par_chunks_mut(k).zip(x.par_chunks(k)).zip(scales.par_iter_mut());
        rows.with_min_len(16).for_each(|((codes, x), scale)| {
            let largest = absmax(x);
            *scale = match fixed {
                Some(fixed) if largest < f32::INFINITY => fixed,
                Some(_) => f32::NAN,
                None => largest / top,
            };
            round_row(x, *scale, top, codes);
        });
    }

    /// [`round`](Self::round) with one scale for every `rows` rows, |block|_max / top, on the calling thread.
    pub(super) fn round_blocks(&mut self, x: &[f32], k: usize, bits: u8, rows: usize) {
        let Self { codes, scales, k: width } = self;
        *width = k;
        codes.resize(x.len(), 0);
        scales.resize(x.len() / k, 0.0);
        let (top, size) = (((1i32 << (bits - 1)) - 1) as f32, rows * k);
        for ((codes, x), scales) in codes.chunks_mut(size).zip(x.chunks(size)).zip(scales.chunks_mut(rows)) {
            let scale = absmax(x) / top;
            round_row(x, scale, top, codes);
            scales.fill(scale);
        }
    }

    /// What the integers stand for, [m, k].
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.codes.len()];
        let rows = values.par_chunks_mut(self.k).zip(self.codes.par_chunks(self.k)).zip(&self.scales);
        rows.with_min_len(16).for_each(|((values, codes), scale)| {
            for (value, code) in values.iter_mut().zip(codes) {
                *value = f32::from(*code) * scale;
            }
        });
        values
    }
}

/// The part of a row of weights that ends before column `end`: weight = (integer − zero) · scale.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// One past the last column.
    pub end: usize,
    /// Scale of the integers.
    pub scale: f32,
    /// Subtracted from each.
    pub zero: f32,
}

/// A matrix [n, k] of integers with the scales of its runs.
pub trait IntegerRows: Sync {
    /// The integers of row `j`.
    fn integers(&self, j: usize, to: &mut [i8]);
    /// The runs of row `j`, in order.
    fn runs(&self, j: usize, to: &mut Vec<Run>);
    /// Between which two all integers lie.
    fn range(&self) -> (i8, i8) {
        (i8::MIN, i8::MAX)
    }
}

/// y = x Wᵀ [m, n], overwritten: in every run an exact sum of integer products, times the two scales in f32, added up
/// from the first run to the last.
pub fn forward(x: &Integers, n: usize, w: &impl IntegerRows, y: &mut [f32]) {
    let (k, m) = (x.k, x.scales.len());
    let out = super::Scatter::new(y);
    let block = |first: usize| {
        let count = ROWS.min(n - first);
        let (mut row, mut runs) = (vec![0; k], Vec::new());
        for j in first..first + count {
            w.integers(j, &mut row);
            runs.clear();
            w.runs(j, &mut runs);
            for (i, scale) in x.scales.iter().enumerate() {
                let sum = row_sum(&x.codes[i * k..(i + 1) * k], &row, &runs);
                // SAFETY: task `first` owns columns first .. first + count of every row.
                let y = unsafe { out.slice(i * n + j, 1) };
                y[0] = sum * scale;
            }
        }
    };
    if m * n * k < 1 << 16 {
        (0..n.div_ceil(ROWS)).for_each(|i| block(i * ROWS));
    } else {
        (0..n.div_ceil(ROWS)).into_par_iter().for_each(|i| block(i * ROWS));
    }
}

/// Σ over the runs of scale · (Σ x·w − zero · Σ x).
fn row_sum(x: &[i8], w: &[i8], runs: &[Run]) -> f32 {
    let (mut sum, mut start) = (0.0, 0);
    for run in runs {
        let (x, w) = (&x[start..run.end], &w[start..run.end]);
        let mut dot = dot(x, w) as f32;
        if run.zero != 0.0 {
            dot -= run.zero * total(x) as f32;
        }
        sum += dot * run.scale;
        start = run.end;
    }
    sum
}

dispatch! {
    /// Σ a·b of integers of 8 bits, exact for up to 2^17 of them.
    pub fn dot(a: &[i8], b: &[i8]) -> i32 = dot_body;
}
dispatch! { pub(super) fn total(a: &[i8]) -> i32 = total_body; }
dispatch! {
    /// The largest magnitude; NaN if a value is NaN or an infinity.
    pub(super) fn absmax(x: &[f32]) -> f32 = absmax_body;
}
dispatch! { fn round_row(x: &[f32], scale: f32, top: f32, codes: &mut [i8]) = round_row_body; }

// The compiler vectorizes these loops for the instruction set that they are dispatched to.

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn dot_body<V: Lanes>(a: &[i8], b: &[i8]) -> i32 {
    let mut sum = 0;
    for (a, b) in a.iter().zip(b) {
        sum += i32::from(*a) * i32::from(*b);
    }
    sum
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn total_body<V: Lanes>(a: &[i8]) -> i32 {
    let mut sum = 0;
    for a in a {
        sum += i32::from(*a);
    }
    sum
}

#[inline(always)]
fn absmax_body<V: Lanes>(x: &[f32]) -> f32 {
    let zero = V::splat(0.0);
    // A maximum passes over NaN; a product with zero that is none tells of it.
    let (mut tops, mut odd) = ([zero; 4], zero);
    let mut meet = |top: &mut V, x: V| (*top, odd) = (x.abs().max(*top), x.fma(zero, odd));
    let mut rest = x;
    while let Some((four, after)) = rest.split_at_checked(4 * V::N) {
        for (top, x) in tops.iter_mut().zip(four.chunks_exact(V::N)) {
            meet(top, V::load(x));
        }
        rest = after;
    }
    let vectors = rest.chunks_exact(V::N);
    let last = vectors.remainder();
    vectors.for_each(|x| meet(&mut tops[0], V::load(x)));
    if !last.is_empty() {
        meet(&mut tops[1], V::load_part(last));
    }
    let [a, b, c, d] = tops;
    // Zero, unless a value was no number or an infinity.
    odd.sum() + a.max(b).max(c.max(d)).largest()
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn round_row_body<V: Lanes>(x: &[f32], scale: f32, top: f32, codes: &mut [i8]) {
    // A row of zeros has scale 0; dividing by infinity keeps its zeros.
    let divisor = if scale > 0.0 { scale } else { f32::INFINITY };
    for (x, code) in x.iter().zip(codes) {
        let q = (x / divisor).clamp(-top, top);
        // Adding 1.5 · 2^23 rounds to even, and leaves the integer in the low bits.
        *code = (q + 12_582_912.0).to_bits() as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 7919 + 13) % 257) as f32 / 128.0 - 1.0).collect()
    }

    struct Plain<'a>(&'a [i8], usize, usize);

    impl IntegerRows for Plain<'_> {
        fn integers(&self, j: usize, to: &mut [i8]) {
            to.copy_from_slice(&self.0[j * self.1..][..self.1]);
        }
        fn runs(&self, j: usize, to: &mut Vec<Run>) {
            let ends = (0..self.1).step_by(self.2).map(|start| (start + self.2).min(self.1));
            to.extend(ends.enumerate().map(|(i, end)| Run {
                end,
                scale: 0.5 + (i + j) as f32,
                zero: j as f32,
            }));
        }
    }

    #[test]
    fn rounding_is_to_even_and_held_to_the_range() {
        let rounded = quantize_rows(&[0.5, 1.5, 2.5, -0.5, -3.5, 127.0], 6, 8, None);
        assert_eq!(rounded.codes, [0, 2, 2, 0, -4, 127]);
        assert_eq!(rounded.scales, [1.0]);
        let clipped = quantize_rows(&[9.0, -9.0, 0.26], 3, 3, Some(0.5));
        assert_eq!(clipped.codes, [3, -3, 1]);
        assert_eq!(clipped.values(), [1.5, -1.5, 0.5]);
        assert_eq!(quantize_rows(&[0.0; 5], 5, 4, None).values(), [0.0; 5]);
    }

    /// Rows of numbers with one value in `odd` ones that is none: whatever rounds them, no number comes out.
    #[test]
    fn what_is_not_finite_is_never_an_integer() {
        for k in [1, 7, 16, 37, 256] {
            for odd in [f32::NAN, -f32::NAN, f32::from_bits(u32::MAX), f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, k / 2, k - 1] {
                    let mut x = noise(2 * k, 3);
                    x[at] = odd;
                    for fixed in [None, Some(0.01)] {
                        let rounded = quantize_rows(&x, k, 8, fixed);
                        let (values, w) =
                            (rounded.values(), quantize_rows(&noise(5 * k, 2), k, 8, None).codes);
                        let mut y = vec![0.0; 2 * 5];
                        forward(&rounded, 5, &Plain(&w, k, 16), &mut y);
                        let [values, y] = [values.split_at(k), y.split_at(5)];
                        assert!(
                            values.0.iter().chain(y.0).all(|x| x.is_nan()),
                            "{odd} at {at} of {k}, {fixed:?}"
                        );
                        assert!(values.1.iter().chain(y.1).all(|x| x.is_finite()), "the other row");
                    }
                }
            }
            let all = quantize_rows(&vec![f32::INFINITY; k], k, 8, None).values();
            assert!(all.iter().all(|x| x.is_nan()));
            for run in [absmax, absmax_body::<[f32; 8]>] {
                let x = noise(k, 5);
                assert_eq!(run(&x), x.iter().fold(0.0, |top: f32, x| top.max(x.abs())));
                assert!(run(&[x, vec![f32::NAN]].concat()).is_nan());
            }
        }
    }

    #[test]
    fn products_are_exact_sums_at_odd_sizes() {
        for (m, k, n, run) in [(1, 1, 1, 1), (1, 37, 70, 16), (3, 64, 33, 64), (17, 300, 9, 128)] {
            let x = quantize_rows(&noise(m * k, 1), k, 8, None);
            let w = quantize_rows(&noise(n * k, 2), k, 8, None).codes;
            let (w, mut y) = (Plain(&w, k, run), vec![0.0; m * n]);
            forward(&x, n, &w, &mut y);
            for (ij, y) in y.iter().enumerate() {
                let (i, j) = (ij / n, ij % n);
                let (mut runs, mut row) = (vec![], vec![0; k]);
                w.runs(j, &mut runs);
                w.integers(j, &mut row);
                let (mut expected, mut start) = (0.0f32, 0);
                for run in runs {
                    let columns = start..run.end;
                    let codes = |c: usize| i64::from(x.codes[i * k + c]);
                    let dot: i64 = columns.clone().map(|c| codes(c) * i64::from(row[c])).sum();
                    let sum: i64 = columns.map(codes).sum();
                    expected += (dot as f32 - run.zero * sum as f32) * run.scale;
                    start = run.end;
                }
                assert_eq!(*y, expected * x.scales[i], "{m}×{k}×{n} at {i},{j}");
            }
        }
    }
}
