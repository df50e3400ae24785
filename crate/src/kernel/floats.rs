//! Products of many rows on vectors of 256 bits, for processors without AVX-512.
//!
//! Weights of every storage become panels of f32 on their way, a piece at a time, and each piece meets all rows of the other
//! operand, which stay where they are. The next piece comes from memory meanwhile.

use super::Scatter;
use super::dwords::{Dot, Sums, add};
use super::kept::Kept;
use super::line::Line;
use super::packed::PANEL;
use super::round::all_nearest_bf16;
use super::simd::{Level, level, prefetch};
use super::stored::Stored;
use super::tile::{transpose, transposed_8};
use super::weight::{Weight, narrow, widen};
use half::bf16;
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of x that meet a panel at once: twelve sums. With fewer, products would wait for the sums before them.
const ROWS: usize = 6;
/// Weight rows of a task. What they meet of x stays in the second-level cache.
const GROUP: usize = 4 * PANEL;
/// Columns of a piece of a panel: 24 KiB, beside few of x in the first-level cache. Sums are written and read again for each.
const DEPTH: usize = 384;
/// Rows of which so many columns stay in the second-level cache: 387 KiB.
const TOKENS: usize = 43 * ROWS;
/// Columns of a panel that are widened at a time, where weights are narrow: 8 KiB.
const WIDENED: usize = 128;

/// Whether there are the vectors that this is written for, and no wider ones.
pub fn available() -> bool {
    level() == Level::Avx2
}

/// y = x Wᵀ: `x` [m, k], `w` [n, k], `y` [m, n], overwritten. Every sum runs from the first column to the last, whatever
/// rows are beside it.
///
/// # Panics
/// If vectors are not [`available`].
pub fn forward(m: usize, k: usize, n: usize, x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    assert!(available() && x.len() == m * k && y.len() == m * n && k > 0);
    let nearest = w.is_bf16().then(|| all_nearest_bf16(x));
    let x = nearest.as_deref().unwrap_or(x);
    let groups = n.div_ceil(GROUP);
    // Few groups: the rows of x are shared as well, neighbours with the same weights.
    let threads = rayon::current_num_threads();
    let parts = if threads == 1 { 1 } else { (4 * threads).div_ceil(groups).min(m.div_ceil(8 * ROWS)) };
    let rows = m.div_ceil(parts).next_multiple_of(ROWS);
    let y = Scatter::new(y);
    (0..groups * parts).into_par_iter().for_each(|task| {
        let group = task / parts * GROUP..n.min((task / parts + 1) * GROUP);
        let rows = (task % parts * rows).min(m)..m.min((task % parts + 1) * rows);
        let part = group.start * k..group.end * k;
        let (wide, narrowed);
        let w = match w {
            Weight::F32(w) => Weight::F32(&w[part]),
            Weight::Bf16(w) => Weight::Bf16(&w[part]),
            Weight::F16(w) => Weight::F16(&w[part]),
            _ if w.is_bf16() => {
                narrowed = kept(part.len(), |to| narrow(w, group.start, k, to));
                Weight::Bf16(&narrowed)
            }
            Weight::Coded(_) | Weight::Decoded(_) => {
                wide = kept(part.len(), |to| widen(w, group.start, k, to));
                Weight::F32(&wide)
            }
        };
        let out = Out { y, n, row: 0, column: group.start };
        // SAFETY: the level says that there are the instructions; one task alone has these rows and weights.
        unsafe { product(k, x, rows, w, group.len(), out) };
    });
}

/// Values of `fill`, which writes all of them.
fn kept<T: Stored>(len: usize, fill: impl FnOnce(&mut [T])) -> Kept<T> {
    // SAFETY: they are only written, and any bits are a number.
    unsafe { Kept::filled(len, |to| fill(std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), to.len()))) }
}

/// An f32 against an f32.
struct Singles;

impl Dot for Singles {
    const PARTS: usize = 1;

    #[inline(always)]
    unsafe fn part(line: __m256i, _: usize) -> __m256i {
        line
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, line: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let (line, x) = (_mm256_castsi256_ps(line), _mm256_castsi256_ps(x));
            _mm256_castps_si256(_mm256_fmadd_ps(line, x, _mm256_castsi256_ps(sum)))
        }
    }
}

