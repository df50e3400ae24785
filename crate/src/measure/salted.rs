//! "Perplexity" by the protocol of Itera-Lite's INT4 benchmark (its phase 7, task 1), reproduced to be seen beside the right one, and
//! marked as what it is in every record.
//!
//! Texts are 10 to 49 words drawn from word0 … word99; the id of a word is its hash in Python, which is salted anew in every process,
//! modulo the vocabulary: here drawn by the seed and the number of the salt. Texts are padded with the id 0 to the longest sequence.
//! Scored is the cross entropy between the logits of each position and the id **at that position**, not the one after it, padding
//! too; the number is e^(mean over batches of the means), so that the last batch of 8 weighs as much as those of 32. Such a number
//! says how well a model copies ids that nobody trained it on. Beside it stands what is scored of the same texts as it should be: the
//! next id, without padding.

use super::instrument::{Listed, Table};
use super::limit::{MADE, at_most, fits};
use super::{Measure, finite, subject};
use crate::corpus::copying::below;
use crate::error::{Error, Result};
use crate::kernel::softmax;
use crate::layer::op::with_floats;
use crate::model::init::stream;
use crate::model::{Model, Positions};
use crate::progress::Progress;
use crate::record::{Conditions, Reading, fingerprint};
use serde_json::json;
use std::time::Instant;

/// Words that there are.
const WORDS: usize = 100;
/// Sequences of a batch.
const BATCH: usize = 32;

settings! {
    /// "Perplexity" by the protocol of Itera-Lite's INT4 benchmark: unshifted labels, words by a salted hash, padding scored.
    pub struct Salted {
        /// Texts.
        #[arg(long)]
        pub samples: usize,
        /// Tokens that each is padded to.
        #[arg(long)]
        pub seq_len: usize,
        /// How many salts, each a process of its own.
        #[arg(long)]
        pub salts: usize,
        /// Seed of texts and salts.
        #[arg(long)]
        pub seed: u64,
    }
}

impl Default for Salted {
    fn default() -> Self {
        Self { samples: 1000, seq_len: 128, salts: 4, seed: 7 }
    }
}

/// What the texts of one salt gave.
struct Salt {
    /// Mean over batches of unshifted cross entropy, nats.
    unshifted: f64,
    /// Mean over tokens of the cross entropy with the next id, padding left out, nats.
    shifted: f64,
    /// Share of positions that are padding.
    padding: f64,
}

impl Salted {
    fn salt(&self, model: &Model, salt: usize, progress: &Progress) -> Result<Salt> {
        let vocab = model.config.vocab_size();
        let mut rng = stream(self.seed, &format!("salted.{salt}"));
        let ids: Vec<u32> = (0..WORDS).map(|_| below(&mut rng, vocab) as u32).collect();
        let (mut batches, mut next, mut scored, mut padding) = (vec![], 0.0, 0usize, 0usize);
        for first in (0..self.samples).step_by(BATCH) {
            let (mut sum, count) = (0.0, BATCH.min(self.samples - first));
            for _ in 0..count {
                let words = (10 + below(&mut rng, 40)).min(self.seq_len);
                let mut text: Vec<u32> = (0..words).map(|_| ids[below(&mut rng, WORDS)]).collect();
                text.resize(self.seq_len, 0);
                padding += self.seq_len - words;
                let logits = model.forward(&model.tokens(&text)?, None, Positions::All)?;
                let (own, after) = with_floats([&logits.contiguous()?], |[logits]| {
                    let after = &logits[..(words - 1) * vocab];
                    (softmax::nll(logits, vocab, &text), softmax::nll(after, vocab, &text[1..words]))
                })?;
                sum += own.iter().map(|x| f64::from(*x)).sum::<f64>() / self.seq_len as f64;
                next += after.iter().map(|x| f64::from(*x)).sum::<f64>();
                scored += words - 1;
                progress.tick(1)?;
            }
            batches.push(sum / count as f64);
        }
        Ok(Salt {
            unshifted: batches.iter().sum::<f64>() / batches.len() as f64,
            shifted: next / scored.max(1) as f64,
            padding: padding as f64 / (self.samples * self.seq_len) as f64,
        })
    }
}

