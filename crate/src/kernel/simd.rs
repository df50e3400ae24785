//! Vectors of f32 of the width that the processor has, behind one small trait.
//!
//! A kernel is written once, generic over [`Lanes`], and [`dispatch!`](crate::kernel::simd) compiles it for AVX-512, AVX2 and
//! plain code. Closures do not inherit the instruction set (not even those given to `array::from_fn`): a kernel's body
//! has none around vectors, and it is dispatched inside a parallel task, never around it.

use std::sync::OnceLock;

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No intrinsics.
    Portable,
    /// 8 lanes with fused multiply-add.
    Avx2,
    /// 16 lanes.
    Avx512,
}

/// What this processor has, or less if `LOWBIT_SIMD` asks for less.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let wanted = match std::env::var("LOWBIT_SIMD").as_deref() {
            Ok("portable") => Level::Portable,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        wanted.min(detected())
    })
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Level {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
    {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Level::Avx2
    } else {
        Level::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Level {
    Level::Portable
}

/// A vector of `N` f32 values.
pub trait Lanes: Copy {
    /// Number of values.
    const N: usize;
    /// All lanes equal to `x`.
    fn splat(x: f32) -> Self;
    /// The first `N` values of `from`.
    fn load(from: &[f32]) -> Self;
    /// Writes the first `N` values of `to`.
    fn store(self, to: &mut [f32]);
    /// Lane-wise sum.
    fn add(self, other: Self) -> Self;
    /// Lane-wise difference.
    fn sub(self, other: Self) -> Self;
    /// Lane-wise product.
    fn mul(self, other: Self) -> Self;
    /// Lane-wise quotient.
    fn div(self, other: Self) -> Self;
    /// `self * b + c`.
    fn fma(self, b: Self, c: Self) -> Self;
    /// Lane-wise maximum.
    fn max(self, other: Self) -> Self;
    /// Lane-wise minimum.
    fn min(self, other: Self) -> Self;
    /// Nearest integer, ties to even.
    fn round(self) -> Self;
    /// `self * 2^n` for integral `n` in [-126, 127].
    fn scale2(self, n: Self) -> Self;
    /// Sum over the lanes.
    fn sum(self) -> f32;
    /// `N` bf16 values, widened.
    fn load_bf16(from: &[half::bf16]) -> Self;
    /// `N` f16 values, widened.
    fn load_f16(from: &[half::f16]) -> Self;

    /// The first `from.len() < N` values, zeros behind them.
    #[inline(always)]
    fn load_part(from: &[f32]) -> Self {
        let mut padded = [0.0; 16];
        padded[..from.len()].copy_from_slice(from);
        Self::load(&padded)
    }

    /// Writes the first `to.len() < N` values.
    #[inline(always)]
    fn store_part(self, to: &mut [f32]) {
        let mut padded = [0.0; 16];
        self.store(&mut padded);
        let len = to.len();
        to.copy_from_slice(&padded[..len]);
    }

    /// e^x to within 2 ulp for results that are normal numbers; underflows to a value below 1.2e-38.
    ///
    /// Cody–Waite reduction by ln 2 and the degree-5 polynomial of Cephes `expf`.
    #[inline(always)]
    fn exp(self) -> Self {
        let x = self.max(Self::splat(-87.3)).min(Self::splat(88.3));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(Self::splat(-0.693_359_4), x);
        let r = n.fma(Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.fma(r, Self::splat(c));
        }
        p.mul(r).fma(r, r.add(Self::splat(1.0))).scale2(n)
    }

    /// x · σ(x).
    #[inline(always)]
    fn silu(self) -> Self {
        self.mul(self.sigmoid())
    }

    /// The derivative of SiLU: σ(x) (1 + x (1 − σ(x))).
    #[inline(always)]
    fn silu_slope(self) -> Self {
        let (one, sigma) = (Self::splat(1.0), self.sigmoid());
        self.mul(one.sub(sigma)).add(one).mul(sigma)
    }

    /// 1 / (1 + e^−x).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let one = Self::splat(1.0);
        one.div(one.add(Self::splat(0.0).sub(self).exp()))
    }
}

impl Lanes for [f32; 8] {
    const N: usize = 8;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; 8]
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        std::array::from_fn(|i| from[i])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..8].copy_from_slice(&self);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * other[i])
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] / other[i])
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        // `mul_add` without the instruction is a library call: two roundings are the price of portability.
        std::array::from_fn(|i| self[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] > other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] < other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Adding and subtracting 1.5 · 2^23 rounds to even for |x| < 2^22.
        std::array::from_fn(|i| (self[i] + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn scale2(self, n: Self) -> Self {
        std::array::from_fn(|i| self[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        ((self[0] + self[4]) + (self[2] + self[6])) + ((self[1] + self[5]) + (self[3] + self[7]))
    }
    #[inline(always)]
    fn load_bf16(from: &[half::bf16]) -> Self {
        std::array::from_fn(|i| from[i].to_f32())
    }
    #[inline(always)]
    fn load_f16(from: &[half::f16]) -> Self {
        std::array::from_fn(|i| from[i].to_f32())
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    // SAFETY, for every intrinsic below: these types are named only by functions that `dispatch!` compiles with
    // the instruction set enabled and calls after `level` has found it; slices are bounds-checked before use.
    macro_rules! lanes {
        ($ty:ty, $n:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $div:ident,
         $fma:ident, $max:ident, $min:ident, |$r:ident| $round:expr, |$p:ident, $k:ident| $scale2:expr,
         |$s:ident| $sum:expr, |$b:ident| $bf16:expr, |$h:ident| $f16:expr) => {
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
                fn fma(self, b: Self, c: Self) -> Self {
                    unsafe { $fma(self, b, c) }
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
        |x| _mm512_reduce_add_ps(x),
        |p| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))),
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
        |x| {
            let mut lanes = [0.0f32; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), x);
            lanes.sum()
        },
        |p| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))),
        |p| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
    );
}

/// Declares a function whose generic body is compiled for every instruction set and chosen by [`level`].
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<std::arch::x86_64::__m512>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<std::arch::x86_64::__m256>($($arg),*)
                }
                match $crate::kernel::simd::level() {
                    // SAFETY: `level` reports only what the processor has.
                    $crate::kernel::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernel::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernel::simd::Level::Portable => {}
                }
            }
            $body::<[f32; 8]>($($arg),*)
        }
    };
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    fn exp_body<V: Lanes>(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(V::N).zip(y.chunks_exact_mut(V::N)) {
            V::load(x).exp().store(y);
        }
    }
    dispatch! { fn exp_all(x: &[f32], y: &mut [f32]) = exp_body; }

    fn check_exp(run: impl Fn(&[f32], &mut [f32])) {
        let x: Vec<f32> = (0..16_000).map(|i| -87.0 + i as f32 * 0.0109).collect();
        let mut y = vec![0.0; x.len()];
        run(&x, &mut y);
        for (x, y) in x.iter().zip(&y) {
            let expected = f64::from(*x).exp();
            assert!(
                (f64::from(*y) - expected).abs() <= 3e-7 * expected,
                "exp({x}) = {y}, expected {expected}"
            );
        }
    }

    #[test]
    fn exp_is_accurate_at_every_level() {
        check_exp(exp_all);
        check_exp(exp_body::<[f32; 8]>);
    }
}
