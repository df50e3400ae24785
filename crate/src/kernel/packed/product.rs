//! Products of integer activations with a packed matrix: the same integers on every path, and one floating-point end.

use super::columns::Columns;
use super::path::{Path, path};
use super::{PANEL, Packed, portable};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx, vnni};
use crate::kernel::Scatter;
use crate::kernel::integer::{Integers, total};
use rayon::prelude::*;
use smallvec::{SmallVec, smallvec};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::borrow::Cow;
use std::ops::Range;

/// Panels of one task for few rows of activations.
const FEW: usize = 8;
/// The most for many: their results then lie next to one another, which spares the processor much searching for pages.
const MANY: usize = 32;
/// Rows of activations of one task.
const ROWS: usize = 512;
/// From this many rows of activations on, tiles are faster than vectors.
const TILED: usize = 16;

/// y = x Wᵀ: `x` [m, cols], `y` [m, rows], overwritten. Equal bit for bit to
/// [`integer::forward`](crate::kernel::integer::forward): in every group an exact sum, times the two scales in f32,
/// added up from the first group to the last.
pub fn forward(x: &Integers, w: &Packed, y: &mut [f32]) {
    forward_on(path(), x, w, y);
}

/// [`forward`] on a path that the processor has.
fn forward_on(path: Path, x: &Integers, w: &Packed, y: &mut [f32]) {
    let (m, n) = (x.scales.len(), w.rows);
    assert!(x.k == w.columns.count && x.codes.len() == m * x.k && y.len() == m * n);
    let out = Out { y: Scatter::new(y), n };
    #[cfg(target_arch = "x86_64")]
    if path == Path::Amx && m >= TILED {
        let tiles = amx::Tiles::new(x, w);
        // SAFETY: the path says that the processor has the instructions, and that the system has permitted tiles.
        return tasks(m, w, |rows, panels| unsafe { amx::product(w, &tiles, rows, panels, out) });
    }
    let x = Rows::new(x, w);
    #[cfg(target_arch = "x86_64")]
    match path {
        Path::Portable => {}
        // SAFETY, here and below: the path says that the processor has the instructions.
        Path::Avx2 => return unsafe { avx::forward(avx::avx2, false, &x, w, out) },
        Path::AvxVnni => return unsafe { avx::forward(avx::vnni, true, &x, w, out) },
        Path::Vnni | Path::Amx => {
            return tasks(m, w, |rows, panels| unsafe { vnni::product(w, &x, rows, panels, out) });
        }
    }
    let _ = path;
    tasks(m, w, |rows, panels| portable::product(w, &x, rows, panels, out));
}

/// Calls `f` for ranges of rows of activations and of panels, in parallel if that pays.
pub(super) fn tasks(m: usize, w: &Packed, f: impl Fn(Range<usize>, Range<usize>) + Sync) {
    let panels = w.panels();
    let alone = m * w.rows * w.columns.count < 1 << 16;
    let step = match m {
        _ if alone => panels,
        0..TILED => FEW,
        _ => (panels / (4 * rayon::current_num_threads())).next_multiple_of(4).clamp(FEW, MANY),
    };
    let parts = m.div_ceil(ROWS);
    let task = |i: usize| {
        let (row, panel) = (i % parts * ROWS, i / parts * step);
        f(row..m.min(row + ROWS), panel..panels.min(panel + step));
    };
    let count = panels.div_ceil(step) * parts;
    if alone { (0..count).for_each(task) } else { (0..count).into_par_iter().for_each(task) }
}

/// Sums of groups: those of a single row, if they are few, without memory of their own.
type Sums = SmallVec<[i32; 64]>;

/// Activations whose columns lie as those of a packed matrix do.
pub(super) struct Rows<'a> {
    /// [m, padded], zeros where columns are filled up.
    pub codes: Cow<'a, [i8]>,
    /// Distance of rows.
    pub padded: usize,
    /// [groups, m]: the sum of a row's group.
    pub sums: Sums,
    /// [groups, m]: that times the offset of the stored integers.
    pub moved: Sums,
    /// `[m]`.
    pub scales: &'a [f32],
    pub columns: Columns,
}

impl<'a> Rows<'a> {
    pub fn new(x: &'a Integers, w: &Packed) -> Self {
        let (m, k, columns) = (x.scales.len(), x.k, w.columns);
        let (groups, padded) = (columns.groups, columns.padded());
        let mut by_row: Sums = smallvec![0; m * groups];
        by_row.par_chunks_mut(groups).zip(x.codes.par_chunks(k)).with_min_len(64).for_each(|(sums, row)| {
            for (g, sum) in sums.iter_mut().enumerate() {
                *sum = total(&row[columns.of(g)]);
            }
        });
        let sums: Sums = (0..groups * m).map(|at| by_row[at % m * groups + at / m]).collect();
        let moved = sums.iter().map(|sum| sum.wrapping_mul(w.offset)).collect();
        let codes = if padded == k {
            Cow::Borrowed(&*x.codes)
        } else {
            let mut codes = vec![0; m * padded];
            let rows = codes.par_chunks_mut(padded).zip(x.codes.par_chunks(k)).with_min_len(64);
            rows.for_each(|(to, from)| {
                for g in 0..groups {
                    let from = &from[columns.of(g)];
                    to[g * columns.span()..][..from.len()].copy_from_slice(from);
                }
            });
            Cow::Owned(codes)
        };
        Self { codes, padded, sums, moved, scales: &x.scales, columns }
    }

