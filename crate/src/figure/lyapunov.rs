//! How perturbations grow from pass to pass through a block.

use super::compare::{SERIES, join, series, variant};
use super::spread::Spread;
use super::{Figure, Series};
use crate::error::{Error, Result};
use crate::frame::Frame;

/// The Lyapunov exponent of each pass through a block that is passed again and again: a line a layer of one model; of several models a
/// line each, the mean over layers, those that differ by their seed alone together, in a band from the least to the largest. Below 0 the
/// passes contract. A rule marks the passes that the models themselves make, where all make as many.
///
/// # Errors
/// If the frame holds no such records.
pub fn exponents(frame: &Frame) -> Result<Figure> {
    let (rows, shared) = series(&frame.filter("measure", "lyapunov")?.filter("row", "pass")?)?;
    let models = rows.texts(SERIES)?;
    let several = models.iter().any(|model| *model != models[0]);
    let (layers, passes) = (rows.numbers("layer")?, rows.numbers("iteration")?);
    let mut layered = Spread::default();
    for (i, exponent) in rows.numbers("exponent")?.into_iter().enumerate() {
        let (Some(layer), Some(pass), Some(exponent)) = (layers[i], passes[i], exponent) else { continue };
        match several {
            true => layered.add(models[i].as_deref().unwrap_or_default(), pass, exponent),
            false => layered.add(&format!("layer {layer}"), pass, exponent),
        }
    }
    let mut lines = Spread::default();
    for (name, points) in layered.lines() {
        points.iter().for_each(|point| lines.add(variant(name), point.x, point.y));
    }
    let lines: Vec<Series> = lines
        .lines()
        .enumerate()
        .map(|(color, (label, points))| Series {
            label: label.to_string(),
            color,
            points,
            ..Series::default()
        })
        .collect();
    if lines.is_empty() {
        return Err(Error::input("there are no exponents of passes among these records")
            .hint("measure lyapunov of a model"));
    }
    let mut figure = Figure::of_series(lines);
    let own: Vec<f64> = rows.numbers("own_passes")?.into_iter().flatten().collect();
    if let Some(first) = own.first().filter(|first| own.iter().all(|own| own == *first)) {
        figure = figure.rule(*first, "passes of the model");
    }
    let what = if several { "mean over layers" } else { "" };
    Ok(figure
        .title("Growth of a perturbation from pass to pass")
        .subtitle(join(&shared, what))
        .x_label("pass through the block")
        .y_label("exponent (ln of the growth), below 0 it contracts"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn layers_of_one_model_are_lines_and_seeds_of_several_are_one() {
        let row = |model: &str, layer: usize, pass: usize| {
            json!({"measure": "lyapunov", "row": "pass", "model": model, "scheme": "f32", "layer": layer, "iteration": pass,
                "exponent": 0.1 - 0.02 * (layer + pass) as f64, "own_passes": 2})
        };
        let drawn = |models: &[&str]| {
            let each = models.iter().flat_map(|model| {
                (0..3).flat_map(move |layer| (1..4).map(move |pass| row(model, layer, pass)))
            });
            let rows: Vec<_> = each.map(|row| serde_json::from_value(row).unwrap()).collect();
            exponents(&Frame::from_rows(&rows).unwrap()).unwrap().svg().unwrap()
        };
        let one = drawn(&["griot"]);
        assert!(one.contains("\nlayer 2\n") && one.contains("\npasses of the model\n"), "{one}");
        let several = drawn(&["shared, seed 0", "shared, seed 1", "plain, seed 0", "plain, seed 1"]);
        assert!(
            several.contains("\nshared\n") && several.contains("\nplain\n") && !several.contains("seed 1")
        );
    }
}
