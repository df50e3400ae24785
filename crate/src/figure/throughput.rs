//! Speed against length.

use super::Figure;
use super::compare::{SERIES, series, summaries};
use crate::error::Result;
use crate::frame::Frame;

/// Tokens a second while reading a prompt, against its length: median of the repetitions, fastest and slowest.
///
/// # Errors
/// If the frame holds no records.
pub fn prefill(frame: &Frame) -> Result<Figure> {
    Ok(speed(frame, "prefill")?.title("Prefill throughput").x_label("prompt length (tokens)"))
}

/// Tokens a second while generating, against the length of what came before.
///
/// # Errors
/// If the frame holds no records.
pub fn decode(frame: &Frame) -> Result<Figure> {
    Ok(speed(frame, "decode")?.title("Decode throughput").x_label("context length (tokens)"))
}

fn speed(frame: &Frame, phase: &str) -> Result<Figure> {
    let (rows, shared) = series(&summaries(frame, "cost")?.filter("phase", phase)?)?;
    let mut figure = Figure::line(&rows, "context_length", "tokens_per_s").color(SERIES).log2_x().zero_y();
    if rows.has("tokens_per_s_min") && rows.has("tokens_per_s_max") {
        figure = figure.interval("tokens_per_s_min", "tokens_per_s_max");
    }
    Ok(figure.subtitle(shared).y_label("tokens per second, higher is better"))
}
