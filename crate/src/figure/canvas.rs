//! What the charts draw with: lines, shapes and text in points, on any backend.

use super::chart::Dash;
use super::palette;
use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};
use std::sync::Once;

/// The family's name doubles as the list that an SVG viewer without the font falls back on.
pub(super) const FAMILY: &str = "Inter, Helvetica, Arial, sans-serif";
static REGULAR: &[u8] = include_bytes!("../../assets/fonts/Inter-Regular.otf");
static SEMI_BOLD: &[u8] = include_bytes!("../../assets/fonts/Inter-SemiBold.otf");

/// How a backend sets text: what it divides the size by to get the em, and where its anchor lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextMetrics {
    /// Backend size of an em of 1.
    pub(super) size_per_em: f64,
    /// Baseline below the top anchor, in ems.
    pub(super) baseline: f64,
}

/// The SVG backend writes `font-size = size / 1.24` and `dy = 0.76em`.
pub(super) const SVG_TEXT: TextMetrics = TextMetrics { size_per_em: 1.24, baseline: 0.76 };
/// The bitmap backend scales the font's height, 3408 of its 2816 units an em, to the size, and puts the baseline half of it down.
pub(super) const BITMAP_TEXT: TextMetrics =
    TextMetrics { size_per_em: 3408.0 / 2816.0, baseline: 1704.0 / 2816.0 };

/// A text's look.
#[derive(Clone, Copy)]
pub(super) struct Font {
    /// Em in points.
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) color: RGBColor,
}

impl Font {
    pub(super) fn new(size: f64, color: RGBColor) -> Self {
        Self { size, bold: false, color }
    }

    pub(super) fn bold(mut self) -> Self {
        self.bold = true;
        self
    }

    fn style(self) -> FontStyle {
        if self.bold { FontStyle::Bold } else { FontStyle::Normal }
    }
}

/// Where a text's position lies within it.
#[derive(Clone, Copy)]
pub(super) enum Align {
    Left,
    Center,
    Right,
}

/// A drawing area measured in points of 1/800 of a line chart's width.
pub(super) struct Canvas<DB: DrawingBackend> {
    area: DrawingArea<DB, Shift>,
    scale: f64,
    text: TextMetrics,
}

impl<DB: DrawingBackend> Canvas<DB> {
    /// Wraps an area whose pixels are `1 / scale` points wide, and paints it white.
    pub(super) fn new(area: DrawingArea<DB, Shift>, scale: f64, text: TextMetrics) -> Result<Self> {
        area.fill(&WHITE).map_err(failed)?;
        Ok(Self { area, scale, text })
    }

    fn pixel(&self, (x, y): (f64, f64)) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }

    /// A line through the points, solid.
    pub(super) fn line(&self, points: &[(f64, f64)], color: &RGBAColor, width: f64) -> Result<()> {
        let mut path: Vec<(i32, i32)> = points.iter().map(|p| self.pixel(*p)).collect();
        path.dedup();
        let style = color.stroke_width((width * self.scale).round().max(1.0) as u32);
        self.area.draw(&PathElement::new(path, style)).map_err(failed)
    }

    /// A line through the points, broken as `dash` says.
    pub(super) fn dashed(
        &self,
        points: &[(f64, f64)],
        dash: Dash,
        color: &RGBAColor,
        width: f64,
    ) -> Result<()> {
        let (on, off) = match strokes_of(dash) {
            None if dash == Dash::Points => return Ok(()),
            None => return self.line(points, color, width),
            Some(lengths) => lengths,
        };
        strokes(points, on, off).iter().try_for_each(|stroke| self.line(stroke, color, width))
    }

    /// A filled shape.
    pub(super) fn shape(&self, corners: &[(f64, f64)], color: &RGBAColor) -> Result<()> {
        let corners: Vec<_> = corners.iter().map(|p| self.pixel(*p)).collect();
        self.area.draw(&Polygon::new(corners, color.filled())).map_err(failed)
    }

    /// A filled rectangle.
    pub(super) fn rectangle(&self, from: (f64, f64), to: (f64, f64), color: &RGBAColor) -> Result<()> {
        self.area.draw(&Rectangle::new([self.pixel(from), self.pixel(to)], color.filled())).map_err(failed)
    }

    /// The marker of a colour, with a white edge that parts it from what lies below.
    pub(super) fn marker(&self, center: (f64, f64), radius: f64, index: usize) -> Result<()> {
        for (radius, color) in [(radius + 1.2, WHITE.to_rgba()), (radius, palette::color(index).to_rgba())] {
            let corners = palette::marker(index);
            if corners.is_empty() {
                let circle =
                    Circle::new(self.pixel(center), (radius * self.scale).round() as i32, color.filled());
                self.area.draw(&circle).map_err(failed)?;
            } else {
                let corners: Vec<_> =
                    corners.iter().map(|(x, y)| (center.0 + radius * x, center.1 + radius * y)).collect();
                self.shape(&corners, &color)?;
            }
        }
        Ok(())
    }

    /// Text whose baseline is at `y`.
    pub(super) fn text(&self, text: &str, (x, y): (f64, f64), align: Align, font: Font) -> Result<()> {
        let h_pos = match align {
            Align::Left => HPos::Left,
            Align::Center => HPos::Center,
            Align::Right => HPos::Right,
        };
        let size = font.size * self.scale * self.text.size_per_em;
        let style = TextStyle::from((FAMILY, size, font.style()).into_font())
            .color(&font.color)
            .pos(Pos::new(h_pos, VPos::Top));
        let top = self.pixel((x, y - self.text.baseline * font.size));
        self.area.draw_text(text, &style, top).map_err(failed)
    }

    /// Ends the drawing.
    pub(super) fn finish(self) -> Result<()> {
        self.area.present().map_err(failed)
    }
}

