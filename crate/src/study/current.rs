//! Whether the readings of a finished run are still of what the study's names stand for.

use super::{Instrument, Study};
use crate::corpus::Corpus;
use crate::error::{Error, Kind, Result};
use crate::measure::subject;
use crate::record::{LEFT_OUT, Row, SUMMARY, Subject, read_lines};
use crate::warning::warn;
use serde_json::Value;
use std::path::{Path, PathBuf};

impl Study {
    /// Why the readings of a run are not of what the study would measure now, if so: its settings are the same, but a
    /// measurement has another version, or a model, a reference or a text has changed, as far as the records tell: older
    /// ones hold fewer hashes. A model or a text that is not on this machine contradicts nothing.
    ///
    /// # Errors
    /// The run cannot be read, or a model cannot be loaded that is there.
    pub(super) fn outdated(&self, run: &Path) -> Result<Option<String>> {
        let rows = read_lines(run.join("metrics.jsonl"))?.rows;
        Ok(match versions(&self.measures, &rows) {
            Some(why) => Some(why),
            None => match self.other_models(run, &rows)? {
                Some(why) => Some(why),
                None => self.other_texts(&rows)?,
            },
        })
    }

    fn other_models(&self, run: &Path, rows: &[Row]) -> Result<Option<String>> {
        let settings = serde_json::to_value(&self.measures).map_err(Error::internal)?;
        let references = named(&settings, "reference");
        for (i, source) in self.models.iter().chain(&references).enumerate() {
            // What is made from a seed is the same at any time.
            if source.starts_with("random:") {
                continue;
            }
            let now = match self.load(source) {
                Ok(model) => subject(&model),
                Err(error) if error.kind() == Kind::Io => {
                    warn(format!("{}: not compared with its model: {error}", run.display()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let measured = i < self.models.len();
            let own = rows.iter().filter(|row| told(row, "model") == Some(&now.model));
            if measured && own.clone().next().is_none() {
                return Ok(Some(format!("it holds nothing of a model {}", now.model)));
            }
            let of = rows.iter().filter(|row| told(row, "reference") == Some(&now.model));
            let weights = |row: &Row| told(row, "reference_hash").is_none_or(|then| then == now.model_hash);
            if measured && !own.clone().all(|row| is_of(row, &now)) || !of.clone().all(weights) {
                return Ok(Some(format!("the model {} has changed since", now.model)));
            }
        }
        Ok(None)
    }

    fn other_texts(&self, rows: &[Row]) -> Result<Option<String>> {
        let settings = serde_json::to_value(self).map_err(Error::internal)?;
        for (path, split) in texts(&settings) {
            let Ok((title, hash)) = Corpus::identity(&path, split.as_deref()) else { continue };
            let start = format!("{title}, ");
            let short = &hash[..hash.len().min(16)];
            let read =
                |row: &Row| told(row, "corpus") != Some(&title) || told(row, "corpus_hash") == Some(&hash);
            let calibrated = |row: &Row| {
                told(row, "calibration").is_none_or(|text| !text.starts_with(&start) || text.ends_with(short))
            };
            if !rows.iter().all(|row| read(row) && calibrated(row)) {
                return Ok(Some(format!("the text {title} has changed since")));
            }
        }
        Ok(None)
    }
}

/// Which measurement has another version now than in these rows, or neither a summary among them nor why it has none.
fn versions(measures: &[Instrument], rows: &[Row]) -> Option<String> {
    measures.iter().flat_map(|measure| measure.gives()).find_map(|(name, now)| {
        let own: Vec<&Row> = rows.iter().filter(|row| told(row, "measure") == Some(name)).collect();
        let version = |row: &&&Row| row.get("measure_version").and_then(Value::as_u64) != Some(now.into());
        if let Some(row) = own.iter().find(version) {
            let then = row.get("measure_version").unwrap_or(&Value::Null);
            return Some(format!("its {name} is of version {then}, and the measurement of version {now}"));
        }
        let closed =
            own.iter().any(|row| told(row, "row").is_some_and(|row| [SUMMARY, LEFT_OUT].contains(&row)));
        (!closed).then(|| format!("it holds no {name}"))
    })
}

/// Whether a row is of this subject, but for its scheme.
fn is_of(row: &Row, now: &Subject) -> bool {
    let hashes = [
        ("model_hash", Some(now.model_hash.as_str())),
        ("config_hash", now.config_hash.as_deref()),
        ("tokenizer_hash", now.tokenizer_hash.as_deref()),
    ];
    hashes.iter().all(|(column, now)| told(row, column).is_none_or(|then| Some(then) == *now))
}

fn told<'a>(row: &'a Row, column: &str) -> Option<&'a str> {
    row.get(column)?.as_str()
}

/// The texts under this key in settings, wherever they stand.
fn named(settings: &Value, key: &str) -> Vec<String> {
    match settings {
        Value::Object(fields) => {
            let own = fields.get(key).and_then(Value::as_str).map(String::from);
            own.into_iter().chain(fields.values().flat_map(|value| named(value, key))).collect()
        }
        Value::Array(items) => items.iter().flat_map(|value| named(value, key)).collect(),
        _ => vec![],
    }
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
    use crate::measure::divergence::Divergence;
    use crate::measure::perplexity::Perplexity;
    use crate::model::Model;
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
        assert!(study.outdated(&run).unwrap().is_none());
        for (name, from, to) in [("text.txt", "brief", "long"), ("m/config.json", "0.00001", "0.01")] {
            let before = fs::read_to_string(at(name)).unwrap();
            let changed = before.replace(from, to);
            assert_ne!(changed, before, "{name}");
            fs::write(at(name), changed).unwrap();
            assert!(study.outdated(&run).unwrap().is_some(), "{name}");
            fs::write(at(name), before).unwrap();
        }
        // Neither are the settings enough: a measurement may have got another meaning, a reading may be lost.
        let metrics = run.join("metrics.jsonl");
        let lines = fs::read_to_string(&metrics).unwrap();
        for (from, to, why) in [
            (
                "\"measure_version\":1",
                "\"measure_version\":0",
                "is of version 0, and the measurement of version 1",
            ),
            ("\"perplexity\"", "\"other\"", "it holds no perplexity"),
            ("\"model\":\"m\"", "\"model\":\"n\"", "it holds nothing of a model m"),
        ] {
            fs::write(&metrics, lines.replace(from, to)).unwrap();
            let told = study.outdated(&run).unwrap().unwrap();
            assert!(told.contains(why), "{told}");
        }
        // Records of before there were these columns hold what they say.
        fs::write(&metrics, lines.replace("\"config_hash\"", "\"other\"")).unwrap();
        assert!(study.outdated(&run).unwrap().is_none());
        fs::remove_dir_all(at("m")).unwrap();
        assert!(study.outdated(&run).unwrap().is_none(), "what is not there contradicts nothing");
    }

    #[test]
    fn a_reference_of_other_weights_is_another_reference() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let model = |dtype: &str| {
            Model::load("random:mamba2-tiny").unwrap().quantized(&dtype.parse().unwrap()).unwrap()
        };
        model("f32").save(&at("r")).unwrap();
        fs::write(at("text.txt"), "Out, out, brief candle! ".repeat(8)).unwrap();
        let study = Study::new("s").models(["random:mamba2-tiny"]).measure(
            Divergence::from_reference(at("r").to_string_lossy()).on(at("text.txt")).windows(32, 32),
        );
        let run = study.run_into(|| study.open(folder.path())).unwrap().path().to_path_buf();
        assert_eq!(study.outdated(&run).unwrap(), None);
        fs::remove_dir_all(at("r")).unwrap();
        model("bf16").save(&at("r")).unwrap();
        assert_eq!(study.outdated(&run).unwrap().as_deref(), Some("the model r has changed since"));
        assert_eq!(study.current_in(folder.path()).unwrap(), None);
    }
}