/// Some rows of `x` with `count` rows of weights.
///
/// # Safety
/// Nothing else writes to their places meanwhile.
#[target_feature(enable = "avx2,fma")]
unsafe fn product(k: usize, x: &[f32], rows: Range<usize>, w: Weight<'_>, count: usize, out: Out<'_>) {
    let mut room = [Line([0; 64]); DEPTH];
    for tokens in rows.clone().step_by(TOKENS).map(|first| first..rows.end.min(first + TOKENS)) {
        for first in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - first);
            for row in (0..count).step_by(PANEL) {
                let lines = &mut room[..depth];
                piece(w, k, row..count.min(row + PANEL), first, floats(lines));
                let next = match row + PANEL {
                    next if next < count => next * k + first,
                    _ if first + DEPTH < k => first + DEPTH,
                    _ => count * k,
                };
                for (i, token) in tokens.clone().step_by(ROWS).enumerate() {
                    for line in ROWS * i..ROWS * (i + 1) {
                        ask(w, next + line / (DEPTH / 16) * k + line % (DEPTH / 16) * 16);
                    }
                    let x = &x[token * k + first..];
                    let out = Out { row: token, column: out.column + row, ..out };
                    // SAFETY: there are as many rows, with as many columns; the instructions are switched on.
                    unsafe {
                        match tokens.end - token {
                            ROWS.. => tile::<ROWS>(x, k, lines, first > 0, out),
                            5 => tile::<5>(x, k, lines, first > 0, out),
                            4 => tile::<4>(x, k, lines, first > 0, out),
                            3 => tile::<3>(x, k, lines, first > 0, out),
                            2 => tile::<2>(x, k, lines, first > 0, out),
                            _ => tile::<1>(x, k, lines, first > 0, out),
                        }
                    }
                }
            }
        }
    }
}

/// Columns from `first` on of a panel of weights, to as many `lines`.
fn piece(w: Weight<'_>, k: usize, rows: Range<usize>, first: usize, lines: &mut [f32]) {
    let (count, at) = (rows.len(), rows.start * k + first);
    if count < PANEL {
        lines.fill(0.0);
    }
    if let Weight::F32(w) = w {
        return transpose(count, lines.len() / PANEL, &w[at..], k, lines, PANEL);
    }
    let mut lines = lines;
    let mut at = at;
    if let (Weight::Bf16(w), PANEL) = (w, count) {
        let whole = lines.len() / PANEL / 16 * 16;
        // SAFETY: the level says that there are the instructions.
        unsafe { turn_bf16(&w[at..], k, &mut lines[..whole * PANEL]) };
        (lines, at) = (&mut lines[whole * PANEL..], at + whole);
    }
    let mut room = [0.0; PANEL * WIDENED];
    for (i, lines) in lines.chunks_mut(PANEL * WIDENED).enumerate() {
        let (at, width) = (at + i * WIDENED, lines.len() / PANEL);
        for (row, to) in room.chunks_mut(width).take(count).enumerate() {
            let part = at + row * k..at + row * k + width;
            let row = match w {
                Weight::Bf16(w) => Weight::Bf16(&w[part]),
                Weight::F16(w) => Weight::F16(&w[part]),
                Weight::F32(_) | Weight::Coded(_) | Weight::Decoded(_) => unreachable!("f32 by now"),
            };
            widen(row, 0, width, to);
        }
        transpose(count, width, &room, width, lines, PANEL);
    }
}

/// Columns of sixteen rows of bf16, `k` apart, as lines of f32: pairs of columns are turned, then taken apart.
#[target_feature(enable = "avx2")]
fn turn_bf16(w: &[bf16], k: usize, lines: &mut [f32]) {
    for (c, lines) in lines.chunks_exact_mut(16 * PANEL).enumerate() {
        for half in 0..2 {
            let mut block = [_mm256_setzero_ps(); 8];
            for (r, block) in block.iter_mut().enumerate() {
                let from = &w[(8 * half + r) * k + 16 * c..][..16];
                // SAFETY: sixteen bf16 are a vector.
                *block = unsafe { _mm256_loadu_ps(from.as_ptr().cast()) };
            }
            for (pair, to) in transposed_8(block).into_iter().zip(lines.chunks_exact_mut(2 * PANEL)) {
                let pair = _mm256_castps_si256(pair);
                let columns =
                    [_mm256_slli_epi32::<16>(pair), _mm256_and_si256(pair, _mm256_set1_epi32(-1 << 16))];
                for (column, to) in columns.into_iter().zip(to.chunks_exact_mut(PANEL)) {
                    // SAFETY: eight values.
                    unsafe {
                        _mm256_storeu_ps(to[8 * half..][..8].as_mut_ptr(), _mm256_castsi256_ps(column))
                    };
                }
            }
        }
    }
}

