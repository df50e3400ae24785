//! Ablations: one training with and without its parts, several seeds each, in one resumable run.
//!
//! Each training leaves a row with its bits per byte; once all are there, a summary for each variant compares it with the first
//! one, seed by seed: the mean difference with the interval of Student's t over seeds, its p-value, and that after Holm's correction
//! for all variants.

use crate::error::{Error, Result};
use crate::measure::{Table, subject};
use crate::model::Model;
use crate::progress::check_interrupt;
use crate::record::{Conditions, Reading, Row, Run, SUMMARY, Subject, content_hash, read_lines};
use crate::stats::{holm, paired};
use crate::train::Training;
use serde::{Deserialize, Serialize};
use serde_json::Value;
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
        "bits_per_byte_quantized",
        "difference",
        "difference_low",
        "difference_high",
        "p_holm",
        "tokens_per_s",
    ],
};

/// Its version.
const VERSION: u32 = 1;

impl Ablation {
    /// Trains what `run` does not hold yet, each in a folder of its own below `folder`, and records it.
    ///
    /// # Errors
    /// If a variant's settings cannot be followed, or a training fails.
    pub fn record(&self, run: &Run, folder: &Path) -> Result<()> {
        let all = self.trainings()?;
        for (variant, training) in &all {
            let fingerprint = fingerprint(variant, training)?;
            if run.has(&fingerprint) {
                continue;
            }
            let place = folder.join(format!("{variant}-{}", training.seed));
            let outcome = training
                .run(&place)
                .map_err(|error| error.at(format!("{variant}, seed {}", training.seed)))?;
            let mut model = Model::load(&outcome.model.to_string_lossy())?;
            model.name = format!("{variant}, seed {}", training.seed);
            let mixture = &training.mixture;
            let row = reading(&subject(&model), training.seed)
                .row("training")
                .fingerprint(&fingerprint)
                .value("variant", variant.as_str())
                .value("steps", outcome.steps)
                .value("tokens", outcome.steps * (mixture.batch_size * mixture.seq_len) as u64)
                .value("bits_per_byte", outcome.valid_bits_per_byte)
                .value("bits_per_byte_quantized", outcome.valid_bits_per_byte_quantized)
                .value("tokens_per_s", outcome.tokens_per_s);
            let closing = reading(&subject(&model), training.seed)
                .fingerprint(&fingerprint)
                .value("variant", variant.as_str())
                .value("done", "training");
            run.record(&[row, closing])?;
            check_interrupt()?;
        }
        self.compare(run, &all)
    }

    /// Each variant with each seed.
    fn trainings(&self) -> Result<Vec<(String, Training)>> {
        if self.variants.is_empty() || self.seeds.is_empty() {
            return Err(Error::input("an ablation needs a variant and a seed at least").at(&self.name));
        }
        let base = serde_json::to_value(&self.base).map_err(Error::internal)?;
        let mut all = vec![];
        for Variant { name, change } in &self.variants {
            let mut settings = base.clone();
            merge(&mut settings, change);
            let changed: Training = serde_json::from_value(settings)
                .map_err(|error| Error::input(format!("{error}")).at(format!("variant {name}")))?;
            all.extend(
                self.seeds.iter().map(|seed| (name.clone(), Training { seed: *seed, ..changed.clone() })),
            );
        }
        Ok(all)
    }

    /// Records how each variant compares with the first.
    fn compare(&self, run: &Run, all: &[(String, Training)]) -> Result<()> {
        let units = all.iter().map(|(variant, training)| fingerprint(variant, training));
        let identity = content_hash(&units.collect::<Result<Vec<_>>>()?)?;
        if run.has(&identity) {
            return Ok(());
        }
        let rows = read_lines(run.path().join("metrics.jsonl"))?.rows;
        let is_training = |row: &&Row| row.get("row").and_then(Value::as_str) == Some("training");
        let rows: Vec<&Row> = rows.iter().filter(is_training).collect();
        let value = |variant: &str, seed: u64, column: &str| -> Option<f64> {
            let is = |row: &&&Row| {
                row.get("variant").and_then(Value::as_str) == Some(variant)
                    && row.get("seed").and_then(Value::as_u64) == Some(seed)
            };
            rows.iter().find(is)?.get(column)?.as_f64()
        };
        let of = |variant: &str, column: &str| -> Vec<f64> {
            self.seeds.iter().filter_map(|seed| value(variant, *seed, column)).collect()
        };
        let mean =
            |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let first = of(&self.variants[0].name, "bits_per_byte");
        let tests: Vec<_> = self.variants[1..]
            .iter()
            .map(|variant| {
                let own = of(&variant.name, "bits_per_byte");
                let differences: Vec<f64> = own.iter().zip(&first).map(|(own, first)| own - first).collect();
                (differences.len() == self.seeds.len()).then(|| paired(&differences)).flatten()
            })
            .collect();
        let p: Vec<f64> = tests.iter().flatten().map(|test| test.p).collect();
        let mut corrected = holm(&p).into_iter();
        let mut readings = vec![];
        for (i, Variant { name, .. }) in self.variants.iter().enumerate() {
            let own = of(name, "bits_per_byte");
            let mut row = reading(&Subject { model: name.clone(), ..Subject::default() }, 0)
                .row("variant")
                .fingerprint(&identity)
                .value("variant", name.as_str())
                .value("seeds", own.len())
                .value("bits_per_byte", mean(&own))
                .value("bits_per_byte_quantized", mean(&of(name, "bits_per_byte_quantized")))
                .value("tokens_per_s", mean(&of(name, "tokens_per_s")));
            if let Some(test) = i.checked_sub(1).and_then(|i| tests[i]) {
                row = row
                    .value("difference", test.mean)
                    .value("difference_low", test.low)
                    .value("difference_high", test.high)
                    .value("p", test.p)
                    .value("p_holm", corrected.next());
            }
            readings.push(row);
        }
        let closing = reading(&Subject { model: self.variants[0].name.clone(), ..Subject::default() }, 0);
        readings.push(closing.row(SUMMARY).fingerprint(&identity).value("done", "comparison"));
        run.record(&readings)
    }
}

fn reading(subject: &Subject, seed: u64) -> Reading {
    Reading::new(NAME, VERSION, subject, &Conditions { seed: Some(seed), ..Conditions::default() })
}

/// What decides the result of a training, but for its texts, which have their hashes in their folder's card.
fn fingerprint(variant: &str, training: &Training) -> Result<String> {
    content_hash(&(NAME, VERSION, variant, training))
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
        };
        let run = Run::create_in(at("runs"), "small").unwrap();
        ablation.record(&run, &at("trained")).unwrap();
        let rows = read_lines(run.path().join("metrics.jsonl")).unwrap().rows;
        let of = |kind: &str| rows.iter().filter(|row| row["row"] == kind).collect::<Vec<_>>();
        assert_eq!((of("training").len(), of("variant").len()), (9, 3));
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
        // Nothing is trained twice.
        std::fs::remove_dir_all(at("trained")).unwrap();
        ablation.record(&run, &at("trained")).unwrap();
        assert!(!at("trained").exists());
        ablation.variants[1].change = json!({"model": {"q_rnak": 0}});
        let error = ablation.record(&run, &at("trained")).unwrap_err().to_string();
        assert!(error.contains("variant full-rank") && error.contains("q_rnak"), "{error}");
    }
}
