//! Perplexity by model and scheme.

use super::compare::{SERIES, series, summaries};
use super::{Axis, Figure};
use crate::error::Result;
use crate::frame::Frame;

/// Bars of perplexity, one for each model, scheme and corpus among the records.
///
/// # Errors
/// If the frame holds no records.
pub fn perplexity(frame: &Frame) -> Result<Figure> {
    let (rows, mut shared) = series(&summaries(frame, "perplexity")?)?;
    let names = rows.texts(SERIES)?.into_iter().map(Option::unwrap_or_default);
    // With nothing to tell bars apart, the bar is named after the model.
    let models = rows.texts("model")?.into_iter().map(Option::unwrap_or_default);
    let named: Vec<String> =
        names.zip(models).map(|(name, model)| if name.is_empty() { model } else { name }).collect();
    let rows = rows.with_texts(SERIES, &named)?;
    let mut figure = Figure::bar(&rows, SERIES, "ppl");
    if rows.has("corpus") {
        let corpora: std::collections::BTreeSet<String> =
            rows.texts("corpus")?.into_iter().flatten().collect();
        match corpora.iter().next() {
            Some(only) if corpora.len() == 1 => shared = format!("{only} · {shared}"),
            _ => figure = figure.color("corpus"),
        }
    }
    figure.y =
        Axis { label: "perplexity per token, lower is better".into(), from_zero: true, ..Axis::default() };
    Ok(figure.title("Perplexity").subtitle(shared.trim_end_matches(" · ")))
}
