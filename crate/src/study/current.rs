//! Whether the readings of a finished run are still of what the study's names stand for.

use super::Study;
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::measure::subject;
use crate::record::{Row, read_lines};
use crate::warning::warn;
use serde_json::Value;
use std::path::{Path, PathBuf};

impl Study {
    /// Whether models and texts are those that a run was measured on, as far as its records tell: older ones hold fewer
    /// hashes. A model or a text that is not on this machine contradicts nothing.
    ///
    /// # Errors
    /// The run cannot be read, or a model cannot be loaded that is there.
    pub(super) fn is_current(&self, run: &Path) -> Result<bool> {
        let rows = read_lines(run.join("metrics.jsonl"))?.rows;
        for source in &self.models {
            let now = match self.load(source) {
                Ok(model) => subject(&model),
                Err(error) if error.kind() == crate::error::Kind::Io => {
                    warn(format!("{}: not compared with its model: {error}", run.display()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let hashes = [
                ("model_hash", Some(now.model_hash)),
                ("config_hash", now.config_hash),
                ("tokenizer_hash", now.tokenizer_hash),
            ];
            let agrees = |row: &Row| {
                hashes
                    .iter()
                    .all(|(column, now)| told(row, column).is_none_or(|then| Some(then) == now.as_deref()))
            };
            if !holds(&rows, |row| told(row, "model") == Some(&now.model), agrees) {
                return Ok(false);
            }
        }
        let study = serde_json::to_value(self).map_err(Error::internal)?;
        for (path, split) in texts(&study) {
            let corpus = match &split {
                Some(split) => Corpus::split(&path, split),
                None => Corpus::load(&path),
            };
            let Ok(corpus) = corpus else { continue };
            let (title, hash) = (corpus.title(), corpus.sha256.as_str());
            let start = format!("{title}, ");
            let calibrated =
                |row: &Row| told(row, "calibration").is_some_and(|text| text.starts_with(&start));
            let short = &hash[..hash.len().min(16)];
            if !holds(
                &rows,
                |row| told(row, "corpus") == Some(&title),
                |row| told(row, "corpus_hash") == Some(hash),
            ) || !holds(&rows, calibrated, |row| {
                told(row, "calibration").is_some_and(|text| text.ends_with(short))
            }) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether one of the rows that are meant agrees, or none is meant.
fn holds(rows: &[Row], meant: impl Fn(&Row) -> bool, agrees: impl Fn(&Row) -> bool) -> bool {
    let mut meant = rows.iter().filter(|row| meant(row)).peekable();
    meant.peek().is_none() || meant.any(agrees)
}

fn told<'a>(row: &'a Row, column: &str) -> Option<&'a str> {
    row.get(column)?.as_str()
}

/// The texts that settings name, wherever they stand: a `corpus`, with its `split` if there is one.
fn texts(settings: &Value) -> Vec<(PathBuf, Option<String>)> {
    match settings {
        Value::Object(fields) => {
            let text = |key: &str| fields.get(key).and_then(Value::as_str);
            let own = text("corpus").map(|path| (path.into(), text("split").map(String::from)));
            own.into_iter().chain(fields.values().flat_map(texts)).collect()
        }
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        _ => vec![],
    }
}
