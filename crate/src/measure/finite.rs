//! Values that are not finite: told beside the reading, with the layer where they begin.
//!
//! A NaN goes through everything that is computed from it, so a reading says that there was one but not where. Every
//! measurement of values that a model's activations decide passes its rows through [`told`]; only where one of them is
//! not finite the text is read once more, up to the first window with such activations.

use super::window::Excerpt;
use crate::error::Result;
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::record::{IntoValue, NONFINITE, Reading, SUMMARY};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The rows, with a warning in their summaries if a value is not finite. `models` are those that were read, each with a
/// word before its layers' names; `windows` are what they read, the likeliest first.
pub(super) fn told<'a>(
    mut rows: Vec<Reading>,
    models: &[(&str, &Model)],
    windows: impl IntoIterator<Item = &'a [u32]>,
) -> Result<Vec<Reading>> {
    let Some((measure, what)) = rows.iter().find_map(|row| Some((row.measure.clone(), odd(row)?))) else {
        return Ok(rows);
    };
    let mut why = "every activation that was looked at is finite".to_string();
    'search: for ids in windows {
        for (whose, model) in models {
            if let Some(source) = source(model, ids)? {
                why = format!("{whose}{source} is not finite");
                break 'search;
            }
        }
    }
    for row in rows.iter_mut().filter(|row| row.row == SUMMARY) {
        row.warn(&format!("{measure} is {what}: {why}"));
    }
    Ok(rows)
}

/// A count, and whether it is known: one that comes of logits that are no numbers is NaN.
pub(super) struct Known<T>(pub T, pub bool);

impl<T: IntoValue> IntoValue for Known<T> {
    fn into_value(self) -> (Value, Option<String>) {
        if self.1 { self.0.into_value() } else { f64::NAN.into_value() }
    }
}

/// The windows of a text, as [`told`] takes them.
pub(super) fn windows(text: &Excerpt) -> impl Iterator<Item = &[u32]> {
    text.windows.iter().map(|window| &text.ids[window.start..window.scored.end])
}

/// What a row holds that is not finite: NaN before infinities. A ratio to no noise at all, and what never forgets, are
/// infinite by right.
fn odd(row: &Reading) -> Option<&'static str> {
    let told = row.values.iter().filter_map(|(name, note)| Some((name.strip_suffix(NONFINITE)?, note)));
    let notes: Vec<(&str, &str)> = told.filter_map(|(name, note)| Some((name, note.as_str()?))).collect();
    let infinite = |name: &str| !name.ends_with("_db") && !name.starts_with("gain");
    match notes.iter().any(|(_, note)| note.contains("NaN")) {
        true => Some("NaN"),
        false => notes.iter().any(|(name, _)| infinite(name)).then_some("infinite"),
    }
}

/// The first part of the model whose output on these tokens, read from a state of zeros, is not finite.
fn source(model: &Model, ids: &[u32]) -> Result<Option<String>> {
    let first = Arc::new(AtomicUsize::new(usize::MAX));
    let tapped = model.tapped(|i| {
        let first = first.clone();
        move |x: &Tensor| {
            if !finite(x)? {
                first.fetch_min(i, Ordering::Relaxed);
            }
            Ok(())
        }
    });
    tapped.read(ids)?;
    let linears = model.linears();
    let branch = |i: usize| linears[i].0.rsplit_once('.').map_or(linears[i].0.as_str(), |(branch, _)| branch);
    match first.load(Ordering::Relaxed) {
        usize::MAX => {
            let hidden = model.hidden(&model.tokens(ids)?, None)?;
            for piece in model.pieces(ids.len()) {
                if !finite(&model.logits(&hidden, &piece)?)? {
                    return Ok(linears.last().map(|(head, _)| format!("the output of {head}")));
                }
            }
            Ok(None)
        }
        // What one linear of a branch reads is what an earlier one of the same branch led to.
        i if i > 0 && branch(i) == branch(i - 1) => Ok(Some(format!("what {} reads", linears[i].0))),
        i if i > 0 && linears[i - 1].0.contains("layers") => {
            Ok(Some(format!("the output of {}", branch(i - 1))))
        }
        _ => Ok(Some("the output of the embedding".to_string())),
    }
}

fn finite(x: &Tensor) -> candle_core::Result<bool> {
    let x = x.to_device(&Device::Cpu)?.contiguous()?;
    with_floats([&x], |[x]| x.iter().all(|x| x.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Loading;

    /// A small model whose tensor of this name is far too large.
    fn overflowing(name: &str) -> Model {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let mut tensors = model.tensors().clone();
        let huge = (tensors[name].ones_like().unwrap() * 1e38).unwrap();
        tensors.insert(name.to_string(), huge);
        Model::from_tensors("huge", model.config.clone(), tensors, &Loading::default()).unwrap()
    }

    #[test]
    fn the_first_part_that_overflows_is_named() {
        let ids: Vec<u32> = (0..40).map(|i| i * 7 % 256).collect();
        for (tensor, part) in [
            ("backbone.layers.3.mixer.out_proj.weight", Some("the output of backbone.layers.3.mixer")),
            ("backbone.layers.3.mixer.in_proj.weight", Some("what backbone.layers.3.mixer.out_proj reads")),
            ("backbone.layers.7.mixer.out_proj.weight", Some("the output of backbone.layers.7.mixer")),
        ] {
            assert_eq!(source(&overflowing(tensor), &ids).unwrap().as_deref(), part, "{tensor}");
        }
        assert_eq!(source(&Model::load("random:mamba2-tiny").unwrap(), &ids).unwrap(), None);
    }

    #[test]
    fn what_is_infinite_by_right_is_no_fault() {
        let row = |name: &str, value: f64| odd(&Reading::default().value(name, value));
        assert_eq!((row("sqnr_db", f64::INFINITY), row("sqnr_db", f64::NAN)), (None, Some("NaN")));
        assert_eq!((row("ppl", f64::INFINITY), row("ppl", 3.0)), (Some("infinite"), None));
    }
}
