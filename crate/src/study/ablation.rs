//! Ablations: one training with and without its parts, several seeds each, in one resumable run.
//!
//! Each training leaves its curve of loss and a row with its bits per byte, as it is and with its weights rounded as its `qat` says;
//! once all are there, a row for each variant compares it with the first one, seed by seed: mean differences with the interval of
//! Student's t over seeds, their p-values, and these after Holm's correction for all variants, of each quantity on its own.

use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::measure::{Instrument, Table, subject};
use crate::model::tokenizer::Tokenizer;
use crate::model::{Model, parse_tokenizer};
use crate::progress::check_interrupt;
use crate::record::{Conditions, Reading, Row, Run, SUMMARY, Subject, content_hash, read_lines};
use crate::stats::{holm, paired};
use crate::train::Training;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::f64::consts::LN_2;
use std::path::Path;

/// One training, and what is changed of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ablation {
    /// Name of its runs.
    pub name: String,
    /// The training that the others depart from.
    pub base: Training,
    /// Seeds that each variant is trained with.
    pub seeds: Vec<u64>,
    /// By name what is put in the place of the base's settings, as a JSON merge patch (RFC 7396): what is `null` goes back to its
    /// default. The first is what the others are compared with.
    pub variants: Vec<Variant>,
    /// What is measured of each trained model, under the name of its variant and seed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measures: Vec<Instrument>,
}

/// A variant of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its name in records.
    pub name: String,
    /// What is changed.
    #[serde(default)]
    pub change: Value,
}

/// The name of the rows.
const NAME: &str = "ablation";

/// What is shown of it.
pub const TABLE: Table = Table {
    measure: NAME,
    row: "variant",
    columns: &[
        "variant",
        "seeds",
        "bits_per_byte",
        "difference",
        "difference_low",
        "difference_high",
        "p_holm",
        "bits_per_byte_quantized",
        "difference_quantized",
        "p_holm_quantized",
        "tokens_per_s",
    ],
};

/// Its version.
const VERSION: u32 = 2;

/// What variants are compared by: columns, and what the names of their differences end with. The second is what rounding as `qat`
/// says leaves, the third what it costs.
const COMPARED: [(&str, &str); 3] =
    [("bits_per_byte", ""), ("bits_per_byte_quantized", "_quantized"), ("export_gap", "_gap")];

/// Points of a training's curve of loss.
const POINTS: usize = 12;

/// One training of an ablation.
struct Unit {
    variant: String,
    training: Training,
    /// Titles and hashes of the texts that it reads.
    texts: [(String, String); 2],
    fingerprint: String,
}

impl Unit {
    fn new(variant: &str, training: Training, measures: &[Instrument]) -> Result<Self> {
        let text = |split| Corpus::identity(&training.corpus, Some(split));
        let texts = [text("train")?, text("valid")?];
        let tokenizer = match &training.tokenizer {
            Some(name) => parse_tokenizer(name).map_err(|error| error.at("tokenizer"))?,
            None => Tokenizer::Bytes,
        };
        let identity = (NAME, VERSION, variant, &training, &texts, tokenizer.hash());
        let fingerprint = match measures {
            [] => content_hash(&identity)?,
            measures => content_hash(&(identity, measures))?,
        };
        Ok(Self { variant: variant.to_string(), training, texts, fingerprint })
    }

