//! Heat maps: a value for each pair of a column and a row, as a colour and as a number.

use super::Figure;
use super::axis::{Fitted, alone};
use super::canvas::{Align, Canvas, Font, fit, width};
use super::chart::{Chart, Point, Series};
use super::lines::{MARGIN, SIZE, header, header_height};
use super::palette::{GREY, GRID, INK, color};
use crate::error::Result;
use plotters::prelude::{Color, DrawingBackend, RGBColor, WHITE};

pub(super) const CELL: f64 = 30.0;
/// Width that names of rows may take from the cells.
const NAME_ROOM: f64 = 200.0;
/// Above this share of the way from white, text is white.
const DARK: f64 = 0.7;

/// Width and height in points.
pub(super) fn size(figure: &Figure, chart: &Chart) -> (u32, u32) {
    let height = header_height(figure) + 28.0 + CELL * chart.series.len() as f64 + 66.0;
    (SIZE.0, height.max(200.0).ceil() as u32)
}

/// Where all parts of a heat map lie, in points.
pub(super) struct Plot {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    /// Width of a cell.
    pub(super) cell: f64,
    scale: Fitted,
    /// Of the numbers.
    pub(super) font: Font,
}

pub(super) fn layout(figure: &Figure, chart: &Chart) -> Plot {
    let name = Font::new(13.0, INK);
    let room = chart.series.iter().map(|s| width(&s.label, name)).fold(0.0, f64::max).min(NAME_ROOM);
    let (left, right) = (MARGIN + room + 12.0, f64::from(SIZE.0) - MARGIN);
    let cell = (right - left) / chart.categories.len().max(1) as f64;
    let values = chart.series.iter().flat_map(|series| &series.points).map(|point| point.y);
    let scale = Fitted::new(&figure.y, values.filter(|y| *y > 0.0), true);
    let top = header_height(figure) + 20.0;
    let bottom = top + CELL * chart.series.len() as f64;
    Plot { left, right, top, bottom, cell, scale, font: values_font(chart, figure, cell) }
}

impl Plot {
    /// The colour of a cell, and of the number in it.
    pub(super) fn colors(&self, point: &Point) -> (RGBColor, RGBColor) {
        let depth = depth(&self.scale, point.y);
        let ink = match point {
            _ if depth > DARK => WHITE,
            _ if !point.y.is_finite() || holds_zero(point) => GREY,
            _ => INK,
        };
        (mixed(depth), ink)
    }

    /// The names below the columns, as they fit, each with its middle.
    pub(super) fn columns(&self, chart: &Chart) -> Vec<(String, f64)> {
        let middle = |column: usize| self.left + self.cell * (column as f64 + 0.5);
        let fitting = |label: &String| fit(label, Font::new(12.5, GREY), self.cell - 2.0);
        chart.categories.iter().enumerate().map(|(i, label)| (fitting(label), middle(i))).collect()
    }
}

/// The name of a row, as it fits.
pub(super) fn row_name(series: &Series) -> String {
    fit(&series.label, Font::new(13.0, INK), NAME_ROOM)
}

/// What the axes are: columns, and colours.
pub(super) fn axes(figure: &Figure) -> String {
    [figure.x.label.as_str(), figure.y.label.as_str()].join("; cells: ")
}

pub(super) fn draw<DB: DrawingBackend>(figure: &Figure, chart: &Chart, canvas: &Canvas<DB>) -> Result<()> {
    header(figure, canvas)?;
    let plot = layout(figure, chart);
    let Plot { left, right, top, bottom, cell, .. } = plot;
    let name = Font::new(13.0, INK);
    for (row, series) in chart.series.iter().enumerate() {
        let upper = top + CELL * row as f64;
        let base = upper + CELL / 2.0 + 4.7;
        canvas.text(&row_name(series), (left - 10.0, base), Align::Right, name)?;
        for point in &series.points {
            let start = left + cell * point.x;
            let (fill, ink) = plot.colors(point);
            canvas.rectangle((start, upper), (start + cell, upper + CELL), &fill.to_rgba())?;
            canvas.text(
                &written(figure, point),
                (start + cell / 2.0, base),
                Align::Center,
                Font { color: ink, ..plot.font },
            )?;
        }
    }
    for line in 0..=chart.series.len() {
        let y = top + CELL * line as f64;
        canvas.line(&[(left, y), (right, y)], &GRID.to_rgba(), 1.0)?;
    }
    for (label, middle) in plot.columns(chart) {
        canvas.text(&label, (middle, bottom + 18.0), Align::Center, Font::new(12.5, GREY))?;
    }
    canvas.text(&axes(figure), ((left + right) / 2.0, bottom + 44.0), Align::Center, name)
}

/// The number in a cell; in brackets where its interval holds 0.
pub(super) fn written(figure: &Figure, point: &Point) -> String {
    match point {
        _ if !point.y.is_finite() => "–".to_string(),
        _ if holds_zero(point) => format!("({})", short(figure, point.y)),
        _ => short(figure, point.y),
    }
}

/// Two significant digits are what a cell has room for.
fn short(figure: &Figure, value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { 1 - value.abs().log10().floor() as i32 };
    let power = 10_f64.powi(digits);
    let text = alone(figure.y.unit, (value * power).round() / power);
    text.replacen("0.", ".", 1)
}

fn holds_zero(point: &Point) -> bool {
    point.interval.is_some_and(|(low, high)| low <= 0.0 && 0.0 <= high)
}

/// The size at which the longest number fits its cell.
fn values_font(chart: &Chart, figure: &Figure, cell: f64) -> Font {
    let font = Font::new(12.5, INK);
    let numbers = chart.series.iter().flat_map(|series| &series.points).map(|p| written(figure, p));
    let longest = numbers.map(|text| width(&text, font)).fold(1.0, f64::max);
    Font { size: (font.size * (cell - 6.0) / longest).clamp(7.0, 12.5), ..font }
}

/// How far from white a value is: 0 for nothing, 1 for the largest.
fn depth(scale: &Fitted, value: f64) -> f64 {
    if value > 0.0 { (0.06 + 0.94 * scale.at(value)).clamp(0.0, 1.0) } else { 0.0 }
}

fn mixed(depth: f64) -> RGBColor {
    let RGBColor(r, g, b) = color(0);
    let toward = |c: u8| (255.0 + (f64::from(c) - 255.0) * depth).round() as u8;
    RGBColor(toward(r), toward(g), toward(b))
}
