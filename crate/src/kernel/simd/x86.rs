//! [`Lanes`] on AVX-512 and AVX2.

use super::lanes::Lanes;
use std::arch::x86_64::*;

// SAFETY, for every intrinsic below: these types are named only by functions that `dispatch!` compiles with
// the instruction set enabled and calls after `level` has found it; slices are bounds-checked before use.
macro_rules! lanes {
    ($ty:ty, $n:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $div:ident,
     $fma:ident, $max:ident, $min:ident, |$r:ident| $round:expr, |$p:ident, $k:ident| $scale2:expr,
     |$v:ident| $recip:expr, |$s:ident| $sum:expr, |$b:ident| $bf16:expr, |$w:ident| $to_bf16:expr,
     |$n16:ident, $to:ident| $store_bf16:expr, |$h:ident| $f16:expr) => {
        impl Lanes for $ty {
            const N: usize = $n;
            #[inline(always)]
            fn splat(x: f32) -> Self {
                unsafe { $splat(x) }
            }
            #[inline(always)]
            fn load(from: &[f32]) -> Self {
                let from = &from[..$n];
                unsafe { $load(from.as_ptr()) }
            }
            #[inline(always)]
            fn store(self, to: &mut [f32]) {
                let to = &mut to[..$n];
                unsafe { $store(to.as_mut_ptr(), self) }
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                unsafe { $add(self, other) }
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                unsafe { $sub(self, other) }
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                unsafe { $mul(self, other) }
            }
            #[inline(always)]
            fn div(self, other: Self) -> Self {
                unsafe { $div(self, other) }
            }
            #[inline(always)]
            fn recip(self) -> Self {
                let $v = self;
                unsafe { $recip }
            }
            #[inline(always)]
            fn fma(self, b: Self, c: Self) -> Self {
                unsafe { $fma(self, b, c) }
            }
            #[inline(always)]
            fn fma_one(a: f32, b: f32, c: f32) -> f32 {
                a.mul_add(b, c)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                unsafe { $max(self, other) }
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                unsafe { $min(self, other) }
            }
            #[inline(always)]
            fn round(self) -> Self {
                let $r = self;
                unsafe { $round }
            }
            #[inline(always)]
            fn scale2(self, n: Self) -> Self {
                let ($p, $k) = (self, n);
                unsafe { $scale2 }
            }
            #[inline(always)]
            fn sum(self) -> f32 {
                let $s = self;
                unsafe { $sum }
            }
            #[inline(always)]
            fn load_bf16(from: &[half::bf16]) -> Self {
                let $b = from[..$n].as_ptr();
                unsafe { $bf16 }
            }
            #[inline(always)]
            fn to_bf16(self) -> Self {
                let $w = self;
                unsafe { $to_bf16 }
            }
            #[inline(always)]
            fn store_bf16(self, to: &mut [half::bf16]) {
                let ($n16, $to) = (self.to_bf16(), to[..$n].as_mut_ptr());
                unsafe { $store_bf16 }
            }
            #[inline(always)]
            fn load_f16(from: &[half::f16]) -> Self {
                let $h = from[..$n].as_ptr();
                unsafe { $f16 }
            }
        }
    };
}

lanes!(
    __m512,
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_div_ps,
    _mm512_fmadd_ps,
    _mm512_max_ps,
    _mm512_min_ps,
    |x| _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x),
    |x, n| _mm512_scalef_ps(x, n),
    |x| {
        // An estimate of 14 bits and one step of Newton's: a division takes four times as long.
        let near = _mm512_rcp14_ps(x);
        _mm512_mul_ps(near, _mm512_fnmadd_ps(x, near, _mm512_set1_ps(2.0)))
    },
    |x| _mm512_reduce_add_ps(x),
    |p| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))),
    |x| {
        // Half of the last bit that stays is added, less one where that bit is even.
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
    },
    |x, to| {
        let high = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(x)));
        _mm256_storeu_si256(to.cast(), high);
    },
    |p| _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
);

lanes!(
    __m256,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_div_ps,
    _mm256_fmadd_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    |x| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x),
    |x, n| {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    },
    |x| _mm256_div_ps(_mm256_set1_ps(1.0), x),
    |x| {
        let mut lanes = [0.0f32; 8];
        _mm256_storeu_ps(lanes.as_mut_ptr(), x);
        lanes.sum()
    },
    |p| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))),
    |x| {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
    },
    |x, to| {
        let high = _mm256_srli_epi32::<16>(_mm256_castps_si256(x));
        // The halves of the register are packed apart: the first quarter of each holds its values.
        let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(high, high));
        _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
    },
    |p| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
);
