//! How prediction goes with the length of what was read: the NLL by position, and where a model parts from its reference.
//!
//! A token's context is the number of tokens before it in its window. Windows of several lengths tile the text, each
//! read from a state of zeros, and a context is taken from the shortest windows that reach it: many short ones for the
//! early contexts, few long ones for the late. Contexts are binned by powers of two.

use super::divergence::between;
use super::finite::{self, Known};
use super::limit::{WINDOW, at_most};
use super::reference::{self, Beside};
use super::window::{Excerpt, Sliding};
use super::{Measure, subject};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::progress::Progress;
use crate::record::Reading;
use crate::stats::{Bootstrap, Estimate, Z95, holm};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// Tokens that are read at a time.
const PIECE: usize = 1024;
/// Probability of an error anywhere among the bins that counts as none.
const ALPHA: f64 = 0.05;

/// Which text is read to which length, and what the model is compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LongContext {
    /// The model at full precision: a folder, a file, a hub id or `random:SHAPE`; by default what the model itself was
    /// loaded from.
    pub reference: Option<String>,
    /// A text file, a JSONL file, or a folder of texts or of splits.
    pub corpus: PathBuf,
    /// The split, if the folder has splits.
    pub split: Option<String>,
    /// Tokens of the windows, powers of two.
    pub lengths: Vec<usize>,
    /// Read only the first tokens of the text.
    pub max_tokens: Option<usize>,
    /// How intervals are found; a block never reaches from one window into another.
    pub bootstrap: Bootstrap,
}

impl Default for LongContext {
    fn default() -> Self {
        Self {
            reference: None,
            corpus: PathBuf::from("data/corpus"),
            split: Some("test".to_string()),
            lengths: vec![512, 4096, 32_768],
            max_tokens: None,
            bootstrap: Bootstrap::default(),
        }
    }
}

/// What was found at the contexts of one bin, token by token in the order of the text.
#[derive(Clone, Debug, Default)]
struct Bin {
    contexts: Range<usize>,
    rise: Vec<f64>,
    reference: Vec<f64>,
    kl: Vec<f64>,
}

