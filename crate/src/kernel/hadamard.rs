//! A randomized orthonormal rotation, y = (D ⊗ H) S x, that spreads what single channels hold over all of them.
//!
//! For vectors of d = m · 2^p values with m odd: S flips signs at random, H is the Walsh–Hadamard matrix of size 2^p
//! and D the DCT-II of size m, both normalized. This is the randomized Hadamard transform that QuaRot (Ashkboos et al.
//! 2024) rotates activations with, but for the odd part, where it needs a Hadamard matrix from a table: the cosine
//! transform is there for every m. It costs m products for each value, which suits a small m such as the 3 of 768.
//! A channel alone reaches any output by no more than √(2/d) of its value.
//!
//! All sums are plain sums of products in a fixed order, nothing is fused: every instruction set gives the same bits.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 16;

/// An orthonormal matrix R of size d, known by the signs of S. A weight that reads x reads R x when its rows are
/// rotated too: (R w) · (R x) = w · x.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// The diagonal of S times the norm of H, ±2^(−p/2).
    signs: Vec<f32>,
    /// D, [m, m].
    odd: Vec<f32>,
}

impl Rotation {
    /// The rotation of vectors of `signs.len()` values; of each sign only whether it is negative counts.
    pub fn new(mut signs: Vec<f32>) -> Self {
        let d = signs.len();
        let power = (d & d.wrapping_neg()).max(1);
        let m = d / power;
        let norm = (power as f64).sqrt().recip() as f32;
        signs.iter_mut().for_each(|sign| *sign = norm.copysign(*sign));
        let cosine = |i: usize, j: usize| {
            let angle = std::f64::consts::PI * (i * (2 * j + 1)) as f64 / (2 * m) as f64;
            let norm = if i == 0 { 1.0 } else { 2.0 } / m as f64;
            (norm.sqrt() * angle.cos()) as f32
        };
        let odd = (0..m * m).map(|ij| cosine(ij / m, ij % m)).collect();
        Self { signs, odd }
    }

    /// The length d of the vectors.
    pub fn size(&self) -> usize {
        self.signs.len()
    }

    /// y = R x for every row of `rows` [_, d], in place.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn apply(&self, rows: &mut [f32]) {
        self.each_block(rows, |rows| turn(rows, &self.signs, &self.odd, false));
    }

    /// x = Rᵀ y for every row of `rows` [_, d], in place: undoes [`Self::apply`].
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn apply_transposed(&self, rows: &mut [f32]) {
        self.each_block(rows, |rows| turn(rows, &self.signs, &self.odd, true));
    }

    fn each_block(&self, rows: &mut [f32], run: impl Fn(&mut [f32]) + Sync + Send) {
        assert!(rows.len().is_multiple_of(self.size()), "not whole rows of {}", self.size());
        let block = ROWS * self.size();
        if rows.len() <= block {
            run(rows);
        } else {
            rows.par_chunks_mut(block).for_each(run);
        }
    }
}

dispatch! { fn turn(rows: &mut [f32], signs: &[f32], odd: &[f32], back: bool) = turn_body; }

#[expect(
    clippy::extra_unused_type_parameters,
    reason = "loops over slices: the compiler has the level's lanes"
)]
#[inline(always)]
fn turn_body<V: Lanes>(rows: &mut [f32], signs: &[f32], odd: &[f32], back: bool) {
    let m = odd.len().isqrt();
    let mut mixed = vec![0.0; signs.len()];
    for row in rows.chunks_exact_mut(signs.len().max(1)) {
        if !back {
            flip(row, signs);
        }
        for segment in row.chunks_exact_mut(signs.len() / m) {
            walsh(segment);
        }
        mix(row, odd, if back { (1, m) } else { (m, 1) }, &mut mixed);
        if back {
            flip(row, signs);
        }
    }
}

#[inline(always)]
fn flip(row: &mut [f32], signs: &[f32]) {
    for (x, sign) in row.iter_mut().zip(signs) {
        *x *= sign;
    }
}

/// The butterflies of H, not normalized. Their length is a power of two.
#[inline(always)]
fn walsh(x: &mut [f32]) {
    let mut half = 1;
    let (vectors, _) = x.as_chunks_mut::<16>();
    for vector in vectors {
        *vector = within::<8>(within::<4>(within::<2>(within::<1>(*vector))));
        half = 16;
    }
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        half *= 2;
    }
}

/// One level among neighbours, written as the shuffle and the sum that it is in registers.
#[inline(always)]
fn within<const HALF: usize>(x: [f32; 16]) -> [f32; 16] {
    let mut y = x;
    for i in 0..16 {
        y[i] = x[i ^ HALF] + if i & HALF == 0 { x[i] } else { -x[i] };
    }
    y
}

