//! Quality against size: what a byte of weights buys.

use super::compare::{SERIES, join, series, summaries};
use super::{Figure, Unit};
use crate::error::Result;
use crate::frame::Frame;

/// Bits per byte of text against bytes of weights, a point for each model and scheme.
///
/// # Errors
/// If the frame holds no records.
pub fn size(frame: &Frame) -> Result<Figure> {
    let (rows, shared) = series(&summaries(frame, "perplexity")?)?;
    let mut figure = Figure::line(&rows, "weight_bytes", "bits_per_byte").color(SERIES).log2_x();
    (figure.x.label, figure.x.unit) = ("bytes of weights".into(), Unit::Bytes);
    Ok(figure
        .title("Quality against size")
        .subtitle(join(&shared, "lower and further left is better"))
        .y_label("bits per byte of text"))
}
