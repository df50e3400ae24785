//! Free-running decoding beside a reference's.

use super::Figure;
use super::compare::{SERIES, join, series, summaries};
use crate::error::Result;
use crate::frame::Frame;

/// Tokens that greedy continuations share with the reference's before the first that differs, against the prompt's
/// length: median over prompts, whiskers between the quartiles.
///
/// # Errors
/// If the frame holds no records.
pub fn stability(frame: &Frame) -> Result<Figure> {
    let (rows, shared) = series(&summaries(frame, "stability")?)?;
    let figure = Figure::line(&rows, "context_length", "together_median").color(SERIES).log2_x().zero_y();
    Ok(figure
        .interval("together_q25", "together_q75")
        .title("Greedy words before they part")
        .subtitle(join("median prompt, whiskers between the quartiles", &shared))
        .x_label("prompt length (tokens)")
        .y_label("tokens before the first that differs from the reference's"))
}
