//! Products of few rows of f32 activations with a packed matrix: its codes become values in registers, on their way from
//! memory. Only on AVX-512, whose registers are tables of 16 levels.

use super::{Line, PANEL, Packed};
use crate::kernel::Scatter;
use crate::kernel::levels::Levels;
use crate::kernel::simd::{Level, level};
use rayon::prelude::*;
use std::arch::x86_64::*;

/// Up to this many rows of activations this is faster than decoding the matrix.
const FEW: usize = 4;
/// Panels of a task and of a step.
const TASK: usize = 8;
const STEP: usize = 4;
/// Lines that are asked for ahead of their use.
const AHEAD: usize = 8;

/// How bytes become values; half bytes are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// The integers that were packed.
    Integers,
    /// The packed integers plus 128 are codes of FP8 (E4M3).
    E4m3,
}

/// y = x Wᵀ for x [m, cols], y [m, rows], summed in f32, where a stored half byte stands for its level and a byte for what
/// `bytes` says. Gives false, and leaves y as it is, if another way is faster.
pub fn forward(m: usize, x: &[f32], w: &Packed, levels: &Levels, bytes: Bytes, y: &mut [f32]) -> bool {
    if m > FEW || level() < Level::Avx512 {
        return false;
    }
    assert!(x.len() == m * w.columns.count && y.len() == m * w.rows);
    let (x, out) = (Floats::new(x, w), Scatter::new(y));
    let task = |i: usize| {
        let mut panel = i * TASK;
        let end = w.panels().min(panel + TASK);
        while panel < end {
            // SAFETY: the level says that the processor has the instructions.
            panel += match (w.half, bytes) {
                (true, _) => unsafe { step::<HALF>(&x, w, levels, panel, end, out) },
                (_, Bytes::Integers) => unsafe { step::<INTEGERS>(&x, w, levels, panel, end, out) },
                (_, Bytes::E4m3) => unsafe { step::<E4M3>(&x, w, levels, panel, end, out) },
            };
        }
    };
    let count = w.panels().div_ceil(TASK);
    if w.rows * w.columns.count < 1 << 16 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().for_each(task);
    }
    true
}

const HALF: u8 = 0;
const INTEGERS: u8 = 1;
const E4M3: u8 = 2;

/// Activations whose columns lie as those of the matrix do.
struct Floats {
    /// [m, padded].
    values: Vec<f32>,
    /// [m, groups].
    sums: Vec<f32>,
    m: usize,
}

impl Floats {
    fn new(x: &[f32], w: &Packed) -> Self {
        let (columns, m) = (w.columns, x.len() / w.columns.count);
        let (mut values, mut sums) =
            (vec![0.0; m * columns.padded()], Vec::with_capacity(m * columns.groups));
        for (from, to) in x.chunks(columns.count).zip(values.chunks_mut(columns.padded())) {
            for (g, to) in to.chunks_mut(columns.span()).enumerate() {
                let from = &from[columns.of(g)];
                to[..from.len()].copy_from_slice(from);
                sums.push(if w.zeros.is_empty() { 0.0 } else { from.iter().sum() });
            }
        }
        Self { values, sums, m }
    }
}

/// Some panels from `panel` on, for all rows of activations. Gives how many.
#[target_feature(enable = "avx512f,avx512bw")]
fn step<const KIND: u8>(
    x: &Floats,
    w: &Packed,
    levels: &Levels,
    panel: usize,
    end: usize,
    out: Scatter<'_>,
) -> usize {
    let mut row = 0;
    while row < x.m {
        row += match (panel + STEP <= end, row + 2 <= x.m) {
            (true, true) => tile::<KIND, STEP, 2>(x, w, levels, panel, row, out),
            (true, false) => tile::<KIND, STEP, 1>(x, w, levels, panel, row, out),
            (false, true) => tile::<KIND, 1, 2>(x, w, levels, panel, row, out),
            (false, false) => tile::<KIND, 1, 1>(x, w, levels, panel, row, out),
        };
    }
    if panel + STEP <= end { STEP } else { 1 }
}