/// Asks for the cache line of a weight, which may lie beyond the end.
#[inline(always)]
fn ask(w: Weight<'_>, at: usize) {
    match w {
        Weight::F32(w) => prefetch(w, at),
        Weight::Bf16(w) => prefetch(w, at),
        Weight::F16(w) => prefetch(w, at),
        Weight::Coded(_) | Weight::Decoded(_) => {}
    }
}

/// Lines as numbers.
fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: sixteen each, of any bits.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * PANEL) }
}

/// R rows of `x`, `k` values apart, with a piece of a panel: the sums so far and these, or these alone.
///
/// # Safety
/// The calling function has the instructions. There are so many rows, with a value for each line, and nothing else writes to
/// their places meanwhile.
#[inline(always)]
unsafe fn tile<const R: usize>(x: &[f32], k: usize, lines: &[Line], begun: bool, out: Out<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut rows, mut sums) = ([std::ptr::null(); R], [[[_mm256_setzero_si256(); 2]; R]]);
        for (r, (row, sums)) in rows.iter_mut().zip(&mut sums[0]).enumerate() {
            *row = x.as_ptr().add(r * k).cast();
            if begun {
                *sums = out.read(r);
            }
        }
        add::<Singles, 1, R>([lines.as_ptr()], lines.len(), rows, &mut sums);
        for (r, sums) in sums[0].iter().enumerate() {
            out.write(r, *sums);
        }
    }
}

/// Where results go.
#[derive(Clone, Copy)]
struct Out<'a> {
    y: Scatter<'a>,
    n: usize,
    row: usize,
    column: usize,
}

impl<'a> Out<'a> {
    /// The places of a panel in row `r` from here.
    ///
    /// # Safety
    /// Nothing else uses them meanwhile.
    #[inline(always)]
    unsafe fn place(self, r: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.y.slice((self.row + r) * self.n + self.column, PANEL.min(self.n - self.column)) }
    }

    /// # Safety
    /// As of [`place`](Self::place); the calling function has the instructions.
    #[inline(always)]
    unsafe fn read(self, r: usize) -> Sums {
        // SAFETY: sixteen values.
        unsafe {
            let (y, mut whole) = (self.place(r), [0.0f32; PANEL]);
            let mut from = y.as_ptr();
            if y.len() < PANEL {
                whole[..y.len()].copy_from_slice(y);
                from = whole.as_ptr();
            }
            [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())]
        }
    }

    /// # Safety
    /// As of [`read`](Self::read).
    #[inline(always)]
    unsafe fn write(self, r: usize, sums: Sums) {
        // SAFETY: as above.
        unsafe {
            let (y, mut whole) = (self.place(r), [0.0f32; PANEL]);
            let to = if y.len() < PANEL { whole.as_mut_ptr() } else { y.as_mut_ptr() };
            _mm256_storeu_si256(to.cast(), sums[0]);
            _mm256_storeu_si256(to.add(8).cast(), sums[1]);
            if y.len() < PANEL {
                y.copy_from_slice(&whole[..y.len()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::blocked::tests::hold_every_storage;

    #[test]
    fn products_of_every_storage_are_the_definition() {
        if available() {
            hold_every_storage(forward, |_, k| k as f64 * 0.5f64.powi(24));
        }
    }

    #[test]
    fn sums_run_from_the_first_column_to_the_last_whatever_is_beside_them() {
        if !available() {
            return;
        }
        for (m, k, n) in [(1, 5, 3), (7, 384, 16), (29, 1000, 70), (300, 385, 130)] {
            let values = |count: usize, seed: usize| -> Vec<f32> {
                (seed..seed + count).map(|i| ((i * 7919 + 13) % 10007) as f32 / 5003.0 - 1.0).collect()
            };
            let (x, w, mut y) = (values(m * k, 0), values(n * k, 5), vec![f32::NAN; m * n]);
            forward(m, k, n, &x, Weight::F32(&w), &mut y);
            for (ij, y) in y.iter().enumerate() {
                let (x, w) = (&x[ij / n * k..][..k], &w[ij % n * k..][..k]);
                let sum = x.iter().zip(w).fold(0.0, |sum: f32, (x, w)| w.mul_add(*x, sum));
                assert_eq!(y.to_bits(), sum.to_bits(), "{m}×{k}×{n} at {ij}: {y} instead of {sum}");
            }
        }
    }
}
