//! A matrix of weights, whatever it is stored in, and its values row by row.

use super::coded::Coded;
use super::simd::{Lanes, dispatch};
use super::stored::Stored;
use half::{bf16, f16};

/// A weight matrix [n, k] by its storage.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// Half precision.
    F16(&'a [f16]),
    /// f32 or bf16 with all bits, in fewer.
    Coded(&'a Coded),
    /// Anything else: a function that fills whole rows, from the given one on, with their values.
    Decoded(&'a (dyn Fn(usize, &mut [f32]) + Sync)),
}

impl Weight<'_> {
    /// Whether it is bf16, which is multiplied with bf16.
    pub(super) fn is_bf16(self) -> bool {
        match self {
            Self::Bf16(_) => true,
            Self::Coded(w) => !w.is_f32(),
            Self::F32(_) | Self::F16(_) | Self::Decoded(_) => false,
        }
    }
}

/// The values of the rows from `first` on, as many as `to` has room for.
pub fn widen(w: Weight<'_>, first: usize, k: usize, to: &mut [f32]) {
    let part = first * k..first * k + to.len();
    match w {
        Weight::F32(w) => to.copy_from_slice(&w[part]),
        Weight::Bf16(w) => widen_bf16(&w[part], to),
        Weight::F16(w) => widen_f16(&w[part], to),
        Weight::Coded(w) => w.widen(first, to),
        Weight::Decoded(fill) => fill(first, to),
    }
}

/// The same of bf16, as such.
///
/// # Panics
/// If the weights are something else.
pub(super) fn narrow(w: Weight<'_>, first: usize, k: usize, to: &mut [bf16]) {
    match w {
        Weight::Bf16(w) => to.copy_from_slice(&w[first * k..first * k + to.len()]),
        Weight::Coded(w) if !w.is_f32() => w.narrow(first, to),
        _ => panic!("these are not bf16"),
    }
}

dispatch! { fn widen_bf16(w: &[bf16], to: &mut [f32]) = widen_body; }
dispatch! { fn widen_f16(w: &[f16], to: &mut [f32]) = widen_body; }

#[inline(always)]
fn widen_body<V: Lanes>(w: &[impl Stored], to: &mut [f32]) {
    let whole = to.len() / V::N * V::N;
    for i in (0..whole).step_by(V::N) {
        Stored::vector::<V>(&w[i..]).store(&mut to[i..]);
    }
    for i in whole..to.len() {
        to[i] = w[i].one();
    }
}
