//! Which parts of a model break first, and what would have told it beforehand.

use super::compare::{join, only, series, summaries};
use super::{Axis, Figure, Scale, Unit};
use crate::error::{Error, Result};
use crate::frame::Frame;

/// The divergence that each part causes alone, a column a layer and a row a part; in brackets where the interval of the
/// rise of the NLL holds 0. Of several schemes the first.
///
/// # Errors
/// If the frame holds no records.
pub fn sensitivity(frame: &Frame) -> Result<Figure> {
    let rows = summaries(frame, "sensitivity")?;
    let Some(probe) = rows.texts("probe")?.into_iter().flatten().next() else {
        return Err(Error::input("there is no reading of sensitivity to draw"));
    };
    let rows = rows.filter("probe", probe.as_str())?;
    let layers: Vec<String> =
        rows.texts("layer")?.into_iter().map(|layer| layer.unwrap_or_else(|| "ends".into())).collect();
    let rows = rows.with_texts("place", &layers)?;
    let mut figure = Figure::heat(&rows, "place", "part", "kl");
    figure.x.label = "layer".into();
    let label = "KL per token from the model as it is (10⁻³ nats)".into();
    figure.y = Axis { label, scale: Scale::Log10, unit: Unit::Milli, ..Axis::default() };
    if rows.has("delta_nll_low") && rows.has("delta_nll_high") {
        figure = figure.interval("delta_nll_low", "delta_nll_high");
    }
    let mut shared = "in brackets: the rise of the NLL is not distinguishable from 0".to_string();
    for column in ["corpus", "model"] {
        shared = join(&only(&rows, column)?.unwrap_or_default(), &shared);
    }
    Ok(figure.title(format!("What each part breaks alone in {probe}")).subtitle(shared))
}

/// Kendall's τ of each predictor against the measured harm, with 95 % intervals; a colour for each way to tell it. Of
/// several schemes the first.
///
/// # Errors
/// If the frame holds no records.
pub fn ranking(frame: &Frame) -> Result<Figure> {
    let rows = frame.filter("measure", "ranking")?.filter("row", "predictor")?;
    let Some(probe) = rows.texts("probe")?.into_iter().flatten().next() else {
        return Err(Error::input("there is no ranking to draw"));
    };
    let (rows, shared) = series(&rows.filter("probe", probe.as_str())?)?;
    let mut figure = Figure::bar(&rows, "about", "tau").interval("tau_low", "tau_high").color("against");
    let label = "Kendall τ, 95 % intervals".into();
    figure.y = Axis { label, from_zero: true, ..Axis::default() };
    Ok(figure.title("What tells beforehand which parts break").subtitle(join(&probe, &shared)))
}
