//! The loss of a training run.

use super::axis::nice_step;
use super::{Figure, Point, Series};
use crate::error::Result;
use crate::frame::Frame;
use std::f64::consts::LN_2;

/// Points that a line is thinned to.
const POINTS: usize = 1200;

/// Training loss in bits per token against tokens, raw and smoothed, and validation in bits per byte.
///
/// For a byte-level model the two are the same unit. The smoothed line is the mean over a hundredth of the run,
/// centred. The first steps, far above all others, are cut off so that the rest can be read; the subtitle says so.
///
/// # Errors
/// If the frame is no training log (columns `tokens` and `loss`).
pub fn training_loss(frame: &Frame) -> Result<Figure> {
    let tokens = frame.numbers("tokens")?;
    let column = |name: &str, scale: f64| -> Result<Vec<Point>> {
        let pairs = tokens.iter().zip(frame.numbers(name)?);
        let points = pairs.filter_map(|(x, y)| Some(Point::new((*x)?, y? * scale)));
        // A running mean would carry one NaN on to the end.
        let mut points: Vec<Point> = points.filter(|p| p.x.is_finite() && p.y.is_finite()).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x)); // a resumed log repeats its last steps
        Ok(points)
    };
    let raw = column("loss", 1.0 / LN_2)?;
    let smooth = smoothed(&raw);
    let validation =
        if frame.has("valid_bits_per_byte") { column("valid_bits_per_byte", 1.0)? } else { Vec::new() };

    let mut subtitle = Vec::new();
    let mut y_label = "loss (bits per token)";
    if let Some(last) = validation.last() {
        subtitle.push(format!("validation ends at {:.3} bits per byte", last.y));
        y_label = "loss (training: bits per token, validation: bits per byte)";
    }
    let shown = range(&raw, &smooth, &validation);
    let top = shown.map_or(f64::INFINITY, |(_, high)| high);
    if smooth.iter().any(|p| p.y > top) {
        subtitle.push(format!("the first steps, above {top}, are cut off"));
    }
    let below =
        |points: &[Point]| thinned(&points.iter().copied().filter(|p| p.y <= top).collect::<Vec<_>>());
    let mut figure = Figure::of_series(vec![
        Series { points: below(&raw), faint: true, ..Series::default() },
        Series { label: "training, smoothed".into(), points: below(&smooth), ..Series::default() },
        Series { label: "validation".into(), points: below(&validation), color: 1, ..Series::default() },
    ]);
    figure.y.range = shown;
    Ok(figure.title("Training loss").subtitle(subtitle.join(" · ")).x_label("tokens seen").y_label(y_label))
}

/// From just below the lowest loss to what 97 % of the smoothed ones stay under, at whole ticks.
fn range(raw: &[Point], smooth: &[Point], validation: &[Point]) -> Option<(f64, f64)> {
    let low = raw.iter().chain(validation).map(|p| p.y).fold(f64::INFINITY, f64::min);
    let mut sorted: Vec<f64> = smooth.iter().map(|p| p.y).collect();
    sorted.sort_by(f64::total_cmp);
    let most = *sorted.get(sorted.len() * 97 / 100)?;
    let high = validation.iter().map(|p| p.y).fold(most, f64::max);
    let step = nice_step(((high - low) / 5.0).max(1e-3));
    Some(((low / step).floor() * step, (high / step).ceil() * step))
}

fn thinned(points: &[Point]) -> Vec<Point> {
    points.iter().copied().step_by(points.len().div_ceil(POINTS).max(1)).collect()
}

/// Mean over a centred window, which narrows towards both ends: no lag where the loss falls fast.
fn smoothed(points: &[Point]) -> Vec<Point> {
    let half = points.len() / 200;
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(points.iter().scan(0.0, |sum, p| {
            *sum += p.y;
            Some(*sum)
        }))
        .collect();
    let mean = |i: usize| {
        let reach = half.min(i).min(points.len() - 1 - i);
        (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1) as f64
    };
    points.iter().enumerate().map(|(i, p)| Point::new(p.x, mean(i))).collect()
}
