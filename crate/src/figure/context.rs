//! Prediction against what was read before.

use super::compare::{SERIES, join, only, series};
use super::{Axis, Figure, Series};
use crate::error::Result;
use crate::frame::Frame;

/// How much worse than its reference each scheme predicts, against the tokens read before, with 95 % intervals.
///
/// A vertical line marks the length the model was trained at, where the records know it.
///
/// # Errors
/// If the frame holds no records.
pub fn context(frame: &Frame) -> Result<Figure> {
    let (rows, shared) = bins(frame)?;
    let figure = Figure::line(&rows, "context", "delta_nll")
        .color(SERIES)
        .interval("delta_nll_low", "delta_nll_high")
        .zero_y()
        .y_label("rise of the NLL per token (nats)");
    Ok(placed(figure, &rows)?
        .title("What quantization costs, by length of context")
        .subtitle(join(&shared, "whiskers: 95 % t intervals from blocks of text")))
}

/// The NLL itself against the tokens read before, the reference's too.
///
/// # Errors
/// If the frame holds no records.
pub fn context_loss(frame: &Frame) -> Result<Figure> {
    let (rows, shared) = bins(frame)?;
    let mut figure = Figure::line(&rows, "context", "nll").color(SERIES);
    figure.y = Axis::default();
    // The same tokens and the same reference for all: its values are those of any one scheme.
    let reference = rows.mean("reference_nll", ["context"])?;
    let points = reference.numbers("context")?.into_iter().zip(reference.numbers("reference_nll")?);
    let points = points.filter_map(|(x, y)| Some(super::Point::new(x?, y?)));
    figure.series.push(Series {
        label: "reference".into(),
        points: points.collect(),
        color: 6,
        dash: super::Dash::Dashed,
        ..Series::default()
    });
    Ok(placed(figure, &rows)?
        .y_label("NLL per token (nats)")
        .title("Prediction by length of context")
        .subtitle(shared))
}

/// The rows of all bins, named by series, and what they share.
fn bins(frame: &Frame) -> Result<(Frame, String)> {
    let rows = frame.filter("measure", "context")?.filter("row", "bin")?;
    let (rows, shared) = series(&rows)?;
    let corpus = only(&frame.filter("measure", "context")?, "corpus")?.unwrap_or_default();
    Ok((rows, join(&shared, &corpus)))
}

fn placed(figure: Figure, rows: &Frame) -> Result<Figure> {
    let figure = figure.log2_x().x_label("tokens read before");
    super::passkey::trained(figure, rows)
}
