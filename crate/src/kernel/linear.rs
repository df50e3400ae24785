//! Y[m, n] = X[m, k] W[n, k]ᵀ with W in f32, bf16, f16 or decoded on the way, always summed in f32; and the gradients for
//! training.
//!
//! With bf16 weights the X of a product is bf16 too, each value the nearest, as in every other implementation of such
//! models and in the instructions themselves.
//!
//! Few rows (decoding) read every weight once, as fast as memory gives them: `stream`. Many rows (prefill, training) go to
//! the matrix unit as `split` into bf16 terms; where there is none, to `vectors` of AVX-512, or as `floats` to those of AVX2.
//! The rest are the crate `gemm`'s, and narrow weights are widened a panel at a time.

use super::round::all_nearest_bf16;
use super::stream::{self, FEW_ROWS};
use super::tile::View;
pub use super::weight::{Weight, widen};
use rayon::prelude::*;

/// From this many rows on it pays to split weights that are not bf16 into terms.
#[cfg(target_arch = "x86_64")]
const MANY_ROWS: usize = 64;
/// From this many rows on blocks of 32 are filled well enough.
#[cfg(target_arch = "x86_64")]
const SOME_ROWS: usize = 24;
/// Weight rows widened at a time.
const PANEL_ROWS: usize = 1024;
/// Weight rows that a task widens.
const TASK_ROWS: usize = 32;

/// y = x Wᵀ: `x` [m, k], `w` [n, k], `y` [m, n], overwritten.
pub fn forward(m: usize, k: usize, n: usize, x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    if m == 0 || n == 0 {
        return;
    }
    if m <= FEW_ROWS {
        return stream::forward(m, k, n, x, w, y);
    }
    #[cfg(target_arch = "x86_64")]
    if super::amx::has_bf16() && (m >= MANY_ROWS || w.is_bf16()) {
        return super::split::forward(m, k, n, x, w, y);
    } else if super::vectors::available() && m >= SOME_ROWS {
        return super::vectors::forward(m, k, n, x, w, y);
    } else if super::floats::available() && m >= SOME_ROWS {
        return super::floats::forward(m, k, n, x, w, y);
    }
    match w {
        Weight::F32(w) => product(m, k, n, x, (k, 1), w, (1, k), y, n),
        _ => {
            let nearest = w.is_bf16().then(|| all_nearest_bf16(x));
            let x = nearest.as_deref().unwrap_or(x);
            let mut wide = vec![0.0; PANEL_ROWS.min(n) * k];
            for first in (0..n).step_by(PANEL_ROWS) {
                let rows = PANEL_ROWS.min(n - first);
                let panel = &mut wide[..rows * k];
                panel.par_chunks_mut(TASK_ROWS * k).enumerate().for_each(|(i, wide)| {
                    widen(w, first + i * TASK_ROWS, k, wide);
                });
                product(m, k, rows, x, (k, 1), panel, (1, k), &mut y[first..], n);
            }
        }
    }
}

/// [`forward`] as training does it: on the matrix unit with an error of 2⁻¹⁷ of a product, as its gradients.
pub fn trained(m: usize, k: usize, n: usize, x: &[f32], w: &[f32], y: &mut [f32]) {
    by_terms(m, k, n, View::rows(x, k), View::rows(w, k), y);
}

/// dx = dy W: `dy` [m, n], `w` [n, k], `dx` [m, k], overwritten.
pub fn input_grad(m: usize, k: usize, n: usize, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    by_terms(m, n, k, View::rows(dy, n), View::transposed(w, k), dx);
}

/// dw = dyᵀ x: `dy` [m, n], `x` [m, k], `dw` [n, k], overwritten.
pub fn weight_grad(m: usize, k: usize, n: usize, dy: &[f32], x: &[f32], dw: &mut [f32]) {
    by_terms(n, m, k, View::transposed(dy, n), View::transposed(x, k), dw);
}

/// out[m, n] = a[m, k] b[n, k]ᵀ, overwritten.
fn by_terms(m: usize, k: usize, n: usize, a: View<'_>, b: View<'_>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if super::amx::has_bf16() && m.min(k) >= MANY_ROWS {
        return super::split::two_terms(m, k, n, a, b, out);
    } else if super::vectors::available() && m.min(n) >= SOME_ROWS {
        return super::vectors::floats(m, k, n, a, b, out);
    }
    product(m, k, n, a.data, (a.row, a.col), b.data, (b.col, b.row), out, n);
}

