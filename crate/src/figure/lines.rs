//! Line charts: lines with markers, intervals, and a label at the end of each line.

use super::Figure;
use super::axis::Fitted;
use super::canvas::{Align, Canvas, Font, fit, width};
use super::chart::{Chart, Dash, Rule, Series};
use super::palette::{AXIS, GREY, GRID, INK, color, ink};
use super::tags::tags;
use crate::error::Result;
use plotters::prelude::{Color, DrawingBackend};

/// Width and height in points.
pub(super) const SIZE: (u32, u32) = (800, 500);
/// Distance of everything from the edge.
pub(super) const MARGIN: f64 = 26.0;
/// Above this many points a series is a bare line, and its intervals are a band.
const FEW: usize = 40;
/// Distance between the baselines of two labels.
const LABEL_GAP: f64 = 17.0;

/// The rectangle of the data, in points.
pub(super) struct Plot {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    /// Room at both ends of the horizontal axis for whiskers that stand beside each other.
    pub(super) inset: f64,
    /// Distance of such whiskers.
    step: f64,
    pub(super) x: Fitted,
    pub(super) y: Fitted,
}

impl Plot {
    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let width = self.right - self.left - 2.0 * self.inset;
        (self.left + self.inset + self.x.at(x) * width, self.bottom - self.y.at(y) * (self.bottom - self.top))
    }
}

/// Title and subtitle as they fit, each with the height of its baseline.
pub(super) fn headlines(figure: &Figure) -> [(String, f64, Font); 2] {
    let room = f64::from(SIZE.0) - 2.0 * MARGIN;
    let mut title = Font::new(19.0, INK).bold();
    // A long title shrinks before it is cut.
    title.size = (title.size * room / width(&figure.title, title).max(1.0)).clamp(14.0, 19.0);
    let subtitle = Font::new(13.0, GREY);
    [(fit(&figure.title, title, room), 38.0, title), (fit(&figure.subtitle, subtitle, room), 60.0, subtitle)]
}

/// Draws title and subtitle; gives the height where they end.
pub(super) fn header<DB: DrawingBackend>(figure: &Figure, canvas: &Canvas<DB>) -> Result<f64> {
    for (text, base, font) in headlines(figure) {
        canvas.text(&text, (MARGIN, base), Align::Left, font)?;
    }
    Ok(header_height(figure))
}

pub(super) fn header_height(figure: &Figure) -> f64 {
    match (figure.title.is_empty(), figure.subtitle.is_empty()) {
        (_, false) => 68.0,
        (false, true) => 48.0,
        (true, true) => 14.0,
    }
}

pub(super) fn draw<DB: DrawingBackend>(figure: &Figure, chart: &Chart, canvas: &Canvas<DB>) -> Result<()> {
    header(figure, canvas)?;
    let plot = layout(figure, chart);
    axes(figure, &plot, canvas)?;

    let offsets = dodge(chart, &plot);
    // Faint series lie below all others.
    let layers = [true, false]
        .map(|faint| chart.series.iter().zip(&offsets).filter(move |(series, _)| series.faint == faint));
    for (series, offset) in layers.into_iter().flatten() {
        draw_series(series, *offset, &plot, canvas)?;
    }
    for tag in tags(chart, &offsets, &plot) {
        canvas.text(tag.text, tag.at, tag.align, tag.font)?;
    }
    labels(chart, &offsets, &plot, canvas)
}

