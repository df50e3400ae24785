//! One row that a measurement gives: subject, conditions, values.

use super::{NONFINITE, SUMMARY};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What was measured: one model in one number format on one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// Name of the model, such as its folder or hub id.
    pub model: String,
    /// Revision on the hub, where there is one.
    pub model_revision: Option<String>,
    /// Hash of the checkpoint's content.
    pub model_hash: String,
    /// Hash of the sizes and settings that its network was built with, resolved.
    pub config_hash: Option<String>,
    /// Name of the tokenizer: `bytes`, or the folder of its file.
    pub tokenizer: Option<String>,
    /// Hash of the tokenizer's file; `bytes` for bytes.
    pub tokenizer_hash: Option<String>,
    /// Special tokens that the tokenizer's file puts before a text, such as one for its beginning (BOS), and that
    /// measurements leave out; none where it puts none.
    pub bos_left_out: Option<u64>,
    /// What nothing said and a default was taken for.
    pub assumed: Option<String>,
    /// Model family, such as `mamba2`.
    pub family: String,
    /// Number of parameters, tied ones counted once.
    pub parameters: u64,
    /// Bytes that the weights occupy as stored for this subject.
    pub weight_bytes: u64,
    /// Number type of the weights that are not quantized: `f32`, `bf16`, `f16`.
    pub dtype: String,
    /// What the weights were stored in where they were read, where that says more than a dtype: the block types of a GGUF
    /// file, such as `Q4_1 (210 matrices), Q8_0 (embedding), F32`.
    pub stored_as: Option<String>,
    /// Where it ran: `cpu`, `cuda:0`.
    pub device: String,
    /// Name of the quantization scheme; the name of the dtype when nothing is quantized.
    pub scheme: String,
    /// Bits of a weight.
    pub w_bits: Option<f64>,
    /// Bits of an activation.
    pub a_bits: Option<f64>,
    /// Format of the output matrix, where it is quantized: a choice of its own.
    pub head_format: Option<String>,
    /// Weights that share one scale, along the input dimension.
    pub group_size: Option<u64>,
    /// Whether each output channel has scales of its own.
    pub per_channel: Option<bool>,
    /// Which arithmetic ran the quantized products, such as `packed` or `fake`.
    pub quant_backend: Option<String>,
    /// Version of what schemes make of a model, where it is quantized.
    pub quantizing_version: Option<u64>,
    /// How codes and scales were chosen, such as `nearest` or `rotation, gptq`.
    pub calib_method: Option<String>,
    /// The text that this was done on, and how much of it.
    pub calibration: Option<String>,
}

/// The settings that measurements share; a setting that does not apply is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Sequences processed together.
    pub batch_size: Option<u64>,
    /// Tokens in a window.
    pub seq_len: Option<u64>,
    /// Tokens between the starts of two windows.
    pub stride: Option<u64>,
    /// Tokens generated.
    pub gen_len: Option<u64>,
    /// Seed of everything that is random.
    pub seed: Option<u64>,
    /// Threads that the kernels may use.
    pub threads: Option<u64>,
    /// Free text.
    pub notes: Option<String>,
}

/// One row of a measurement, not yet tied to a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Name of the measurement, such as `perplexity`.
    #[serde(default)]
    pub measure: String,
    /// Version of the measurement's definition: readings of different versions do not compare.
    #[serde(default)]
    pub measure_version: u32,
    /// Kind of row within the measurement: `summary`, `trial`, …
    #[serde(default)]
    pub row: String,
    /// What identifies the unit of work, see [`fingerprint`](super::fingerprint()); empty for a row that stands alone.
    #[serde(default)]
    pub fingerprint: String,
    /// What was measured.
    #[serde(flatten)]
    pub subject: Subject,
    /// Under which settings.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// The measured values by column name.
    #[serde(flatten)]
    pub values: Map<String, Value>,
}

impl Reading {
    /// A summary row without values; set [`row`](Self::row) for another kind of row.
    pub fn new(measure: &str, measure_version: u32, subject: &Subject, conditions: &Conditions) -> Self {
        Self {
            measure: measure.into(),
            measure_version,
            row: SUMMARY.into(),
            fingerprint: String::new(),
            subject: subject.clone(),
            conditions: conditions.clone(),
            values: Map::new(),
        }
    }

