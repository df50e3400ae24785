//! Cards: a headline and a few lines on what a value is.

use super::{Draw, Drawing, html};
use crate::error::Error;
use crate::frame::Frame;
use crate::layer::state::State;
use crate::model::Model;
use crate::model::quantization::Quantization;
use crate::quantize::{Budget, Scheme};
use crate::record::{COLUMNS, Reading, Row, Run};
use crate::study::Study;
use crate::train::Outcome;
use std::fmt::Display;

fn line(name: &str, value: impl Display) -> (String, String) {
    (name.to_string(), value.to_string())
}

/// A card, and its lines as text.
fn card(title: &str, about: &str, lines: &[(String, String)]) -> Drawing {
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let text = lines.iter().map(|(name, value)| format!("\n  {name:<width$}  {value}"));
    Drawing {
        text: format!("{title}  {about}{}", text.collect::<String>()),
        html: Some(html::card(title, about, lines)),
        ..Drawing::default()
    }
}

pub(super) fn failed(error: &impl Display) -> Drawing {
    let text = error.to_string();
    Drawing { html: Some(html::alarm(&text)), text, ..Drawing::default() }
}

impl Draw for Error {
    fn draw(&self) -> Drawing {
        failed(self)
    }
}

impl Draw for Model {
    fn draw(&self) -> Drawing {
        let text = self.to_string();
        let html = html::card(&self.name, self.config.family(), &self.card());
        Drawing { text, html: Some(html), ..Drawing::default() }
    }
}

impl Draw for State {
    fn draw(&self) -> Drawing {
        let mut lines = vec![
            line("tokens read", self.position),
            line("layers", self.layers.len()),
            line("size", megabytes(self.bytes())),
        ];
        let shape = |tensor: &candle_core::Tensor| format!("{:?}", tensor.dims());
        let conv = self.layers.iter().find_map(|layer| layer.conv.as_ref());
        lines.extend(conv.map(|conv| line("convolution", shape(conv))));
        let recurrent = self.layers.iter().find_map(|layer| layer.recurrent.as_ref());
        lines.extend(recurrent.map(|h| line("recurrence", format!("{} (batch, head, …)", shape(h)))));
        let cache = self.layers.iter().find_map(|layer| layer.cache.as_ref());
        lines.extend(cache.map(|cache| line("cache", format!("{} tokens", cache.len()))));
        card("state", "", &lines)
    }
}

fn megabytes(bytes: usize) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

impl Draw for Study {
    fn draw(&self) -> Drawing {
        let measures = self.measures.iter().map(|measure| format!("{measure:?}"));
        let schemes = if self.schemes.is_empty() { "as stored".to_string() } else { self.schemes.join(", ") };
        let mut lines = vec![line("models", self.models.join(", ")), line("schemes", schemes)];
        lines.extend(measures.map(|measure| line("measures", measure)));
        card(&self.name, "study", &lines)
    }
}

impl Draw for Scheme {
    fn draw(&self) -> Drawing {
        let kept = || "as they are".to_string();
        let weights = match self.blocks {
            true => "the blocks of a GGUF file, packed as they are".to_string(),
            false => self.weights.map_or_else(kept, |coding| format!("{coding}, by {}", coding.granularity)),
        };
        let activations = |bits: u8| match self.observer {
            None => format!("integers of {bits} bits, a scale for each token"),
            Some(observer) => format!("integers of {bits} bits, one scale by calibration ({observer})"),
        };
        let mut lines = vec![
            line("weights", weights),
            line("activations", self.activations.map_or_else(kept, activations)),
            line("method", self.method()),
        ];
        lines.extend(self.budget.map(|budget| {
            line(
                "budget",
                match budget {
                    Budget::Bits(bits) => format!("{bits} bits a weight"),
                    Budget::Bytes(bytes) => format!("{bytes} bytes"),
                },
            )
        }));
        lines.extend(self.cache.name().map(|width| {
            let by_channel = if width.ends_with('c') { ", keys by channel over 32 tokens" } else { "" };
            line("keys, values", format!("{} bits{by_channel}", width.trim_end_matches('c')))
        }));
        let recurrence = &self.recurrence;
        lines.extend(recurrence.x.map(|bits| line("x", format!("{bits} bits"))));
        lines.extend(recurrence.bc.map(|bits| line("B, C", format!("{bits} bits"))));
        lines.extend(recurrence.state.map(|state| {
            let feedback = match (state.feedback, state.residual) {
                (false, _) => String::new(),
                (true, None) => ", with error feedback: a residual in f32".into(),
                (true, Some(bits)) => format!(", with error feedback: a residual in {bits} bits"),
            };
            let bits = if state.bits == 16 { "bf16".into() } else { format!("{} bits", state.bits) };
            line("state", format!("{bits}{feedback}"))
        }));
        lines.extend(self.dtype.as_ref().map(|dtype| line("all else", dtype)));
        lines.extend(self.lossless.then(|| line("exponents", "of all else coded: every bit, in fewer")));
        lines.extend(
            self.rules
                .iter()
                .map(|rule| line(&rule.pattern, rule.coding.map_or_else(kept, |coding| coding.to_string()))),
        );
        card(&self.to_string(), "scheme", &lines)
    }
}

