//! What leaving parts of a training out costs, and how fast each variant learns.

use super::spread::Spread;
use super::{Figure, Point, Series};
use crate::error::Result;
use crate::frame::Frame;

/// Curves that are drawn together, at most.
const CURVES: usize = 6;

/// The difference in bits per byte of each variant of a training from the first, the mean over seeds, with the 95 % interval of
/// Student's t.
///
/// # Errors
/// If the frame holds no records of an ablation.
pub fn ablation(frame: &Frame) -> Result<Figure> {
    Ok(bars(frame, "")?.title("What each part is worth"))
}

/// As [`ablation`], of models whose weights are rounded as the training's `qat` says.
///
/// # Errors
/// As [`ablation`].
pub fn ablation_quantized(frame: &Frame) -> Result<Figure> {
    Ok(bars(frame, "_quantized")?.title("What each part is worth, once weights are rounded"))
}

/// Bars of the differences whose names end so.
fn bars(frame: &Frame, end: &str) -> Result<Figure> {
    let rows = frame.filter("measure", "ablation")?.filter("row", "variant")?;
    let column = format!("difference{end}");
    let first = rows.texts("variant")?.into_iter().flatten().next().unwrap_or_default();
    let others: Vec<String> = rows
        .texts("variant")?
        .into_iter()
        .zip(rows.numbers(&column)?)
        .filter_map(|(variant, difference)| variant.filter(|_| difference.is_some()))
        .collect();
    let known = rows.filter_any("variant", &others)?;
    let [low, high] = ["low", "high"].map(|bound| format!("{column}_{bound}"));
    let figure = Figure::bar(&known, "variant", &column).interval(&low, &high);
    Ok(figure
        .subtitle(format!(
            "difference from {first}, mean over seeds, whiskers: 95 % intervals of Student’s t"
        ))
        .y_label("bits per byte of held-out text, higher is worse"))
}

/// Training loss of each variant against tokens: the mean over seeds, and a band from the least seed to the largest.
///
/// Of more than six variants the first is drawn, and those that end farthest from it; the subtitle says so.
///
/// # Errors
/// If the frame holds no curves of an ablation.
pub fn learning(frame: &Frame) -> Result<Figure> {
    let rows = frame.filter("measure", "ablation")?.filter("row", "training")?;
    let mut all = Spread::default();
    let curves = rows.lists("curve_tokens")?.into_iter().zip(rows.lists("curve_bits_per_token")?);
    for (variant, curve) in rows.texts("variant")?.into_iter().zip(curves) {
        let (Some(variant), (Some(tokens), Some(losses))) = (variant, curve) else { continue };
        tokens.into_iter().zip(losses).for_each(|(tokens, loss)| all.add(&variant, tokens, loss));
    }
    let seeds = all.most();
    let mut drawn: Vec<(&str, Vec<Point>)> = all.lines().collect();
    let mut subtitle = format!("mean of {seeds} seeds, band: the least to the largest of them");
    if drawn.len() > CURVES {
        let end = |points: &[Point]| points.last().map_or(f64::NAN, |point| point.y);
        let first = end(&drawn[0].1);
        let mut ends: Vec<f64> = drawn[1..].iter().map(|(_, points)| (end(points) - first).abs()).collect();
        ends.sort_by(f64::total_cmp);
        let least = ends[ends.len() - (CURVES - 1)];
        let count = drawn.len();
        let mut at = 0;
        drawn.retain(|(_, points)| {
            at += 1;
            at == 1 || (end(points) - first).abs() >= least
        });
        subtitle += &format!(
            " · {} of {count} variants: the first, and those that end farthest from it",
            drawn.len()
        );
    }
    let series = drawn.into_iter().enumerate();
    let series = series.map(|(color, (label, points))| Series {
        label: label.to_string(),
        points,
        color,
        band: true,
        ..Series::default()
    });
    Ok(Figure::of_series(series.collect())
        .title("Training loss by variant")
        .subtitle(subtitle)
        .x_label("tokens seen")
        .y_label("loss of batches (bits per token)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn frame(rows: Vec<Value>) -> Frame {
        let rows: Vec<_> = rows.into_iter().map(|row| serde_json::from_value(row).unwrap()).collect();
        Frame::from_rows(&rows).unwrap()
    }

    #[test]
    fn curves_of_many_variants_are_the_first_and_those_far_from_it() {
        let row = |variant: usize, seed: usize| {
            let end = 2.0 + 0.01 * variant as f64 + 0.001 * seed as f64;
            json!({"measure": "ablation", "row": "training", "variant": format!("v{variant}"), "bits_per_byte": end,
                "curve_tokens": [100.0, 200.0], "curve_bits_per_token": [4.0, end]})
        };
        let all = frame((0..9).flat_map(|variant| (0..3).map(move |seed| row(variant, seed))).collect());
        let figure = learning(&all).unwrap();
        assert!(figure.subtitle.contains("mean of 3 seeds"), "{}", figure.subtitle);
        assert!(figure.subtitle.contains("6 of 9 variants"), "{}", figure.subtitle);
        let svg = figure.svg().unwrap();
        assert!(svg.contains("\nv0\n") && svg.contains("\nv8\n") && !svg.contains("\nv1\n"));
    }

    #[test]
    fn differences_are_drawn_before_rounding_and_after() {
        let row = |variant: &str, difference: Option<f64>| {
            json!({"measure": "ablation", "row": "variant", "variant": variant, "difference": difference,
                "difference_low": difference.map(|d| d - 0.01), "difference_high": difference.map(|d| d + 0.01),
                "difference_quantized": difference.map(|d| 2.0 * d), "difference_quantized_low": difference,
                "difference_quantized_high": difference.map(|d| 3.0 * d)})
        };
        let all = frame(vec![row("whole", None), row("less", Some(0.05)), row("more", Some(-0.02))]);
        for figure in [ablation, ablation_quantized] {
            let svg = figure(&all).unwrap().svg().unwrap();
            assert!(svg.contains("difference from whole") && svg.contains("\nless\n"), "{svg}");
        }
        let names: Vec<_> = crate::figure::ready_made(&all).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["ablation", "ablation_quantized"]);
    }
}