pub(super) fn layout(figure: &Figure, chart: &Chart) -> Plot {
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let rules = figure.rules.iter().map(|rule| rule.x);
    let x = Fitted::new(&figure.x, points().map(|p| p.x).chain(rules), true);
    let with_intervals = points().flat_map(|p| [Some(p.y), p.interval.map(|i| i.0), p.interval.map(|i| i.1)]);
    let y = Fitted::new(&figure.y, with_intervals.flatten(), false);
    let tick = Font::new(12.5, GREY);
    let tick_room = y.ticks.iter().map(|t| width(&t.text, tick)).fold(0.0, f64::max);
    let label_room =
        chart.series.iter().map(|s| width(&s.label, label_font(s))).fold(0.0, f64::max).min(LABEL_ROOM);
    let right = if label_room > 0.0 { label_room + 34.0 } else { 10.0 };
    let mut plot = Plot {
        left: MARGIN + tick_room + 10.0,
        right: f64::from(SIZE.0) - MARGIN - right,
        top: header_height(figure) + 52.0,
        bottom: f64::from(SIZE.1) - 66.0,
        inset: 0.0,
        step: 0.0,
        x,
        y,
    };
    if collide(chart) {
        let count = chart.series.iter().filter(|s| whiskers(s)).count();
        let mut places: Vec<f64> = points().map(|p| plot.at(p.x, 0.0).0).collect();
        places.sort_by(f64::total_cmp);
        let distances = places.windows(2).map(|w| w[1] - w[0]).filter(|d| *d > 0.5);
        let closest = distances.fold(plot.right - plot.left, f64::min);
        plot.step = (0.5 * closest / count as f64).min(9.0);
        plot.inset = 0.5 * plot.step * count as f64;
    }
    plot
}

/// Width that labels may take from the data.
const LABEL_ROOM: f64 = 260.0;

fn label_font(series: &Series) -> Font {
    Font::new(13.0, ink(series.color))
}

fn axes<DB: DrawingBackend>(figure: &Figure, plot: &Plot, canvas: &Canvas<DB>) -> Result<()> {
    let tick = Font::new(12.5, GREY);
    for mark in &plot.y.ticks {
        let (_, y) = plot.at(0.0, mark.value);
        canvas.line(&[(plot.left, y), (plot.right, y)], &GRID.to_rgba(), 1.0)?;
        canvas.text(&mark.text, (plot.left - 10.0, y + 4.5), Align::Right, tick)?;
    }
    canvas.line(&[(plot.left, plot.bottom), (plot.right, plot.bottom)], &AXIS.to_rgba(), 1.0)?;
    for mark in &plot.x.ticks {
        let x = plot.at(mark.value, 0.0).0;
        canvas.line(&[(x, plot.bottom), (x, plot.bottom + 5.0)], &AXIS.to_rgba(), 1.0)?;
        canvas.text(&mark.text, (x, plot.bottom + 20.0), Align::Center, tick)?;
    }
    let name = Font::new(13.0, INK);
    canvas.text(&plot.y.label, (MARGIN, plot.top - 31.0), Align::Left, name)?;
    canvas.text(&plot.x.label, ((plot.left + plot.right) / 2.0, plot.bottom + 46.0), Align::Center, name)?;
    for rule in &figure.rules {
        let x = plot.at(rule.x, 0.0).0;
        canvas.dashed(&[(x, plot.top), (x, plot.bottom)], Dash::Dashed, &AXIS.to_rgba(), 1.2)?;
        canvas.text(&rule.label, (rule_label(rule, plot), plot.top - 11.0), Align::Center, tick)?;
    }
    Ok(())
}

/// The middle of a rule's label: above the rule, as far as the plot's edges allow.
pub(super) fn rule_label(rule: &Rule, plot: &Plot) -> f64 {
    let half = width(&rule.label, Font::new(12.5, GREY)) / 2.0;
    plot.at(rule.x, 0.0).0.clamp(plot.left + half, (plot.right - half).max(plot.left + half))
}

/// Whether a series shows its points one by one.
pub(super) fn single(series: &Series) -> bool {
    series.dash == Dash::Points || (series.points.len() <= FEW && !series.band)
}

/// Whether a series shows its intervals one by one.
pub(super) fn whiskers(series: &Series) -> bool {
    single(series) && series.points.iter().any(|p| p.interval.is_some())
}