impl LongContext {
    /// The NLL by position up to windows of these lengths, powers of two.
    pub fn lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self { lengths: lengths.into_iter().collect(), ..Self::default() }
    }

    /// Sets the text: a file, or a folder of texts.
    #[must_use]
    pub fn on(mut self, corpus: impl Into<PathBuf>) -> Self {
        (self.corpus, self.split) = (corpus.into(), None);
        self
    }

    /// Reads only the first `count` tokens.
    #[must_use]
    pub fn max_tokens(mut self, count: usize) -> Self {
        self.max_tokens = Some(count);
        self
    }

    /// The comparison of `model` with a reference at hand: a row a bin, and a summary.
    ///
    /// # Errors
    /// If a setting is wrong, the text cannot be read or is shorter than a window, or the two do not speak of the same
    /// tokens.
    pub fn compare(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        reference::comparable(reference, model)?;
        let text = self.tokens(model)?;
        let clock = Instant::now();
        let bins = self.bins(reference, model, &text.ids)?;
        let runtime = clock.elapsed().as_secs_f64();
        let identity = self.identity(reference, model, &text.corpus)?;
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.sliding().conditions())
                .fingerprint(&identity)
                .value("training_length", model.training_length)
        };
        let rises = bins.iter().map(|bin| self.estimate(&bin.rise, bin)).collect::<Result<Vec<_>>>()?;
        let adjusted = holm(&rises.iter().map(|rise| rise.p).collect::<Vec<_>>());
        let mut rows = vec![];
        for ((bin, rise), p) in bins.iter().zip(&rises).zip(&adjusted) {
            let (kl, exact) = (self.estimate(&bin.kl, bin)?, self.estimate(&bin.reference, bin)?);
            let Range { start, end } = bin.contexts;
            rows.push(
                row()
                    .row("bin")
                    .value("context_low", start)
                    .value("context_high", end - 1)
                    .value("context", ((start * (end - 1)) as f64).sqrt())
                    .value("n_tokens", bin.rise.len())
                    .value("nll", exact.value + rise.value)
                    .value("reference_nll", exact.value)
                    .value("reference_nll_low", exact.low)
                    .value("reference_nll_high", exact.high)
                    .value("delta_nll", rise.value)
                    .value("delta_nll_low", rise.low)
                    .value("delta_nll_high", rise.high)
                    .value("delta_nll_p", rise.p)
                    .value("delta_nll_p_holm", *p)
                    .value("kl", kl.value)
                    .value("kl_low", kl.low)
                    .value("kl_high", kl.high),
            );
        }
        let scored: usize = bins.iter().map(|bin| bin.rise.len()).sum();
        let parts = rises.iter().zip(&adjusted).position(|(rise, p)| rise.value > 0.0 && *p < ALPHA);
        let known = rises.iter().all(|rise| !rise.value.is_nan());
        let summary = text
            .name(row().value("parts_at", Known(parts.map(|i| bins[i].contexts.start), known)))
            .value("n_tokens", scored)
            .value("runtime_s", runtime);
        let summary = match model.training_length {
            Some(length) => widening(summary, &bins, &rises, length),
            None => summary,
        };
        rows.push(reference::describe(reference, summary));
        let windows = self.lengths.iter().flat_map(|length| text.ids.chunks_exact(*length));
        finite::told(rows, &[("in the reference ", reference), ("", model)], windows)
    }

    /// The text in the model's tokens: at least one of the longest windows.
    fn tokens(&self, model: &Model) -> Result<Excerpt> {
        let mut before = 0;
        for length in &self.lengths {
            if !length.is_power_of_two() || *length <= before.max(1) {
                return Err(Error::input(format!(
                    "lengths must be rising powers of two, found {:?}",
                    self.lengths
                )));
            }
            before = *length;
        }
        at_most("lengths", [before], WINDOW)?;
        self.bootstrap.check()?;
        let text = self.sliding().cut(model)?;
        let found = text.ids.len();
        if self.lengths.is_empty() || found < before {
            return Err(Error::input(format!("{found} tokens are fewer than one window of {before}"))
                .at(self.corpus.display())
                .hint("name a longer text, or shorter lengths"));
        }
        Ok(text)
    }

    /// Reads everything once with each of the two models.
    fn bins(&self, reference: &Model, model: &Model, ids: &[u32]) -> Result<Vec<Bin>> {
        let longest = self.lengths.last().copied().unwrap_or(1);
        let of_octave = |k: u32| Bin { contexts: 1 << k..1 << (k + 1), ..Bin::default() };
        let mut bins: Vec<Bin> = (0..longest.ilog2()).map(of_octave).collect();
        let tokens = self.lengths.iter().map(|length| ids.len() / length * length).sum::<usize>();
        let progress = Progress::new("context", tokens as u64, "tokens");
        let mut reached = 1;
        for length in &self.lengths {
            for window in ids.chunks_exact(*length) {
                let mut states = [reference.state(1)?, model.state(1)?];
                for first in (0..length - 1).step_by(PIECE) {
                    let last = (first + PIECE).min(length - 1);
                    let read = model.tokens(&window[first..last])?;
                    let [p, q] = &mut states;
                    let (p, q) = (reference.hidden(&read, Some(p))?, model.hidden(&read, Some(q))?);
                    // After `context` tokens the next one is predicted.
                    let from = reached.max(first + 1);
                    if from <= last {
                        let scored = |hidden: &candle_core::Tensor| {
                            hidden.narrow(1, from - first - 1, last + 1 - from)
                        };
                        let targets = &window[from..=last];
                        let all = between((reference, &scored(&p)?), (model, &scored(&q)?), targets)?;
                        for (context, token) in (from..).zip(all) {
                            let bin = &mut bins[context.ilog2() as usize];
                            bin.rise.push(token.nll - token.reference_nll);
                            bin.reference.push(token.reference_nll);
                            bin.kl.push(token.kl);
                        }
                    }
                    progress.tick((last - first) as u64)?;
                }
                progress.tick(1)?;
            }
            reached = *length;
        }
        Ok(bins)
    }

    /// The mean of a bin's values. A block is at most the run of neighbours that one window gives.
    fn estimate(&self, values: &[f64], bin: &Bin) -> Result<Estimate> {
        let bootstrap = self.bootstrap.block(self.bootstrap.block.min(bin.contexts.len()));
        bootstrap.mean(values).ok_or_else(|| Error::internal("a bin holds no token"))
    }
}

/// Whether the rise itself rises beyond the training length: its change from the last bin within that length to the
/// longest contexts, and the first bin where the change is one (Holm over the bins beyond). Bins are of different tokens,
/// so the half-widths of their intervals add in squares.
fn widening(summary: Reading, bins: &[Bin], rises: &[Estimate], training_length: usize) -> Reading {
    let within = bins.iter().rposition(|bin| bin.contexts.end <= training_length.next_power_of_two());
    let (Some(within), Some(last)) = (within, rises.len().checked_sub(1)) else { return summary };
    let change = |i: usize| {
        let half = |rise: &Estimate| (rise.high - rise.low) / 2.0;
        (rises[i].value - rises[within].value, half(&rises[i]).hypot(half(&rises[within])))
    };
    let beyond: Vec<usize> = (within + 1..rises.len()).collect();
    let p = |i: &usize| {
        let (by, half) = change(*i);
        if half > 0.0 { two_sided(by / (half / Z95)) } else { 1.0 }
    };
    let adjusted = holm(&beyond.iter().map(p).collect::<Vec<_>>());
    let first = beyond.iter().zip(adjusted).find(|(i, p)| change(**i).0 > 0.0 && *p < ALPHA);
    let (by, half) = change(last);
    summary
        .value("widens_at", first.map(|(i, _)| bins[*i].contexts.start))
        .value("widening", by)
        .value("widening_low", by - half)
        .value("widening_high", by + half)
}

/// The probability of a standard normal deviate farther from 0 than this one.
fn two_sided(deviate: f64) -> f64 {
    use statrs::distribution::{ContinuousCDF, Normal};
    2.0 * Normal::standard().cdf(-deviate.abs())
}

