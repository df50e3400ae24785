//! Groups of codes as vectors: the exponents of a whole vector are looked up at once, and interleaved with what lies in full.

use super::{Coded, EXPONENT, Exception, GROUP, group_lines, one};
use crate::kernel::line::Line;
use crate::kernel::simd::{Lanes, dispatch};
use crate::kernel::stored::Held;
use half::bf16;

/// Vectors that a group becomes.
pub(in crate::kernel) trait Grouped: Lanes {
    /// What the codes of a row stand for.
    type Table: Copy;
    /// 128 values.
    type Group: AsRef<[Self]> + AsMut<[Self]>;

    /// Of the exponent fields of 16 codes.
    fn table(exponents: [u8; 16]) -> Self::Table;
    /// The values of a group, but for exceptions.
    fn group<const SINGLE: bool>(lines: &[Line], table: Self::Table) -> Self::Group;

    /// Puts an exception right, if its place is in the group.
    #[inline(always)]
    fn mend(group: &mut Self::Group, place: usize, exception: Exception) {
        if let Some(vector) = group.as_mut().get_mut(place / Self::N) {
            let mut lanes = [0.0; 16];
            vector.store(&mut lanes);
            lanes[place % Self::N] = exception.mend(lanes[place % Self::N]);
            *vector = Self::load(&lanes);
        }
    }
}

impl Grouped for [f32; 8] {
    type Table = [u8; 16];
    type Group = [Self; GROUP / 8];

    #[inline(always)]
    fn table(exponents: [u8; 16]) -> [u8; 16] {
        exponents
    }

    #[inline(always)]
    fn group<const SINGLE: bool>(lines: &[Line], exponents: [u8; 16]) -> Self::Group {
        let mut group = [[0.0; 8]; GROUP / 8];
        for (i, value) in group.as_flattened_mut().iter_mut().enumerate() {
            *value = one(lines, exponents, SINGLE, i);
        }
        group
    }
}

