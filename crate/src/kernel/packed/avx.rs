//! The sums of a packed product on vectors of 256 bits, with or without the instruction that adds four products of bytes
//! (AVX-VNNI).
//!
//! Without it there are two ways, both exact. A byte against a byte: both are widened to 16 bits, of which an instruction
//! adds the products of a pair. (The one that adds those of bytes would save nothing: its sums of 16 bits hold no two such
//! products, and have to be split or widened at once.) Half a byte against a byte: the products of a pair are at most
//! 2 · 15 · 128, so that sums of eight pairs do fit 16 bits.

use super::product::{Out, Rows, tasks};
use super::{PANEL, Packed};
use crate::kernel::dwords::{Dot, Sums, add};
use crate::kernel::kept::Kept;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes of panels that rows of activations meet one after the other: the second-level cache holds them.
const NEAR: usize = 192 << 10;

/// All products by `instructions`, which take `four` bytes at once even where weights are whole bytes.
///
/// # Safety
/// The processor has them.
pub(super) unsafe fn forward(
    instructions: unsafe fn(&Packed, &Operand<'_>, Range<usize>, Range<usize>, Out<'_>),
    four: bool,
    x: &Rows<'_>,
    w: &Packed,
    out: Out<'_>,
) {
    let words = (!four && !w.half).then(|| as_words(&x.codes));
    let operand = Operand { x, words };
    // SAFETY: the caller's promise.
    tasks(x.scales.len(), w, |rows, panels| unsafe { instructions(w, &operand, rows, panels, out) });
}

/// Activations as the instructions take them.
pub(super) struct Operand<'a> {
    x: &'a Rows<'a>,
    /// Pairs of 16 bits instead of four bytes.
    words: Option<Kept<i16>>,
}

impl Operand<'_> {
    /// The first 32 bits of group `g` of row `i`.
    #[inline(always)]
    fn group(&self, i: usize, g: usize) -> *const i32 {
        let at = i * self.x.padded + g * self.x.columns.span();
        match &self.words {
            None => self.x.codes[at..].as_ptr().cast(),
            Some(words) => words[at..].as_ptr().cast(),
        }
    }
}

/// Integers in 16 bits, of each four the first with the third and the second with the fourth, as [`Words`] meets them.
fn as_words(codes: &[i8]) -> Kept<i16> {
    let fill = |to: &mut [MaybeUninit<i16>]| {
        for (to, from) in to.as_chunks_mut::<4>().0.iter_mut().zip(codes.as_chunks::<4>().0) {
            *to = [from[0], from[2], from[1], from[3]].map(|code| MaybeUninit::new(code.into()));
        }
    };
    // SAFETY: rows are filled up to whole eights, so all are written.
    unsafe { Kept::filled(codes.len(), fill) }
}

/// Bytes against pairs of 16 bits: of each four, the first and the third, then the others.
struct Words;

impl Dot for Words {
    const PARTS: usize = 2;

    #[inline(always)]
    unsafe fn part(line: __m256i, part: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            if part == 0 {
                _mm256_and_si256(line, _mm256_set1_epi16(255))
            } else {
                _mm256_srli_epi16::<8>(line)
            }
        }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, line: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(line, x)) }
    }
}

/// Half bytes against bytes, summed in 16 bits.
struct Halves;

impl Dot for Halves {
    const PARTS: usize = 2;
    const RUN: usize = 4;

    #[inline(always)]
    unsafe fn part(line: __m256i, part: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { half_bytes(line, part) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, line: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(line, x)) }
    }

    #[inline(always)]
    unsafe fn gathered(sums: __m256i, run: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(run, _mm256_set1_epi16(1))) }
    }
}

/// The low halves of all bytes, or the high ones.
#[inline(always)]
unsafe fn half_bytes(line: __m256i, part: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let line = if part == 0 { line } else { _mm256_srli_epi16::<4>(line) };
        _mm256_and_si256(line, _mm256_set1_epi8(15))
    }
}

/// What adds four products of a byte without sign and one with it.
trait Four {
    /// # Safety
    /// The calling function has the instructions.
    unsafe fn add(sum: __m256i, line: __m256i, x: __m256i) -> __m256i;
}

/// The instruction.
struct Vnni;

impl Four for Vnni {
    #[inline(always)]
    unsafe fn add(sum: __m256i, line: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_dpbusd_avx_epi32(sum, line, x) }
    }
}

/// Bytes against bytes, four at once.
struct Bytes<F>(PhantomData<F>);