    /// Group `g` of row `i`.
    #[inline(always)]
    pub fn group(&self, i: usize, g: usize) -> &[i8] {
        &self.codes[i * self.padded + g * self.columns.span()..][..self.columns.span()]
    }
}

/// Where results go.
#[derive(Clone, Copy)]
pub(super) struct Out<'a> {
    pub y: Scatter<'a>,
    pub n: usize,
}

impl<'a> Out<'a> {
    /// The places of row `i` of a panel.
    ///
    /// # Safety
    /// The panel belongs to the calling task alone.
    #[inline(always)]
    pub unsafe fn place(self, i: usize, panel: usize) -> &'a mut [f32] {
        let first = panel * PANEL;
        // SAFETY: the task owns these columns.
        unsafe { self.y.slice(i * self.n + first, PANEL.min(self.n - first)) }
    }

    /// Writes row `i` of a panel's sums, times the scale of the activations.
    ///
    /// # Safety
    /// The panel belongs to the calling task alone.
    #[inline(always)]
    pub unsafe fn put(self, i: usize, panel: usize, total: &[f32; PANEL], scale: f32) {
        // SAFETY: the caller's promise.
        let y = unsafe { self.place(i, panel) };
        let mut scaled = [0.0; PANEL];
        for (scaled, total) in scaled.iter_mut().zip(total) {
            *scaled = total * scale;
        }
        match <&mut [f32; PANEL]>::try_from(&mut *y) {
            Ok(y) => *y = scaled,
            Err(_) => y.copy_from_slice(&scaled[..y.len()]),
        }
    }
}

/// [`Out::put`] of a vector.
///
/// # Safety
/// The panel belongs to the calling task alone.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn put_vector(out: Out<'_>, i: usize, panel: usize, total: __m512, scale: f32) {
    // SAFETY: the caller's promise; the mask ends with the panel's columns.
    unsafe {
        let y = out.place(i, panel);
        let scaled = _mm512_mul_ps(total, _mm512_set1_ps(scale));
        _mm512_mask_storeu_ps(y.as_mut_ptr(), ((1u32 << y.len()) - 1) as u16, scaled);
    }
}

/// [`add_group`] on vectors: the row's sum of the group is given beside the zero points.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn with_group(
    total: __m512,
    dots: __m512i,
    scale: __m512,
    moved: i32,
    zero: Option<(__m512, i32)>,
) -> __m512 {
    let mut dot = _mm512_cvtepi32_ps(_mm512_sub_epi32(dots, _mm512_set1_epi32(moved)));
    if let Some((zero, sum)) = zero {
        dot = _mm512_sub_ps(dot, _mm512_mul_ps(zero, _mm512_set1_ps(sum as f32)));
    }
    _mm512_add_ps(total, _mm512_mul_ps(dot, scale))
}

/// 16 numbers as a vector.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn vector(x: &[f32; PANEL]) -> __m512 {
    // SAFETY: 16 numbers.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// Adds group `g` of a panel for row `i` of activations, (dot − zero · sum) · scale, where `dots` are the sums of stored
