//! State drift against time, and beside its prediction.

use super::compare::{SERIES, join, only, series, summaries};
use super::{Axis, Figure, Scale};
use crate::error::Result;
use crate::frame::Frame;
use std::collections::BTreeSet;

/// Bands of more schemes than these would hide each other.
const FEW: usize = 6;

/// What is drawn: the distance of a head's state from the reference's, over the size of that.
const DISTANCE: &str = "distance of the state, relative to its size";

/// How far the heads' states are from the reference's against the tokens read: the median head and, for few schemes, a
/// band from the lower to the upper quartile. Schemes that never drift have no place on the logarithmic axis and are left out.
///
/// # Errors
/// If the frame holds no records.
pub fn drift(frame: &Frame) -> Result<Figure> {
    let rows = frame.filter("measure", "drift")?.filter("row", "position")?.above_zero("drift_q25")?;
    let (rows, shared) = series(&rows)?;
    let schemes: BTreeSet<_> = rows.texts(SERIES)?.into_iter().collect();
    let mut figure = Figure::line(&rows, "position", "drift_median").color(SERIES).log2_x().log_y().bands();
    let mut told = "median of all heads";
    if schemes.len() <= FEW {
        figure = figure.interval("drift_q25", "drift_q75");
        told = "median of all heads, band between the quartiles";
    }
    Ok(figure.title("State drift").subtitle(join(told, &shared)).x_label("tokens read").y_label(DISTANCE))
}

/// The drift of each head once it has settled against its predicted gain √(1 / (1 − d²)), d its mean decay on the text;
/// with Kendall's τ and its 95 % interval beside each scheme's name.
///
/// # Errors
/// If the frame holds no records.
pub fn drift_prediction(frame: &Frame) -> Result<Figure> {
    let rows = frame.filter("measure", "drift")?.filter("row", "head")?.above_zero("drift")?;
    let (rows, shared) = series(&rows)?;
    let ranked = summaries(frame, "drift")?;
    let name = |names: Vec<Option<String>>| names.into_iter().map(Option::unwrap_or_default);
    let of = |rows: &Frame| -> Result<Vec<(String, String)>> {
        Ok(name(rows.texts("model")?).zip(name(rows.texts("scheme")?)).collect())
    };
    let (tau, low, high) = (
        ranked.numbers("tau_measured")?,
        ranked.numbers("tau_measured_low")?,
        ranked.numbers("tau_measured_high")?,
    );
    let summaries = of(&ranked)?;
    let several = only(&rows, SERIES)?.is_none();
    let labels = of(&rows)?.into_iter().zip(name(rows.texts(SERIES)?)).map(|(subject, series)| {
        let at = summaries.iter().position(|summary| *summary == subject);
        let told = at.and_then(|i| {
            Some(format!("τ {:.2} [{:.2}, {:.2}]", tau[i]?, low[i]?, high[i]?).replace('-', "−"))
        });
        join(if several { &series } else { "" }, &told.unwrap_or_default())
    });
    let labels: Vec<String> = labels.collect();
    let figure = Figure::line(&rows.with_texts(SERIES, &labels)?, "gain_measured", "drift").color(SERIES);
    let mut figure = figure.log_y().points();
    figure.x =
        Axis { label: "predicted gain √(1 / (1 − d²))".into(), scale: Scale::Log2, ..Axis::default() };
    Ok(figure
        .title("Drift beside its prediction")
        .subtitle(join("a point for each head; τ: how well the gain ranks them", &shared))
        .y_label(DISTANCE))
}
