//! Copying: several keys said once in noise, and asked for at the end (`corpus::copying`).
//!
//! Prompt and answers are read as one text, each value predicted from all before it. A value is right if no other token is more
//! likely. `accuracy` is the share of prompts with all values right, with Wilson's interval; `value_accuracy` that of values.
//! Without any recall a value is right once in 26 times.

use super::finite::{self, Known};
use super::instrument::{Listed, Table};
use super::limit::{MADE, at_most, fits, smaller};
use super::{Measure, subject, work};
use crate::corpus::copying::{self, VERSION};
use crate::error::{Error, Result};
use crate::kernel::softmax;
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::model::generate::argmax;
use crate::progress::Progress;
use crate::record::{Conditions, Reading, fingerprint};
use crate::stats::{Z95, wilson};
use serde_json::json;
use std::time::Instant;

settings! {
    /// Copying of several keys against context length.
    pub struct Copying {
        /// Prompt lengths in tokens.
        #[arg(long, value_delimiter = ',')]
        pub lengths: Vec<usize>,
        /// Keys of a prompt.
        #[arg(long)]
        pub keys: usize,
        /// Prompts of each length.
        #[arg(long)]
        pub trials: usize,
        /// Seed of the prompts.
        #[arg(long)]
        pub seed: u64,
    }
}

impl Default for Copying {
    fn default() -> Self {
        Self { lengths: vec![32, 64, 128, 256, 512, 1024, 2048], keys: 4, trials: 50, seed: 7 }
    }
}

/// What one prompt gave.
struct Outcome {
    /// Values that are right.
    right: usize,
    /// Log-probability of all values, in nats.
    logprob: f64,
    known: bool,
}

impl Copying {
    /// A sweep over these prompt lengths, in tokens.
    pub fn lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self { lengths: lengths.into_iter().collect(), ..Self::default() }
    }

    /// Sets the number of keys of a prompt.
    #[must_use]
    pub fn keys(mut self, keys: usize) -> Self {
        self.keys = keys;
        self
    }

    /// Sets the number of prompts of each length.
    #[must_use]
    pub fn trials(mut self, trials: usize) -> Self {
        self.trials = trials;
        self
    }

    /// Sets the seed of the prompts.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn tokens(&self, model: &Model, length: usize, trial: usize) -> Result<Vec<u32>> {
        let text = copying::trial(self.seed, length, self.keys, trial)?;
        let (mut ids, answers) = copying::tokens(|text| model.tokenizer.encode(text), &text)?;
        ids.extend(answers);
        Ok(ids)
    }

    /// The values are every second of the last tokens.
    fn ask(&self, model: &Model, ids: &[u32]) -> Result<Outcome> {
        let scored = 2 * self.keys;
        let hidden = model.predicting(ids, scored)?;
        let logits = model.logits(&hidden, &(0..scored))?;
        let (vocab, targets) = (model.config.vocab_size(), &ids[ids.len() - scored..]);
        Ok(with_floats([&logits], |[logits]| {
            let nll = softmax::nll(logits, vocab, targets);
            let values = || (1..scored).step_by(2);
            let row = |i: usize| &logits[i * vocab..][..vocab];
            let right = values().filter(|i| argmax(row(*i)) == targets[*i]).count();
            let logprob = -values().map(|i| f64::from(nll[i])).sum::<f64>();
            let known = values().all(|i| row(i).iter().all(|logit| !logit.is_nan())) && logprob.is_finite();
            Outcome { right, logprob, known }
        })?)
    }

    fn measure_length(&self, model: &Model, length: usize) -> Result<Vec<Reading>> {
        let identity = Self { lengths: vec![length], ..self.clone() }.fingerprint(model)?;
        let conditions = Conditions {
            batch_size: Some(1),
            seed: Some(self.seed),
            threads: Some(crate::threads::threads() as u64),
            ..Conditions::default()
        };
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &conditions)
                .fingerprint(&identity)
                .value("context_length", length)
                .value("training_length", model.training_length)
                .value("keys", self.keys)
        };
        let progress = Progress::new(&format!("copying {length}"), self.trials as u64, "prompts");
        let clock = Instant::now();
        let (mut rows, mut odd) = (vec![], vec![]);
        let (mut whole, mut values, mut logprob) = (0, 0, 0.0);
        for trial in 0..self.trials {
            let ids = self.tokens(model, length, trial)?;
            let outcome = self.ask(model, &ids)?;
            let correct = outcome.right == self.keys;
            (whole, values) = (whole + u64::from(correct), values + outcome.right);
            logprob += outcome.logprob;
            rows.push(
                row()
                    .row("item")
                    .value(
                        "item",
                        format!("{length} tokens, {} keys, seed {}, trial {trial}", self.keys, self.seed),
                    )
                    .value("values_right", outcome.right)
                    .value("correct", Known(u8::from(correct), outcome.known))
                    .value("key_logprob", outcome.logprob),
            );
            if !outcome.known {
                odd.push(ids);
            }
            progress.tick(1)?;
        }
        let (low, high) = wilson(whole, self.trials as u64, Z95);
        let known = |share: f64| Known(share, odd.is_empty());
        rows.push(
            row()
                .value("trials", self.trials)
                .value("accuracy", known(whole as f64 / self.trials as f64))
                .value("accuracy_low", known(low))
                .value("accuracy_high", known(high))
                .value("value_accuracy", known(values as f64 / (self.trials * self.keys) as f64))
                .value("key_logprob", logprob / self.trials as f64)
                .value("template_version", VERSION)
                .value("runtime_s", clock.elapsed().as_secs_f64()),
        );
        finite::told(rows, &[("", model)], odd.iter().map(Vec::as_slice))
    }
}

