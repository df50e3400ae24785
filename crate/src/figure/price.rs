//! What saved bytes cost, for models that nothing else compares.

use super::compare::{join, only, summaries};
use super::{Dash, Figure, Point, Series, Unit};
use crate::error::{Error, Result};
use crate::frame::Frame;

/// Perplexity above that of each model's own `baseline`, a scheme's name, against the share of its bytes of weights: a colour
/// for each model, a point for each scheme. Models with other tokenizers and on other texts stand side by side so.
///
/// What predicts no worse than its baseline has no place on the logarithmic axis; the subtitle names it.
///
/// # Errors
/// If the frame holds no perplexities, or none of a model in the scheme `baseline` on the same text.
pub fn price(frame: &Frame, baseline: &str) -> Result<Figure> {
    let rows = summaries(frame, "perplexity")?;
    let words = |column: &str| -> Result<Vec<String>> {
        match rows.has(column) {
            true => Ok(rows.texts(column)?.into_iter().map(Option::unwrap_or_default).collect()),
            false => Ok(vec![String::new(); rows.height()]),
        }
    };
    let (models, schemes) = (words("model")?, words("scheme")?);
    let (texts, lengths, counts) = (words("corpus_hash")?, words("seq_len")?, words("n_tokens")?);
    let (ppl, bytes) = (rows.numbers("ppl")?, rows.numbers("weight_bytes")?);
    // What a point and its baseline have in common.
    let subject = |i: usize| [&models, &texts, &lengths, &counts].map(|column| column[i].as_str());
    let (mut series, mut no_worse): (Vec<Series>, Vec<String>) = (vec![], vec![]);
    for i in (0..rows.height()).filter(|i| schemes[*i] != baseline) {
        let own = (0..rows.height()).find(|j| schemes[*j] == baseline && subject(*j) == subject(i));
        let own = own.ok_or_else(|| {
            let what = format!("there is no perplexity of {} in {baseline} on the same text", models[i]);
            Error::input(what).hint("measure it beside the others, or name another baseline")
        })?;
        let (Some(ppl), Some(bytes)) = (ratio(&ppl, i, own), ratio(&bytes, i, own)) else { continue };
        if ppl <= 1.0 {
            no_worse.push(format!("{} of {}", schemes[i], models[i]));
            continue;
        }
        let at = series.iter().position(|series| series.label == models[i]).unwrap_or_else(|| {
            let (label, color) = (models[i].clone(), series.len());
            series.push(Series { label, color, dash: Dash::Points, ..Series::default() });
            series.len() - 1
        });
        series[at].points.push(Point::new(bytes, ppl - 1.0));
        series[at].texts.push(schemes[i].clone());
    }
    let mut subtitle = "lower and further left is better".to_string();
    if !no_worse.is_empty() {
        subtitle = join(&subtitle, &format!("no worse: {}", no_worse.join(", ")));
    }
    if let Some(corpus) = only(&rows, "corpus")? {
        subtitle = join(&corpus, &subtitle);
    }
    let mut figure = Figure::of_series(series).log_x().log_y();
    (figure.x.unit, figure.y.unit) = (Unit::Percent, Unit::Percent);
    Ok(figure
        .title("What saved bytes cost")
        .subtitle(subtitle)
        .x_label(format!("bytes of the weights, those of {baseline} are 100 %"))
        .y_label(format!("perplexity above {baseline}")))
}

/// A value over another, where both are known.
fn ratio(values: &[Option<f64>], i: usize, j: usize) -> Option<f64> {
    Some(values[i]? / values[j]?)
}
