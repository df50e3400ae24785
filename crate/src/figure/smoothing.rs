//! What rounding the products of chunks takes, and what smoothing gives back.

use super::compare::{SERIES, join, series, summaries};
use super::{Axis, Figure, Unit};
use crate::error::{Error, Result};
use crate::frame::Frame;

/// The relative error of scores, in the mean of all blocks and heads, for each way to round; a colour for each model.
///
/// # Errors
/// If the frame holds no records.
pub fn smoothing(frame: &Frame) -> Result<Figure> {
    let rows = summaries(frame, "smoothing")?.filter("gates", true)?.above_zero("error_scores")?;
    let (rows, shared) = series(&rows)?;
    let mut figure = Figure::bar(&rows, "products", "error_scores").color(SERIES);
    let label = "relative error of the scores between sub-chunks".into();
    figure.y = Axis { label, unit: Unit::Percent, from_zero: true, ..Axis::default() };
    Ok(figure.title("What rounding takes from the products of chunks").subtitle(shared))
}

/// Cosine of rounded and exact scores of made inputs against the bias of their channels: a colour for each way to round, dashes
/// without decays. Of several sizes of keys and sub-chunks those nearest to 128 and 16.
///
/// # Errors
/// If the frame holds no made inputs.
pub fn smoothing_bias(frame: &Frame) -> Result<Figure> {
    let mut rows = frame.filter("measure", "smoothing")?.filter("row", "synthetic")?;
    if rows.height() == 0 {
        return Err(Error::input("there are no made inputs among these records")
            .hint("record lowbit::measure::smoothing::Synthetic"));
    }
    let mut sizes = vec![];
    for (column, wanted) in [("key", 128.0), ("sub", 16.0)] {
        let all = rows.numbers(column)?.into_iter().flatten();
        let near = all.min_by(|a, b| (a - wanted).abs().total_cmp(&(b - wanted).abs())).unwrap_or(wanted);
        rows = rows.filter(column, near)?;
        sizes.push(near);
    }
    let decays: Vec<String> = rows
        .texts("gates")?
        .into_iter()
        .map(|gates| if gates.as_deref() == Some("true") { "with decays" } else { "without" }.to_string())
        .collect();
    let rows = rows.with_texts("decays", &decays)?.above_zero("cosine_scores")?;
    let shared = format!("normal inputs, keys of {}, sub-chunks of {}", sizes[0], sizes[1]);
    Ok(Figure::line(&rows, "bias", "cosine_scores")
        .color("products")
        .dash("decays")
        .title("Smoothing against the bias of channels")
        .subtitle(join(&shared, "8 channels with a constant of ± bias"))
        .x_label("bias, in standard deviations")
        .y_label("cosine with exact scores"))
}
