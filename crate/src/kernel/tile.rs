//! Small matrix products, C += A B, for the chunks of the scan: operands stay in cache, A is read by any stride.

use super::simd::{Lanes, dispatch};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A read-only matrix inside a slice: element (i, j) lies at `i * row + j * col`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The data from element (0, 0) on.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows start `row` values apart.
    pub fn rows(data: &'a [f32], row: usize) -> Self {
        Self { data, row, col: 1 }
    }

    /// Whether the data has so many rows and columns.
    pub fn reaches(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || self.data.len() > (rows - 1) * self.row + (cols - 1) * self.col
    }

    /// The transpose of a row-major matrix whose rows start `row` values apart.
    pub fn transposed(data: &'a [f32], row: usize) -> Self {
        Self { data, row: 1, col: row }
    }
}

dispatch! {
    /// C[m, n] += A[m, k] B[k, n]; rows of B start `b_row` apart, rows of C `c_row` apart.
    pub fn matmul_add(m: usize, k: usize, n: usize, a: View<'_>, b: &[f32], b_row: usize, c: &mut [f32], c_row: usize) = body;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn body<V: Lanes>(
    m: usize,
    k: usize,
    n: usize,
    a: View<'_>,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    if m == 0 || k == 0 {
        return;
    }
    let mut j = 0;
    // 6 × 4 vectors of accumulators fit the 32 registers of AVX-512, 6 × 2 the 16 of AVX2; fewer than 8 wait for one another.
    while V::N > 8 && j + 4 * V::N <= n {
        column::<V, 4>(m, k, a, &b[j..], b_row, &mut c[j..], c_row);
        j += 4 * V::N;
    }
    while j + 2 * V::N <= n {
        column::<V, 2>(m, k, a, &b[j..], b_row, &mut c[j..], c_row);
        j += 2 * V::N;
    }
    while j + V::N <= n {
        column::<V, 1>(m, k, a, &b[j..], b_row, &mut c[j..], c_row);
        j += V::N;
    }
    for i in 0..m {
        for j in j..n {
            let mut sum = 0.0;
            for p in 0..k {
                sum += a.data[i * a.row + p * a.col] * b[p * b_row + j];
            }
            c[i * c_row + j] += sum;
        }
    }
}

#[inline(always)]
fn column<V: Lanes, const NV: usize>(
    m: usize,
    k: usize,
    a: View<'_>,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    let mut i = 0;
    while i + 6 <= m {
        block::<V, 6, NV>(i, k, a, b, b_row, c, c_row);
        i += 6;
    }
    while i + 2 <= m {
        block::<V, 2, NV>(i, k, a, b, b_row, c, c_row);
        i += 2;
    }
    if i < m {
        block::<V, 1, NV>(i, k, a, b, b_row, c, c_row);
    }
}