/// integers.
#[inline(always)]
pub(super) fn add_group(
    total: &mut [f32; PANEL],
    dots: &[i32; PANEL],
    w: &Packed,
    panel: usize,
    x: &Rows<'_>,
    i: usize,
    g: usize,
) {
    let (at, row) = (panel * w.columns.groups + g, g * x.scales.len() + i);
    let (scales, moved) = (&w.scales[at], x.moved[row]);
    let mut dot = [0.0; PANEL];
    for (dot, stored) in dot.iter_mut().zip(dots) {
        *dot = stored.wrapping_sub(moved) as f32;
    }
    if let Some(zeros) = w.zeros.get(at) {
        let sum = x.sums[row] as f32;
        for (dot, zero) in dot.iter_mut().zip(zeros) {
            *dot -= zero * sum;
        }
    }
    for ((total, dot), scale) in total.iter_mut().zip(dot).zip(scales) {
        *total += dot * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Plain;
    use super::*;
    use crate::kernel::integer;

    fn activations(m: usize, k: usize, seed: usize) -> Integers {
        // -128 too, although rounding never gives it.
        let codes = (0..m * k).map(|i| (((i + seed) * 104_729 + 7) % 256) as u8 as i8).collect();
        Integers { codes, scales: (0..m).map(|i| 0.1 + i as f32 * 0.01).collect(), k }
    }

    type Forward = Box<dyn Fn(&Integers, &Packed, &mut [f32])>;

    /// What the processor has; and AVX-VNNI wherever there is AVX2, its one instruction spelled out.
    fn every_path() -> Vec<(String, Forward)> {
        let available = Path::EACH.into_iter().filter(|path| path.available());
        let of = |path| -> Forward { Box::new(move |x, w, y| forward_on(path, x, w, y)) };
        let mut all: Vec<_> = available.map(|path| (format!("{path:?}"), of(path))).collect();
        #[cfg(target_arch = "x86_64")]
        if Path::Avx2.available() {
            let spelled = |x: &Integers, w: &Packed, y: &mut [f32]| {
                let out = Out { y: Scatter::new(y), n: w.rows };
                // SAFETY: there is AVX2.
                unsafe { avx::forward(avx::spelled, true, &Rows::new(x, w), w, out) }
            };
            all.push(("AvxVnni spelled out".into(), Box::new(spelled)));
        }
        all
    }

    fn check(m: usize, n: usize, k: usize, group: usize, range: (i8, i8), zeros: bool) {
        let plain = Plain { cols: k, group, range, zeros, seed: m };
        let (x, packed) = (activations(m, k, n), Packed::new(n, k, &plain).unwrap());
        let (mut expected, mut y) = (vec![0.0; m * n], vec![0.0; m * n]);
        integer::forward(&x, n, &plain, &mut expected);
        for (name, forward) in every_path() {
            y.fill(f32::NAN);
            forward(&x, &packed, &mut y);
            let same = y.iter().zip(&expected).all(|(y, e)| y.to_bits() == e.to_bits());
            assert!(same, "{name}: {m}×{k}×{n} g{group} {range:?} zeros {zeros}");
        }
    }

    #[test]
    fn every_path_is_the_definition_at_odd_sizes() {
        let mut seed = 1usize;
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below + 1
        };
        for round in 0..240 {
            let (m, n, k) = (next(70), next(70), next(300));
            let group = [k, next(k), 8.min(k), 32.min(k), 64.min(k), 128.min(k)][round % 6];
            let range = [(-127, 127), (-128, 127), (-8, 7), (-1, 1), (0, 15), (-100, 20)][round / 6 % 6];
            check(m, n, k, group, range, round % 4 == 0);
        }
    }

    #[test]
    fn few_and_many_rows_of_wide_matrices_too() {
        for m in [1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 31, 32, 33, 48, 130] {
            check(m, 16 * 19 + 3, 256, 256, (-127, 127), false);
            check(m, 16 * 9 + 1, 192, 64, (-7, 7), false);
        }
    }

    #[test]
    fn the_largest_sums_do_not_saturate() {
        struct Top(i8);
        impl integer::IntegerRows for Top {
            fn integers(&self, _: usize, to: &mut [i8]) {
                to.fill(self.0);
            }
            fn runs(&self, _: usize, to: &mut Vec<integer::Run>) {
                to.push(integer::Run { end: 1 << 12, scale: 1.0, zero: 0.0 });
            }
        }
        for (w, x) in [(127, 127), (-128, -128), (127, -128)] {
            let x = Integers { codes: vec![x; 17 << 12], scales: vec![1.0; 17], k: 1 << 12 };
            let packed = Packed::new(3, 1 << 12, &Top(w)).unwrap();
            hold(&x, &packed, f32::from(w) * f32::from(x.codes[0]) * 4096.0);
        }
        // Half bytes, with all of their bits and with activations as far from zero as they can be.
        struct Halves(i8);
        impl integer::IntegerRows for Halves {
            fn integers(&self, _: usize, to: &mut [i8]) {
                to.fill(self.0);
            }
            fn runs(&self, row: usize, to: &mut Vec<integer::Run>) {
                Top(0).runs(row, to);
            }
            fn range(&self) -> (i8, i8) {
                (0, 15)
            }
        }
        for x in [127, -128] {
            let x = Integers { codes: vec![x; 17 << 12], scales: vec![1.0; 17], k: 1 << 12 };
            let packed = Packed::new(3, 1 << 12, &Halves(15)).unwrap();
            hold(&x, &packed, 15.0 * f32::from(x.codes[0]) * 4096.0);
        }
    }

    fn hold(x: &Integers, w: &Packed, expected: f32) {
        for (name, forward) in every_path() {
            let mut y = vec![0.0; 17 * 3];
            forward(x, w, &mut y);
            assert!(y.iter().all(|y| *y == expected), "{name}: {y:?} instead of {expected}");
        }
    }
}
