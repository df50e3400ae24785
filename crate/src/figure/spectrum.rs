//! Singular values of the projections of queries.

use super::compare::{join, variant};
use super::{Figure, Point, Series};
use crate::error::{Error, Result};
use crate::frame::Frame;
use std::collections::BTreeMap;

/// Lines that are told apart.
const LINES: usize = 8;

/// The singular values of one projection.
struct Line {
    model: String,
    layer: f64,
    condition: f64,
    values: Vec<f64>,
}

/// The singular values of the queries of each layer as shares of the largest, with the condition number beside each layer's name. Of
/// several models, those that differ by their seed alone together, the layer of the largest condition number each; of more than eight
/// eight, from the largest to the least.
///
/// # Errors
/// If the frame holds no spectra of queries.
pub fn spectrum(frame: &Frame) -> Result<Figure> {
    let rows = frame.filter("measure", "spectrum")?.filter("row", "matrix")?.filter("role", "queries")?;
    let (layers, conditions) = (rows.numbers("layer")?, rows.numbers("condition")?);
    let (models, values) = (rows.texts("model")?, rows.lists("singular_values")?);
    let line = |i: usize| {
        Some(Line {
            model: models[i].clone().unwrap_or_default(),
            layer: layers[i]?,
            condition: conditions[i].unwrap_or(f64::INFINITY),
            values: values[i].clone()?,
        })
    };
    let lines: Vec<Line> = (0..models.len()).filter_map(line).collect();
    let Some(first) = lines.first() else {
        return Err(Error::input("there are no spectra of queries among these records")
            .hint("measure the spectrum of a model with attention"));
    };
    let several = lines.iter().any(|line| line.model != first.model);
    let layers = "the projection of each layer, those of low rank as one matrix".to_string();
    let (lines, shown) = if several { worst(lines) } else { (lines, layers) };
    let series = lines.iter().enumerate().map(|(color, line)| {
        let condition = Some(line.condition).filter(|condition| condition.is_finite());
        let condition = condition.map(|condition| format!("condition {condition:.0}")).unwrap_or_default();
        let name = if several { line.model.as_str() } else { "" };
        let points = line.values.iter().enumerate().map(|(k, s)| Point::new((k + 1) as f64, *s)).collect();
        let label = join(name, &join(&format!("layer {}", line.layer), &condition));
        Series { label, color, points, ..Series::default() }
    });
    Ok(Figure::of_series(series.collect())
        .log_y()
        .title("Spectrum of the queries")
        .subtitle(format!("singular values of {shown}"))
        .x_label("number of the singular value")
        .y_label("share of the largest"))
}

/// Of each model, those that differ by their seed alone together, the layer of the largest condition number, from the largest of them down,
/// and which these are.
fn worst(lines: Vec<Line>) -> (Vec<Line>, String) {
    let mut each: BTreeMap<String, Line> = BTreeMap::new();
    for line in lines {
        let name = variant(&line.model).to_string();
        match each.get(&name) {
            Some(known) if known.condition >= line.condition => {}
            _ => drop(each.insert(name, line)),
        }
    }
    let mut all: Vec<Line> = each.into_values().collect();
    all.sort_by(|a, b| b.condition.total_cmp(&a.condition));
    let count = all.len();
    if count <= LINES {
        return (all, "each model's layer of the largest condition number".to_string());
    }
    let kept: Vec<usize> = (0..LINES).map(|i| i * (count - 1) / (LINES - 1)).collect();
    let mut at = 0;
    all.retain(|_| {
        at += 1;
        kept.contains(&(at - 1))
    });
    (all, format!("{LINES} of {count} models, each by its layer of the largest condition number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn drawn(models: &[String]) -> String {
        let row = |model: &str, layer: usize, condition: f64| {
            json!({"measure": "spectrum", "row": "matrix", "role": "queries", "model": model, "layer": layer,
                "condition": condition, "singular_values": [1.0, 1.0 / condition]})
        };
        let each = models
            .iter()
            .enumerate()
            .flat_map(|(i, model)| [1usize, 2].map(|layer| row(model, layer, (10 * (i + 1) + layer) as f64)));
        let rows: Vec<_> = each.map(|row| serde_json::from_value(row).unwrap()).collect();
        spectrum(&Frame::from_rows(&rows).unwrap()).unwrap().svg().unwrap()
    }

    #[test]
    fn one_model_shows_its_layers_and_several_their_worst() {
        let one = drawn(&["griot".to_string()]);
        assert!(one.contains("layer 1 · condition 11") && one.contains("layer 2 · condition 12"), "{one}");
        // Seeds of one variant are one line, by the worst layer of the worst of them.
        let seeds = drawn(&[0, 1, 2].map(|seed| format!("rank 8, seed {seed}")));
        assert!(seeds.contains("rank 8, seed 2 · layer 2") && !seeds.contains("seed 1"), "{seeds}");
        let many = drawn(&(0..20).map(|i| format!("model {i}")).collect::<Vec<_>>());
        assert!(many.contains("8 of 20 models"), "{many}");
        let kept = (0..20).filter(|i| many.contains(&format!("model {i} · layer 2")));
        let kept: Vec<usize> = kept.collect();
        assert_eq!((kept.len(), kept[0], kept[7]), (8, 0, 19), "{kept:?}");
    }
}
