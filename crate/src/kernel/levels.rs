//! Codes of up to 8 bits and the values that they stand for.

use super::simd::{Lanes, dispatch};

/// The value of every code.
pub type Levels = [f32; 256];

dispatch! {
    /// values = (level of the code − zero) · scale.
    pub fn decode(codes: &[u8], levels: &Levels, zero: f32, scale: f32, values: &mut [f32]) = body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler makes gathers of this loop")]
#[inline(always)]
fn body<V: Lanes>(codes: &[u8], levels: &Levels, zero: f32, scale: f32, values: &mut [f32]) {
    for (value, code) in values.iter_mut().zip(codes) {
        *value = (levels[usize::from(*code)] - zero) * scale;
    }
}
