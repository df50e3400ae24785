//! Vectors of f32, and rows of tiles made of their terms.

use crate::kernel::amx::terms::Tile;
use crate::kernel::blocked::ROWS;
use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(from: &[f32]) -> __m512 {
    let from = &from[..ROWS];
    // SAFETY: 16 values.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn splat(x: f32) -> __m512 {
    _mm512_set1_ps(x)
}

/// The values of a slice of at most 16, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn part(from: &[f32]) -> __m512 {
    assert!(from.len() <= ROWS);
    // SAFETY: the mask ends with the slice.
    unsafe { _mm512_maskz_loadu_ps(((1u32 << from.len()) - 1) as u16, from.as_ptr()) }
}

/// Writes as many values as the slice has, at most 16.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_part(x: __m512, to: &mut [f32]) {
    assert!(to.len() <= ROWS);
    // SAFETY: the mask ends with the slice.
    unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), ((1u32 << to.len()) - 1) as u16, x) }
}

/// Row `i` of tiles: the terms of two vectors, value j of the first beside value j of the second.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn join<const T: usize>([mut low, mut high]: [__m512; 2], tiles: &mut [Tile; T], i: usize) {
    let (half, mask) = (_mm512_set1_epi32(0x8000), _mm512_set1_epi32(0xffff_0000_u32 as i32));
    for Tile(rows) in tiles {
        // Rounded to 16 bits: half of the last one is added, the rest cut off.
        let round = |x: __m512| _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), mask);
        let (a, b) = (round(low), round(high));
        let pairs = _mm512_or_si512(_mm512_srli_epi32::<16>(a), b);
        // SAFETY: a row is 64 bytes.
        unsafe { _mm512_store_si512(rows[i].as_mut_ptr().cast(), pairs) };
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(a));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(b));
    }
}
