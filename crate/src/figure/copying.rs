//! Copying of several keys against context length.

use super::Figure;
use super::compare::{SERIES, join, series, summaries};
use super::passkey::trained;
use crate::error::Result;
use crate::frame::Frame;

/// Share of prompts whose keys are all copied against context length, with 95 % Wilson intervals.
///
/// A vertical line marks the length the model was trained at, where the records know it.
///
/// # Errors
/// If the frame holds no records.
pub fn copying(frame: &Frame) -> Result<Figure> {
    let (rows, mut shared) = series(&summaries(frame, "copying")?)?;
    let mut figure = Figure::line(&rows, "context_length", "accuracy").color(SERIES).log2_x().percent_y();
    if rows.has("accuracy_low") && rows.has("accuracy_high") {
        figure = figure.interval("accuracy_low", "accuracy_high");
        shared = join(&shared, "whiskers: 95 % Wilson intervals");
    }
    Ok(trained(figure, &rows)?
        .title("Keys copied")
        .subtitle(shared)
        .x_label("context length (tokens)")
        .y_label("prompts with all keys right"))
}
