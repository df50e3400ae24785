//! About how many tokens a measurement costs, by the speed at which a prompt is read.

use super::window::Sliding;
use crate::model::Model;
use crate::model::tokenizer::Tokenizer;

/// A decoded token costs about as much as so many that are read in a prompt.
const DECODED: usize = 4;
/// A token of calibration is read, and its products with itself are summed for every matrix.
pub const CALIBRATED: usize = 3;
/// Passes of a gradient beside a token that is only read: forward and back, twice the products on the way back.
pub const DIFFERENTIATED: usize = 4;

/// Tokens of so many bytes of text.
pub(super) fn of_bytes(bytes: usize, model: &Model) -> f64 {
    let of_a_token = if matches!(model.tokenizer, Tokenizer::Pieces(_)) { 4 } else { 1 };
    (bytes / of_a_token) as f64
}

/// Tokens of a text, as far as its bytes tell.
pub(super) fn text(text: &Sliding<'_>, model: &Model) -> f64 {
    let bytes = text.text().map_or(0, |corpus| corpus.bytes()); // why it cannot be read is told by the measurement
    of_bytes(bytes, model).min(text.max_tokens.unwrap_or(usize::MAX) as f64)
}

/// Tokens of a text that are read in its windows, those that windows share with each.
pub(super) fn windows(windows: &Sliding<'_>, model: &Model) -> f64 {
    text(windows, model) * windows.seq_len as f64 / windows.stride.max(1) as f64
}

/// A prompt of each of these lengths, continued by so many tokens.
pub(super) fn prompts(lengths: &[usize], generated: usize) -> f64 {
    lengths.iter().map(|length| *length as f64 + (generated * DECODED) as f64).sum()
}