/// P panels and R rows of activations. Gives R.
#[target_feature(enable = "avx512f,avx512bw")]
fn tile<const KIND: u8, const P: usize, const R: usize>(
    x: &Floats,
    w: &Packed,
    levels: &Levels,
    panel: usize,
    first: usize,
    out: Scatter<'_>,
) -> usize {
    let (columns, zero) = (w.columns, _mm512_setzero_ps());
    // SAFETY: there are more than 16 levels.
    let table = unsafe { _mm512_loadu_ps(levels.as_ptr()) };
    let mut totals = [[zero; R]; P];
    for g in 0..columns.groups {
        let mut lines = [&[][..]; P];
        for (p, lines) in lines.iter_mut().enumerate() {
            *lines = w.group_lines(panel + p, g);
        }
        let mut values = [&[][..]; R];
        for (r, values) in values.iter_mut().enumerate() {
            *values = &x.values[(first + r) * columns.padded() + g * columns.span()..][..columns.span()];
        }
        let dots = dots::<KIND, P, R>(lines, values, table, _mm512_set1_epi8(w.offset as i8));
        for (p, totals) in totals.iter_mut().enumerate() {
            let at = (panel + p) * columns.groups + g;
            // SAFETY: 16 scales.
            let mut scale = unsafe { _mm512_loadu_ps(w.scales[at].as_ptr()) };
            if KIND == E4M3 {
                scale = _mm512_mul_ps(scale, _mm512_set1_ps(E4M3_UNIT));
            }
            for (r, total) in totals.iter_mut().enumerate() {
                let mut dot = dots[p][r];
                if let Some(zeros) = w.zeros.get(at) {
                    let sum = _mm512_set1_ps(x.sums[(first + r) * columns.groups + g]);
                    // SAFETY: 16 zero points.
                    dot = _mm512_fnmadd_ps(unsafe { _mm512_loadu_ps(zeros.as_ptr()) }, sum, dot);
                }
                *total = _mm512_fmadd_ps(dot, scale, *total);
            }
        }
    }
    for (p, totals) in totals.iter().enumerate() {
        let row = (panel + p) * PANEL;
        for (r, total) in totals.iter().enumerate() {
            let mut lanes = [0.0; PANEL];
            // SAFETY: 16 numbers; the panels of a task are its own.
            let y = unsafe {
                _mm512_storeu_ps(lanes.as_mut_ptr(), *total);
                out.slice((first + r) * w.rows + row, PANEL.min(w.rows - row))
            };
            y.copy_from_slice(&lanes[..y.len()]);
        }
    }
    R
}

