//! The recurrence with a state in few bits.

use super::{Inputs, Shape, each_token};
use crate::kernel::scan::rounded::rounding;

/// [`recurrent`](super::recurrent) with the state rounded to integers after every token, with one scale for each (sequence,
/// head). The next token reads the rounded state; y_t reads S_t as it is before rounding.
///
/// `feedback`, if given, is the error feedback of integers: the residual [B, H, K, V] before the first token and, on return,
/// after the last; and the bits that it is rounded to after every token, if it is, with a scale for each (sequence, head).
pub fn recurrent_rounded(
    shape: Shape,
    inputs: Inputs<'_>,
    s: &mut [f32],
    y: &mut [f32],
    bits: u8,
    feedback: Option<(&mut [f32], Option<u8>)>,
) {
    each_token(shape, inputs, s, y, rounding(bits, feedback));
}
