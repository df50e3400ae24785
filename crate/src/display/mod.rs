//! How a value draws itself at the end of a notebook's cell.
//!
//! A cell's last expression is shown by calling `evcxr_display()` on it. The trait [`EvcxrDisplay`], which the prelude
//! brings along, gives that method to every value: those of this crate, polars' tables and candle's tensors are drawn;
//! text is shown as it is; everything else by its `Debug` form. One trait for all means that no cell is compiled twice.
//!
//! | file | holds |
//! |---|---|
//! | `card` | models, schemes, quantizations, runs, states, studies, errors |
//! | `table` | frames, comparisons and polars tables |
//! | `tensor` | tensors |
//! | `html` | the few elements that all of them are made of |
//! | `table.js` | how a table sorts, filters, pages and copies in the browser, where scripts run |
//!
//! The HTML inherits its colours from the page, so it reads on light and on dark.

mod card;
pub(crate) mod html;
mod table;
mod tensor;

use crate::error::Error;
use crate::figure::{Figure, Picture};
use crate::frame::{Comparison, Frame};
use crate::layer::state::State;
use crate::model::Model;
use crate::model::quantization::Quantization;
use crate::quantize::Scheme;
use crate::record::{Reading, Run};
use crate::study::Study;
use crate::train::Outcome;
use candle_core::Tensor;
use polars::prelude::{Column, DataFrame, Series};
use std::any::Any;
use std::fmt::Debug;
use std::io::Write;

/// What a cell shows of a value: the same thing in several MIME types, of which a front end takes the richest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drawing {
    /// `text/plain`.
    pub text: String,
    /// `text/html`.
    pub html: Option<String>,
    /// `image/svg+xml`.
    pub svg: Option<String>,
    /// `image/png`, in base 64.
    pub png: Option<String>,
    /// `application/vnd.vegalite.v5+json`: for front ends that answer to the pointer.
    pub vega: Option<String>,
}

impl Drawing {
    /// Text alone.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// The contents that there are, with their MIME types; plain text is the last.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let parts = [
            ("text/html", self.html.as_deref()),
            ("application/vnd.vegalite.v5+json", self.vega.as_deref()),
            ("image/svg+xml", self.svg.as_deref()),
            ("image/png", self.png.as_deref()),
            ("text/plain", Some(self.text.as_str())),
        ];
        parts.into_iter().filter_map(|(mime, content)| Some((mime, content?)))
    }

    /// Sends the drawing to the notebook, or the text to a terminal.
    ///
    /// The blocks between `EVCXR_BEGIN_CONTENT` and `EVCXR_END_CONTENT` are evcxr's own: its stock kernel knows them too.
    pub fn send(&self) {
        let blocks: String = self
            .parts()
            .map(|(mime, content)| format!("EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT\n"))
            .collect();
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(blocks.as_bytes()).and_then(|()| out.flush()); // a closed notebook is no reason to fail
    }
}

/// A value that has a drawing.
pub trait Draw {
    /// Draws it.
    fn draw(&self) -> Drawing;
}

/// Shows a value in the notebook: what a cell's last expression is asked for.
pub trait EvcxrDisplay {
    /// Sends the value's drawing to the notebook.
    fn evcxr_display(&self);

    /// The same by the name that a reader looks for: `figure.show()` anywhere in a cell.
    fn show(&self) {
        self.evcxr_display();
    }
}

impl<T: Any + Debug> EvcxrDisplay for T {
    fn evcxr_display(&self) {
        if (self as &dyn Any).is::<()>() {
            return; // a cell that ends in a statement has nothing to show
        }
        drawing(self).send();
    }
}

/// The drawing of any value.
pub fn drawing<T: Any + Debug>(value: &T) -> Drawing {
    known(value).unwrap_or_else(|| Drawing::text(format!("{value:?}")))
}

/// Shows a value in the middle of a cell.
pub fn show<T: Any + Debug>(value: &T) {
    value.evcxr_display();
}

macro_rules! known_types {
    ($($type:ty),* $(,)?) => {
        fn known(value: &dyn Any) -> Option<Drawing> {
            $(
                if let Some(value) = value.downcast_ref::<$type>() {
                    return Some(value.draw());
                }
                if let Some(value) = value.downcast_ref::<Option<$type>>() {
                    return value.as_ref().map(Draw::draw).or_else(|| Some(Drawing::text("None")));
                }
                if let Some(value) = value.downcast_ref::<crate::Result<$type>>() {
                    return Some(value.as_ref().map_or_else(Draw::draw, Draw::draw));
                }
                if let Some(value) = value.downcast_ref::<candle_core::Result<$type>>() {
                    return Some(value.as_ref().map_or_else(|error| card::failed(error), Draw::draw));
                }
                if let Some(value) = value.downcast_ref::<polars::prelude::PolarsResult<$type>>() {
                    return Some(value.as_ref().map_or_else(|error| card::failed(error), Draw::draw));
                }
            )*
            None
        }
    };
}

known_types!(
    Model,
    Run,
    Frame,
    Comparison,
    Figure,
    Picture,
    State,
    Scheme,
    Quantization,
    Study,
    Outcome,
    Vec<Reading>,
    Error,
    DataFrame,
    Column,
    Series,
    Tensor,
    String,
    &'static str
);

impl Draw for String {
    fn draw(&self) -> Drawing {
        Drawing::text(self.as_str())
    }
}

impl Draw for &'static str {
    fn draw(&self) -> Drawing {
        Drawing::text(*self)
    }
}

impl Draw for Picture {
    fn draw(&self) -> Drawing {
        let (width, height) = self.size();
        Drawing {
            text: format!("a picture of {width} × {height} pixels"),
            svg: Some(self.svg().to_string()),
            png: Some(data_encoding::BASE64.encode(self.png())),
            ..Drawing::default()
        }
    }
}

impl Draw for Figure {
    fn draw(&self) -> Drawing {
        let png = || Some(data_encoding::BASE64.encode(&self.png(2).ok()?));
        match self.svg() {
            Ok(svg) => Drawing {
                text: self.title.clone(),
                svg: Some(svg),
                png: png(),
                vega: self.vega().ok().map(|spec| spec.to_string()),
                html: None,
            },
            Err(error) => error.draw(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::passkey::Passkey;

    #[test]
    fn known_types_are_drawn_and_others_debugged() {
        assert_eq!(drawing(&"a\nb").text, "a\nb");
        assert_eq!(drawing(&Ok::<String, Error>("text".into())).text, "text");
        assert_eq!(drawing(&vec![1, 2]).text, "[1, 2]");
        let error: crate::Result<Model> = Err(Error::input("no such <model>").hint("look again"));
        let drawn = drawing(&error);
        assert!(
            drawn.text.contains("no such <model>") && drawn.html.unwrap().contains("no such &lt;model&gt;")
        );
        assert!(drawing(&Passkey::default()).text.starts_with("Passkey {"));
    }

    #[test]
    fn a_figure_that_cannot_be_drawn_says_why() {
        let rows = [serde_json::json!({"x": 1, "y": 2}).as_object().unwrap().clone()];
        let frame = Frame::from_rows(&rows).unwrap();
        assert!(drawing(&Figure::line(&frame, "x", "y")).svg.unwrap().starts_with("<svg"));
        assert!(drawing(&Figure::line(&frame, "x", "z")).text.contains("no column `z`"));
    }
}