/// xᵀ x of `x` [m, k], in f32: `out` [k, k], overwritten.
pub fn gram(m: usize, k: usize, x: &[f32], out: &mut [f32]) {
    product(k, m, k, x, (1, k), x, (k, 1), out, k);
}

/// out[m, n] = a[m, k] b[k, n]; `a` and `b` by (row, column) strides, rows of `out` `out_row` apart.
fn product(
    m: usize,
    k: usize,
    n: usize,
    a: &[f32],
    (a_row, a_col): (usize, usize),
    b: &[f32],
    (b_row, b_col): (usize, usize),
    out: &mut [f32],
    out_row: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    let end = |rows: usize, row: usize, cols: usize, col: usize| (rows - 1) * row + (cols - 1) * col;
    assert!(k > 0 && a.len() > end(m, a_row, k, a_col) && b.len() > end(k, b_row, n, b_col));
    assert!(out.len() > end(m, out_row, n, 1));
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: the assertions keep every access in bounds; `out` is not read (read_dst = false) and is exclusive.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row as isize,
            false,
            a.as_ptr(),
            a_col as isize,
            a_row as isize,
            b.as_ptr(),
            b_col as isize,
            b_row as isize,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 7919 + 13) % 10_007) as f32 / 5003.0 - 1.0).collect()
    }

    /// What such weights are multiplied with.
    fn factors(w: Weight<'_>, x: &[f32]) -> Vec<f32> {
        match w {
            Weight::Bf16(_) => x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
            _ => x.to_vec(),
        }
    }

    #[test]
    fn every_storage_and_row_count_is_the_definition() {
        for (m, k, n) in
            [(1, 1, 1), (1, 37, 70), (3, 64, 33), (4, 100, 5), (5, 48, 1030), (17, 33, 7), (70, 33, 41)]
        {
            let (x, w) = (values(m * k, 1), values(n * k, 2));
            let narrow: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
            let half: Vec<f16> = w.iter().map(|w| f16::from_f32(*w)).collect();
            let as_f32 = [
                w.clone(),
                narrow.iter().map(|w| w.to_f32()).collect(),
                half.iter().map(|w| w.to_f32()).collect(),
                w.clone(),
            ];
            let decode = |first: usize, rows: &mut [f32]| rows.copy_from_slice(&w[first * k..][..rows.len()]);
            let stored =
                [Weight::F32(&w), Weight::Bf16(&narrow), Weight::F16(&half), Weight::Decoded(&decode)];
            for (stored, w) in stored.into_iter().zip(as_f32) {
                let mut y = vec![0.0; m * n];
                forward(m, k, n, &x, stored, &mut y);
                let x = factors(stored, &x);
                for (ij, y) in y.iter().enumerate() {
                    let (i, j) = (ij / n, ij % n);
                    let expected: f32 = (0..k).map(|p| x[i * k + p] * w[j * k + p]).sum();
                    assert!((y - expected).abs() < 1e-4, "{m}×{k}×{n} at {i},{j}: {y} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn gradients_are_the_transposed_products() {
        // A size for each way: as it is, on vectors, on the matrix unit.
        for (m, k, n) in [(5, 7, 3), (30, 25, 70), (70, 66, 65)] {
            let (x, w, dy) = (values(m * k, 1), values(n * k, 2), values(m * n, 3));
            let (mut dx, mut dw) = (vec![0.0; m * k], vec![0.0; n * k]);
            input_grad(m, k, n, &dy, &w, &mut dx);
            weight_grad(m, k, n, &dy, &x, &mut dw);
            let check = |found: f32, terms: &mut dyn Iterator<Item = f64>| {
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                assert!((f64::from(found) - sum).abs() < size / 65_536.0, "{m}×{k}×{n}: {found} not {sum}");
            };
            let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
            for (ip, dx) in dx.iter().enumerate() {
                let (i, p) = (ip / k, ip % k);
                check(*dx, &mut (0..n).map(|j| product(dy[i * n + j], w[j * k + p])));
            }
            for (jp, dw) in dw.iter().enumerate() {
                let (j, p) = (jp / k, jp % k);
                check(*dw, &mut (0..m).map(|i| product(dy[i * n + j], x[i * k + p])));
            }
        }
    }
}