impl Draw for Quantization {
    fn draw(&self) -> Drawing {
        let (heads, rows) = self.table();
        let columns: Vec<_> = heads
            .into_iter()
            .enumerate()
            .map(|(i, name)| html::Column { name: name.into(), below: String::new(), numeric: i >= 5 })
            .collect();
        let text = self.to_string();
        let whole = text.lines().last().unwrap_or_default();
        let html = html::lively(&columns, &rows, None, None, "") + &html::small(whole);
        Drawing { html: Some(html), text, ..Drawing::default() }
    }
}

impl Draw for Outcome {
    fn draw(&self) -> Drawing {
        let lines = [
            line("steps", self.steps),
            line("validation", format!("{:.3} bits per byte", self.valid_bits_per_byte)),
            line("speed", format!("{:.0} tokens per second", self.tokens_per_s)),
            line("model", self.model.display()),
        ];
        card("training", "finished", &lines)
    }
}

/// A run: where it is, and its summaries as they stand on disk.
impl Draw for Run {
    fn draw(&self) -> Drawing {
        let finished = if self.is_finished() { "finished" } else { "open" };
        let here = std::env::current_dir().unwrap_or_default();
        let lines = [line("folder", self.path().strip_prefix(here).unwrap_or(self.path()).display())];
        let mut drawn = card(self.id(), finished, &lines);
        let summaries = Frame::load(self.path()).and_then(|frame| frame.filter("row", "summary"));
        if let Ok(summaries) =
            summaries.and_then(|frame| frame.select(frame.columns().iter().filter(|name| tells(name))))
        {
            let below = summaries.draw();
            drawn.text += &format!("\n{}", below.text);
            drawn.html = drawn.html.zip(below.html).map(|(card, table)| card + &table);
        }
        drawn
    }
}

/// Whether a column says something about the result; where it comes from is told by the records.
fn tells(column: &str) -> bool {
    const SUBJECT: [&str; 5] = ["measure", "model", "dtype", "scheme", "threads"];
    let provenance = COLUMNS.contains(&column) || column.ends_with("hash") || column.ends_with("_version");
    SUBJECT.contains(&column) || !provenance
}

/// Readings are drawn as the table that they will be read back as; rows below the summaries are only counted.
impl Draw for Vec<Reading> {
    fn draw(&self) -> Drawing {
        let rows = self.iter().filter_map(|reading| match serde_json::to_value(reading) {
            Ok(serde_json::Value::Object(mut row)) => {
                row.retain(|name, value| (tells(name) || name == "row") && !value.is_array());
                Some(row)
            }
            _ => None,
        });
        let summaries = |row: &Row| row.get("row").and_then(|v| v.as_str()) == Some("summary");
        let (mut shown, rest): (Vec<Row>, Vec<Row>) = rows.partition(summaries);
        shown.iter_mut().for_each(|row| {
            row.remove("row");
        });
        let mut drawn = match Frame::from_rows(if shown.is_empty() { &rest } else { &shown }) {
            Ok(frame) => frame.draw(),
            Err(error) => return error.draw(),
        };
        if !shown.is_empty() && !rest.is_empty() {
            let more = format!("and {} rows of other kinds", rest.len());
            drawn.text += &format!("\n{more}");
            drawn.html = drawn.html.map(|html| html + &html::small(&more));
        }
        drawn
    }
}
