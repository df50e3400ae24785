//! Groups of codes as vectors: the exponents of a whole vector are looked up at once, and interleaved with what lies in full.

use super::{Coded, Exception, GROUP, group_lines, one};
use crate::kernel::packed::Line;
use crate::kernel::scan::Held;
use crate::kernel::simd::{Lanes, dispatch, prefetch};
use crate::kernel::stream::Streamed;
use half::bf16;
use std::ops::Range;

/// Cache lines that a stream is asked for ahead.
const AHEAD: usize = 24;

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
    ($floats:ty, $integers:ty) => {
        /// Parts of a cache line.
        const PARTS: usize = 64 / size_of::<$integers>();

        impl Grouped for $floats {
            /// In bytes: the upper seven bits of the exponents, and the lowest as the highest one.
            type Table = [$integers; 2];
            type Group = [Self; GROUP / <Self as Lanes>::N];

            #[inline(always)]
            fn table(exponents: [u8; 16]) -> Self::Table {
                let (mut high, mut low) = (exponents, exponents);
                high.iter_mut().for_each(|e| *e >>= 1);
                low.iter_mut().for_each(|e| *e <<= 7);
                unsafe { [high, low].map(|table| broadcast(_mm_loadu_si128(table.as_ptr().cast()))) }
            }

            #[inline(always)]
            fn group<const SINGLE: bool>(lines: &[Line], [high, low]: Self::Table) -> Self::Group {
                let lines = &lines[..group_lines(SINGLE)];
                let mut group = [Self::splat(0.0); GROUP / <Self as Lanes>::N];
                for half in 0..2 {
                    for part in 0..PARTS {
                        unsafe {
                            let of = |line: usize| load(lines[line].0.as_ptr().cast::<$integers>().add(part));
                            let codes = if half == 0 { of(0) } else { shift_right::<4>(of(0)) };
                            let (codes, sign) = (and(codes, all(15)), all(-128));
                            let high = or(and(of(1 + half), sign), look_up(high, codes));
                            let low = or(andnot(sign, of(1 + half)), look_up(low, codes));
                            let words = [low_bytes(low, high), high_bytes(low, high)];
                            for pair in 0..2 {
                                let below = if SINGLE { of(3 + 2 * half + pair) } else { zero() };
                                let at = PARTS * (4 * half + 2 * pair) + part;
                                group[at] = floats(low_words(below, words[pair]));
                                group[at + PARTS] = floats(high_words(below, words[pair]));
                            }
                        }
                    }
                }
                group
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{GROUP, Grouped, Lanes, Line, group_lines};
    use std::arch::x86_64::{
        __m512, __m512i, _mm_loadu_si128, _mm512_and_si512 as and, _mm512_andnot_si512 as andnot,
        _mm512_broadcast_i32x4 as broadcast, _mm512_castsi512_ps as floats, _mm512_loadu_si512 as load,
        _mm512_or_si512 as or, _mm512_set1_epi8 as all, _mm512_setzero_si512 as zero,
        _mm512_shuffle_epi8 as look_up, _mm512_srli_epi16 as shift_right, _mm512_unpackhi_epi8 as high_bytes,
        _mm512_unpackhi_epi16 as high_words, _mm512_unpacklo_epi8 as low_bytes,
        _mm512_unpacklo_epi16 as low_words,
    };
    grouped!(__m512, __m512i);
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

/// Some rows, to be multiplied with rows of x that are filled up to whole groups.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Rows<'a> {
    w: &'a Coded,
    first: usize,
    count: usize,
}

impl<'a> Rows<'a> {
    pub(in crate::kernel) fn of(w: &'a Coded, rows: Range<usize>) -> Self {
        assert!(rows.end <= w.rows);
        Self { w, first: rows.start, count: rows.len() }
    }
}

impl Streamed for Rows<'_> {
    fn count(self) -> usize {
        self.count
    }

    #[inline(always)]
    fn dots<V: Grouped, const R: usize>(self, x: &[f32], row: usize, apart: usize) -> [f32; R] {
        match self.w.single {
            true => dots::<V, true, R>(self.w, x, self.first + row, apart),
            false => dots::<V, false, R>(self.w, x, self.first + row, apart),
        }
    }
}

/// x · each of R rows. Sums as that of rows that are not coded does.
#[inline(always)]
fn dots<V: Grouped, const SINGLE: bool, const R: usize>(
    w: &Coded,
    x: &[f32],
    row: usize,
    apart: usize,
) -> [f32; R] {
    let size = group_lines(SINGLE);
    let mut tables = [V::table([0; 16]); R];
    let mut exceptions: [&[Exception]; R] = [&[]; R];
    let mut rows: [&[Line]; R] = [&[]; R];
    for r in 0..R {
        let row = row + r * apart;
        tables[r] = V::table(w.exponents(row));
        exceptions[r] = w.exceptions_of(row);
        rows[r] = &w.lines(row..row + 1)[..x.len() / GROUP * size];
    }
    let mut sums = [[V::splat(0.0); 2]; R];
    for (g, x) in x.chunks_exact(GROUP).enumerate() {
        for r in 0..R {
            let lines = &rows[r][g * size..][..size];
            for line in 0..size {
                prefetch(lines, line + AHEAD);
            }
            let mut group = V::group::<SINGLE>(lines, tables[r]);
            if exceptions[r].first().is_some_and(|exception| exception.col() < (g + 1) * GROUP) {
                let mut all = [0.0; GROUP];
                for (i, values) in group.as_ref().iter().enumerate() {
                    values.store(&mut all[i * V::N..]);
                }
                exceptions[r] = mend(&mut all, g, exceptions[r]);
                for (i, values) in group.as_mut().iter_mut().enumerate() {
                    *values = V::load(&all[i * V::N..]);
                }
            }
            for (i, values) in group.as_ref().iter().enumerate() {
                sums[r][i % 2] = values.fma(V::load(&x[i * V::N..]), sums[r][i % 2]);
            }
        }
    }
    let mut dots = [0.0; R];
    for (dot, sums) in dots.iter_mut().zip(sums) {
        *dot = sums[0].add(sums[1]).sum();
    }
    dots
}

/// Puts the exceptions of group `g` right, and gives those behind it.
#[cold]
#[inline(never)]
fn mend<'a>(group: &mut [f32; GROUP], g: usize, mut exceptions: &'a [Exception]) -> &'a [Exception] {
    while let Some((exception, behind)) = exceptions.split_first() {
        let Some(value) = group.get_mut(exception.col() - g * GROUP) else { break };
        *value = exception.mend(*value);
        exceptions = behind;
    }
    exceptions
}
