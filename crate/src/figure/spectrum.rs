//! Singular values of the projections of queries.

use super::compare::join;
use super::{Figure, Point, Series};
use crate::error::{Error, Result};
use crate::frame::Frame;

/// The singular values of the queries of each layer as shares of the largest, with the condition number beside each layer's name.
///
/// # Errors
/// If the frame holds no spectra of queries.
pub fn spectrum(frame: &Frame) -> Result<Figure> {
    let rows = frame.filter("measure", "spectrum")?.filter("row", "matrix")?.filter("role", "queries")?;
    let (layers, conditions) = (rows.numbers("layer")?, rows.numbers("condition")?);
    let models = rows.texts("model")?;
    let several = models.iter().any(|model| *model != models[0]);
    let mut series = vec![];
    for (i, values) in rows.lists("singular_values")?.into_iter().enumerate() {
        let (Some(values), Some(layer)) = (values, layers[i]) else { continue };
        let name = if several { models[i].clone().unwrap_or_default() } else { String::new() };
        let condition = conditions[i].map(|condition| format!("condition {condition:.0}"));
        let label = join(&name, &join(&format!("layer {layer}"), &condition.unwrap_or_default()));
        let points = values.iter().enumerate().map(|(k, s)| Point::new((k + 1) as f64, *s)).collect();
        series.push(Series { label, color: series.len(), points, ..Series::default() });
    }
    if series.is_empty() {
        return Err(Error::input("there are no spectra of queries among these records")
            .hint("measure the spectrum of a model with attention"));
    }
    Ok(Figure::of_series(series)
        .log_y()
        .title("Spectrum of the queries")
        .subtitle("singular values of the projection of each layer, those of low rank as one matrix")
        .x_label("number of the singular value")
        .y_label("share of the largest"))
}
