//! Codes of up to 8 bits and the values that they stand for.

use super::simd::{Lanes, dispatch};
use half::f16;

/// The value of every code.
pub type Levels = [f32; 256];

dispatch! {
    /// values = (level of the code − zero) · scale.
    pub fn decode(codes: &[u8], levels: &Levels, zero: f32, scale: f32, values: &mut [f32]) = body;
}

dispatch! {
    /// Adds to each group of `size` values its minimum.
    pub fn raise(values: &mut [f32], size: usize, mins: &[f16]) = raise_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn raise_body<V: Lanes>(values: &mut [f32], size: usize, mins: &[f16]) {
    for (values, min) in values.chunks_mut(size).zip(mins) {
        let min = min.to_f32();
        values.iter_mut().for_each(|value| *value += min);
    }
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler makes gathers of this loop")]
#[inline(always)]
fn body<V: Lanes>(codes: &[u8], levels: &Levels, zero: f32, scale: f32, values: &mut [f32]) {
    for (value, code) in values.iter_mut().zip(codes) {
        *value = (levels[usize::from(*code)] - zero) * scale;
    }
}