    /// Names the kind of row.
    #[must_use]
    pub fn row(mut self, row: &str) -> Self {
        self.row = row.into();
        self
    }

    /// Ties the row to a unit of work.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: &str) -> Self {
        self.fingerprint = fingerprint.into();
        self
    }

    /// Adds a value; a number that is not finite becomes `null` with a column `<name>_nonfinite` beside it.
    #[must_use]
    pub fn value(mut self, name: &str, value: impl IntoValue) -> Self {
        let (value, nonfinite) = value.into_value();
        self.values.insert(name.into(), value);
        if let Some(note) = nonfinite {
            self.values.insert(format!("{name}{NONFINITE}"), note.into());
        }
        self
    }

    /// Adds a sentence to the value `warning`, after what is there.
    pub fn warn(&mut self, sentence: &str) {
        let before = self.values.get("warning").and_then(Value::as_str).filter(|before| !before.is_empty());
        let both = before.map_or_else(|| sentence.to_string(), |before| format!("{before}; {sentence}"));
        self.values.insert("warning".into(), both.into());
    }

    /// A value by name, if it is a finite number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.values.get(name)?.as_f64()
    }
}

/// What can stand in a column: numbers, booleans, text, lists of numbers, and `Option`s of these.
pub trait IntoValue {
    /// The JSON value, and what it was if a part of it has no spelling in JSON.
    fn into_value(self) -> (Value, Option<String>);
}

fn float(x: f64) -> (Value, Option<String>) {
    match serde_json::Number::from_f64(x) {
        Some(number) => (Value::Number(number), None),
        None => (Value::Null, Some(x.to_string())),
    }
}

impl IntoValue for f64 {
    fn into_value(self) -> (Value, Option<String>) {
        float(self)
    }
}

impl IntoValue for f32 {
    fn into_value(self) -> (Value, Option<String>) {
        // The shortest decimal that names this f32 (0.1, not 0.10000000149), NaN and infinities included.
        float(self.to_string().parse().unwrap_or(f64::from(self)))
    }
}

impl<T: IntoValue> IntoValue for Option<T> {
    fn into_value(self) -> (Value, Option<String>) {
        self.map_or((Value::Null, None), IntoValue::into_value)
    }
}

impl<T: IntoValue> IntoValue for Vec<T> {
    fn into_value(self) -> (Value, Option<String>) {
        let mut notes = Vec::new();
        let items = self.into_iter().enumerate().map(|(i, item)| {
            let (value, note) = item.into_value();
            notes.extend(note.map(|note| format!("{i}: {note}")));
            value
        });
        let list = Value::Array(items.collect());
        (list, (!notes.is_empty()).then(|| notes.join(", ")))
    }
}

macro_rules! plain {
    ($($t:ty)*) => {$(
        impl IntoValue for $t {
            fn into_value(self) -> (Value, Option<String>) {
                (Value::from(self), None)
            }
        }
    )*};
}
plain!(u8 u16 u32 u64 usize i8 i16 i32 i64 isize bool &str String Value);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_finite_leaves_a_trace() {
        let reading = Reading::default()
            .value("ppl", f64::NAN)
            .value("nll", f32::NEG_INFINITY)
            .value("window_nll", vec![1.0, f64::INFINITY, f64::NAN])
            .value("loss", 0.1_f32)
            .value("none", None::<f64>);
        let line = serde_json::to_value(&reading.values).unwrap();
        let expected = serde_json::json!({
            "ppl": null, "ppl_nonfinite": "NaN", "nll": null, "nll_nonfinite": "-inf",
            "window_nll": [1.0, null, null], "window_nll_nonfinite": "1: inf, 2: NaN",
            "loss": 0.1, "none": null,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_reading_is_flat_and_comes_back() {
        let subject = Subject { model: "bard".into(), parameters: 3_500_000, ..Subject::default() };
        let conditions = Conditions { seq_len: Some(1024), ..Conditions::default() };
        let reading =
            Reading::new("perplexity", 1, &subject, &conditions).value("ppl", 4.25).value("n_tokens", 9);
        let line = serde_json::to_string(&reading).unwrap();
        assert!(line.contains(r#""model":"bard""#) && line.contains(r#""ppl":4.25"#), "{line}");
        assert_eq!(serde_json::from_str::<Reading>(&line).unwrap(), reading);
    }
}
