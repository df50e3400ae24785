//! Products of large matrices on vectors of AVX-512, for processors without a matrix unit: of f32, and of bf16 in pairs
//! where the processor multiplies those faster (AVX-512 BF16).
//!
//! A value of the left operand, or a pair of neighbours, meets as many of 16 rows of the right one at once.

mod rows;

use super::Scatter;
use super::ahead::Ahead;
use super::amx::terms::{Tile, pack};
use super::blocked::{Left, PANEL, ROWS, STEP, Sums, Unit, product, soon, store};
use super::kept::Kept;
use super::round::fake_bf16;
use super::simd::{Level, Most, level, most};
use super::tile::{View, transpose};
use super::weight::{Weight, narrow, widen};
use half::bf16;
use rayon::prelude::*;
use rows::{Rows, copy_lines};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

/// Rows of the left operand whose sums fit the registers, beside two vectors of the right one.
const BLOCK: usize = 8;
/// Vectors of either half of the right operand that stay in the first-level cache for all rows of the left one: 24 KiB.
const NEAR: usize = 12 * ROWS;
/// Vectors of it that follow each other without a jump: a part of a step of pairs, and of what stays near.
const UNROLLED: usize = 4;
const _: () = assert!((STEP / 2).is_multiple_of(UNROLLED) && NEAR.is_multiple_of(UNROLLED));

/// Whether there are vectors of the width that this is written for.
pub fn available() -> bool {
    level() == Level::Avx512
}

/// Whether they multiply pairs of bf16. A `LOWBIT_SIMD` that asks for less than VNNI forbids them.
fn have_pairs() -> bool {
    most() >= Most::Vnni && available() && is_x86_feature_detected!("avx512bf16")
}

