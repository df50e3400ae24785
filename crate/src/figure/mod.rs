//! Figures from records alone: lines and bars that are readable as they come.
//!
//! ```no_run
//! # fn main() -> lowbit::Result<()> {
//! use lowbit::{figure::Figure, frame::Frame};
//! let recall = Frame::load("passkey-all")?.mean("correct", ["scheme", "context_length"])?;
//! Figure::line(&recall, "context_length", "correct")
//!     .color("scheme")
//!     .log2_x()
//!     .percent_y()
//!     .title("Passkey recall")
//!     .save("recall.svg")?;
//! # Ok(())
//! # }
//! ```
//!
//! A figure is owned data; what is wrong with it (a column that does not exist) is told when it is drawn, by
//! [`svg`](Figure::svg), [`png`](Figure::png), [`vega`](Figure::vega) or [`save`](Figure::save). The same figure gives the same bytes.
//! [`perplexity`], [`size()`], [`price`], [`divergence`], [`drift`], [`drift_prediction`], [`outliers`], [`stability`], [`passkey`], [`copying`], [`smoothing`], [`smoothing_bias`], [`chunk_speed`], [`context()`], [`context_loss`], [`sensitivity()`], [`ranking`], [`prefill`], [`decode`], [`memory`], [`rate()`], [`ablation()`], [`ablation_quantized`], [`learning`], [`exponents`], [`spectrum()`] and [`training_loss`] are ready-made;
//! [`draw_all`] draws those that the records allow. What none of them shows is drawn by hand: [`picture`].

mod ablation;
mod axis;
mod bars;
mod canvas;
mod chart;
mod chunks;
mod compare;
mod context;
mod copying;
mod divergence;
mod drift;
mod experts;
mod gallery;
mod heat;
mod lines;
mod lyapunov;
mod memory;
mod outliers;
mod output;
mod palette;
mod passkey;
mod perplexity;
mod picture;
mod plain;
mod price;
mod rate;
mod sensitivity;
mod size;
mod smoothing;
mod spectrum;
mod spread;
mod stability;
mod tags;
mod throughput;
mod training;
mod vega;
mod waterfall;

pub use ablation::{ablation, ablation_quantized, learning};
pub use axis::{Axis, Scale, Unit};
pub use chart::{Dash, Point, Rule, Series};
pub use chunks::chunk_speed;
pub use context::{context, context_loss};
pub use copying::copying;
pub use divergence::divergence;
pub use drift::{drift, drift_prediction};
pub use experts::experts;
pub use gallery::{Gallery, draw_all, ready_made};
pub use lyapunov::exponents;
pub use memory::memory;
pub use outliers::outliers;
pub use passkey::passkey;
pub use perplexity::perplexity;
pub use picture::{Canvas, Picture, picture};
pub use price::price;
pub use rate::rate;
pub use sensitivity::{ranking, sensitivity};
pub use size::size;
pub use smoothing::{smoothing, smoothing_bias};
pub use spectrum::spectrum;
pub use stability::stability;
pub use throughput::{decode, prefill};
pub use training::training_loss;
pub use waterfall::{pruning, waterfall};

use crate::frame::Frame;

/// A line chart, a bar chart or a heat map: plain data, drawn on demand.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Headline.
    pub title: String,
    /// One line below it: what holds for everything shown.
    pub subtitle: String,
    /// Horizontal axis (for bars: the axis of the categories).
    pub x: Axis,
    /// Axis of the values.
    pub y: Axis,
    /// Series beside those that come from the frame.
    pub series: Vec<Series>,
    /// Vertical lines with a label.
    pub rules: Vec<Rule>,
    kind: Kind,
    source: Option<Source>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Line,
    Bar,
    Heat,
}

/// Which columns of which frame become which series.
#[derive(Clone, Debug)]
struct Source {
    frame: Frame,
    x: String,
    y: String,
    color: Option<String>,
    dash: Option<String>,
    interval: Option<(String, String)>,
    text: Option<String>,
    look: Look,
}

/// How series of a frame are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Look {
    /// Lines with markers and whiskers where points are few.
    #[default]
    Lines,
    /// Lines without markers; intervals are bands.
    Bands,
    /// Markers without lines.
    Points,
}

impl Figure {
    /// Lines of column `y` against column `x`; rows of one series with equal `x` are averaged.
    pub fn line(frame: &Frame, x: &str, y: &str) -> Self {
        Self::of(Kind::Line, frame, x, y)
    }