    /// Trains it below `folder`: the model, the row of what it came to, with its curve, and the one that says it is done.
    fn train(&self, folder: &Path) -> Result<(Model, Vec<Reading>)> {
        let Self { variant, training, texts, fingerprint } = self;
        let place = folder.join(format!("{variant}-{}", training.seed));
        let outcome = training.run(&place)?;
        let mut model = Model::load(&outcome.model.to_string_lossy())?;
        model.name = format!("{variant}, seed {}", training.seed);
        let subject = subject(&model);
        let row = |kind: &str| {
            let row = reading(&subject, training.seed).row(kind).fingerprint(fingerprint);
            row.value("variant", variant.as_str())
        };
        let per_step = (training.mixture.batch_size * training.mixture.seq_len) as u64;
        let curve = curve(&place.join("log.jsonl"), outcome.steps)?;
        let (steps, losses): (Vec<f64>, Vec<f64>) = curve.into_iter().unzip();
        let tokens: Vec<f64> = steps.iter().map(|step| step * per_step as f64).collect();
        let gap = outcome.valid_bits_per_byte_quantized.map(|rounded| rounded - outcome.valid_bits_per_byte);
        let [(_, train), (valid_title, valid)] = texts;
        let end = row("training")
            .value("steps", outcome.steps)
            .value("tokens", outcome.steps * per_step)
            .value("corpus", valid_title.as_str())
            .value("corpus_hash", valid.as_str())
            .value("train_hash", train.as_str())
            .value("bits_per_byte", outcome.valid_bits_per_byte)
            .value("bits_per_byte_quantized", outcome.valid_bits_per_byte_quantized)
            .value("export_gap", gap)
            // None where the training had ended before.
            .value("tokens_per_s", Some(outcome.tokens_per_s).filter(|speed| *speed > 0.0))
            .value("curve_tokens", tokens)
            .value("curve_bits_per_token", losses);
        let rows = vec![end, row(SUMMARY).value("done", "training")];
        Ok((model, rows))
    }
}

/// The loss of a training in bits a token by its log: means over equal parts of its steps, each with the last of these.
fn curve(log: &Path, steps: u64) -> Result<Vec<(f64, f64)>> {
    let lines = std::fs::read_to_string(log).map_err(|error| Error::io(log, &error))?;
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let losses: Vec<(f64, f64)> =
        lines.filter_map(|line| Some((line["step"].as_f64()?, line["loss"].as_f64()?))).collect();
    let part = (steps as usize).div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let sum: f64 = part.iter().map(|(_, loss)| loss).sum();
        Some((part.last()?.0, sum / part.len() as f64 / LN_2))
    };
    Ok(losses.chunks(part).filter_map(mean).collect())
}

impl Ablation {
    /// Trains what `run` does not hold yet, each in a folder of its own below `folder`, and records it.
    ///
    /// # Errors
    /// If a variant's settings cannot be followed, or a training fails.
    pub fn record(&self, run: &Run, folder: &Path) -> Result<()> {
        let all = self.units()?;
        for unit in all.iter().filter(|unit| !run.has(&unit.fingerprint)) {
            let trained = unit.train(folder).and_then(|(model, readings)| {
                self.measures.iter().try_for_each(|measure| measure.record(&model, run))?;
                run.record(&readings) // last: what is recorded is done
            });
            trained.map_err(|error| error.at(format!("{}, seed {}", unit.variant, unit.training.seed)))?;
            check_interrupt()?;
        }
        self.compare(run, &all)
    }

    /// Names and versions of the readings that it makes.
    pub fn gives(&self) -> Vec<(&'static str, u32)> {
        let measured = self.measures.iter().flat_map(|measure| measure.gives());
        std::iter::once((NAME, VERSION)).chain(measured).collect()
    }

    /// Each variant with each seed.
    fn units(&self) -> Result<Vec<Unit>> {
        if self.variants.is_empty() || self.seeds.is_empty() {
            return Err(Error::input("an ablation needs a variant and a seed at least").at(&self.name));
        }
        let base = serde_json::to_value(&self.base).map_err(Error::internal)?;
        let mut all = vec![];
        for Variant { name, change } in &self.variants {
            let mut settings = base.clone();
            merge(&mut settings, change);
            let at = |error: Error| error.at(format!("variant {name}"));
            let changed: Training =
                serde_json::from_value(settings).map_err(|error| at(Error::input(format!("{error}"))))?;
            for seed in &self.seeds {
                let training = Training { seed: *seed, ..changed.clone() };
                all.push(Unit::new(name, training, &self.measures).map_err(at)?);
            }
        }
        Ok(all)
    }