#[inline(always)]
fn block<V: Lanes, const MR: usize, const NV: usize>(
    i: usize,
    k: usize,
    a: View<'_>,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    // One check for the whole block instead of one for every element.
    assert!(a.data.len() > (i + MR - 1) * a.row + (k - 1) * a.col);
    assert!(b.len() >= (k - 1) * b_row + NV * V::N);
    let mut sums = [[V::splat(0.0); NV]; MR];
    for p in 0..k {
        let mut b_vectors = [V::splat(0.0); NV];
        for (v, vector) in b_vectors.iter_mut().enumerate() {
            // SAFETY: the assertions above cover every index of the loop.
            *vector = V::load(unsafe { b.get_unchecked(p * b_row + v * V::N..p * b_row + (v + 1) * V::N) });
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let factor = V::splat(unsafe { *a.data.get_unchecked((i + r) * a.row + p * a.col) });
            for (sum, b_vector) in sums.iter_mut().zip(b_vectors) {
                *sum = factor.fma(b_vector, *sum);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            let c = &mut c[(i + r) * c_row + v * V::N..][..V::N];
            V::load(c).add(sum).store(c);
        }
    }
}

/// Writes the transpose of the row-major `from` [rows, cols] to `to` [cols, rows], by the distances of their rows.
pub fn transpose(rows: usize, cols: usize, from: &[f32], from_row: usize, to: &mut [f32], to_row: usize) {
    #[cfg(target_arch = "x86_64")]
    if super::simd::level() == super::simd::Level::Avx512 {
        // SAFETY: the processor has the instructions.
        return unsafe { transpose_avx512(rows, cols, from, from_row, to, to_row) };
    }
    #[cfg(target_arch = "x86_64")]
    if super::simd::level() == super::simd::Level::Avx2 {
        // SAFETY: the processor has the instructions.
        return unsafe { transpose_avx2(rows, cols, from, from_row, to, to_row) };
    }
    // 16 × 16 blocks keep both sides in the first-level cache.
    for r0 in (0..rows).step_by(16) {
        for c0 in (0..cols).step_by(16) {
            for r in r0..rows.min(r0 + 16) {
                for c in c0..cols.min(c0 + 16) {
                    to[c * to_row + r] = from[r * from_row + c];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn transpose_avx2(rows: usize, cols: usize, from: &[f32], from_row: usize, to: &mut [f32], to_row: usize) {
    for c in (0..cols).step_by(8) {
        for r in (0..rows).step_by(8) {
            let (height, width) = (8.min(rows - r), 8.min(cols - c));
            if height < 8 || width < 8 {
                for r in r..r + height {
                    for c in c..c + width {
                        to[c * to_row + r] = from[r * from_row + c];
                    }
                }
                continue;
            }
            let mut block = [_mm256_setzero_ps(); 8];
            for (i, block) in block.iter_mut().enumerate() {
                let from = &from[(r + i) * from_row + c..][..8];
                // SAFETY: eight values.
                *block = unsafe { _mm256_loadu_ps(from.as_ptr()) };
            }
            for (i, row) in transposed_8(block).iter().enumerate() {
                let to = &mut to[(c + i) * to_row + r..][..8];
                // SAFETY: as above.
                unsafe { _mm256_storeu_ps(to.as_mut_ptr(), *row) };
            }
        }
    }
}

/// The transpose of 8 × 8 values.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transposed_8(r: [__m256; 8]) -> [__m256; 8] {
    let zero = _mm256_setzero_ps();
    let (mut t, mut u, mut out) = ([zero; 8], [zero; 8], [zero; 8]);
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // u[4 i + j] holds in its half q the rows 4 i … 4 i + 3 of column 4 q + j.
    for i in 0..2 {
        for j in 0..2 {
            let (a, b) = (_mm256_castps_pd(t[4 * i + j]), _mm256_castps_pd(t[4 * i + 2 + j]));
            u[4 * i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            u[4 * i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    }
    for j in 0..4 {
        out[j] = _mm256_permute2f128_ps::<0x20>(u[j], u[4 + j]);
        out[4 + j] = _mm256_permute2f128_ps::<0x31>(u[j], u[4 + j]);
    }
    out
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn transpose_avx512(rows: usize, cols: usize, from: &[f32], from_row: usize, to: &mut [f32], to_row: usize) {
    let mask = |count: usize| ((1u32 << count) - 1) as u16;
    for r in (0..rows).step_by(16) {
        for c in (0..cols).step_by(16) {
            let (height, width) = (16.min(rows - r), 16.min(cols - c));
            let mut block = [_mm512_setzero_ps(); 16];
            for (i, block) in block[..height].iter_mut().enumerate() {
                let from = &from[(r + i) * from_row + c..][..width];
                // SAFETY: the mask ends with the slice.
                *block = unsafe { _mm512_maskz_loadu_ps(mask(width), from.as_ptr()) };
            }
            for (i, row) in transposed_16(block)[..width].iter().enumerate() {
                let to = &mut to[(c + i) * to_row + r..][..height];
                // SAFETY: as above.
                unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask(height), *row) };
            }
        }
    }
}

/// The transpose of 16 × 16 values.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed_16(r: [__m512; 16]) -> [__m512; 16] {
    let zero = _mm512_setzero_ps();
    let (mut t, mut u, mut out) = ([zero; 16], [zero; 16], [zero; 16]);
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // u[4 i + j] holds in its quarter q the rows 4 i … 4 i + 3 of column 4 q + j.
    for i in 0..4 {
        for j in 0..2 {
            let (a, b) = (_mm512_castps_pd(t[4 * i + j]), _mm512_castps_pd(t[4 * i + 2 + j]));
            u[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            u[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    for j in 0..4 {
        let even =
            (_mm512_shuffle_f32x4::<0x88>(u[j], u[4 + j]), _mm512_shuffle_f32x4::<0x88>(u[8 + j], u[12 + j]));
        let odd =
            (_mm512_shuffle_f32x4::<0xdd>(u[j], u[4 + j]), _mm512_shuffle_f32x4::<0xdd>(u[8 + j], u[12 + j]));
        out[j] = _mm512_shuffle_f32x4::<0x88>(even.0, even.1);
        out[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd.0, odd.1);
        out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even.0, even.1);
        out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd.0, odd.1);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_transpose_keeps_to_its_place() {
        for (rows, cols, from_row, to_row) in
            [(1, 1, 1, 1), (16, 16, 16, 20), (5, 33, 40, 7), (47, 18, 18, 50)]
        {
            let from: Vec<f32> = (0..rows * from_row).map(|i| i as f32).collect();
            let mut to = vec![-1.0; cols * to_row];
            transpose(rows, cols, &from, from_row, &mut to, to_row);
            for (at, value) in to.iter().enumerate() {
                let (c, r) = (at / to_row, at % to_row);
                assert_eq!(*value, if r < rows { from[r * from_row + c] } else { -1.0 });
            }
        }
    }

    proptest! {
        #[test]
        fn matmul_add_is_the_triple_loop(m in 0usize..20, k in 0usize..20, n in 0usize..150, turned: bool) {
            let value = |i: usize| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0;
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(|i| value(i + 5)).collect();
            let mut c: Vec<f32> = (0..m * n).map(|i| value(i + 9)).collect();
            let expected: Vec<f32> = (0..m * n).map(|ij| {
                let (i, j) = (ij / n, ij % n);
                c[ij] + (0..k).map(|p| a[if turned { p * m + i } else { i * k + p }] * b[p * n + j]).sum::<f32>()
            }).collect();
            let view = if turned { View::transposed(&a, m) } else { View::rows(&a, k) };
            let mut portable = c.clone();
            body::<[f32; 8]>(m, k, n, view, &b, n, &mut portable, n);
            matmul_add(m, k, n, view, &b, n, &mut c, n);
            for ((c, p), e) in c.iter().zip(&portable).zip(&expected) {
                prop_assert!((c - e).abs() < 1e-4 && (p - e).abs() < 1e-4);
            }
        }
    }
}
