//! Stability of free-running decoding: both models continue the same prompts greedily, each from its own words.
//!
//! Where scores on a given text hide an error that every token brings back to the path, a continuation does not: after
//! the first token that differs the two go different ways. For each prompt: how many tokens agree until then, how much
//! each repeats itself, and how unsure it is of its next token.

use super::finite::{self, Known};
use super::instrument::{Listed, Table};
use super::limit::{MADE, at_most, fits, smaller};
use super::reference::{self, Beside};
use super::window::{Excerpt, Sliding};
use super::{Measure, subject, work};
use crate::error::{Error, Result};
use crate::kernel::softmax::{argmax, log_sum_exp};
use crate::layer::op::with_floats;
use crate::model::{Model, Positions};
use crate::progress::{Progress, check_interrupt};
use crate::record::{Conditions, Provenance, Reading};
use crate::stats::{Interval, Z95, quantile, wilson};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

/// Tokens of all prompts together that are read at a time, so that memory does not grow with their length.
const PIECE: usize = 4096;

settings! {
    /// When greedy continuations part from a reference's, how they repeat themselves and how unsure they are.
    pub struct Stability(reference, text) {
        /// Prompt lengths in tokens.
        #[arg(long, value_delimiter = ',')]
        pub lengths: Vec<usize>,
        /// Prompts of each length, from evenly spaced places of the text; decoded together.
        #[arg(long)]
        pub prompts: usize,
        /// Tokens generated after each.
        #[arg(long)]
        pub gen_len: usize,
        /// Tokens of a run that counts as a repetition where it was generated before.
        #[arg(skip)]
        pub ngram: usize,
    }
}

impl Default for Stability {
    fn default() -> Self {
        Self {
            reference: None,
            corpus: PathBuf::from("data/corpus"),
            split: Some("test".to_string()),
            lengths: vec![64, 256, 1024],
            prompts: 16,
            gen_len: 128,
            ngram: 8,
        }
    }
}

impl Stability {
    /// Prompts of these lengths, in tokens.
    pub fn lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self { lengths: lengths.into_iter().collect(), ..Self::default() }
    }

    /// Sets the number of prompts of each length.
    #[must_use]
    pub fn prompts(mut self, prompts: usize) -> Self {
        self.prompts = prompts;
        self
    }

    /// Sets how many tokens follow each prompt.
    #[must_use]
    pub fn generate(mut self, tokens: usize) -> Self {
        self.gen_len = tokens;
        self
    }

    /// The stability of `model` beside a reference at hand: for each length a row for each prompt, and a summary.
    ///
    /// # Errors
    /// If a setting is wrong, the text is too short, or the two do not speak of the same tokens.
    pub fn compare(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        self.sensible(model)?;
        reference::comparable(reference, model)?;
        let rows: Result<Vec<_>> =
            self.units().iter().map(|unit| unit.one_length(reference, model)).collect();
        Ok(rows?.concat())
    }

    /// How far the last prompt of a length may be moved on from the first.
    fn room(&self, text: &Excerpt, length: usize) -> Result<usize> {
        let Some(room) = text.ids.len().checked_sub(length) else {
            let found = text.ids.len();
            return Err(Error::input(format!("{found} tokens are fewer than one prompt of {length}"))
                .at(self.corpus.display())
                .hint("name a longer text or shorter lengths"));
        };
        if self.prompts > room + 1 {
            let what =
                format!("the text has {} places for a prompt of {length}, not {}", room + 1, self.prompts);
            return Err(Error::input(what)
                .at(self.corpus.display())
                .hint("name a longer text or fewer prompts"));
        }
        Ok(room)
    }

    fn one_length(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        let length = *self.lengths.first().ok_or_else(|| Error::internal("a unit has one length"))?;
        let text = self.sliding().cut(model)?;
        let room = self.room(&text, length)?;
        let start = |prompt: usize| prompt * room / self.prompts;
        let prompts: Vec<&[u32]> =
            (0..self.prompts).map(|i| &text.ids[start(i)..start(i) + length]).collect();
        let progress = Progress::new(&format!("stability {length}"), 2 * self.gen_len as u64, "steps");
        let clock = Instant::now();
        let [exact, found] = [reference, model].map(|model| self.decode(model, &prompts, &progress));
        let (exact, found) = (exact?, found?);
        let runtime = clock.elapsed().as_secs_f64();

        let identity = self.identity(reference, model, &text.corpus)?;
        let conditions = Conditions {
            batch_size: Some(self.prompts as u64),
            gen_len: Some(self.gen_len as u64),
            threads: Some(crate::threads::threads() as u64),
            ..Conditions::default()
        };
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &conditions)
                .fingerprint(&identity)
                .value("context_length", length)
        };
        let pairs: Vec<Pair> =
            exact.iter().zip(&found).map(|(exact, found)| Pair::of(exact, found, self.ngram)).collect();
        let mut rows: Vec<Reading> = pairs
            .iter()
            .enumerate()
            .map(|(i, pair)| {
                row()
                    .row("prompt")
                    .value("prompt", i)
                    .value("start", start(i))
                    .value("together", Known(pair.together, pair.known()))
                    .value("parted", Known(u8::from(pair.together < self.gen_len), pair.known()))
                    .value("repetition", pair.repetition[1])
                    .value("reference_repetition", pair.repetition[0])
                    .value("entropy", pair.entropy[1])
                    .value("reference_entropy", pair.entropy[0])
            })
            .collect();
        let summary = summarize(&pairs, self.gen_len, row().value("ngram", self.ngram));
        let summary = reference::describe(reference, summary.value("prompts", self.prompts));
        rows.push(text.name(summary).value("runtime_s", runtime));
        finite::told(rows, &[("in the reference ", reference), ("", model)], prompts)
    }

    /// The greedy continuations of all prompts, which are of one length, decoded together.
    fn decode(&self, model: &Model, prompts: &[&[u32]], progress: &Progress) -> Result<Vec<Continuation>> {
        let (count, length, vocab) = (prompts.len(), prompts[0].len(), model.config.vocab_size());
        prompts.iter().try_for_each(|ids| model.tokens(ids).map(|_| ()))?; // held to the vocabulary
        let ids = Tensor::from_vec(prompts.concat(), (count, length), model.device())?;
        let (mut state, piece, mut read) = (model.state(count)?, (PIECE / count).max(1), 0);
        while length - read > piece {
            model.hidden(&ids.narrow(1, read, piece)?.contiguous()?, Some(&mut state))?;
            read += piece;
            check_interrupt()?;
        }
        let mut next = ids.narrow(1, read, length - read)?.contiguous()?;
        let mut all = vec![Continuation::default(); count];
        for _ in 0..self.gen_len {
            let logits = model.forward(&next, Some(&mut state), Positions::Last)?; // [B, 1, V]
            let logits = logits.to_device(&Device::Cpu)?.contiguous()?;
            with_floats([&logits], |[logits]| {
                for (one, row) in all.iter_mut().zip(logits.chunks(vocab)) {
                    one.tokens.push(argmax(row));
                    one.entropy += entropy(row) / self.gen_len as f64;
                }
            })?;
            let last: Vec<u32> = all.iter().filter_map(|one| one.tokens.last().copied()).collect();
            next = Tensor::from_vec(last, (count, 1), model.device())?;
            progress.tick(1)?;
        }
        Ok(all)
    }
}

