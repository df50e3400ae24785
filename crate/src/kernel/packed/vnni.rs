//! The sums of a packed product on AVX-512 VNNI: an instruction adds four products of every row of a panel.

use super::product::{Out, Rows, put_vector, vector, with_group};
use super::{Line, Packed};
use std::arch::x86_64::*;
use std::ops::Range;

/// Lines that are asked for ahead of their use.
const AHEAD: usize = 8;

/// These rows of activations with these panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn product(w: &Packed, x: &Rows<'_>, rows: Range<usize>, panels: Range<usize>, out: Out<'_>) {
    let mut i = rows.start;
    // Few rows of activations stay in the first cache, the weights of the task in the second.
    while i < rows.end {
        i += match (rows.end - i, w.half) {
            (6.., false) => few::<6, false>(w, x, &panels, i, out),
            (6.., true) => few::<6, true>(w, x, &panels, i, out),
            (4.., false) => few::<4, false>(w, x, &panels, i, out),
            (4.., true) => few::<4, true>(w, x, &panels, i, out),
            (3, false) => few::<3, false>(w, x, &panels, i, out),
            (3, true) => few::<3, true>(w, x, &panels, i, out),
            (2, false) => few::<2, false>(w, x, &panels, i, out),
            (2, true) => few::<2, true>(w, x, &panels, i, out),
            (_, false) => few::<1, false>(w, x, &panels, i, out),
            (_, true) => few::<1, true>(w, x, &panels, i, out),
        }
    }
}

/// R rows of activations with all panels. Gives R.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn few<const R: usize, const HALF: bool>(
    w: &Packed,
    x: &Rows<'_>,
    panels: &Range<usize>,
    first: usize,
    out: Out<'_>,
) -> usize {
    let mut panel = panels.start;
    // Four panels are four streams from memory, and share what is loaded of the activations.
    while panel + 4 <= panels.end {
        tile::<4, R, HALF>(w, x, panel, first, out);
        panel += 4;
    }
    while panel < panels.end {
        tile::<1, R, HALF>(w, x, panel, first, out);
        panel += 1;
    }
    R
}

/// R rows of activations with P panels, whose sums fit the registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const P: usize, const R: usize, const HALF: bool>(
    w: &Packed,
    x: &Rows<'_>,
    panel: usize,
    first: usize,
    out: Out<'_>,
) {
    let mut totals = [[_mm512_setzero_ps(); R]; P];
    for g in 0..w.columns.groups {
        let mut lines = [&[][..]; P];
        for (p, lines) in lines.iter_mut().enumerate() {
            *lines = w.group_lines(panel + p, g);
        }
        let mut codes = [&[][..]; R];
        for (r, codes) in codes.iter_mut().enumerate() {
            *codes = x.group(first + r, g);
        }
        let dots = dots::<P, R, HALF>(lines, codes);
        for (p, totals) in totals.iter_mut().enumerate() {
            let at = (panel + p) * w.columns.groups + g;
            let (scale, zero) = (vector(&w.scales[at]), w.zeros.get(at).map(|zero| vector(zero)));
            for (r, total) in totals.iter_mut().enumerate() {
                let row = g * x.scales.len() + first + r;
                let zero = zero.map(|zero| (zero, x.sums[row]));
                *total = with_group(*total, dots[p][r], scale, x.moved[row], zero);
            }
        }
    }
    for r in 0..R {
        for (p, totals) in totals.iter().enumerate() {
            // SAFETY: the panels of a task are its own.
            unsafe { put_vector(out, first + r, panel + p, totals[r], x.scales[first + r]) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dots<const P: usize, const R: usize, const HALF: bool>(
    lines: [&[Line]; P],
    x: [&[i8]; R],
) -> [[__m512i; R]; P] {
    let mut dots = [[_mm512_setzero_si512(); R]; P];
    let (count, parts) = (lines[0].len(), if HALF { 2 } else { 1 });
    assert!(lines.iter().all(|lines| lines.len() == count) && x.iter().all(|x| x.len() == 4 * parts * count));
    let low = _mm512_set1_epi8(15);
    for l in 0..count {
        let mut weights = [[_mm512_setzero_si512(); 2]; P];
        for (weights, lines) in weights.iter_mut().zip(lines) {
            // SAFETY: in bounds by the assertion; what lies ahead is only asked for.
            let line = unsafe {
                let at = lines.as_ptr().add(l);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                _mm512_load_si512(at.cast())
            };
            *weights = if HALF {
                [_mm512_and_si512(line, low), _mm512_and_si512(_mm512_srli_epi16::<4>(line), low)]
            } else {
                [line, line]
            };
        }
        for part in 0..parts {
            for (r, x) in x.iter().enumerate() {
                // SAFETY: in bounds by the assertion.
                let four = unsafe { x.as_ptr().cast::<i32>().add(l * parts + part).read_unaligned() };
                let four = _mm512_set1_epi32(four);
                for (dots, weights) in dots.iter_mut().zip(weights) {
                    dots[r] = _mm512_dpbusd_epi32(dots[r], weights[part], four);
                }
            }
        }
    }
    dots
}
