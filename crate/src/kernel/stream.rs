//! y = x Wᵀ for a few rows of x: every weight is read once, so the speed of memory rules.
//!
//! A task owns neighbouring rows of W and walks their four quarters side by side: four streams, each asked for ahead of
//! its use. Narrow weights are widened in registers, and what meets bf16 is rounded to it there.

use super::Scatter;
use super::coded::{Grouped, Rows, Streamed};
use super::kept::Kept;
use super::simd::{dispatch, prefetch};
use super::stored::Stored;
use super::weight::{Weight, widen};
use half::{bf16, f16};
use rayon::prelude::*;

/// Up to this many rows of x the weights are streamed.
pub const FEW_ROWS: usize = 4;
/// Weights below this count are not worth a second thread.
const SMALL: usize = 1 << 16;
/// Weights of a task: long streams, and enough tasks that a thread that is late can be helped.
const TASK: usize = 1 << 18;
/// Bytes that a stream is asked for ahead.
const AHEAD: usize = 512;
/// Rows decoded at a time.
const DECODED_ROWS: usize = 32;

/// y = x Wᵀ: `x` [m, k] with m ≤ [`FEW_ROWS`], `w` [n, k], `y` [m, n], overwritten.
pub fn forward(m: usize, k: usize, n: usize, x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    let ready: Option<Kept<f32>> = match w {
        Weight::Coded(w) => w.factors(x),
        _ => None,
    };
    let x = ready.as_deref().unwrap_or(x);
    let out = Scatter::new(y);
    let threads = rayon::current_num_threads();
    let tasks =
        if n * k < SMALL || threads == 1 { 1 } else { (n * k / TASK).max(1).next_multiple_of(threads) };
    let rows = n.div_ceil(tasks).next_multiple_of(4);
    let task = |i: usize| {
        let (first, end) = ((i * rows).min(n), ((i + 1) * rows).min(n));
        // SAFETY: task i owns columns first .. end of every row.
        unsafe { range(m, k, n, x, w, first, end - first, out) };
    };
    if tasks == 1 { task(0) } else { (0..tasks).into_par_iter().for_each(task) }
}

/// Columns `first` .. `first + count` of y.
///
/// # Safety
/// Nothing else writes them meanwhile.
unsafe fn range(
    m: usize,
    k: usize,
    n: usize,
    x: &[f32],
    w: Weight<'_>,
    first: usize,
    count: usize,
    out: Scatter<'_>,
) {
    let part = first * k..(first + count) * k;
    let mut many = vec![0.0; if m == 1 { 0 } else { count * m }];
    // SAFETY: the caller's promise. One row of x needs no rearrangement.
    let dots = if m == 1 { unsafe { out.slice(first, count) } } else { &mut many[..] };
    match w {
        Weight::F32(w) => stream_f32(m, x, Plain { values: &w[part], k }, dots),
        Weight::Bf16(w) => stream_bf16(m, x, Plain { values: &w[part], k }, dots),
        Weight::F16(w) => stream_f16(m, x, Plain { values: &w[part], k }, dots),
        Weight::Coded(w) => stream_coded(m, x, Rows::of(w, first..first + count), dots),
        Weight::Decoded(_) => {
            let mut wide = vec![0.0; DECODED_ROWS.min(count) * k];
            for (i, dots) in dots.chunks_mut(DECODED_ROWS * m).enumerate() {
                let wide = &mut wide[..dots.len() / m * k];
                widen(w, first + i * DECODED_ROWS, k, wide);
                stream_f32(m, x, Plain { values: wide, k }, dots);
            }
        }
    }
    for row in 0..if m == 1 { 0 } else { m } {
        // SAFETY: the caller's promise.
        let y = unsafe { out.slice(row * n + first, count) };
        for (y, dots) in y.iter_mut().zip(many.chunks(m)) {
            *y = dots[row];
        }
    }
}

/// Rows of k values as they are.
#[derive(Clone, Copy)]
struct Plain<'a, T> {
    values: &'a [T],
    k: usize,
}

dispatch! { fn stream_f32(m: usize, x: &[f32], w: Plain<'_, f32>, dots: &mut [f32]) = body; }
dispatch! { fn stream_bf16(m: usize, x: &[f32], w: Plain<'_, bf16>, dots: &mut [f32]) = body; }
dispatch! { fn stream_f16(m: usize, x: &[f32], w: Plain<'_, f16>, dots: &mut [f32]) = body; }
dispatch! { fn stream_coded(m: usize, x: &[f32], w: Rows<'_>, dots: &mut [f32]) = body; }

/// `dots` [rows of w, m].
#[inline(always)]
fn body<V: Grouped>(m: usize, x: &[f32], w: impl Streamed, dots: &mut [f32]) {
    let (rows, k) = (w.count(), x.len() / m);
    let quarter = rows / 4;
    for j in 0..quarter {
        for row in 0..m {
            let sums: [f32; 4] = w.dots::<V, 4>(&x[row * k..][..k], j, quarter);
            for (i, sum) in sums.into_iter().enumerate() {
                dots[(i * quarter + j) * m + row] = sum;
            }
        }
    }
    for j in 4 * quarter..rows {
        for row in 0..m {
            dots[j * m + row] = w.dots::<V, 1>(&x[row * k..][..k], j, 0)[0];
        }
    }
}

impl<T: Stored> Streamed for Plain<'_, T> {
    fn count(self) -> usize {
        self.values.len() / self.k
    }

    #[inline(always)]
    fn dots<V: Grouped, const R: usize>(self, x: &[f32], row: usize, apart: usize) -> [f32; R] {
        let (k, w) = (self.k, &self.values[row * self.k..]);
        let mut sums = [[V::splat(0.0); 2]; R];
        let whole = k / (2 * V::N) * 2 * V::N;
        for i in (0..whole).step_by(2 * V::N) {
            let (a, b) = (T::factor(V::load(&x[i..])), T::factor(V::load(&x[i + V::N..])));
            for (r, sum) in sums.iter_mut().enumerate() {
                let row = &w[r * apart * k..][..k];
                for line in (0..2 * V::N * size_of::<T>()).step_by(64) {
                    prefetch(row, i + (AHEAD + line) / size_of::<T>());
                }
                sum[0] = T::vector::<V>(&row[i..]).fma(a, sum[0]);
                sum[1] = T::vector::<V>(&row[i + V::N..]).fma(b, sum[1]);
            }
        }
        let mut dots = [0.0; R];
        for (r, dot) in dots.iter_mut().enumerate() {
            let rest = w[r * apart * k..][whole..k].iter().zip(&x[whole..k]);
            let rest: f32 = rest.map(|(w, x)| w.one() * T::one_factor(*x)).sum();
            *dot = sums[r][0].add(sums[r][1]).sum() + rest;
        }
        dots
    }
}