impl Beside for Stability {
    const IS: (&'static str, u32) = ("stability", 2);

    fn reference(&self) -> Option<&str> {
        self.reference.as_deref()
    }

    fn sliding(&self) -> Sliding<'_> {
        let split = self.split.as_deref();
        Sliding { corpus: &self.corpus, split, seq_len: 1, stride: 1, max_tokens: None }
    }

    fn settings(&self) -> Value {
        let Self { lengths, prompts, gen_len, ngram, .. } = self;
        json!({"lengths": lengths, "prompts": prompts, "gen_len": gen_len, "ngram": ngram})
    }

    fn parts(&self) -> Vec<Self> {
        self.lengths.iter().map(|length| Self { lengths: vec![*length], ..self.clone() }).collect()
    }

    fn fits(&self, model: &Model) -> Result<()> {
        let whole = self.lengths.iter().map(|length| length.saturating_add(self.gen_len));
        fits(model, "lengths with gen_len", whole)
    }

    fn sensible(&self, model: &Model) -> Result<()> {
        for (name, value) in [
            ("lengths", self.lengths.iter().copied().min().unwrap_or(0)),
            ("prompts", self.prompts),
            ("gen_len", self.gen_len),
            ("ngram", self.ngram),
        ] {
            if value == 0 {
                return Err(Error::input(format!("{name} must be at least 1, found 0 or none")));
            }
        }
        at_most("lengths", self.lengths.iter().copied(), MADE)?;
        at_most("gen_len", [self.gen_len], MADE)?;
        // All prompts of a length are decoded together, each with a state of its own.
        let tokens = self.lengths.iter().map(|length| length.saturating_mul(self.prompts));
        at_most("tokens of all prompts of a length", tokens, MADE)?;
        let states = model.state(1)?.bytes().saturating_mul(self.prompts) as u64;
        match Provenance::gather().memory_bytes {
            memory if 0 < memory && memory < states => Err(Error::input(format!(
                "the states of {} prompts take {states} bytes, more than this machine's memory of {memory}",
                self.prompts
            ))
            .hint("ask for fewer prompts")),
            _ => Ok(()),
        }
    }