impl Measure for Copying {
    const NAME: &'static str = "copying";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        self.lengths.iter().map(|length| Self { lengths: vec![*length], ..self.clone() }).collect()
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        let template = json!({"version": VERSION, "tokenizer": model.tokenizer.hash()});
        fingerprint(Self::NAME, Self::VERSION, self, &subject(model), &template)
    }

    fn applies(&self, model: &Model) -> Result<(), String> {
        let alphabet: String = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['?']).collect();
        match model.tokenizer.encode(&alphabet) {
            Ok(ids) if ids.len() == alphabet.len() => Ok(()),
            Ok(_) => Err("copying needs a tokenizer with one token for each character".to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn check(&self, model: &Model) -> Result<()> {
        if self.trials == 0 || self.lengths.is_empty() {
            return Err(Error::input("copying needs at least one length and one trial"));
        }
        at_most("lengths", self.lengths.iter().copied(), MADE)?;
        at_most("trials", [self.trials], MADE)?;
        fits(model, "lengths with the answers", self.lengths.iter().map(|length| length + 2 * self.keys))?;
        self.lengths.iter().try_for_each(|length| self.tokens(model, *length, 0).map(drop))
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let rows: Result<Vec<_>> =
            self.lengths.iter().map(|length| self.measure_length(model, *length)).collect();
        Ok(rows?.concat())
    }
}

impl Listed for Copying {
    const TABLES: &'static [Table] = &[Table::of(
        "copying",
        &[
            "model",
            "scheme",
            "context_length",
            "keys",
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "value_accuracy",
            "key_logprob",
        ],
    )];

    fn work(&self, _model: &Model) -> f64 {
        self.trials as f64 * work::prompts(&self.lengths, 0)
    }

    fn small(&mut self) {
        (self.lengths, self.trials) = (smaller(&self.lengths, [64, 150]), 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_scored_as_nll_scores_them() {
        let model = Model::load("random:gla-tiny").unwrap();
        let copying = Copying { trials: 3, keys: 3, ..Copying::lengths([40, 90]) };
        let rows = copying.measure(&model).unwrap();
        assert_eq!(rows.len(), 2 * 4);
        for (length, rows) in [40, 90].into_iter().zip(rows.chunks(4)) {
            for (trial, row) in rows[..3].iter().enumerate() {
                let ids = copying.tokens(&model, length, trial).unwrap();
                assert_eq!(ids.len(), length + 6);
                let nll = model.nll(&ids, 6).unwrap();
                let values: f32 = nll.iter().skip(1).step_by(2).sum();
                assert!((row.number("key_logprob").unwrap() + f64::from(values)).abs() < 1e-4);
            }
            let summary = &rows[3];
            assert_eq!((summary.number("trials"), summary.number("keys")), (Some(3.0), Some(3.0)));
            assert!(summary.number("value_accuracy").unwrap() <= 1.0);
        }
        assert_eq!(copying.units().len(), 2);
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let model = Model::load("random:gla-tiny").unwrap();
        let error = |copying: Copying| copying.check(&model).unwrap_err().to_string();
        assert!(error(Copying::lengths([5])).contains("shorter than one of 4 keys"));
        assert!(error(Copying::default().keys(40)).contains("1 to 26"));
        assert!(error(Copying::default().trials(0)).contains("at least one"));
    }
}