impl Measure for Salted {
    const NAME: &'static str = "salted";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        let settings = json!([self.samples, self.seq_len, self.salts, self.seed]);
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &"word0 … word99")
    }

    fn check(&self, model: &Model) -> Result<()> {
        for (name, value) in [("samples", self.samples), ("salts", self.salts)] {
            if value == 0 {
                return Err(Error::input(format!("{name} must be at least 1, found 0")));
            }
        }
        at_most("samples", [self.samples], MADE)?;
        if self.seq_len < 10 {
            return Err(Error::input(format!(
                "seq_len = {} is shorter than a text of 10 words",
                self.seq_len
            )));
        }
        fits(model, "seq_len", [self.seq_len])
    }

    /// A row for each salt, and a summary.
    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let (clock, vocab) = (Instant::now(), model.config.vocab_size());
        let identity = self.fingerprint(model)?;
        let conditions = Conditions {
            batch_size: Some(BATCH as u64),
            seq_len: Some(self.seq_len as u64),
            seed: Some(self.seed),
            threads: Some(crate::threads::threads() as u64),
            notes: Some("labels are the inputs, words are hashed with a salt, padding is scored".to_string()),
            ..Conditions::default()
        };
        let row =
            || Reading::new(Self::NAME, Self::VERSION, &subject(model), &conditions).fingerprint(&identity);
        let progress = Progress::new("salted", (self.samples * self.salts) as u64, "texts");
        let (mut rows, mut all) = (vec![], vec![]);
        for salt in 0..self.salts {
            let found = self.salt(model, salt, &progress)?;
            rows.push(
                row()
                    .row("salt")
                    .value("salt", salt)
                    .value("unshifted_ppl", found.unshifted.exp())
                    .value("unshifted_nll", found.unshifted)
                    .value("shifted_ppl", found.shifted.exp())
                    .value("padding", found.padding),
            );
            all.push(found);
        }
        let mean = |of: &dyn Fn(&Salt) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        let ends = |pick: fn(f64, f64) -> f64| all.iter().map(|salt| salt.unshifted.exp()).reduce(pick);
        let nll = mean(&|salt| salt.unshifted);
        let mut summary = row()
            .value("unshifted_ppl", nll.exp())
            .value("unshifted_ppl_low", ends(f64::min))
            .value("unshifted_ppl_high", ends(f64::max))
            .value("unshifted_nll", nll)
            .value("shifted_ppl", mean(&|salt| salt.shifted).exp())
            .value("padding", mean(&|salt| salt.padding))
            .value("salts", self.salts)
            .value("vocab_size", vocab)
            .value("runtime_s", clock.elapsed().as_secs_f64());
        summary.warn("no perplexity: labels are the inputs themselves, and padding is scored");
        if nll.exp() >= vocab as f64 {
            summary.warn(&format!("≥ vocabulary size {vocab}: worse than a uniform guess"));
        }
        rows.push(summary);
        finite::told(rows, &[("", model)], std::iter::empty())
    }
}

impl Listed for Salted {
    const TABLES: &'static [Table] = &[Table::of(
        "salted",
        &[
            "model",
            "scheme",
            "unshifted_ppl",
            "unshifted_ppl_low",
            "unshifted_ppl_high",
            "shifted_ppl",
            "vocab_size",
            "warning",
        ],
    )];

    fn work(&self, _model: &Model) -> f64 {
        (self.samples * self.salts * self.seq_len) as f64
    }

    fn small(&mut self) {
        (self.samples, self.salts) = (40, 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_inputs_and_batches_weigh_alike() {
        let model = Model::load("random:itera-lite-tiny").unwrap();
        let salted = Salted { samples: 33, seq_len: 64, salts: 2, seed: 1 };
        let rows = salted.measure(&model).unwrap();
        assert_eq!(rows.len(), 3);
        let (found, rng) = (rows[0].number("unshifted_nll").unwrap(), &mut stream(1, "salted.0"));
        let ids: Vec<u32> = (0..100).map(|_| below(rng, 8000) as u32).collect();
        let text = |rng: &mut _| {
            let words = 10 + below(rng, 40);
            let mut text: Vec<u32> = (0..words).map(|_| ids[below(rng, 100)]).collect();
            text.resize(64, 0);
            let logits = model.forward(&model.tokens(&text).unwrap(), None, Positions::All).unwrap();
            let rows = logits.squeeze(0).unwrap().to_vec2::<f32>().unwrap();
            let nll = rows.iter().zip(&text).map(|(row, id)| {
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                sum.ln() - f64::from(row[*id as usize])
            });
            nll.sum::<f64>() / 64.0
        };
        let first: f64 = (0..32).map(|_| text(rng)).sum::<f64>() / 32.0;
        let expected = (first + text(rng)) / 2.0;
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        let summary = &rows[2];
        assert!(summary.values["warning"].as_str().unwrap().contains("no perplexity"));
        assert!((summary.number("padding").unwrap() - (64.0 - 29.5) / 64.0).abs() < 0.05);
        let long = Salted { seq_len: 129, ..salted }.check(&model).unwrap_err().to_string();
        assert!(long.contains("seq_len: a sequence of 129 tokens is longer"), "{long}");
    }
}