/// Width of a text in points.
pub(super) fn width(text: &str, font: Font) -> f64 {
    const FINE: f64 = 16.0; // the library rounds widths to whole pixels
    let size = font.size * FINE * BITMAP_TEXT.size_per_em;
    let measured = (FAMILY, size, font.style()).into_font().box_size(text);
    measured.map_or(text.chars().count() as f64 * font.size * 0.6, |(width, _)| f64::from(width) / FINE)
}

/// Length of the strokes of a broken line and of the gaps between them.
pub(super) fn strokes_of(dash: Dash) -> Option<(f64, f64)> {
    match dash {
        Dash::Solid | Dash::Points => None,
        Dash::Dashed => Some((7.0, 4.5)),
        Dash::Dotted => Some((2.2, 3.6)),
    }
}

/// The text, cut to `room` points with an ellipsis if it is longer.
pub(super) fn fit(text: &str, font: Font, room: f64) -> String {
    if width(text, font) <= room {
        return text.to_string();
    }
    let mut kept: Vec<char> = text.chars().collect();
    while kept.pop().is_some() {
        let shorter = format!("{}…", kept.iter().collect::<String>().trim_end());
        if width(&shorter, font) <= room {
            return shorter;
        }
    }
    String::new()
}

/// Makes the embedded fonts known to the drawing library.
pub(super) fn load_fonts() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        // The fonts are part of the program and parse; without them the first text reports the error.
        // Under the generic names too: plotters measures some texts of a `picture` by the names that it was given.
        for family in [FAMILY, "sans-serif", "serif", "monospace"] {
            let _ = register_font(family, FontStyle::Normal, REGULAR);
            let _ = register_font(family, FontStyle::Bold, SEMI_BOLD);
        }
    });
}

fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> Error {
    Error::internal(format!("drawing failed: {error}"))
}

/// Cuts a path into strokes of length `on`, `off` apart.
fn strokes(points: &[(f64, f64)], on: f64, off: f64) -> Vec<Vec<(f64, f64)>> {
    let mut strokes = Vec::new();
    let mut stroke: Vec<(f64, f64)> = points.first().copied().into_iter().collect();
    let (mut drawing, mut left) = (true, on);
    for pair in points.windows(2) {
        let (mut from, to) = (pair[0], pair[1]);
        let mut length = (to.0 - from.0).hypot(to.1 - from.1);
        while length > left {
            let t = left / length;
            from = (from.0 + t * (to.0 - from.0), from.1 + t * (to.1 - from.1));
            length -= left;
            if drawing {
                stroke.push(from);
                strokes.push(std::mem::take(&mut stroke));
            } else {
                stroke = vec![from];
            }
            drawing = !drawing;
            left = if drawing { on } else { off };
        }
        left -= length;
        if drawing {
            stroke.push(to);
        }
    }
    if stroke.len() > 1 {
        strokes.push(stroke);
    }
    strokes
}
