//! Memory against length.

use super::compare::{SERIES, series, summaries};
use super::{Axis, Figure, Unit};
use crate::error::Result;
use crate::frame::Frame;

/// Peak memory against length, prefill solid and decode dashed.
///
/// # Errors
/// If the frame holds no records.
pub fn memory(frame: &Frame) -> Result<Figure> {
    let (rows, shared) = series(&summaries(frame, "cost")?)?;
    let mut figure = Figure::line(&rows, "context_length", "peak_bytes").color(SERIES).dash("phase").log2_x();
    figure.y = Axis { label: "peak memory".into(), unit: Unit::Bytes, from_zero: true, ..Axis::default() };
    Ok(figure.title("Peak memory").subtitle(shared).x_label("context length (tokens)"))
}
