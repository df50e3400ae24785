//! How values are stored, one by one and by the vector: of weights, and of states.

use super::simd::Lanes;
use half::{bf16, f16};

/// A storage type of weights and states.
pub trait Stored: Copy {
    /// The value.
    fn one(self) -> f32;
    /// The first values of `from`, as many as a vector has.
    fn vector<V: Lanes>(from: &[Self]) -> V;
    /// What such a weight is multiplied with.
    fn factor<V: Lanes>(x: V) -> V;
    /// [`Self::factor`] of one value.
    fn one_factor(x: f32) -> f32;
}

macro_rules! stored {
    ($ty:ty, $one:expr, $load:ident, |$x:ident| $factor:expr, $one_factor:expr) => {
        impl Stored for $ty {
            #[inline(always)]
            fn one(self) -> f32 {
                $one(self)
            }
            #[inline(always)]
            fn vector<V: Lanes>(from: &[Self]) -> V {
                V::$load(from)
            }
            #[inline(always)]
            fn factor<V: Lanes>($x: V) -> V {
                $factor
            }
            #[inline(always)]
            fn one_factor(x: f32) -> f32 {
                $one_factor(x)
            }
        }
    };
}
stored!(f32, |x| x, load, |x| x, |x| x);
stored!(bf16, bf16::to_f32, load_bf16, |x| x.to_bf16(), |x| bf16::from_f32(x).to_f32());
stored!(f16, f16::to_f32, load_f16, |x| x, |x| x);

/// A storage type that values are written in, too.
pub trait Held: Stored + Send + Sync {
    /// Writes a vector, each value the nearest.
    fn keep<V: Lanes>(values: V, to: &mut [Self]);
    /// The nearest of one value.
    fn nearest(x: f32) -> Self;
}

macro_rules! held {
    ($ty:ty, $store:ident, $nearest:expr) => {
        impl Held for $ty {
            #[inline(always)]
            fn keep<V: Lanes>(values: V, to: &mut [Self]) {
                values.$store(to);
            }
            #[inline(always)]
            fn nearest(x: f32) -> Self {
                $nearest(x)
            }
        }
    };
}
held!(f32, store, |x| x);
held!(bf16, store_bf16, bf16::from_f32);