/// Segment i of the row becomes Σ_j D[i, j] · segment j, with D by its (row, column) strides.
#[inline(always)]
fn mix(row: &mut [f32], odd: &[f32], (odd_row, odd_col): (usize, usize), mixed: &mut [f32]) {
    let m = odd.len().isqrt();
    if m == 1 {
        return;
    }
    let segment = row.len() / m;
    mixed.fill(0.0);
    for (i, to) in mixed.chunks_exact_mut(segment).enumerate() {
        for (j, from) in row.chunks_exact(segment).enumerate() {
            let factor = odd[i * odd_row + j * odd_col];
            for (to, from) in to.iter_mut().zip(from) {
                *to += factor * from;
            }
        }
    }
    row.copy_from_slice(mixed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 10] = [1, 2, 3, 4, 12, 64, 96, 256, 768, 1536];

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 7919 + 13) % 257) as f32 / 128.0 - 1.0).collect()
    }

    fn rotation(d: usize) -> Rotation {
        Rotation::new(values(d, 3))
    }

    /// (D ⊗ H) S by the definitions of its parts, in f64.
    fn definition(d: usize) -> Vec<f64> {
        let power = 1 << d.trailing_zeros();
        let m = d / power;
        let entry = |i: usize, j: usize| {
            let (a, b) = ((i / power) as f64, (j / power) as f64);
            let cosine = (std::f64::consts::PI * a * (b + 0.5) / m as f64).cos();
            let norm = if i < power { 1.0 } else { 2.0 } / m as f64;
            let parity = if ((i % power) & (j % power)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let sign = if values(d, 3)[j] < 0.0 { -1.0 } else { 1.0 };
            norm.sqrt() * cosine * parity / (power as f64).sqrt() * sign
        };
        (0..d * d).map(|ij| entry(ij / d, ij % d)).collect()
    }

    #[test]
    fn rows_are_multiplied_by_the_matrix_of_the_definition() {
        for d in SIZES.into_iter().filter(|d| *d <= 256) {
            let (matrix, rotation, x) = (definition(d), rotation(d), values(3 * d, 1));
            let mut y = x.clone();
            rotation.apply(&mut y);
            for (x, y) in x.chunks(d).zip(y.chunks(d)) {
                for (row, y) in matrix.chunks(d).zip(y) {
                    let expected: f64 = row.iter().zip(x).map(|(r, x)| r * f64::from(*x)).sum();
                    assert!((f64::from(*y) - expected).abs() < 1e-5, "{d}: {y} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn lengths_stay_and_the_transpose_is_the_inverse() {
        let norm = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        for d in SIZES {
            let (rotation, x) = (rotation(d), values(40 * d, 2));
            let mut y = x.clone();
            rotation.apply(&mut y);
            for (x, y) in x.chunks(d).zip(y.chunks(d)) {
                assert!((norm(x) - norm(y)).abs() < 1e-5 * norm(x), "{d}");
            }
            rotation.apply_transposed(&mut y);
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 3e-6), "{d}");
        }
    }

    #[test]
    fn one_channel_spreads_over_all() {
        for d in SIZES {
            let bound = (2.0 / d as f32).sqrt() + 1e-6;
            for hot in [0, d / 3, d - 1] {
                let mut y = vec![0.0; d];
                y[hot] = 1.0;
                rotation(d).apply(&mut y);
                assert!(y.iter().all(|y| y.abs() <= bound), "{d} {hot}");
            }
        }
    }

    #[test]
    fn every_level_and_number_of_threads_gives_the_same_bits() {
        for d in SIZES {
            let rotation = rotation(d);
            let x = values(40 * d, 5);
            let (mut whole, mut portable) = (x.clone(), x.clone());
            rotation.apply(&mut whole);
            turn_body::<[f32; 8]>(&mut portable, &rotation.signs, &rotation.odd, false);
            assert_eq!(whole, portable);
            let mut single = x;
            single.chunks_mut(d).for_each(|row| rotation.apply(row));
            assert_eq!(whole, single);
            rotation.apply_transposed(&mut whole);
            turn_body::<[f32; 8]>(&mut portable, &rotation.signs, &rotation.odd, true);
            assert_eq!(whole, portable);
        }
    }

    #[test]
    fn nothing_is_rotated_to_nothing() {
        rotation(0).apply(&mut []);
        rotation(4).apply_transposed(&mut []);
    }
}