impl Beside for LongContext {
    const IS: (&'static str, u32) = ("context", 1);

    fn reference(&self) -> Option<&str> {
        self.reference.as_deref()
    }

    /// As the windows of other measurements tell it: the longest are `seq_len` tokens.
    fn sliding(&self) -> Sliding<'_> {
        let longest = self.lengths.iter().copied().max().unwrap_or(1);
        Sliding {
            corpus: &self.corpus,
            split: self.split.as_deref(),
            seq_len: longest,
            stride: longest,
            max_tokens: self.max_tokens,
        }
    }

    fn settings(&self) -> Value {
        json!({"lengths": self.lengths, "max_tokens": self.max_tokens, "bootstrap": self.bootstrap})
    }

    fn sensible(&self, model: &Model) -> Result<()> {
        self.bootstrap.check()?;
        self.tokens(model).map(|_| ())
    }

    fn against(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        self.compare(reference, model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> (tempfile::TempDir, LongContext) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "What was read long ago is still in the state, more or less. ".repeat(50))
            .unwrap();
        let bootstrap = Bootstrap::default().block(32).resamples(200);
        (folder, LongContext { bootstrap, ..LongContext::lengths([64, 2048]) }.on(file))
    }

    /// The bins against scores of whole windows, by the path that perplexity takes.
    #[test]
    fn contexts_are_read_from_the_shortest_windows_that_reach_them() {
        let (_folder, context) = setting();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let quantized = model.quantized(&"w3a16".parse().unwrap()).unwrap();
        let rows = context.compare(&model, &quantized).unwrap();
        let ids = context.tokens(&model).unwrap().ids;
        let mean = |model: &Model, length: usize, contexts: Range<usize>| {
            let nll = |window: &[u32]| {
                model.nll(window, length - 1).unwrap()[contexts.start - 1..contexts.end - 1].to_vec()
            };
            let all: Vec<f32> = ids.chunks_exact(length).flat_map(nll).collect();
            all.iter().map(|x| f64::from(*x)).sum::<f64>() / all.len() as f64
        };
        assert_eq!(rows.len(), 11 + 1);
        for (row, length, contexts) in
            [(0, 64, 1..2), (5, 64, 32..64), (6, 2048, 64..128), (10, 2048, 1024..2048)]
        {
            let row = &rows[row];
            let ends = ["context_low", "context_high"].map(|name| row.number(name).unwrap());
            assert_eq!(ends, [contexts.start as f64, contexts.end as f64 - 1.0]);
            let exact = mean(&model, length, contexts.clone());
            assert!((row.number("reference_nll").unwrap() - exact).abs() < 1e-4, "{contexts:?}");
            let rise = mean(&quantized, length, contexts.clone()) - exact;
            assert!((row.number("delta_nll").unwrap() - rise).abs() < 1e-4, "{contexts:?}");
            assert_eq!(row.number("n_tokens"), Some((3000 / length * contexts.len()) as f64));
        }
    }

    #[test]
    fn a_model_never_parts_from_itself() {
        let (_folder, context) = setting();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let same = context.compare(&model, &model).unwrap();
        assert!(same.iter().take(11).all(|row| row.number("delta_nll") == Some(0.0)));
        assert!(same[11].values["parts_at"].is_null());
        let found = |rises: &[(f64, f64)]| {
            let bin = |k: usize| Bin { contexts: 1 << k..2 << k, ..Bin::default() };
            let bins: Vec<Bin> = (0..rises.len()).map(bin).collect();
            let rise = |(value, half): &(f64, f64)| Estimate {
                value: *value,
                low: value - half,
                high: value + half,
                p: 0.5,
            };
            let rises: Vec<Estimate> = rises.iter().map(rise).collect();
            let summary = widening(Reading::default(), &bins, &rises, 4);
            (
                summary.number("widens_at"),
                summary.number("widening").unwrap(),
                summary.number("widening_low").unwrap(),
            )
        };
        // Trained at 4: the bin of 2 and 3 is the last within. .1 ± .03 against .1 and .2 ± .04 beyond.
        let (at, by, low) = found(&[(0.3, 0.01), (0.1, 0.03), (0.1, 0.04), (0.2, 0.04)]);
        assert!(
            at == Some(8.0) && (by - 0.1).abs() < 1e-12 && (low - 0.05).abs() < 1e-12,
            "{at:?} {by} {low}"
        );
        assert_eq!(found(&[(0.3, 0.01), (0.1, 0.03), (0.1, 0.04), (0.14, 0.04)]).0, None);
    }

    #[test]
    fn bad_settings_are_one_sentence() {
        let (_folder, context) = setting();
        let model = Model::load("random:mamba2-tiny").unwrap();
        for (lengths, part) in [
            (vec![64, 100], "rising powers of two"),
            (vec![128, 64], "rising powers of two"),
            (vec![1], "rising powers of two"),
            (vec![4096], "3000 tokens are fewer than one window of 4096"),
            (vec![], "fewer than one window"),
        ] {
            let error = LongContext { lengths, ..context.clone() }.measure(&model).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
