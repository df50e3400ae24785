//! Vectors of f32 of the width that the processor has, behind one small trait.
//!
//! A kernel is written once, generic over [`Lanes`], and [`dispatch!`](crate::kernel::simd) compiles it for AVX-512, AVX2 and
//! plain code. Closures do not inherit the instruction set (not even those given to `array::from_fn`): a kernel's body
//! has none around vectors, and it is dispatched inside a parallel task, never around it.

mod lanes;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use lanes::Lanes;
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

/// The most that `LOWBIT_SIMD` permits, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Most {
    /// No intrinsics.
    Portable,
    /// Vectors of 8 lanes.
    Avx2,
    /// Their products of bytes.
    AvxVnni,
    /// Vectors of 16 lanes.
    Avx512,
    /// Their products of bytes, and of bf16 in pairs.
    Vnni,
    /// Tiles, and so everything.
    Amx,
}

/// What `LOWBIT_SIMD` permits: everything if it is not set.
pub fn most() -> Most {
    static MOST: OnceLock<Most> = OnceLock::new();
    *MOST.get_or_init(|| match std::env::var("LOWBIT_SIMD").as_deref() {
        Ok("portable") => Most::Portable,
        Ok("avx2") => Most::Avx2,
        Ok("avxvnni") => Most::AvxVnni,
        Ok("avx512") => Most::Avx512,
        Ok("vnni") => Most::Vnni,
        _ => Most::Amx,
    })
}

/// What this processor has, or less if `LOWBIT_SIMD` asks for less.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let wanted = match most() {
            Most::Portable => Level::Portable,
            Most::Avx2 | Most::AvxVnni => Level::Avx2,
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

/// Asks for the cache line of `from[at]`, which may lie beyond the end, to be brought near.
#[inline(always)]
pub fn prefetch<T>(from: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, at);
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

    #[inline(always)]
    fn bf16_body<V: Lanes>(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(V::N).zip(y.chunks_exact_mut(V::N)) {
            V::load(x).to_bf16().store(y);
        }
    }
    dispatch! { fn bf16_all(x: &[f32], y: &mut [f32]) = bf16_body; }

    #[test]
    fn the_nearest_bf16_is_that_of_the_crate_half() {
        // Ties to either side, both signs, subnormal numbers, the largest and beyond.
        let bits = (0..32_768u32).map(|i| i << 17 | [0, 0x8000, 0x7fff, 0x8001, 0x1_8000][i as usize % 5]);
        let x: Vec<f32> = bits.map(f32::from_bits).map(|x| if x.is_nan() { 1.0 } else { x }).collect();
        let (mut y, mut plain) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        bf16_all(&x, &mut y);
        bf16_body::<[f32; 8]>(&x, &mut plain);
        for ((x, y), plain) in x.iter().zip(y).zip(plain) {
            let expected = half::bf16::from_f32(*x).to_f32();
            assert!(y.to_bits() == expected.to_bits() && plain.to_bits() == y.to_bits(), "{x}: {y}, {plain}");
        }
    }

    #[test]
    fn no_vector_makes_a_number_of_nan() {
        let x: Vec<f32> = [f32::NAN, -f32::NAN].into_iter().cycle().take(64).collect();
        let (mut y, runs) = (vec![0.0; 64], [bf16_all, bf16_body::<[f32; 8]>, exp_all, exp_body::<[f32; 8]>]);
        for run in runs {
            y.fill(0.0);
            run(&x, &mut y);
            assert!(y.iter().all(|y| y.is_nan()), "{y:?}");
        }
    }

    #[test]
    fn exp_is_accurate_at_every_level() {
        check_exp(exp_all);
        check_exp(exp_body::<[f32; 8]>);
    }
}
