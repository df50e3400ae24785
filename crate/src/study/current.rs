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
        // What is made from a seed is the same at any time.
        for source in self.models.iter().filter(|source| !source.starts_with("random:")) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::perplexity::Perplexity;
    use std::fs;

    #[test]
    fn a_finished_run_is_of_the_models_and_texts_that_it_was_measured_on() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let model = crate::model::Model::load("random:mamba2-tiny").unwrap();
        model.save(&at("m")).unwrap();
        fs::write(at("text.txt"), "Out, out, brief candle! ".repeat(8)).unwrap();
        let study = Study::new("s")
            .models([at("m").to_string_lossy()])
            .measure(Perplexity::of(at("text.txt")).windows(32, 32));
        let run = study.run_into(|| study.open(folder.path())).unwrap().path().to_path_buf();
        assert!(study.is_current(&run).unwrap());
        for (name, from, to) in [("text.txt", "brief", "long"), ("m/config.json", "0.00001", "0.01")] {
            let before = fs::read_to_string(at(name)).unwrap();
            let changed = before.replace(from, to);
            assert_ne!(changed, before, "{name}");
            fs::write(at(name), changed).unwrap();
            assert!(!study.is_current(&run).unwrap(), "{name}");
            fs::write(at(name), before).unwrap();
        }
        // Records of before there were these columns hold what they say.
        let metrics = run.join("metrics.jsonl");
        let line = fs::read_to_string(&metrics).unwrap().replace("\"config_hash\"", "\"other\"");
        fs::write(&metrics, line).unwrap();
        assert!(study.is_current(&run).unwrap());
        fs::remove_dir_all(at("m")).unwrap();
        assert!(study.is_current(&run).unwrap(), "what is not there contradicts nothing");
    }
}