/// Whether pairs of bf16 are multiplied faster than the same as f32. Intel's processors do half as many products a second by
/// `VDPBF16PS` as by FMA (an Emerald Rapids: 86 for 172 Gop/s), AMD's twice as many.
pub fn pairs_pay() -> bool {
    static PAY: OnceLock<bool> = OnceLock::new();
    *PAY.get_or_init(|| {
        let vendor = __cpuid(0);
        have_pairs()
            && [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() != b"GenuineIntel"
    })
}

/// y = x Wᵀ: `x` [m, k], `w` [n, k], `y` [m, n], overwritten.
///
/// # Panics
/// If vectors are not [`available`].
pub fn forward(m: usize, k: usize, n: usize, x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    if w.is_bf16() && pairs_pay() { by_pairs(m, k, n, x, w, y) } else { by_floats(m, k, n, x, w, y) }
}

/// [`forward`] of weights in bf16, which stay so.
///
/// # Panics
/// If there are no such products, or the weights are something else.
fn by_pairs(m: usize, k: usize, n: usize, x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    assert!(have_pairs() && w.is_bf16() && x.len() == m * k && y.len() == m * n && k > 0);
    let stored = match w {
        Weight::Bf16(w) => w,
        _ => &[],
    };
    let of = |rows: Range<usize>| {
        Rows::stored(stored, k, rows, |values, to: &mut [bf16]| narrow(w, values.start / k, k, to))
    };
    // SAFETY: there are pairs, by the assertion.
    unsafe { weighted::<Pairs, bf16>(m, k, n, x, w, of, y) };
}

/// [`forward`] of any weights, widened to f32 by the panel.
fn by_floats(m: usize, k: usize, n: usize, x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    assert!(available() && x.len() == m * k && y.len() == m * n && k > 0);
    let stored = match w {
        Weight::F32(w) => w,
        _ => &[],
    };
    let of = |rows: Range<usize>| {
        Rows::stored(stored, k, rows, |values, to: &mut [f32]| widen(w, values.start / k, k, to))
    };
    // SAFETY: there are vectors, by the assertion.
    unsafe {
        match w.is_bf16() {
            true => weighted::<Floats<true>, f32>(m, k, n, x, w, of, y),
            false => weighted::<Floats<false>, f32>(m, k, n, x, w, of, y),
        }
    }
}

/// out[m, n] = a[m, k] b[n, k]ᵀ in f32, overwritten, of operands that lie by rows or by columns.
///
/// # Panics
/// If vectors are not [`available`], or an operand ends before its last value.
pub fn floats(m: usize, k: usize, n: usize, a: View<'_>, b: View<'_>, out: &mut [f32]) {
    assert!(available() && out.len() == m * n && k > 0 && a.reaches(m, k));
    let out = Scatter::new(out);
    let of = |rows: Range<usize>| Rows::viewed(a, k, rows);
    // SAFETY: one task alone has these rows and columns; there are vectors.
    let store = |sums: &Sums, col, row| unsafe { store::<false>(sums, (row, m), (col, n), out) };
    let soon = |col, row| soon((row, m), (col, n), out);
    // SAFETY: as above; rows are filled up.
    unsafe { product::<Floats<false>, _>(m, k, n, b, of, |_, _| None, soon, store) };
}

/// # Safety
/// The processor has the unit, whose left operand consists of T.
unsafe fn weighted<'a, U: Unit, T: Copy + Sync + 'a>(
    m: usize,
    k: usize,
    n: usize,
    x: &[f32],
    w: Weight<'_>,
    of: impl Fn(Range<usize>) -> Rows<'a, T> + Sync,
    y: &mut [f32],
) {
    let out = Scatter::new(y);
    let ahead = |rows: Range<usize>, steps| Ahead::of(w, k, rows, steps);
    // SAFETY: one task alone has these weights and tokens; there are vectors.
    let store = |sums: &Sums, token, row| unsafe { store::<true>(sums, (token, m), (row, n), out) };
    // SAFETY: the caller's promise; rows are filled up.
    unsafe { product::<U, _>(n, k, m, View::rows(x, k), of, ahead, |_, _| {}, store) };
}

/// Products of pairs of bf16, summed in f32.
struct Pairs;

impl Unit for Pairs {
    type Right = [Tile; 1];
    const FETCHES: bool = false;

    fn begin() -> Self {
        Self
    }

    fn pack(x: View<'_>, rows: usize, k: usize) -> Kept<[Tile; 1]> {
        pack(x, rows, k, true)
    }

    unsafe fn multiply(
        &self,
        left: Left,
        right: [&[[Tile; 1]]; 2],
        steps: usize,
        ahead: Option<&mut Ahead>,
        before: impl FnOnce(&Sums),
        sums: &mut Sums,
    ) {
        before(sums);
        // SAFETY: a step is 16 pairs; the caller's promise.
        unsafe { pairs::<1>(left, places(right, steps), steps * STEP / 2, (ahead, steps), sums) };
    }
}

/// Products of f32, the values of the right operand rounded to the nearest bf16 first or not.
struct Floats<const NEAREST: bool>;

/// 32 values of 16 rows, the rows side by side.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Wide([[f32; ROWS]; STEP]);

impl<const NEAREST: bool> Unit for Floats<NEAREST> {
    type Right = Wide;
    const FETCHES: bool = false;

    fn begin() -> Self {
        Self
    }

    fn pack(x: View<'_>, rows: usize, k: usize) -> Kept<Wide> {
        assert!((x.row == 1 || x.col == 1) && x.reaches(rows, k));
        let steps = k.div_ceil(STEP);
        let count = 2 * rows.div_ceil(PANEL) * steps;
        let fill = |(i, steps): (usize, &mut [MaybeUninit<Wide>])| {
            let first = i * ROWS;
            let count = rows.saturating_sub(first).min(ROWS);
            if count < ROWS {
                steps.fill(MaybeUninit::zeroed());
            } else if let (false, Some(last)) = (k.is_multiple_of(STEP), steps.last_mut()) {
                *last = MaybeUninit::zeroed();
            }
            // SAFETY: places of arrays of arrays of f32, without gaps. What is not zero by now is only written.
            let to = unsafe {
                std::slice::from_raw_parts_mut(steps.as_mut_ptr().cast::<f32>(), steps.len() * STEP * ROWS)
            };
            let from = x.data.get(first * x.row..).unwrap_or_default();
            if x.col == 1 {
                transpose(count, k, from, x.row, to, ROWS);
            } else {
                copy_lines::<ROWS>(from, x.col, count, &mut to[..k * ROWS]);
            }
            if NEAREST {
                fake_bf16(to);
            }
        };
        // SAFETY: whole steps of 16 rows are written, the others zeroed before.
        unsafe { Kept::filled(count, |places| places.par_chunks_mut(steps).enumerate().for_each(fill)) }
    }

    unsafe fn multiply(
        &self,
        left: Left,
        right: [&[Wide]; 2],
        steps: usize,
        ahead: Option<&mut Ahead>,
        before: impl FnOnce(&Sums),
        sums: &mut Sums,
    ) {
        before(sums);
        let (right, count) = (places(right, steps), steps * STEP);
        // SAFETY: the caller's promise.
        unsafe {
            match left.value / size_of::<f32>() {
                1 => singles::<1>(left, right, count, (ahead, steps), sums),
                apart => {
                    assert_eq!(apart, PANEL, "the left operand lies by rows or by whole columns");
                    singles::<PANEL>(left, right, count, (ahead, steps), sums);
                }
            }
        }
    }
}

/// Where both halves of a right operand of so many steps begin.
fn places<T>(right: [&[T]; 2], steps: usize) -> [*const __m512i; 2] {
    assert!(right.iter().all(|right| right.len() >= steps));
    right.map(|right| right.as_ptr().cast())
}

/// Declares the sums over `count` values, or pairs of them, of four bytes each.
macro_rules! sums {
    ($name:ident, $features:literal, |$sum:ident, $one:ident, $many:ident| $dot:expr) => {
        /// Those of a row of the left operand are `APART` times four bytes apart. The next part of what is `ahead`, that of so
        /// many steps, is fetched meanwhile, some with each block.
        ///
        /// # Safety
        /// The processor has the features; either side has `count` times four bytes in each of its rows.
        #[target_feature(enable = $features)]
        unsafe fn $name<const APART: usize>(
            left: Left,
            right: [*const __m512i; 2],
            count: usize,
            (mut ahead, steps): (Option<&mut Ahead>, usize),
            sums: &mut Sums,
        ) {
            let blocks = count.div_ceil(NEAR) * PANEL / BLOCK;
            let lines = ahead.as_ref().map_or(0, |ahead| (steps * ahead.step / 64).div_ceil(blocks));
            for first in (0..count).step_by(NEAR) {
                for (half, sums) in sums.0.chunks_exact_mut(2).enumerate() {
                    for row in (0..ROWS).step_by(BLOCK) {
                        if let Some(ahead) = &mut ahead {
                            ahead.fetch(lines);
                        }
                        let mut dots = [[_mm512_setzero_ps(); 2]; BLOCK];
                        for (r, dots) in dots.iter_mut().enumerate() {
                            for (dot, sums) in dots.iter_mut().zip(&mut *sums) {
                                if first > 0 {
                                    // SAFETY: 16 values.
                                    *dot = unsafe { _mm512_loadu_ps(sums[row + r].as_ptr()) };
                                }
                            }
                        }
                        // Places of the rows, and steps that follow each other: additions of addresses would take
                        // turns of the ports that multiply.
                        let mut rows = [left.start[half].cast::<i32>(); BLOCK];
                        for (r, place) in rows.iter_mut().enumerate() {
                            // SAFETY: the caller's promise.
                            *place = unsafe { place.byte_add((row + r) * left.row) };
                        }
                        for at in (first..count.min(first + NEAR)).step_by(UNROLLED) {
                            for at in at..at + UNROLLED {
                                // SAFETY: the caller's promise; a step is a multiple of what is unrolled.
                                let many = right.map(|right| unsafe { *right.add(at) });
                                for (row, dots) in rows.iter().zip(&mut dots) {
                                    // SAFETY: as above.
                                    let $one =
                                        _mm512_set1_epi32(unsafe { row.add(APART * at).read_unaligned() });
                                    for (dot, $many) in dots.iter_mut().zip(many) {
                                        let $sum = *dot;
                                        *dot = $dot;
                                    }
                                }
                            }
                        }
                        for (r, dots) in dots.into_iter().enumerate() {
                            for (sums, dot) in sums.iter_mut().zip(dots) {
                                // SAFETY: 16 values.
                                unsafe { _mm512_storeu_ps(sums[row + r].as_mut_ptr(), dot) };
                            }
                        }
                    }
                }
            }
        }
    };
}
sums!(singles, "avx512f", |sum, one, many| _mm512_fmadd_ps(
    _mm512_castsi512_ps(one),
    _mm512_castsi512_ps(many),
    sum
));
sums!(pairs, "avx512f,avx512bf16", |sum, one, many| _mm512_dpbf16_ps(sum, as_pairs(one), as_pairs(many)));

#[inline(always)]
fn as_pairs(x: __m512i) -> __m512bh {
    // SAFETY: vectors of equal size, of any bits.
    unsafe { std::mem::transmute(x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::blocked::tests::{hold_every_storage, hold_every_view};

    /// What so many sums in f32 can lose.
    fn bound(k: usize) -> f64 {
        k as f64 * 0.5f64.powi(24)
    }

    #[test]
    fn products_of_every_storage_are_the_definition() {
        if available() {
            hold_every_storage(forward, |_, k| bound(k));
            hold_every_storage(by_floats, |_, k| bound(k));
        }
        if have_pairs() {
            let mixed = |m, k, n, x: &[f32], w: Weight<'_>, y: &mut [f32]| {
                if w.is_bf16() { by_pairs(m, k, n, x, w, y) } else { by_floats(m, k, n, x, w, y) }
            };
            hold_every_storage(mixed, |_, k| bound(k));
        }
    }

    #[test]
    fn operands_may_lie_by_rows_or_by_columns() {
        if available() {
            hold_every_view(floats, bound);
        }
    }
}
