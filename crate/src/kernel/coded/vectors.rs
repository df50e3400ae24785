//! Groups of codes as vectors: the exponents of a whole vector are looked up at once, and interleaved with what lies in full.

use super::{Coded, EXPONENT, Exception, GROUP, group_lines, one};
use crate::kernel::packed::Line;
use crate::kernel::scan::Held;
use crate::kernel::simd::{Lanes, dispatch, prefetch};
use crate::kernel::stream::Streamed;
use half::bf16;
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

/// Cache lines that a stream is asked for ahead.
const AHEAD: usize = 32;

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
    let mut walks = [Walk::<V>::new(w, row); R];
    for (r, walk) in walks.iter_mut().enumerate().skip(1) {
        *walk = Walk::new(w, row + r * apart);
    }
    let groups = x.len() / GROUP;
    let mut g = 0;
    while g < groups {
        // Up to the next group with an exception.
        let end = walks.iter().fold(groups, |end, walk| end.min(walk.exceptions.group()));
        for g in g..end {
            let x = &x[g * GROUP..][..GROUP];
            // Not in a loop, so that all sums and tables stay in registers.
            walks[0].step::<SINGLE>(g, x);
            if R > 1 {
                walks[1].step::<SINGLE>(g, x);
            }
            if R > 2 {
                walks[2].step::<SINGLE>(g, x);
                walks[3].step::<SINGLE>(g, x);
            }
        }
        if end < groups {
            let x = &x[end * GROUP..][..GROUP];
            for walk in &mut walks {
                walk.mended_step::<SINGLE>(end, x);
            }
        }
        g = end + 1;
    }
    let mut dots = [0.0; R];
    for (dot, walk) in dots.iter_mut().zip(walks) {
        *dot = walk.sums[0].add(walk.sums[1]).sum();
    }
    dots
}

/// A row on its way.
#[derive(Clone, Copy)]
struct Walk<'a, V: Grouped> {
    lines: &'a [Line],
    table: V::Table,
    sums: [V; 2],
    exceptions: Ahead<'a>,
}

impl<'a, V: Grouped> Walk<'a, V> {
    #[inline(always)]
    fn new(w: &'a Coded, row: usize) -> Self {
        let (lines, table) = (w.lines(row..row + 1), V::table(w.exponents(row)));
        Self { lines, table, sums: [V::splat(0.0); 2], exceptions: Ahead::new(w, row) }
    }

    #[inline(always)]
    fn group<const SINGLE: bool>(&self, g: usize) -> V::Group {
        let size = group_lines(SINGLE);
        let lines = &self.lines[g * size..][..size];
        for line in 0..size {
            prefetch(lines, line + AHEAD);
        }
        V::group::<SINGLE>(lines, self.table)
    }

    #[inline(always)]
    fn add(&mut self, group: V::Group, x: &[f32]) {
        for (i, values) in group.as_ref().iter().enumerate() {
            self.sums[i % 2] = values.fma(V::load(&x[i * V::N..]), self.sums[i % 2]);
        }
    }

    /// Adds the products of group `g`, which has no exceptions.
    #[inline(always)]
    fn step<const SINGLE: bool>(&mut self, g: usize, x: &[f32]) {
        self.add(self.group::<SINGLE>(g), x);
        // One step after the other: the compiler would interleave them, and run out of registers.
        compiler_fence(Ordering::SeqCst);
    }

    /// Adds the products of group `g`.
    #[inline(always)]
    fn mended_step<const SINGLE: bool>(&mut self, g: usize, x: &[f32]) {
        let mut group = self.group::<SINGLE>(g);
        // Nobody can predict in which of the rows it is: each mends one, perhaps none, and then seldom another.
        loop {
            let exception = self.exceptions.first();
            let place = exception.col().wrapping_sub(g * GROUP);
            V::mend(&mut group, place, exception);
            self.exceptions.at += usize::from(place < GROUP);
            if self.exceptions.group() != g {
                break;
            }
        }
        self.add(group, x);
    }
}

/// The exceptions of a row that are still to come.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    all: &'a [Exception],
    at: usize,
    end: usize,
}

impl<'a> Ahead<'a> {
    #[inline(always)]
    fn new(w: &'a Coded, row: usize) -> Self {
        Self { all: &w.exceptions, at: w.starts[row] as usize, end: w.starts[row + 1] as usize }
    }

    /// The next one; behind the last, one that no row has.
    #[inline(always)]
    fn first(self) -> Exception {
        self.all[if self.at < self.end { self.at } else { self.all.len() - 1 }]
    }

    /// Its group.
    #[inline(always)]
    fn group(self) -> usize {
        self.first().col() / GROUP
    }
}
