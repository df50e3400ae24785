//! Matrices as tiles of bf16 terms.

use crate::kernel::blocked::{PANEL, ROWS, STEP};
use crate::kernel::kept::Kept;
use crate::kernel::simd::prefetch;
use crate::kernel::tile::{View, transposed_16};
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// How many columns ahead those are fetched that lie apart.
const AHEAD: usize = 2 * STEP;

/// 16 rows of 32 bf16, in pairs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile(pub [[u32; 16]; ROWS]);

impl Tile {
    /// Nothing but zeros.
    pub const ZERO: Self = Self([[0; 16]; ROWS]);
}

/// Tiles of `x` [rows, k], which lies by rows or by columns: [rows / 16, steps] of the terms of a tile, zeros beyond the
/// ends; rows to whole panels. The left operand of a product has them as they are, the right one `turned`: pairs of columns
/// by rows.
pub fn pack<const T: usize>(x: View<'_>, rows: usize, k: usize, turned: bool) -> Kept<[Tile; T]> {
    assert!((x.row == 1 || x.col == 1) && x.reaches(rows, k));
    let steps = k.div_ceil(STEP);
    let count = 2 * rows.div_ceil(PANEL) * steps;
    let fill = |(panel, tiles): (usize, &mut [MaybeUninit<[Tile; T]>])| {
        // Step by step, so that the two rows of tiles share what lies by columns.
        for at in 0..2 * steps {
            let (half, step) = (at % 2, at / 2);
            let tile = tiles[half * steps + step].as_mut_ptr();
            // SAFETY: only where `has_bf16` or pairs of it are, which implies the features; `x` was checked above; the place has T tiles of
            // 16 vectors each.
            unsafe { split::<T>(x, rows, k, panel * PANEL + half * ROWS, step * STEP, turned, tile.cast()) };
        }
    };
    let fill_all = |places: &mut [MaybeUninit<[Tile; T]>]| match rows {
        ..=PANEL => places.chunks_mut(2 * steps).enumerate().for_each(fill),
        _ => places.par_chunks_mut(2 * steps).with_min_len(2).enumerate().for_each(fill),
    };
    // SAFETY: each panel writes all of its tiles.
    unsafe { Kept::filled(count, fill_all) }
}

/// The `T` terms of the tile of `x` [rows, k] at (`row`, `col`).
///
/// # Safety
/// `x` reaches over all rows and columns, and one of its distances is 1. `to` is the place of T tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn split<const T: usize>(
    x: View<'_>,
    rows: usize,
    k: usize,
    row: usize,
    col: usize,
    turned: bool,
    to: *mut [__m512; ROWS],
) {
    let (rows, cols) = (rows.saturating_sub(row).min(ROWS), (k - col).min(STEP));
    let by_rows = x.col == 1;
    // Two vectors for each row of tiles: of one row of x, or of two of its columns.
    let mut left = [[_mm512_setzero_ps(); 2]; ROWS];
    if by_rows {
        let mask = u32::MAX >> (STEP - cols);
        for (r, left) in left[..rows].iter_mut().enumerate() {
            let at = x.data.as_ptr().wrapping_add((row + r) * x.row + col);
            // SAFETY: the mask ends with the row.
            unsafe {
                left[0] = _mm512_maskz_loadu_ps(mask as u16, at);
                left[1] = _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(16));
            }
        }
    } else {
        let mask = ((1u32 << rows) - 1) as u16;
        for (c, left) in left.as_flattened_mut()[..cols].iter_mut().enumerate() {
            let at = x.data.as_ptr().wrapping_add(row + (col + c) * x.col);
            // SAFETY: the mask ends with the column.
            *left = unsafe { _mm512_maskz_loadu_ps(mask, at) };
            // No unit of the processor sees the next one coming, most often on another page.
            prefetch(x.data, row + (col + c + AHEAD) * x.col);
        }
    }
    let side_by_side = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18,
        2, 17, 1, 16, 0,
    );
    for term in 0..T {
        let mut tile = [_mm512_setzero_ps(); ROWS];
        for (tile, left) in tile.iter_mut().zip(&mut left) {
            // SAFETY: vectors of equal size.
            let both: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(left[1], left[0])) };
            let pairs = if by_rows { both } else { _mm512_permutexvar_epi16(side_by_side, both) };
            *tile = _mm512_castsi512_ps(pairs);
            left[0] = _mm512_sub_ps(left[0], widened(_mm512_castsi512_si256(both)));
            left[1] = _mm512_sub_ps(left[1], widened(_mm512_extracti64x4_epi64::<1>(both)));
        }
        // SAFETY: the caller's promise; tiles are as aligned as vectors.
        unsafe { to.add(term).write(if turned == by_rows { transposed_16(tile) } else { tile }) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widened(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}