/// What the exponent of E4M3 is short of when its bits are read as those of an f32: 2^120.
const E4M3_UNIT: f32 = f32::from_bits((120 + 127) << 23);

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn dots<const KIND: u8, const P: usize, const R: usize>(
    lines: [&[Line]; P],
    x: [&[f32]; R],
    table: __m512,
    offset: __m512i,
) -> [[__m512; R]; P] {
    // Two sums each: one would wait for itself.
    let mut dots = [[[_mm512_setzero_ps(); 2]; R]; P];
    let (count, width) = (lines[0].len(), if KIND == HALF { 8 } else { 4 });
    assert!(lines.iter().all(|lines| lines.len() == count) && x.iter().all(|x| x.len() == width * count));
    for l in 0..count {
        for (dots, lines) in dots.iter_mut().zip(lines) {
            // SAFETY: in bounds by the assertion; what lies ahead is only asked for.
            let mut line = unsafe {
                let at = lines.as_ptr().add(l);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                _mm512_load_si512(at.cast())
            };
            if KIND == INTEGERS {
                line = _mm512_sub_epi8(line, offset);
            }
            for c in 0..width {
                let value = if KIND == HALF {
                    // Columns 0 … 3 in the low halves of the four bytes, 4 … 7 in the high ones.
                    let shift = _mm512_set1_epi32((c % 4 * 8 + c / 4 * 4) as i32);
                    _mm512_permutexvar_ps(_mm512_srlv_epi32(line, shift), table)
                } else {
                    let top = _mm512_sllv_epi32(line, _mm512_set1_epi32(24 - 8 * c as i32));
                    if KIND == E4M3 {
                        let spread = _mm512_srai_epi32::<4>(top);
                        _mm512_castsi512_ps(_mm512_and_si512(
                            spread,
                            _mm512_set1_epi32(0x87f0_0000u32 as i32),
                        ))
                    } else {
                        _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))
                    }
                };
                for (dots, x) in dots.iter_mut().zip(x) {
                    // SAFETY: in bounds by the assertion.
                    let x = _mm512_set1_ps(unsafe { *x.as_ptr().add(l * width + c) });
                    dots[c % 2] = _mm512_fmadd_ps(value, x, dots[c % 2]);
                }
            }
        }
    }
    let mut sums = [[_mm512_setzero_ps(); R]; P];
    for (sums, dots) in sums.iter_mut().zip(dots) {
        for (sum, dots) in sums.iter_mut().zip(dots) {
            *sum = _mm512_add_ps(dots[0], dots[1]);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::tests::Plain;
    use super::*;
    use crate::kernel::integer::IntegerRows;

    #[test]
    fn few_rows_are_the_definition_for_every_meaning() {
        if level() < Level::Avx512 {
            return;
        }
        for (m, n, k, group) in
            [(1, 1, 1, 1), (1, 70, 37, 37), (2, 33, 200, 64), (3, 130, 96, 40), (4, 150, 300, 300)]
        {
            for (range, zeros, bytes) in [
                ((-8, 7), false, Bytes::Integers),
                ((0, 15), true, Bytes::Integers),
                ((-127, 127), false, Bytes::Integers),
                ((-16, 15), true, Bytes::Integers),
                ((-128, 127), false, Bytes::E4m3),
            ] {
                let plain = Plain { cols: k, group, range, zeros, seed: n };
                let packed = Packed::new(n, k, &plain).unwrap();
                let x: Vec<f32> = (0..m * k).map(|i| ((i * 7919 + 13) % 257) as f32 / 128.0 - 1.0).collect();
                let mut levels = [0.0; 256];
                for (code, level) in levels.iter_mut().enumerate() {
                    *level = code as f32 + f32::from(range.0);
                }
                let value = |integer: i8| match bytes {
                    Bytes::Integers => f32::from(integer),
                    Bytes::E4m3 => {
                        let code = i32::from(integer) + 128;
                        let (exponent, mantissa) = (code >> 3 & 15, (code & 7) as f32);
                        let size = if exponent == 0 {
                            mantissa
                        } else {
                            (8.0 + mantissa) * f32::powi(2.0, exponent - 1)
                        };
                        if code > 127 { -size / 512.0 } else { size / 512.0 }
                    }
                };
                let mut y = vec![f32::NAN; m * n];
                assert!(forward(m, &x, &packed, &levels, bytes, &mut y));
                for (ij, y) in y.iter().enumerate() {
                    let (i, j) = (ij / n, ij % n);
                    let (mut row, mut runs) = (vec![0; k], vec![]);
                    plain.integers(j, &mut row);
                    plain.runs(j, &mut runs);
                    let (mut expected, mut size, mut start) = (0.0, 0.0, 0);
                    for run in runs {
                        for c in start..run.end {
                            let (x, w) = (f64::from(x[i * k + c]), f64::from(value(row[c])));
                            expected += x * (w - f64::from(run.zero)) * f64::from(run.scale);
                            size += (x * (w.abs() + f64::from(run.zero.abs())) * f64::from(run.scale)).abs();
                        }
                        start = run.end;
                    }
                    assert!(
                        (f64::from(*y) - expected).abs() <= 1e-6 * size,
                        "{m}×{k}×{n} {bytes:?} {range:?}: {y} {expected}"
                    );
                }
            }
        }
    }
}