impl<F: Four> Dot for Bytes<F> {
    const PARTS: usize = 1;

    #[inline(always)]
    unsafe fn part(line: __m256i, _: usize) -> __m256i {
        line
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, line: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { F::add(sum, line, x) }
    }
}

/// Half bytes against bytes, four at once.
struct FourHalves<F>(PhantomData<F>);

impl<F: Four> Dot for FourHalves<F> {
    const PARTS: usize = 2;

    #[inline(always)]
    unsafe fn part(line: __m256i, part: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { half_bytes(line, part) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, line: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { F::add(sum, line, x) }
    }
}

/// Declares the products of some rows of activations with some panels on some instructions.
macro_rules! products {
    ($(#[$meta:meta])* $name:ident, $features:literal, $bytes:ty, $halves:ty) => {
        $(#[$meta])*
        #[target_feature(enable = $features)]
        pub(super) fn $name(w: &Packed, x: &Operand<'_>, rows: Range<usize>, panels: Range<usize>, out: Out<'_>) {
            // SAFETY: the instructions are switched on.
            unsafe {
                match w.half {
                    false => product::<$bytes>(w, x, rows, panels, out),
                    true => product::<$halves>(w, x, rows, panels, out),
                }
            }
        }
    };
}
products!(avx2, "avx2,fma", Words, Halves);
products!(vnni, "avx2,fma,avxvnni", Bytes<Vnni>, FourHalves<Vnni>);
products!(
    /// [`vnni`] without its instruction.
    #[cfg(test)]
    spelled,
    "avx2,fma",
    Bytes<tests::Spelled>,
    FourHalves<tests::Spelled>
);

#[inline(always)]
unsafe fn product<D: Dot>(
    w: &Packed,
    x: &Operand<'_>,
    rows: Range<usize>,
    panels: Range<usize>,
    out: Out<'_>,
) {
    let bytes = size_of_val(w.panel_lines(0));
    let near = (NEAR / bytes).max(4);
    for first in panels.clone().step_by(near) {
        let end = panels.end.min(first + near);
        let mut i = rows.start;
        while i < rows.end {
            // SAFETY: the caller's promise.
            i += unsafe {
                match rows.end - i {
                    6.. if D::PARTS == 1 => few::<D, 1, 6>(w, x, first..end, i, out),
                    // Ten sums leave room for a line that is taken apart.
                    5.. => few::<D, 1, 5>(w, x, first..end, i, out),
                    4 => few::<D, 1, 4>(w, x, first..end, i, out),
                    3 => few::<D, 1, 3>(w, x, first..end, i, out),
                    2 => few::<D, 2, 2>(w, x, first..end, i, out),
                    _ => few::<D, 4, 1>(w, x, first..end, i, out),
                }
            };
        }
    }
}

/// R rows of activations with all panels, P at a time: as many streams from memory. Gives R.
#[inline(always)]
unsafe fn few<D: Dot, const P: usize, const R: usize>(
    w: &Packed,
    x: &Operand<'_>,
    panels: Range<usize>,
    first: usize,
    out: Out<'_>,
) -> usize {
    let mut panel = panels.start;
    // SAFETY: the caller's promise.
    unsafe {
        while panel + P <= panels.end {
            tile::<D, P, R>(w, x, panel, first, out);
            panel += P;
        }
        while panel < panels.end {
            tile::<D, 1, R>(w, x, panel, first, out);
            panel += 1;
        }
    }
    R
}

#[inline(always)]
unsafe fn tile<D: Dot, const P: usize, const R: usize>(
    w: &Packed,
    x: &Operand<'_>,
    panel: usize,
    first: usize,
    out: Out<'_>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[[_mm256_setzero_ps(); 2]; R]; P];
        for g in 0..w.columns.groups {
            let (mut panels, mut rows) = ([std::ptr::null(); P], [std::ptr::null(); R]);
            let count = w.group_lines(panel, g).len();
            for (p, at) in panels.iter_mut().enumerate() {
                *at = w.group_lines(panel + p, g).as_ptr();
            }
            for (r, at) in rows.iter_mut().enumerate() {
                *at = x.group(first + r, g);
            }
            let mut sums = [[[_mm256_setzero_si256(); 2]; R]; P];
            add::<D, P, R>(panels, count, rows, &mut sums);
            for (p, totals) in totals.iter_mut().enumerate() {
                for (r, totals) in totals.iter_mut().enumerate() {
                    add_group(totals, sums[p][r], w, panel + p, x.x, first + r, g);
                }
            }
        }
        for (p, totals) in totals.iter().enumerate() {
            for (r, totals) in totals.iter().enumerate() {
                let y = out.place(first + r, panel + p);
                let scale = _mm256_set1_ps(x.x.scales[first + r]);
                let mut scaled = [0.0; PANEL];
                let to = if y.len() == PANEL { y.as_mut_ptr() } else { scaled.as_mut_ptr() };
                _mm256_storeu_ps(to, _mm256_mul_ps(totals[0], scale));
                _mm256_storeu_ps(to.add(8), _mm256_mul_ps(totals[1], scale));
                if y.len() < PANEL {
                    y.copy_from_slice(&scaled[..y.len()]);
                }
            }
        }
    }
}

/// [`super::product::add_group`] on vectors.
#[inline(always)]
unsafe fn add_group(
    totals: &mut [__m256; 2],
    sums: Sums,
    w: &Packed,
    panel: usize,
    x: &Rows<'_>,
    i: usize,
    g: usize,
) {
    let (at, row) = (panel * w.columns.groups + g, g * x.scales.len() + i);
    // SAFETY: the caller's promise; there are 16 scales and zero points.
    unsafe {
        let moved = _mm256_set1_epi32(x.moved[row]);
        for (half, total) in totals.iter_mut().enumerate() {
            let scale = _mm256_loadu_ps(w.scales[at].as_ptr().add(8 * half));
            let mut dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[half], moved));
            if let Some(zeros) = w.zeros.get(at) {
                let zero = _mm256_loadu_ps(zeros.as_ptr().add(8 * half));
                dot = _mm256_sub_ps(dot, _mm256_mul_ps(zero, _mm256_set1_ps(x.sums[row] as f32)));
            }
            *total = _mm256_add_ps(*total, _mm256_mul_ps(dot, scale));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the instruction does, on those of AVX2.
    pub struct Spelled;

    impl Four for Spelled {
        #[inline(always)]
        unsafe fn add(sum: __m256i, line: __m256i, x: __m256i) -> __m256i {
            // SAFETY: the caller's promise.
            unsafe {
                let (even, odd) =
                    (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)), _mm256_srai_epi16::<8>(x));
                let even = _mm256_madd_epi16(Words::part(line, 0), even);
                let odd = _mm256_madd_epi16(Words::part(line, 1), odd);
                _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
            }
        }
    }

