//! Perplexity by model and scheme.

use super::compare::{SERIES, join, series, summaries};
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
            Some(only) if corpora.len() == 1 => shared = join(only, &shared),
            _ => figure = figure.color("corpus"),
        }
    }
    if rows.has("vocab_size") {
        let pairs = rows.numbers("ppl")?.into_iter().zip(rows.numbers("vocab_size")?);
        if pairs.filter_map(|(ppl, size)| ppl.zip(size)).any(|(ppl, size)| ppl >= size) {
            shared = join(&shared, "at or above the vocabulary's size a model is worse than guessing");
        }
    }
    figure.y =
        Axis { label: "perplexity per token, lower is better".into(), from_zero: true, ..Axis::default() };
    Ok(figure.title("Perplexity").subtitle(shared))
}