    /// Records how each variant compares with the first.
    fn compare(&self, run: &Run, all: &[Unit]) -> Result<()> {
        let identity = content_hash(&all.iter().map(|unit| &unit.fingerprint).collect::<Vec<_>>())?;
        if run.has(&identity) {
            return Ok(());
        }
        let rows = read_lines(run.path().join("metrics.jsonl"))?.rows;
        let is_training = |row: &&Row| row.get("row").and_then(Value::as_str) == Some("training");
        let rows: Vec<&Row> = rows.iter().filter(is_training).collect();
        let of = |variant: &str, column: &str| -> Vec<f64> {
            let own = all.iter().filter(|unit| unit.variant == variant);
            let own = own.filter_map(|unit| {
                let is =
                    |row: &&&Row| row.get("fingerprint").and_then(Value::as_str) == Some(&unit.fingerprint);
                rows.iter().find(is)?.get(column)?.as_f64()
            });
            own.collect()
        };
        let mean =
            |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let mut readings: Vec<Reading> = vec![];
        for Variant { name, .. } in &self.variants {
            let row = reading(&Subject { model: name.clone(), ..Subject::default() }, 0)
                .row("variant")
                .fingerprint(&identity)
                .value("variant", name.as_str())
                .value("seeds", self.seeds.len())
                .value("tokens_per_s", mean(&of(name, "tokens_per_s")));
            readings.push(
                COMPARED.iter().fold(row, |row, (column, _)| row.value(column, mean(&of(name, column)))),
            );
        }
        for (column, end) in COMPARED {
            let first = of(&self.variants[0].name, column);
            let tests: Vec<_> = self.variants[1..]
                .iter()
                .map(|variant| {
                    let own = of(&variant.name, column);
                    let differences: Vec<f64> =
                        own.iter().zip(&first).map(|(own, first)| own - first).collect();
                    (differences.len() == self.seeds.len()).then(|| paired(&differences)).flatten()
                })
                .collect();
            let p: Vec<f64> = tests.iter().flatten().map(|test| test.p).collect();
            let mut corrected = holm(&p).into_iter();
            for (row, test) in readings[1..].iter_mut().zip(&tests) {
                let Some(test) = test else { continue };
                let values = [
                    ("difference", Some(test.mean)),
                    ("difference_low", Some(test.low)),
                    ("difference_high", Some(test.high)),
                    ("p", Some(test.p)),
                    ("p_holm", corrected.next()),
                ];
                *row = values.into_iter().fold(std::mem::take(row), |row, (name, value)| {
                    let name = match name.strip_prefix("difference_") {
                        Some(bound) => format!("difference{end}_{bound}"),
                        None => format!("{name}{end}"),
                    };
                    row.value(&name, value)
                });
            }
        }
        let closing = reading(&Subject { model: self.variants[0].name.clone(), ..Subject::default() }, 0);
        readings.push(closing.row(SUMMARY).fingerprint(&identity).value("done", "comparison"));
        run.record(&readings)
    }
}

fn reading(subject: &Subject, seed: u64) -> Reading {
    Reading::new(NAME, VERSION, subject, &Conditions { seed: Some(seed), ..Conditions::default() })
}