    /// Bars of column `y`, one for each value of column `category`; rows of one bar are averaged.
    pub fn bar(frame: &Frame, category: &str, y: &str) -> Self {
        let mut figure = Self::of(Kind::Bar, frame, category, y);
        figure.y.from_zero = true;
        figure
    }

    /// A heat map of column `value`: a column for each value of `columns`, a row for each of `rows`. Colours follow the
    /// axis of the values, by [`log_y`](Self::log_y) too, from white for 0; rows of one cell are averaged.
    pub fn heat(frame: &Frame, columns: &str, rows: &str, value: &str) -> Self {
        Self::of(Kind::Heat, frame, columns, value).color(rows)
    }

    /// A line chart of the given series, without a frame.
    pub fn of_series(series: Vec<Series>) -> Self {
        Self {
            title: String::new(),
            subtitle: String::new(),
            x: Axis::default(),
            y: Axis::default(),
            series,
            rules: Vec::new(),
            kind: Kind::Line,
            source: None,
        }
    }

    fn of(kind: Kind, frame: &Frame, x: &str, y: &str) -> Self {
        let source = Source {
            frame: frame.clone(),
            x: x.into(),
            y: y.into(),
            color: None,
            dash: None,
            interval: None,
            text: None,
            look: Look::default(),
        };
        Self {
            kind,
            source: Some(source),
            x: Axis::named(x),
            y: Axis::named(y),
            ..Self::of_series(Vec::new())
        }
    }

    /// One colour and one marker for each value of a column.
    #[must_use]
    pub fn color(self, column: &str) -> Self {
        self.with_source(|source| source.color = Some(column.into()))
    }

    /// One kind of dash for each value of a column.
    #[must_use]
    pub fn dash(self, column: &str) -> Self {
        self.with_source(|source| source.dash = Some(column.into()))
    }

    /// The columns that bound each value: whiskers, or a band where points are many.
    #[must_use]
    pub fn interval(self, low: &str, high: &str) -> Self {
        self.with_source(|source| source.interval = Some((low.into(), high.into())))
    }

    /// Lines without markers, their intervals as bands: for curves rather than single measurements.
    #[must_use]
    pub fn bands(self) -> Self {
        self.with_source(|source| source.look = Look::Bands)
    }

    /// Markers alone, one for each row, without lines between them.
    #[must_use]
    pub fn points(self) -> Self {
        self.with_source(|source| source.look = Look::Points)
    }

    /// The text of a column beside each of the [`points`](Self::points).
    #[must_use]
    pub fn text(self, column: &str) -> Self {
        self.with_source(|source| source.text = Some(column.into()))
    }

    /// Powers of two on the horizontal axis, as lengths deserve.
    #[must_use]
    pub fn log2_x(mut self) -> Self {
        self.x.scale = Scale::Log2;
        self
    }

    /// Powers of ten on the horizontal axis.
    #[must_use]
    pub fn log_x(mut self) -> Self {
        self.x.scale = Scale::Log10;
        self
    }

    /// Powers of ten on the value axis.
    #[must_use]
    pub fn log_y(mut self) -> Self {
        self.y.scale = Scale::Log10;
        self
    }

    /// The value axis begins at zero.
    #[must_use]
    pub fn zero_y(mut self) -> Self {
        self.y.from_zero = true;
        self
    }

    /// Values from 0 to 1, written as 0 % to 100 %.
    #[must_use]
    pub fn percent_y(mut self) -> Self {
        self.y.unit = Unit::Percent;
        self.y.range = Some((0.0, 1.0));
        self
    }

    /// Sets the headline.
    #[must_use]
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// Sets the line below the headline.
    #[must_use]
    pub fn subtitle(mut self, subtitle: impl Into<String>) -> Self {
        self.subtitle = subtitle.into();
        self
    }

    /// Names the horizontal axis, unit included.
    #[must_use]
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.x.label = label.into();
        self
    }

    /// Names the value axis, unit included.
    #[must_use]
    pub fn y_label(mut self, label: impl Into<String>) -> Self {
        self.y.label = label.into();
        self
    }

    /// Adds a vertical line at `x` with a label.
    #[must_use]
    pub fn rule(mut self, x: f64, label: impl Into<String>) -> Self {
        self.rules.push(Rule { x, label: label.into() });
        self
    }

    fn with_source(mut self, change: impl FnOnce(&mut Source)) -> Self {
        if let Some(source) = &mut self.source {
            change(source);
        }
        self
    }
}

#[cfg(test)]
mod tests;
