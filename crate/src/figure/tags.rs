//! Texts beside points: each on the side where it covers least of other points and texts.

use super::canvas::{Align, Font, width};
use super::chart::Chart;
use super::lines::Plot;
use super::palette::ink;

/// A text beside a point.
pub(super) struct Tag<'a> {
    /// Numbers of the series and of the point in it.
    pub(super) of: (usize, usize),
    pub(super) text: &'a str,
    pub(super) align: Align,
    /// From the point to the text's baseline.
    pub(super) offset: (f64, f64),
    /// Where that is.
    pub(super) at: (f64, f64),
    pub(super) font: Font,
}

/// Sides of a point, the ones that are read best first, with the way from the point to the baseline.
const SIDES: [(Align, (f64, f64)); 8] = [
    (Align::Left, (8.0, 4.0)),
    (Align::Right, (-8.0, 4.0)),
    (Align::Center, (0.0, -9.0)),
    (Align::Center, (0.0, 17.0)),
    (Align::Left, (6.0, -6.0)),
    (Align::Left, (6.0, 14.0)),
    (Align::Right, (-6.0, -6.0)),
    (Align::Right, (-6.0, 14.0)),
];

/// Left, top, right, bottom.
type Area = [f64; 4];

/// The texts of all series, in their order: the first that are placed have the choice.
pub(super) fn tags<'a>(chart: &'a Chart, offsets: &[f64], plot: &Plot) -> Vec<Tag<'a>> {
    let series = || chart.series.iter().zip(offsets).enumerate();
    let place = |x: f64, y: f64, offset: f64| {
        let (x, y) = plot.at(x, y);
        (x + offset, y)
    };
    let marker = |(x, y): (f64, f64)| [x - 5.0, y - 5.0, x + 5.0, y + 5.0];
    let markers = series().flat_map(|(_, (series, offset))| series.points.iter().map(move |p| (p, *offset)));
    let mut taken: Vec<Area> = markers.map(|(p, offset)| marker(place(p.x, p.y, offset))).collect();
    let mut all = vec![];
    for (s, (series, offset)) in series() {
        let font = Font::new(11.5, ink(series.color));
        for (p, (point, text)) in series.points.iter().zip(&series.texts).enumerate() {
            let (x, y) = place(point.x, point.y, *offset);
            let sides = SIDES.map(|(align, way)| {
                let at = (x + way.0, y + way.1);
                let area = covered(at, align, width(text, font), font.size);
                (align, way, at, area, cost(area, &taken, plot))
            });
            let best = sides.into_iter().reduce(|a, b| if b.4 < a.4 { b } else { a });
            let Some((align, way, at, area, _)) = best else { continue };
            taken.push(area);
            all.push(Tag { of: (s, p), text, align, offset: way, at, font });
        }
    }
    all
}

/// What a text covers whose baseline begins, ends or has its middle at a place.
fn covered((x, y): (f64, f64), align: Align, width: f64, size: f64) -> Area {
    let left = match align {
        Align::Left => x,
        Align::Center => x - width / 2.0,
        Align::Right => x - width,
    };
    [left, y - 0.8 * size, left + width, y + 0.25 * size]
}

/// How much of what is taken an area covers, and ten times how much of it lies beside the plot.
fn cost(area: Area, taken: &[Area], plot: &Plot) -> f64 {
    let common = |[l, t, r, b]: Area, other: Area| {
        let (width, height) = (r.min(other[2]) - l.max(other[0]), b.min(other[3]) - t.max(other[1]));
        width.max(0.0) * height.max(0.0)
    };
    let [left, top, right, bottom] = area;
    let inside = common(area, [plot.left, plot.top - 8.0, plot.right + 4.0, plot.bottom]);
    let outside = (right - left) * (bottom - top) - inside;
    taken.iter().map(|other| common(area, *other)).sum::<f64>() + 10.0 * outside
}

#[cfg(test)]
mod tests {
    use super::super::{Figure, Point, Series, chart::Chart, lines::layout};
    use super::*;

    #[test]
    fn a_text_covers_neither_a_point_nor_another_text_where_there_is_room() {
        let points: Vec<Point> = (0..9).map(|i| Point::new(f64::from(i % 3), 0.2 * f64::from(i))).collect();
        let texts = (0..9).map(|i| format!("scheme {i}")).collect();
        let series = Series { points, texts, dash: super::super::Dash::Points, ..Series::default() };
        let figure = Figure::of_series(vec![series]);
        let chart = Chart::of(&figure).unwrap();
        let plot = layout(&figure, &chart);
        let all = tags(&chart, &[0.0], &plot);
        assert_eq!(all.len(), 9);
        let mut taken = vec![];
        for tag in &all {
            let area = covered(tag.at, tag.align, width(tag.text, tag.font), tag.font.size);
            assert_eq!(cost(area, &taken, &plot), 0.0, "{}", tag.text);
            taken.push(area);
        }
    }
}