// SAFETY, for every intrinsic below: as in `simd::x86`, these types are named only by functions that `dispatch!` compiles with
// the instruction set enabled and calls after `level` has found it. Loads are of cache lines, or of parts of one.
#[cfg(target_arch = "x86_64")]
macro_rules! grouped {
    ($floats:ty, $integers:ty $(, $mend:item)?) => {
        /// Parts of a cache line.
        const PARTS: usize = 64 / size_of::<$integers>();

        #[inline(always)]
        unsafe fn part_of(line: &Line, part: usize) -> $integers {
            unsafe { load(line.0.as_ptr().cast::<$integers>().add(part)) }
        }

        impl Grouped for $floats {
            /// In bytes: the upper seven bits of the exponents, and the lowest as the highest one.
            type Table = [$integers; 2];
            type Group = [Self; GROUP / <Self as Lanes>::N];

            #[inline(always)]
            fn table(exponents: [u8; 16]) -> Self::Table {
                let (mut high, mut low) = (exponents, exponents);
                high.iter_mut().for_each(|e| *e >>= 1);
                low.iter_mut().for_each(|e| *e <<= 7);
                unsafe {
                    [
                        broadcast(_mm_loadu_si128(high.as_ptr().cast())),
                        broadcast(_mm_loadu_si128(low.as_ptr().cast())),
                    ]
                }
            }

            #[inline(always)]
            fn group<const SINGLE: bool>(lines: &[Line], [high, low]: Self::Table) -> Self::Group {
                let lines = &lines[..group_lines(SINGLE)];
                let mut group = [Self::splat(0.0); GROUP / <Self as Lanes>::N];
                for half in 0..2 {
                    for part in 0..PARTS {
                        unsafe {
                            let (both, upper) = (part_of(&lines[0], part), part_of(&lines[1 + half], part));
                            let codes = and(if half == 0 { both } else { shift_right::<4>(both) }, all(15));
                            let sign = all(-128);
                            let high = or(and(upper, sign), look_up(high, codes));
                            let low = or(andnot(sign, upper), look_up(low, codes));
                            let words = [low_bytes(low, high), high_bytes(low, high)];
                            for pair in 0..2 {
                                let below = match SINGLE {
                                    true => part_of(&lines[3 + 2 * half + pair], part),
                                    false => zero(),
                                };
                                let at = PARTS * (4 * half + 2 * pair) + part;
                                group[at] = floats(low_words(below, words[pair]));
                                group[at + PARTS] = floats(high_words(below, words[pair]));
                            }
                        }
                    }
                }
                group
            }

            $($mend)?
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{EXPONENT, Exception, GROUP, Grouped, Lanes, Line, group_lines};
    use std::arch::x86_64::{
        __m512, __m512i, _mm_loadu_si128, _mm512_and_si512 as and, _mm512_andnot_si512 as andnot,
        _mm512_broadcast_i32x4 as broadcast, _mm512_castps_si512, _mm512_castsi512_ps as floats,
        _mm512_loadu_si512 as load, _mm512_mask_or_epi32, _mm512_or_si512 as or, _mm512_set1_epi8 as all,
        _mm512_set1_epi32, _mm512_setzero_si512 as zero, _mm512_shuffle_epi8 as look_up,
        _mm512_srli_epi16 as shift_right, _mm512_unpackhi_epi8 as high_bytes,
        _mm512_unpackhi_epi16 as high_words, _mm512_unpacklo_epi8 as low_bytes,
        _mm512_unpacklo_epi16 as low_words,
    };
    grouped!(
        __m512,
        __m512i,
        /// Without a branch: nobody can predict where it is.
        #[inline(always)]
        fn mend(group: &mut Self::Group, place: usize, exception: Exception) {
            let place = if place < GROUP { 1u128 << place } else { 0 };
            for (i, vector) in group.iter_mut().enumerate() {
                unsafe {
                    let bits = _mm512_castps_si512(*vector);
                    let others = andnot(_mm512_set1_epi32(EXPONENT as i32), bits);
                    let exponent = _mm512_set1_epi32(exception.bits() as i32);
                    *vector =
                        floats(_mm512_mask_or_epi32(bits, (place >> (16 * i)) as u16, others, exponent));
                }
            }
        }
    );
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{GROUP, Grouped, Lanes, Line, group_lines};
    use std::arch::x86_64::{
        __m256, __m256i, _mm_loadu_si128, _mm256_and_si256 as and, _mm256_andnot_si256 as andnot,
        _mm256_broadcastsi128_si256 as broadcast, _mm256_castsi256_ps as floats, _mm256_loadu_si256 as load,
        _mm256_or_si256 as or, _mm256_set1_epi8 as all, _mm256_setzero_si256 as zero,
        _mm256_shuffle_epi8 as look_up, _mm256_srli_epi16 as shift_right, _mm256_unpackhi_epi8 as high_bytes,
        _mm256_unpackhi_epi16 as high_words, _mm256_unpacklo_epi8 as low_bytes,
        _mm256_unpacklo_epi16 as low_words,
    };
    grouped!(__m256, __m256i);
}

dispatch! { pub(super) fn widen(w: &Coded, row: usize, to: &mut [f32]) = decode; }
dispatch! { pub(super) fn narrow(w: &Coded, row: usize, to: &mut [bf16]) = decode; }

/// A row, but for exceptions.
#[inline(always)]
fn decode<V: Grouped>(w: &Coded, row: usize, to: &mut [impl Held]) {
    match w.single {
        true => decode_as::<V, true>(w, row, to),
        false => decode_as::<V, false>(w, row, to),
    }
}

#[inline(always)]
fn decode_as<V: Grouped, const SINGLE: bool>(w: &Coded, row: usize, to: &mut [impl Held]) {
    let table = V::table(w.exponents(row));
    for (lines, to) in w.lines(row..row + 1).chunks(group_lines(SINGLE)).zip(to.chunks_mut(GROUP)) {
        let group = V::group::<SINGLE>(lines, table);
        let mut all = [Held::nearest(0.0); GROUP];
        let place = if to.len() == GROUP { &mut *to } else { &mut all };
        for (i, values) in group.as_ref().iter().enumerate() {
            Held::keep(*values, &mut place[i * V::N..]);
        }
        if to.len() < GROUP {
            to.copy_from_slice(&all[..to.len()]);
        }
    }
}
