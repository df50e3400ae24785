//! Matrices as tiles of bf16 terms.

use rayon::prelude::*;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Values of a row of a tile.
pub const STEP: usize = 32;
/// Rows of W, and of X, whose 2 × 2 tiles of sums are made at once.
pub const PANEL: usize = 2 * ROWS;

/// 16 rows of 32 bf16, in pairs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile(pub [[u32; 16]; ROWS]);

impl Tile {
    /// Nothing but zeros.
    pub const ZERO: Self = Self([[0; 16]; ROWS]);
}

/// Tiles of `x` [.., k]: [rows / 16, steps] of the terms of a tile, zeros beyond the ends; rows to whole panels. The left
/// operand of a product has them as they are, the right one `turned`: pairs of columns by rows.
pub fn pack<const T: usize>(x: &[f32], k: usize, turned: bool) -> Vec<[Tile; T]> {
    let (steps, rows) = (k.div_ceil(STEP), x.len() / k);
    let count = 2 * rows.div_ceil(PANEL) * steps;
    let mut packed = Vec::with_capacity(count);
    let fill = |(i, tiles): (usize, &mut [MaybeUninit<[Tile; T]>])| {
        for (step, tile) in tiles.iter_mut().enumerate() {
            // SAFETY: only where `has_bf16`, which implies the features; the place has T tiles of 16 vectors each.
            unsafe { split::<T>(x, k, i * ROWS, step * STEP, turned, tile.as_mut_ptr().cast()) };
        }
    };
    let places = &mut packed.spare_capacity_mut()[..count];
    if rows <= PANEL {
        places.chunks_mut(steps).enumerate().for_each(fill);
    } else {
        places.par_chunks_mut(steps).with_min_len(4).enumerate().for_each(fill);
    }
    // SAFETY: all were written just now.
    unsafe { packed.set_len(count) };
    packed
}

/// The `T` terms of the tile of `x` [.., k] at (`row`, `col`).
///
/// # Safety
/// `to` is the place of T tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn split<const T: usize>(
    x: &[f32],
    k: usize,
    row: usize,
    col: usize,
    turned: bool,
    to: *mut [__m512; ROWS],
) {
    let rows = (x.len() / k).saturating_sub(row).min(ROWS);
    let mask = if k - col >= STEP { u32::MAX } else { (1 << (k - col)) - 1 };
    let mut left = [[_mm512_setzero_ps(); 2]; ROWS];
    for (r, left) in left[..rows].iter_mut().enumerate() {
        let at = x[(row + r) * k + col..(row + r + 1) * k].as_ptr();
        // SAFETY: the mask ends with the row.
        unsafe {
            left[0] = _mm512_maskz_loadu_ps(mask as u16, at);
            left[1] = _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(16));
        }
    }
    for term in 0..T {
        let mut tile = [_mm512_setzero_ps(); ROWS];
        for (tile, left) in tile.iter_mut().zip(&mut left) {
            // SAFETY: vectors of equal size.
            let pairs: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(left[1], left[0])) };
            *tile = _mm512_castsi512_ps(pairs);
            left[0] = _mm512_sub_ps(left[0], widened(_mm512_castsi512_si256(pairs)));
            left[1] = _mm512_sub_ps(left[1], widened(_mm512_extracti64x4_epi64::<1>(pairs)));
        }
        // SAFETY: the caller's promise; tiles are as aligned as vectors.
        unsafe { to.add(term).write(if turned { transpose(tile) } else { tile }) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widened(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::kernel) fn transpose(r: [__m512; 16]) -> [__m512; 16] {
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
