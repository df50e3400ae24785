//! Bar charts: horizontal, so that long names stay readable, as high as their bars demand.

use super::Figure;
use super::axis::{Fitted, alone};
use super::canvas::{Align, Canvas, Font, fit, width};
use super::chart::{Chart, Point, Series};
use super::lines::{MARGIN, SIZE, header, header_height};
use super::palette::{AXIS, GREY, GRID, INK, color};
use crate::error::Result;
use plotters::prelude::{Color, DrawingBackend, WHITE};

pub(super) const BAR: f64 = 24.0;
const BAR_GAP: f64 = 4.0;
const CATEGORY_GAP: f64 = 16.0;
/// Width that names may take from the bars.
const NAME_ROOM: f64 = 260.0;
const LEGEND_LINE: f64 = 22.0;

/// Width and height in points.
pub(super) fn size(figure: &Figure, chart: &Chart) -> (u32, u32) {
    let bars = rows(chart).last().map_or(0.0, |(top, _, _)| top + BAR);
    let height = header_height(figure) + 20.0 + legend(chart).1 + bars + 80.0;
    (SIZE.0, height.max(200.0).ceil() as u32)
}

/// The bars from top to bottom: their upper edge, their series, their value.
fn rows(chart: &Chart) -> Vec<(f64, &Series, &Point)> {
    let mut rows = Vec::new();
    let mut top = 0.0;
    for category in 0..chart.categories.len() {
        let bars = chart.series.iter().flat_map(|s| s.points.iter().map(move |p| (s, p)));
        for (series, point) in bars.filter(|(_, p)| p.x == category as f64) {
            rows.push((top, series, point));
            top += BAR + BAR_GAP;
        }
        top += CATEGORY_GAP - BAR_GAP;
    }
    rows
}

/// Where each series' name stands in the legend, and the height of the legend: none for a single series.
fn legend(chart: &Chart) -> (Vec<(f64, f64)>, f64) {
    if chart.series.len() < 2 {
        return (Vec::new(), 0.0);
    }
    let (mut x, mut y) = (MARGIN, LEGEND_LINE);
    let mut places = Vec::new();
    for series in &chart.series {
        let needed = width(&series.label, Font::new(13.0, INK)) + 42.0;
        if x + needed > f64::from(SIZE.0) - MARGIN && x > MARGIN {
            (x, y) = (MARGIN, y + LEGEND_LINE);
        }
        places.push((x, y));
        x += needed;
    }
    (places, y + 4.0)
}

/// What is written at the end of a bar.
pub(super) fn value_text(figure: &Figure, point: &Point) -> String {
    match point.y {
        y if y.is_finite() => alone(figure.y.unit, y),
        y if y.is_nan() => "no value".into(),
        _ => "infinite".into(),
    }
}

/// Where all parts of a bar chart lie, in points.
pub(super) struct Plot<'a> {
    /// Where each series' name stands: empty for a single series.
    pub(super) legend: Vec<(f64, f64)>,
    /// The bars from top to bottom: their upper edge, their series, their value.
    pub(super) bars: Vec<(f64, &'a Series, &'a Point)>,
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    pub(super) y: Fitted,
}

impl Plot<'_> {
    /// An end of an interval may lie beyond a logarithmic axis.
    fn at(&self, value: f64) -> f64 {
        (self.left + self.y.at(value) * (self.right - self.left)).clamp(self.left, self.right.max(self.left))
    }

    /// The name of each category and the height of its middle.
    pub(super) fn names(&self, chart: &Chart) -> Vec<(String, f64)> {
        let name = |(category, text): (usize, &String)| {
            let of_this =
                || self.bars.iter().filter(|(_, _, p)| p.x == category as f64).map(|(top, _, _)| *top);
            let (first, last) = (of_this().fold(f64::INFINITY, f64::min), of_this().fold(0.0, f64::max));
            (fit(text, Font::new(13.0, INK), NAME_ROOM), (first + last + BAR) / 2.0)
        };
        chart.categories.iter().enumerate().map(name).collect()
    }
}

