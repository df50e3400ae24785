//! Rate and distortion: what a byte of the compressed file buys.

use super::compare::{join, only, summaries};
use super::{Dash, Figure, Point, Series, Unit};
use crate::error::{Error, Result};
use crate::frame::Frame;
use std::collections::BTreeMap;

/// Bits per byte of text against the exact bytes of the model as one compressed file: a colour for each model, a point for each
/// scheme, and a line through those that none beats in both (the Pareto front), which are named where there is a single model.
///
/// # Errors
/// If the frame holds no sizes of files, or no perplexities of the same models and schemes.
pub fn rate(frame: &Frame) -> Result<Figure> {
    let key = |rows: &Frame| -> Result<Vec<(String, String)>> {
        let texts = |column: &str| -> Result<Vec<String>> {
            Ok(rows.texts(column)?.into_iter().map(Option::unwrap_or_default).collect())
        };
        Ok(texts("model")?.into_iter().zip(texts("scheme")?).collect())
    };
    let (sizes, scores) = (summaries(frame, "artifact")?, summaries(frame, "perplexity")?);
    let bytes: BTreeMap<_, _> = key(&sizes)?.into_iter().zip(sizes.numbers("artifact_bytes")?).collect();
    let bits = scores.numbers("bits_per_byte")?;
    let mut models: BTreeMap<String, Vec<(f64, f64, String)>> = BTreeMap::new();
    for ((model, scheme), bits) in key(&scores)?.into_iter().zip(bits) {
        let known = bytes.get(&(model.clone(), scheme.clone())).copied().flatten();
        if let (Some(bytes), Some(bits)) = (known, bits.filter(|bits| bits.is_finite())) {
            models.entry(model).or_default().push((bytes, bits, scheme));
        }
    }
    if models.is_empty() {
        return Err(Error::input("no scheme has both the size of its file and a perplexity")
            .hint("measure artifact and perplexity in one study"));
    }
    let (mut series, named) = (vec![], models.len() == 1);
    for (color, (model, mut points)) in models.into_iter().enumerate() {
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut front = Series { label: format!("{model}, front"), color, ..Series::default() };
        let mut all = Series { label: model, color, dash: Dash::Points, ..Series::default() };
        let mut best = f64::INFINITY;
        for (bytes, bits, scheme) in points {
            all.points.push(Point::new(bytes, bits));
            if bits < best {
                best = bits;
                front.points.push(Point::new(bytes, bits));
                front.texts.extend(named.then(|| short(&scheme)));
            }
        }
        series.extend([all, front]);
    }
    let text = only(&scores, "corpus")?.unwrap_or_default();
    let mut figure = Figure::of_series(series).log2_x();
    figure.x.unit = Unit::Bytes;
    Ok(figure
        .title("Rate and distortion")
        .subtitle(join(&text, "lower and further left is better"))
        .x_label("bytes of the model as one compressed file")
        .y_label("bits per byte of text"))
}

/// The name of a scheme without its exceptions, which a figure has no room for; an ellipsis stands for them.
fn short(scheme: &str) -> String {
    match scheme.split_once('+') {
        Some((name, _)) => format!("{name} …"),
        None => scheme.to_string(),
    }
}
