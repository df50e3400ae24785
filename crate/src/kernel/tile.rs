//! Small matrix products, C += A B, for the chunks of the scan: operands stay in cache, A is read by any stride.

use super::simd::{Lanes, dispatch};

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
    // 6 × 4 vectors of accumulators fit the 32 registers of AVX-512; AVX2 spills a little and still wins.
    while j + 4 * V::N <= n {
        column::<V, 4>(m, k, a, &b[j..], b_row, &mut c[j..], c_row);
        j += 4 * V::N;
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

/// Writes the transpose of the row-major `from` [rows, cols] (rows `from_row` apart) to `to` [cols, rows].
pub fn transpose(rows: usize, cols: usize, from: &[f32], from_row: usize, to: &mut [f32]) {
    // 16 × 16 blocks keep both sides in the first-level cache.
    for r0 in (0..rows).step_by(16) {
        for c0 in (0..cols).step_by(16) {
            for r in r0..rows.min(r0 + 16) {
                for c in c0..cols.min(c0 + 16) {
                    to[c * rows + r] = from[r * from_row + c];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
