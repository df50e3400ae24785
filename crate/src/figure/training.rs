//! The loss of a training run.

use super::{Dash, Figure, Point, Series};
use crate::error::Result;
use crate::frame::Frame;
use std::f64::consts::LN_2;

/// Points that the pale line of the raw loss is thinned to.
const RAW_POINTS: usize = 1200;

/// Training loss in bits per token against tokens, raw and smoothed, and validation in bits per byte.
///
/// For a byte-level model the two are the same unit. The smoothed line is an exponential moving average over
/// about one fiftieth of the run, corrected for its start.
///
/// # Errors
/// If the frame is no training log (columns `tokens` and `loss`).
pub fn training_loss(frame: &Frame) -> Result<Figure> {
    let tokens = frame.numbers("tokens")?;
    let pairs = |values: Vec<Option<f64>>, scale: f64| -> Vec<Point> {
        tokens.iter().zip(values).filter_map(|(x, y)| Some(Point::new((*x)?, y? * scale))).collect()
    };
    let raw = pairs(frame.numbers("loss")?, 1.0 / LN_2);
    let mut series = vec![
        Series { points: thinned(&raw), faint: true, ..Series::default() },
        Series { label: "training, smoothed".into(), points: smoothed(&raw), ..Series::default() },
    ];
    if frame.has("valid_bits_per_byte") {
        let points = pairs(frame.numbers("valid_bits_per_byte")?, 1.0);
        series.push(Series { label: "validation".into(), points, color: 1, dash: Dash::Solid, faint: false });
    }
    // The first steps are far above all others and would flatten the rest.
    let mut losses: Vec<f64> = series.iter().skip(1).flat_map(|s| &s.points).map(|p| p.y).collect();
    losses.sort_by(f64::total_cmp);
    let ceiling = losses.get(losses.len() * 98 / 100).copied();
    let mut figure = Figure::of_series(series);
    if let (Some(low), Some(high)) = (losses.first(), ceiling) {
        let room = 0.15 * (high - low).max(0.05 * high);
        figure.y.range = Some((low - room, high + room));
    }
    let y_label = if frame.has("valid_bits_per_byte") {
        "loss (training: bits per token, validation: bits per byte)"
    } else {
        "loss (bits per token)"
    };
    Ok(figure.title("Training loss").x_label("tokens seen").y_label(y_label))
}

fn thinned(points: &[Point]) -> Vec<Point> {
    points.iter().copied().step_by(points.len().div_ceil(RAW_POINTS).max(1)).collect()
}

fn smoothed(points: &[Point]) -> Vec<Point> {
    let decay = (-50.0 / points.len().max(50) as f64).exp();
    let (mut mean, mut weight) = (0.0, 0.0);
    let all: Vec<Point> = points
        .iter()
        .map(|p| {
            mean = decay * mean + (1.0 - decay) * p.y;
            weight = decay * weight + (1.0 - decay);
            Point::new(p.x, mean / weight)
        })
        .collect();
    thinned(&all)
}
