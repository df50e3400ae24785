//! Perplexity by model and scheme.

use super::compare::{SERIES, bars, join, only, summaries};
use super::{Axis, Figure};
use crate::error::Result;
use crate::frame::Frame;

/// Bars of perplexity, one for each model, scheme and corpus among the records.
///
/// # Errors
/// If the frame holds no records.
pub fn perplexity(frame: &Frame) -> Result<Figure> {
    let (rows, mut shared) = bars(&summaries(frame, "perplexity")?)?;
    let mut figure = Figure::bar(&rows, SERIES, "ppl");
    match only(&rows, "corpus")? {
        Some(corpus) => shared = join(&corpus, &shared),
        None if rows.has("corpus") => figure = figure.color("corpus"),
        None => {}
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