    #[test]
    fn four_products_are_those_of_a_byte_without_sign_and_one_with_it() {
        type Add = unsafe fn(&[u8; 32], &[i8; 32], &mut [i32; 8]);
        macro_rules! adds {
            ($name:ident, $features:literal, $four:ty) => {
                #[target_feature(enable = $features)]
                fn $name(line: &[u8; 32], x: &[i8; 32], sums: &mut [i32; 8]) {
                    // SAFETY: 32 bytes each; the instructions are switched on.
                    unsafe {
                        let sum = _mm256_loadu_si256(sums.as_ptr().cast());
                        let line = _mm256_loadu_si256(line.as_ptr().cast());
                        let sum = <$four>::add(sum, line, _mm256_loadu_si256(x.as_ptr().cast()));
                        _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum);
                    }
                }
            };
        }
        adds!(spelled, "avx2", Spelled);
        adds!(instruction, "avx2,avxvnni", Vnni);
        let mut adds: Vec<Add> = vec![];
        if is_x86_feature_detected!("avx2") {
            adds.push(spelled);
        }
        if is_x86_feature_detected!("avxvnni") {
            adds.push(instruction);
        }
        for add in adds {
            for seed in 0..200 {
                let line: [u8; 32] =
                    std::array::from_fn(|i| if seed == 0 { 255 } else { ((seed * 31 + i) * 7919) as u8 });
                let x: [i8; 32] =
                    std::array::from_fn(|i| if seed == 0 { -128 } else { ((seed * 17 + i) * 104_729) as i8 });
                let mut sums: [i32; 8] = std::array::from_fn(|i| i as i32 * 1_000_003 - 7);
                let dot = |i: usize| -> i32 {
                    (4 * i..4 * i + 4).map(|b| i32::from(line[b]) * i32::from(x[b])).sum()
                };
                let expected: [i32; 8] = std::array::from_fn(|i| sums[i] + dot(i));
                // SAFETY: the processor has the instructions, as just asked.
                unsafe { add(&line, &x, &mut sums) };
                assert_eq!(sums, expected);
            }
        }
    }
}
