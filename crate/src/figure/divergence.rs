//! Divergence from a reference by model and scheme.

use super::compare::{SERIES, bars, join, only, summaries};
use super::{Axis, Figure, Scale};
use crate::error::Result;
use crate::frame::Frame;

/// Where the largest is this many times the smallest, small bars would vanish on a linear axis.
const WIDE: f64 = 20.0;

/// Bars of the mean divergence, one for each model, scheme and corpus among the records; on a logarithmic axis where
/// they differ widely.
///
/// # Errors
/// If the frame holds no records.
pub fn divergence(frame: &Frame) -> Result<Figure> {
    let (rows, mut shared) = bars(&summaries(frame, "divergence")?)?;
    let mut figure = Figure::bar(&rows, SERIES, "kl");
    if let Some(reference) = only(&rows, "reference")? {
        shared = join(&format!("from {reference}"), &shared);
    }
    if rows.has("kl_low") && rows.has("kl_high") {
        figure = figure.interval("kl_low", "kl_high");
        shared = join(&shared, "whiskers: 95 % intervals");
    }
    match only(&rows, "corpus")? {
        Some(corpus) => shared = join(&corpus, &shared),
        None if rows.has("corpus") => figure = figure.color("corpus"),
        None => {}
    }
    let known: Vec<f64> = rows.numbers("kl")?.into_iter().flatten().filter(|kl| kl.is_finite()).collect();
    let (low, high) =
        (known.iter().copied().fold(f64::INFINITY, f64::min), known.iter().copied().fold(0.0, f64::max));
    let scale = if low > 0.0 && high > WIDE * low { Scale::Log10 } else { Scale::Linear };
    let label = "KL divergence per token (nats), lower is better".into();
    figure.y = Axis { label, scale, from_zero: true, ..Axis::default() };
    Ok(figure.title("Divergence").subtitle(shared))
}
