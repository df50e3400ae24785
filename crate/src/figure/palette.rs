//! Colours that people with any colour vision tell apart, and a marker for each.

use plotters::style::RGBColor;

/// How many colours there are.
pub(super) const COUNT: usize = 7;

/// M. Okabe and K. Ito, "Color universal design" (2008), without yellow, which is too pale for lines on white.
const COLORS: [RGBColor; COUNT] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
];

/// Text.
pub(super) const INK: RGBColor = RGBColor(34, 34, 34);
/// Text that matters less: ticks, subtitle.
pub(super) const GREY: RGBColor = RGBColor(96, 96, 96);
/// The line at zero, rules.
pub(super) const AXIS: RGBColor = RGBColor(150, 150, 150);
/// Grid.
pub(super) const GRID: RGBColor = RGBColor(230, 230, 230);

pub(super) fn color(index: usize) -> RGBColor {
    COLORS[index % COLORS.len()]
}

/// The colour, dark enough for text.
pub(super) fn ink(index: usize) -> RGBColor {
    let RGBColor(r, g, b) = color(index);
    let darker = |c: u8| (u16::from(c) * 7 / 10) as u8;
    RGBColor(darker(r), darker(g), darker(b))
}

/// Corners of a marker of unit radius around the origin; empty for a circle. Shapes of equal look, not of equal radius.
pub(super) fn marker(index: usize) -> Vec<(f64, f64)> {
    match index % 5 {
        0 => Vec::new(),
        1 => vec![(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2 => vec![(0.0, -1.25), (1.15, 0.85), (-1.15, 0.85)],
        3 => vec![(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
        _ => vec![(0.0, 1.25), (1.15, -0.85), (-1.15, -0.85)],
    }
}