pub(super) fn layout<'a>(figure: &Figure, chart: &'a Chart) -> Plot<'a> {
    let header = header_height(figure);
    let (legend, legend_height) = legend(chart);
    let name = Font::new(13.0, INK);
    let rows = rows(chart);
    let points = || rows.iter().map(|(_, _, point)| *point);
    let highs = points().filter_map(|p| p.interval).flat_map(|(low, high)| [low, high]);
    let y = Fitted::new(&figure.y, points().map(|p| p.y).chain(highs), false);
    let value_room = points().map(|p| width(&value_text(figure, p), name)).fold(0.0, f64::max);
    let name_room = chart.categories.iter().map(|c| width(c, name)).fold(0.0, f64::max).min(NAME_ROOM);
    let top = header + legend_height + 16.0;
    Plot {
        legend: legend.into_iter().map(|(x, y)| (x, header + y)).collect(),
        left: MARGIN + name_room + 12.0,
        right: f64::from(SIZE.0) - MARGIN - value_room - 10.0,
        top,
        bottom: top + rows.last().map_or(0.0, |(top, _, _)| top + BAR) + 8.0,
        bars: rows.into_iter().map(|(offset, series, point)| (top + offset, series, point)).collect(),
        y,
    }
}

pub(super) fn draw<DB: DrawingBackend>(figure: &Figure, chart: &Chart, canvas: &Canvas<DB>) -> Result<()> {
    header(figure, canvas)?;
    let plot = layout(figure, chart);
    let Plot { left, right, top, bottom, y, .. } = &plot;
    let name = Font::new(13.0, INK);
    for (series, (x, base)) in chart.series.iter().zip(&plot.legend) {
        canvas.rectangle((*x, base - 11.0), (x + 14.0, base + 2.0), &color(series.color).to_rgba())?;
        canvas.text(&series.label, (x + 20.0, *base), Align::Left, name)?;
    }

    let tick = Font::new(12.5, GREY);
    for mark in &y.ticks {
        let x = plot.at(mark.value);
        canvas.line(&[(x, top - 4.0), (x, *bottom)], &GRID.to_rgba(), 1.0)?;
        canvas.text(&mark.text, (x, bottom + 18.0), Align::Center, tick)?;
    }
    canvas.text(&y.label, ((left + right) / 2.0, bottom + 42.0), Align::Center, name)?;

    let zero = if y.holds(0.0) { plot.at(0.0) } else { *left };
    for (upper, series, point) in &plot.bars {
        let (upper, lower) = (*upper, upper + BAR);
        let middle = (upper + lower) / 2.0;
        let mut end = zero;
        if point.y.is_finite() {
            end = plot.at(point.y);
            canvas.rectangle(
                (zero.min(end), upper),
                (zero.max(end), lower),
                &color(series.color).to_rgba(),
            )?;
        }
        if let Some((low, high)) = point.interval.map(|(low, high)| (plot.at(low), plot.at(high))) {
            canvas.line(&[(low, middle), (high, middle)], &INK.mix(0.7), 1.4)?;
            for x in [low, high] {
                canvas.line(&[(x, middle - 4.0), (x, middle + 4.0)], &INK.mix(0.7), 1.4)?;
            }
            end = end.max(high);
        }
        let known = if point.y.is_finite() { INK } else { GREY };
        // The value stands on white, so that no grid line runs through it.
        let (text, start) = (value_text(figure, point), end.max(zero) + 7.0);
        let font = Font::new(13.0, known);
        canvas.rectangle(
            (start - 2.0, upper),
            (start + width(&text, font) + 2.0, lower),
            &WHITE.to_rgba(),
        )?;
        canvas.text(&text, (start, middle + 4.7), Align::Left, font)?;
    }
    canvas.line(&[(zero, top - 4.0), (zero, *bottom)], &AXIS.to_rgba(), 1.0)?;
    for (text, middle) in plot.names(chart) {
        canvas.text(&text, (left - 10.0, middle + 4.7), Align::Right, name)?;
    }
    Ok(())
}
