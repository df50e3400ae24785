//! Passkey retrieval against context length.

use super::Figure;
use super::axis::binary;
use super::compare::{SERIES, join, series, summaries};
use crate::error::Result;
use crate::frame::Frame;

/// Share of keys retrieved against context length, with 95 % Wilson intervals.
///
/// A vertical line marks the length the model was trained at, where the records know it.
///
/// # Errors
/// If the frame holds no records.
pub fn passkey(frame: &Frame) -> Result<Figure> {
    let (rows, mut shared) = series(&summaries(frame, "passkey")?)?;
    let mut figure = Figure::line(&rows, "context_length", "accuracy").color(SERIES).log2_x().percent_y();
    if rows.has("accuracy_low") && rows.has("accuracy_high") {
        figure = figure.interval("accuracy_low", "accuracy_high");
        shared = join(&shared, "whiskers: 95 % Wilson intervals");
    }
    figure = trained(figure, &rows)?;
    Ok(figure
        .title("Passkey retrieval")
        .subtitle(shared)
        .x_label("context length (tokens)")
        .y_label("keys retrieved"))
}

/// The figure with a vertical line at each length that a model was trained at.
pub(super) fn trained(mut figure: Figure, rows: &Frame) -> Result<Figure> {
    if rows.has("training_length") {
        let lengths = rows.numbers("training_length")?.into_iter().flatten();
        let mut lengths: Vec<f64> = lengths.filter(|length| *length > 0.0 && length.is_finite()).collect();
        lengths.sort_by(f64::total_cmp);
        lengths.dedup();
        for length in lengths {
            figure = figure.rule(length, format!("trained at {}", binary(length)));
        }
    }
    Ok(figure)
}
