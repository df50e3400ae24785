//! From columns of a frame to series of points.

use super::axis::Scale;
use super::palette::COUNT as COLORS;
use super::{Figure, Kind, Look, Source};
use crate::error::{Error, Result};
use crate::frame::Frame;

/// One value, with the interval it lies in where that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Place on the horizontal axis; for bars the number of the category.
    pub x: f64,
    /// The value; NaN for a bar whose value is not known.
    pub y: f64,
    /// Bounds of the value.
    pub interval: Option<(f64, f64)>,
}

impl Point {
    /// A value without interval.
    pub fn new(x: f64, y: f64) -> Self {
        Self { x, y, interval: None }
    }
}

/// How a line is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dash {
    /// Unbroken.
    #[default]
    Solid,
    /// Long strokes.
    Dashed,
    /// Short strokes.
    Dotted,
    /// Not at all: points alone.
    Points,
}

/// One line, or the bars of one colour.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Shown at the end of the line; nothing is shown for an empty one.
    pub label: String,
    /// The values, in order of `x`.
    pub points: Vec<Point>,
    /// Texts beside the points, one a point; none where it is empty.
    pub texts: Vec<String>,
    /// Which colour of the palette, and which marker.
    pub color: usize,
    /// How the line is broken.
    pub dash: Dash,
    /// Pale and thin, as a background to another series.
    pub faint: bool,
    /// The intervals are a band and the points have no markers, however few there are.
    pub band: bool,
}

impl Series {
    /// Leaves out what has no place on an axis: bars and cells stay, without a value.
    fn keep_numbers(&mut self, kind: Kind) {
        if kind == Kind::Line {
            let shown = |point: &Point| point.x.is_finite() && point.y.is_finite();
            let mut points = self.points.iter();
            self.texts.retain(|_| points.next().is_some_and(shown));
            self.points.retain(shown);
        }
        for point in &mut self.points {
            point.interval = point.interval.filter(|(low, high)| low.is_finite() && high.is_finite());
        }
    }
}

/// A vertical line that marks a place on the horizontal axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Where.
    pub x: f64,
    /// What it marks.
    pub label: String,
}

/// All that is drawn, resolved from the frame.
#[derive(Clone, Debug, Default)]
pub(super) struct Chart {
    pub(super) series: Vec<Series>,
    /// Names of the categories of a bar chart, of the columns of a heat map.
    pub(super) categories: Vec<String>,
}

impl Chart {
    pub(super) fn of(figure: &Figure) -> Result<Self> {
        let mut chart = match &figure.source {
            Some(source) => Self::from_frame(source, figure.kind)?,
            None => Self::default(),
        };
        chart.series.extend(figure.series.iter().cloned());
        for series in &mut chart.series {
            series.keep_numbers(figure.kind);
        }
        chart.series.retain(|series| !series.points.is_empty());
        if chart.series.is_empty() {
            return Err(Error::input("there is nothing to draw: no row has a value")
                .at(format!("figure `{}`", figure.title)));
        }
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let logarithmic = [figure.x.scale, figure.y.scale].map(|scale| scale != Scale::Linear);
        let shown = figure.kind != Kind::Heat; // a cell of 0 is white on any axis
        if shown && points().any(|p| (logarithmic[0] && p.x <= 0.0) || (logarithmic[1] && p.y <= 0.0)) {
            let what = "a logarithmic axis cannot show values of 0 or less";
            return Err(Error::input(what)
                .at(format!("figure `{}`", figure.title))
                .hint("use a linear axis"));
        }
        Ok(chart)
    }

    fn from_frame(source: &Source, kind: Kind) -> Result<Self> {
        let frame = &source.frame;
        let mut chart = Self::default();
        let (colors, dashes) =
            (labels(frame, source.color.as_deref())?, labels(frame, source.dash.as_deref())?);
        let bounds = match &source.interval {
            Some((low, high)) => {
                frame.numbers(low)?.into_iter().zip(frame.numbers(high)?).map(|(l, h)| l.zip(h)).collect()
            }
            None => vec![None; frame.height()],
        };
        if source.text.is_some() && source.look != Look::Points {
            return Err(Error::input("texts stand beside points, and lines were asked for")
                .at(format!("figure of `{}`", source.y))
                .hint("add .points()"));
        }
        let texts = source.text.as_deref().map(|column| labels(frame, Some(column))).transpose()?;
        let ys = frame.numbers(&source.y)?;
        let xs: Vec<Option<f64>> = match kind {
            Kind::Line => frame.numbers(&source.x)?,
            Kind::Bar | Kind::Heat => {
                let names = labels(frame, Some(&source.x))?;
                names.iter().map(|name| Some(place(&mut chart.categories, name) as f64)).collect()
            }
        };
        let (mut seen_colors, mut seen_dashes, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..frame.height() {
            let y = ys[row].or((kind != Kind::Line).then_some(f64::NAN));
            let (Some(x), Some(y)) = (xs[row], y) else { continue };
            let (color, dash) =
                (place(&mut seen_colors, &colors[row]), place(&mut seen_dashes, &dashes[row]));
            let index = place(&mut seen, &(color, dash));
            if index == chart.series.len() {
                let label =
                    [colors[row].as_str(), dashes[row].as_str()].into_iter().filter(|s| !s.is_empty());
                let label = label.collect::<Vec<_>>().join(" · ");
                let band = source.look == Look::Bands;
                // Without markers a colour that comes again is told by its dash.
                let dash = dash + if band { color / COLORS } else { 0 };
                let dash = match source.look {
                    Look::Points => Dash::Points,
                    _ => [Dash::Solid, Dash::Dashed, Dash::Dotted][dash % 3],
                };
                chart.series.push(Series { label, color, dash, band, ..Series::default() });
            }
            chart.series[index].points.push(Point { x, y, interval: bounds[row] });
            chart.series[index].texts.extend(texts.as_ref().map(|texts| texts[row].clone()));
        }
        for series in chart.series.iter_mut().filter(|_| source.look != Look::Points) {
            series.points = averaged(std::mem::take(&mut series.points), kind);
        }
        Ok(chart)
    }
}

/// Index of `item` in `seen`, where it is put if it is new: order of first appearance.
fn place<T: Clone + PartialEq>(seen: &mut Vec<T>, item: &T) -> usize {
    seen.iter().position(|other| other == item).unwrap_or_else(|| {
        seen.push(item.clone());
        seen.len() - 1
    })
}

fn labels(frame: &Frame, column: Option<&str>) -> Result<Vec<String>> {
    match column {
        Some(column) => {
            Ok(frame.texts(column)?.into_iter().map(|text| text.unwrap_or_else(|| "none".into())).collect())
        }
        None => Ok(vec![String::new(); frame.height()]),
    }
}

/// Sorted by `x`; points of equal `x` become one: the mean, within the widest of their intervals. A bar or a cell may be of
/// rows without a value, which do not count.
fn averaged(mut points: Vec<Point>, kind: Kind) -> Vec<Point> {
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    let groups = points.chunk_by(|a, b| a.x == b.x).map(|group| {
        let values = group.iter().map(|p| p.y);
        let known: Vec<f64> = values.filter(|y| kind == Kind::Line || !y.is_nan()).collect();
        let bounds = group.iter().filter_map(|p| p.interval);
        let interval = bounds.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        Point { x: group[0].x, y: known.iter().sum::<f64>() / known.len() as f64, interval }
    });
    groups.collect()
}