/// Whether intervals of different series overlap at one place.
fn collide(chart: &Chart) -> bool {
    let series = || chart.series.iter().filter(|s| whiskers(s)).enumerate();
    let bounds = series().flat_map(|(i, s)| s.points.iter().filter_map(move |p| Some((p.x, p.interval?, i))));
    let mut bounds: Vec<(f64, (f64, f64), usize)> = bounds.collect();
    bounds.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.0.total_cmp(&b.1.0)));
    bounds.windows(2).any(|w| w[0].0 == w[1].0 && w[0].2 != w[1].2 && w[1].1.0 <= w[0].1.1)
}

/// How far each series is shifted sideways, so that whiskers of equal `x` stand beside each other.
pub(super) fn dodge(chart: &Chart, plot: &Plot) -> Vec<f64> {
    let count = chart.series.iter().filter(|s| whiskers(s)).count();
    let mut shift = -plot.step * (count.max(1) - 1) as f64 / 2.0;
    let shifts = chart.series.iter().map(|series| {
        let own = if whiskers(series) { shift } else { 0.0 };
        shift += if whiskers(series) { plot.step } else { 0.0 };
        own
    });
    shifts.collect()
}

fn draw_series<DB: DrawingBackend>(
    series: &Series,
    offset: f64,
    plot: &Plot,
    canvas: &Canvas<DB>,
) -> Result<()> {
    let at = |x: f64, y: f64| {
        let (x, y) = plot.at(x, y);
        (x + offset, y.clamp(plot.top, plot.bottom))
    };
    let color = color(series.color);
    let path: Vec<(f64, f64)> = series.points.iter().map(|p| at(p.x, p.y)).collect();
    let bounds: Vec<_> = series.points.iter().filter_map(|p| Some((p.x, p.interval?))).collect();
    if !single(series) {
        let lower = bounds.iter().map(|(x, (low, _))| at(*x, *low));
        let upper = bounds.iter().rev().map(|(x, (_, high))| at(*x, *high));
        if bounds.len() > 1 {
            canvas.shape(&lower.chain(upper).collect::<Vec<_>>(), &color.mix(0.15))?;
        }
    } else {
        for (x, (low, high)) in bounds {
            let (a, b) = (at(x, low), at(x, high));
            canvas.line(&[a, b], &color.mix(0.55), 1.4)?;
            for end in [a, b] {
                canvas.line(&[(end.0 - 3.5, end.1), (end.0 + 3.5, end.1)], &color.mix(0.55), 1.4)?;
            }
        }
    }
    let (strength, weight) = if series.faint { (0.3, 1.0) } else { (1.0, 2.2) };
    canvas.dashed(&path, series.dash, &color.mix(strength), weight)?;
    if single(series) && !series.faint {
        path.iter().try_for_each(|p| canvas.marker(*p, 4.2, series.color))?;
    }
    Ok(())
}

/// The name of a series beside the end of its line.
pub(super) struct Label<'a> {
    /// Number of the series.
    pub(super) index: usize,
    series: &'a Series,
    /// Where the line ends.
    pub(super) end: (f64, f64),
    /// Left end of the sample of the line that stands before the name.
    pub(super) start: f64,
    /// Middle of the name.
    pub(super) height: f64,
    /// The name as it fits.
    pub(super) text: String,
    pub(super) font: Font,
}

impl Label<'_> {
    /// Whether dots lead from the end of the line to its name.
    pub(super) fn led(&self) -> bool {
        // A cloud of points has no end that a label could stand at.
        let apart = (self.height - self.end.1).abs() > 3.0 || self.start - self.end.0 > 16.0;
        apart && self.series.dash != Dash::Points
    }

    /// Whether the sample of the line has a marker.
    pub(super) fn marked(&self) -> bool {
        single(self.series) && [Dash::Solid, Dash::Points].contains(&self.series.dash)
    }
}