    fn readable(&self, model: &Model) -> Result<()> {
        let text = self.sliding().cut(model)?;
        self.lengths.iter().try_for_each(|length| self.room(&text, *length).map(drop))
    }

    fn against(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        self.compare(reference, model)
    }
}

impl Listed for Stability {
    const TABLES: &'static [Table] = &[Table::of(
        "stability",
        &[
            "model",
            "scheme",
            "reference",
            "context_length",
            "together_median",
            "never_parted",
            "repetition",
            "reference_repetition",
            "delta_entropy",
            "delta_entropy_low",
            "delta_entropy_high",
        ],
    )];

    fn work(&self, _model: &Model) -> f64 {
        2.0 * self.prompts as f64 * work::prompts(&self.lengths, self.gen_len)
    }

    fn small(&mut self) {
        (self.lengths, self.prompts, self.gen_len) = (smaller(&self.lengths, [32, 128]), 4, 24);
    }
}

/// What one model said after one prompt.
#[derive(Clone, Debug, Default)]
struct Continuation {
    tokens: Vec<u32>,
    /// Mean over its tokens, in nats.
    entropy: f64,
}

/// Both continuations of one prompt; of two values the reference's comes first.
struct Pair {
    /// Tokens before the first that differs.
    together: usize,
    repetition: [f64; 2],
    entropy: [f64; 2],
}

impl Pair {
    fn of(exact: &Continuation, found: &Continuation, ngram: usize) -> Self {
        let same = exact.tokens.iter().zip(&found.tokens).take_while(|(a, b)| a == b);
        let entropy = [exact.entropy, found.entropy];
        let repetition = [exact, found].map(|one| match one.entropy.is_nan() {
            true => f64::NAN,
            false => repetition(&one.tokens, ngram),
        });
        Self { together: same.count(), repetition, entropy }
    }

    /// Whether both continuations come of logits that are numbers.
    fn known(&self) -> bool {
        !self.entropy.iter().any(|entropy| entropy.is_nan())
    }
}

/// Share of the runs of `ngram` tokens that were there before; 0 for a text shorter than that.
fn repetition(tokens: &[u32], ngram: usize) -> f64 {
    let runs = tokens.windows(ngram);
    let (all, distinct) = (runs.len(), runs.collect::<BTreeSet<_>>().len());
    (all - distinct) as f64 / all.max(1) as f64
}

/// −Σ p ln p of the distribution that logits give, in nats. A logit of −∞ has no part in it.
fn entropy(logits: &[f32]) -> f64 {
    let all = log_sum_exp(logits);
    let nats = logits.iter().map(|x| f64::from(all - x));
    nats.filter(|nats| *nats != f64::INFINITY).map(|nats| nats * (-nats).exp()).sum()
}

/// Adds quartiles of the common stretch, the share that never part, and what differs in repetition and entropy.
fn summarize(pairs: &[Pair], gen_len: usize, row: Reading) -> Reading {
    let known = pairs.iter().all(Pair::known);
    let mut together: Vec<f64> =
        pairs.iter().map(|pair| if pair.known() { pair.together as f64 } else { f64::NAN }).collect();
    together.sort_by(f64::total_cmp);
    let whole = pairs.iter().filter(|pair| pair.together == gen_len).count() as u64;
    let (low, high) = wilson(whole, pairs.len() as u64, Z95);
    let mut row = row
        .value("together_median", quantile(&together, 0.5))
        .value("together_q25", quantile(&together, 0.25))
        .value("together_q75", quantile(&together, 0.75))
        .value("never_parted", Known(whole as f64 / pairs.len() as f64, known))
        .value("never_parted_low", Known(low, known))
        .value("never_parted_high", Known(high, known));
    // Prompts stand alone: each is a block.
    let interval = Interval::default().blocks(pairs.len());
    for name in ["repetition", "entropy"] {
        let values = |pair: &Pair| if name == "entropy" { pair.entropy } else { pair.repetition };
        let [exact, found] = [0, 1].map(|i| pairs.iter().map(|pair| values(pair)[i]).collect::<Vec<_>>());
        let delta = interval.of([&found, &exact], &[], |[found, exact]| found - exact);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        row = row
            .value(name, mean(&found))
            .value(&format!("reference_{name}"), mean(&exact))
            .value(&format!("delta_{name}"), delta.map(|delta| delta.value))
            .value(&format!("delta_{name}_low"), delta.map(|delta| delta.low))
            .value(&format!("delta_{name}_high"), delta.map(|delta| delta.high));
    }
    row
}

#[cfg(test)]
mod tests;