/// A JSON merge patch (RFC 7396): objects are merged, `null` takes a key away, everything else replaces.
fn merge(to: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        if !patch.is_null() {
            *to = patch.clone();
        }
        return;
    };
    if !to.is_object() {
        *to = Value::Object(Default::default());
    }
    let Value::Object(fields) = to else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(fields.remove(key)),
            value => merge(fields.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Config, lowrankq};
    use crate::train::data::Mixture;
    use serde_json::json;

    #[test]
    fn patches_merge_as_the_standard_says() {
        let mut value = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(&mut value, &json!({"a": {"b": null, "e": {"f": 3}}, "d": [2, 3], "g": null}));
        assert_eq!(value, json!({"a": {"c": 2, "e": {"f": 3}}, "d": [2, 3]}));
    }

    #[test]
    fn variants_are_trained_compared_and_not_trained_again() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("corpus")).unwrap();
        for split in ["train", "valid"] {
            let text = "What is left out is seen by what becomes worse. ".repeat(40);
            std::fs::write(at(&format!("corpus/{split}.txt")), text).unwrap();
        }
        let model = lowrankq::Config {
            model_dim: 16,
            num_layers: 2,
            num_heads: 2,
            num_kv_heads: 1,
            mlp_hidden: 16,
            q_rank: lowrankq::Rank::All(4),
            bigram_vocab_size: 32,
            bigram_dim: 8,
            ..Default::default()
        };
        let base = Training {
            model: Config::LowrankQ(model),
            corpus: at("corpus"),
            steps: 3,
            mixture: Mixture { batch_size: 2, seq_len: 24, passkey: 0.0, ..Mixture::default() },
            validate_windows: 2,
            muon: Some(Default::default()),
            ..Training::default()
        };
        let variant = |name: &str, change| Variant { name: name.into(), change };
        let mut ablation = Ablation {
            name: "small".into(),
            base,
            seeds: vec![1, 2, 3],
            variants: vec![
                variant("whole", Value::Null),
                variant("full-rank", json!({"model": {"q_rank": 0}})),
                variant("adamw", json!({"muon": null})),
            ],
            measures: vec![crate::measure::spectrum::Spectrum::default().into()],
        };
        let run = Run::create_in(at("runs"), "small").unwrap();
        ablation.record(&run, &at("trained")).unwrap();
        let rows = read_lines(run.path().join("metrics.jsonl")).unwrap().rows;
        let of = |kind: &str| -> Vec<_> {
            rows.iter().filter(|row| row["measure"] == NAME && row["row"] == kind).collect()
        };
        assert_eq!((of("training").len(), of("variant").len()), (9, 3));
        let spectra = rows.iter().filter(|row| row["measure"] == "spectrum" && row["row"] == "summary");
        let spectra: Vec<_> = spectra.map(|row| row["model"].as_str().unwrap()).collect();
        assert_eq!((spectra.len(), spectra[8]), (9, "adamw, seed 3"));
        assert_eq!(of("training")[0]["curve_tokens"], json!([48.0, 96.0, 144.0]));
        let mean = |variant: &str| -> f64 {
            let own = of("training").into_iter().filter(|row| row["variant"] == variant);
            own.map(|row| row["bits_per_byte"].as_f64().unwrap()).sum::<f64>() / 3.0
        };
        let adamw = of("variant")[2];
        let difference = adamw["difference"].as_f64().unwrap();
        assert!((difference - (mean("adamw") - mean("whole"))).abs() < 1e-12);
        assert!(adamw["difference_low"].as_f64().unwrap() < difference && adamw["p_holm"].as_f64().is_some());
        assert_eq!(
            of("training")[3]["parameters"].as_u64().unwrap()
                - of("training")[0]["parameters"].as_u64().unwrap(),
            2 * (16 * 16 - 2 * 4 * 16)
        );
        // Trained again it says the same; what was changed in the record is told.
        run.write_config(&ablation).unwrap();
        let check = crate::study::Study::check_run(run.path()).unwrap();
        check.passed().unwrap();
        assert!(check.comparison.count(|kind| kind.is_measured()).compared > 100);
        let (copy, lines) = (at("copy"), std::fs::read_to_string(run.path().join("metrics.jsonl")).unwrap());
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(run.path().join("config_resolved.yaml"), copy.join("config_resolved.yaml")).unwrap();
        let loss = of("training")[4]["bits_per_byte"].as_f64().unwrap();
        let changed = lines.replace(&format!("\"bits_per_byte\":{loss}"), "\"bits_per_byte\":9.25");
        std::fs::write(copy.join("metrics.jsonl"), changed).unwrap();
        let error = crate::study::Study::check_run(&copy).unwrap().passed().unwrap_err().to_string();
        assert!(error.contains("are not what was recorded"), "{error}");
        // Nothing is trained twice.
        std::fs::remove_dir_all(at("trained")).unwrap();
        ablation.record(&run, &at("trained")).unwrap();
        assert!(!at("trained").exists());
        ablation.variants[1].change = json!({"model": {"q_rnak": 0}});
        let error = ablation.record(&run, &at("trained")).unwrap_err().to_string();
        assert!(error.contains("variant full-rank") && error.contains("q_rnak"), "{error}");
    }
}