/// A label beside the end of each line, moved up or down as far as its neighbours demand.
pub(super) fn placed<'a>(chart: &'a Chart, offsets: &[f64], plot: &Plot) -> Vec<Label<'a>> {
    let mut ends: Vec<(usize, &Series, (f64, f64))> = chart
        .series
        .iter()
        .zip(offsets)
        .enumerate()
        .filter(|(_, (series, _))| !series.label.is_empty())
        .filter_map(|(index, (series, offset))| {
            let (x, y) = series.points.last().map(|p| plot.at(p.x, p.y))?;
            Some((index, series, (x + offset, y)))
        })
        .collect();
    ends.sort_by(|a, b| a.2.1.total_cmp(&b.2.1));
    let wanted: Vec<f64> = ends.iter().map(|(_, _, (_, y))| *y).collect();
    let gap = LABEL_GAP.min((plot.bottom - plot.top + 30.0) / wanted.len().max(1) as f64);
    let heights = spread(&wanted, gap, plot.top - 10.0, plot.bottom + 4.0);
    let start = plot.right + 8.0;
    let label = |((index, series, end), height): ((usize, &'a Series, _), f64)| {
        let font = label_font(series);
        Label { index, series, end, start, height, text: fit(&series.label, font, LABEL_ROOM), font }
    };
    ends.into_iter().zip(heights).map(label).collect()
}

fn labels<DB: DrawingBackend>(
    chart: &Chart,
    offsets: &[f64],
    plot: &Plot,
    canvas: &Canvas<DB>,
) -> Result<()> {
    for label in placed(chart, offsets, plot) {
        let Label { series, end, start, height, .. } = label;
        if label.led() {
            // Dots, so that nobody takes the leader for a part of the line.
            let leader = [(end.0 + 7.0, end.1), (start, height)];
            canvas.dashed(&leader, Dash::Dotted, &color(series.color).mix(0.6), 1.0)?;
        }
        let sample = [(start, height), (start + 16.0, height)];
        canvas.dashed(&sample, series.dash, &color(series.color).to_rgba(), 2.2)?;
        if label.marked() {
            canvas.marker((start + 8.0, height), 3.4, series.color)?;
        }
        canvas.text(&label.text, (start + 22.0, height + 4.5), Align::Left, label.font)?;
    }
    Ok(())
}

/// Places nearest to the sorted `wanted` ones (least squares) that are `gap` apart and within `low..=high`.
///
/// With the i-th place written as i·gap + z_i this is isotonic regression of z, solved by pooling neighbours.
fn spread(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut pools: Vec<(f64, usize)> = Vec::new(); // mean of z, members
    for (i, want) in wanted.iter().enumerate() {
        let mut pool = (want - i as f64 * gap, 1);
        while let Some(last) = pools.pop_if(|last| last.0 > pool.0) {
            let members = last.1 + pool.1;
            pool = ((last.0 * last.1 as f64 + pool.0 * pool.1 as f64) / members as f64, members);
        }
        pools.push(pool);
    }
    let highest = high - (wanted.len().max(1) - 1) as f64 * gap;
    let z = pools
        .into_iter()
        .flat_map(|(mean, members)| std::iter::repeat_n(mean.clamp(low, highest.max(low)), members));
    z.enumerate().map(|(i, z)| z + i as f64 * gap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_distance_and_their_order() {
        assert_eq!(spread(&[10.0, 50.0], 17.0, 0.0, 100.0), [10.0, 50.0], "nothing moves without need");
        assert_eq!(spread(&[40.0, 40.0, 40.0], 10.0, 0.0, 100.0), [30.0, 40.0, 50.0]);
        assert_eq!(spread(&[0.0, 0.0], 10.0, 0.0, 100.0), [0.0, 10.0]);
        assert_eq!(spread(&[99.0, 100.0], 10.0, 0.0, 100.0), [90.0, 100.0]);
        let crowded = spread(&[5.0, 5.0, 6.0, 60.0, 61.0], 10.0, 0.0, 80.0);
        assert!(crowded.windows(2).all(|w| w[1] - w[0] >= 10.0 - 1e-9), "{crowded:?}");
        assert!(spread(&[], 10.0, 0.0, 80.0).is_empty());
    }
}
