//! The sums of a packed product on AVX2: bytes are widened to 16 bits, whose pairs of products add up without
//! saturating.

use super::product::{Out, Rows, add_group};
use super::{Line, PANEL, Packed};
use std::arch::x86_64::*;
use std::ops::Range;

/// These rows of activations with these panels.
#[target_feature(enable = "avx2")]
pub(super) fn product(w: &Packed, x: &Rows<'_>, rows: Range<usize>, panels: Range<usize>, out: Out<'_>) {
    for panel in panels {
        let mut i = rows.start;
        while i + 2 <= rows.end {
            tile::<2>(w, x, panel, i, out);
            i += 2;
        }
        if i < rows.end {
            tile::<1>(w, x, panel, i, out);
        }
    }
}

#[target_feature(enable = "avx2")]
fn tile<const R: usize>(w: &Packed, x: &Rows<'_>, panel: usize, first: usize, out: Out<'_>) {
    let mut totals = [[0.0; PANEL]; R];
    for g in 0..w.columns.groups {
        let mut codes = [&[][..]; R];
        for (i, codes) in codes.iter_mut().enumerate() {
            *codes = x.group(first + i, g);
        }
        let lines = w.group_lines(panel, g);
        let dots = if w.half { dots::<R, true>(lines, codes) } else { dots::<R, false>(lines, codes) };
        for (i, (total, dots)) in totals.iter_mut().zip(&dots).enumerate() {
            add_group(total, dots, w, panel, x, first + i, g);
        }
    }
    for (i, total) in totals.iter().enumerate() {
        // SAFETY: the panels of a task are its own.
        unsafe { out.put(first + i, panel, total, x.scales[first + i]) };
    }
}

#[target_feature(enable = "avx2")]
fn dots<const R: usize, const HALF: bool>(lines: &[Line], x: [&[i8]; R]) -> [[i32; PANEL]; R] {
    // Lanes 2r and 2r + 1 of sum q belong to row 4q + r.
    let mut sums = [[_mm256_setzero_si256(); 4]; R];
    let parts = if HALF { 2 } else { 1 };
    for (l, line) in lines.iter().enumerate() {
        for part in 0..parts {
            let mut four = [_mm256_setzero_si256(); R];
            for (four, x) in four.iter_mut().zip(x) {
                let at = 4 * (l * parts + part);
                let x = i32::from_le_bytes([x[at] as u8, x[at + 1] as u8, x[at + 2] as u8, x[at + 3] as u8]);
                *four = _mm256_cvtepi8_epi16(_mm_set1_epi32(x));
            }
            for q in 0..4 {
                // SAFETY: a line has 64 bytes.
                let mut bytes = unsafe { _mm_loadu_si128(line.0.as_ptr().add(16 * q).cast()) };
                if HALF {
                    if part == 1 {
                        bytes = _mm_srli_epi16::<4>(bytes);
                    }
                    bytes = _mm_and_si128(bytes, _mm_set1_epi8(15));
                }
                let wide = _mm256_cvtepu8_epi16(bytes);
                for (sums, four) in sums.iter_mut().zip(four) {
                    sums[q] = _mm256_add_epi32(sums[q], _mm256_madd_epi16(wide, four));
                }
            }
        }
    }
    let mut dots = [[0; PANEL]; R];
    for (dots, sums) in dots.iter_mut().zip(sums) {
        for (q, dots) in dots.chunks_exact_mut(8).enumerate() {
            let pairs = _mm256_hadd_epi32(sums[2 * q], sums[2 * q + 1]);
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
            // SAFETY: eight integers.
            unsafe { _mm256_storeu_si256(dots.as_mut_ptr().cast(), ordered) };
        }
    }
    dots
}
