//! How prediction goes with the length of what was read: the NLL by position, and where a model parts from its reference.
//!
//! A token's context is the number of tokens before it in its window. Windows of several lengths tile the text, each
//! read from a state of zeros, and a context is taken from the shortest windows that reach it: many short ones for the
//! early contexts, few long ones for the late. Contexts are binned by powers of two.

use super::finite;
use super::instrument::{Listed, Table};
use super::limit::{WINDOW, at_most, fits, smaller};
use super::reference::{self, Beside};
use super::window::{Excerpt, Sliding};
use super::{Measure, subject, too_little, work};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::onward::between;
use crate::progress::Progress;
use crate::record::Reading;
use crate::stats::{Estimate, Interval};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// Tokens that are read at a time.
const PIECE: usize = 1024;

settings! {
    /// Prediction against what was read before, and where a model parts from its reference.
    pub struct LongContext(reference, text) {
        /// Tokens of the windows, rising powers of two.
        #[arg(long, value_delimiter = ',')]
        pub lengths: Vec<usize>,
    }
    (max_tokens) {
        /// How intervals are found.
        #[arg(skip)]
        pub interval: Interval,
    }
}

impl Default for LongContext {
    fn default() -> Self {
        Self {
            reference: None,
            corpus: PathBuf::from("data/corpus"),
            split: Some("test".to_string()),
            lengths: vec![512, 4096, 32_768],
            max_tokens: None,
            interval: Interval::default(),
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
    /// Of each document of the text, how many of these tokens are in it.
    documents: Vec<usize>,
}

impl LongContext {
    /// The NLL by position up to windows of these lengths, powers of two.
    pub fn lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self { lengths: lengths.into_iter().collect(), ..Self::default() }
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
        let bins = self.bins(reference, model, &text)?;
        let runtime = clock.elapsed().as_secs_f64();
        let identity = self.identity(reference, model, &text.corpus)?;
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.sliding().conditions())
                .fingerprint(&identity)
                .value("training_length", model.training_length)
        };
        let rises = bins.iter().map(|bin| self.estimate(&bin.rise, bin)).collect::<Result<Vec<_>>>()?;
        let mut rows = vec![];
        for (bin, rise) in bins.iter().zip(&rises) {
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
                    .value("delta_nll_error", rise.error)
                    .value("delta_nll_blocks", rise.blocks)
                    .value("kl", kl.value)
                    // No divergence is below 0.
                    .value("kl_low", if kl.low < 0.0 { 0.0 } else { kl.low })
                    .value("kl_high", kl.high),
            );
        }
        let scored: usize = bins.iter().map(|bin| bin.rise.len()).sum();
        let summary = text
            .name(row())
            .value("n_tokens", scored)
            .value("documents", text.documents().len())
            .value("runtime_s", runtime);
        // A bin of few tokens says that something is missing for all of them.
        let little = rises.iter().find(|rise| rise.is_alone()).copied();
        let summary = too_little(summary, little);
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
        self.interval.check()?;
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
    fn bins(&self, reference: &Model, model: &Model, text: &Excerpt) -> Result<Vec<Bin>> {
        let longest = self.lengths.last().copied().unwrap_or(1);
        let (ids, documents) = (&text.ids, text.documents().len());
        let of_octave =
            |k: u32| Bin { contexts: 1 << k..1 << (k + 1), documents: vec![0; documents], ..Bin::default() };
        let mut bins: Vec<Bin> = (0..longest.ilog2()).map(of_octave).collect();
        let tokens = self.lengths.iter().map(|length| ids.len() / length * length).sum::<usize>();
        let progress = Progress::new("context", tokens as u64, "tokens");
        let mut reached = 1;
        for length in &self.lengths {
            for (start, window) in (0..).step_by(*length).zip(ids.chunks_exact(*length)) {
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
                            bin.documents[text.document_at(start + context)] += 1;
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

    /// The mean of a bin's values, which are in the order of the text.
    fn estimate(&self, values: &[f64], bin: &Bin) -> Result<Estimate> {
        let found = self.interval.mean(values, &bin.documents);
        found.ok_or_else(|| Error::internal("a bin holds no token"))
    }
}

impl Beside for LongContext {
    const IS: (&'static str, u32) = ("context", 2);

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
        json!({"lengths": self.lengths, "max_tokens": self.max_tokens, "interval": self.interval})
    }

    fn fits(&self, model: &Model) -> Result<()> {
        fits(model, "lengths", self.lengths.iter().copied())
    }

    fn sensible(&self, model: &Model) -> Result<()> {
        self.interval.check()?;
        self.tokens(model).map(|_| ())
    }

    fn against(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        self.compare(reference, model)
    }
}

impl Listed for LongContext {
    const TABLES: &'static [Table] =
        &[Table::of("context", &["model", "scheme", "reference", "n_tokens", "documents"])];

    fn work(&self, model: &Model) -> f64 {
        2.0 * self.lengths.len() as f64 * work::text(&self.sliding(), model)
    }

    fn small(&mut self) {
        (self.lengths, self.max_tokens) = (smaller(&self.lengths, [256, 2048]), Some(4096));
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
        (folder, LongContext::lengths([64, 2048]).on(file))
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
        assert!(same.iter().take(11).all(|row| row.number("delta_nll_p") == Some(1.0)));
        // Each bin's tokens are of the one document, and as many as it says.
        let text = context.tokens(&model).unwrap();
        for bin in context.bins(&model, &model, &text).unwrap() {
            assert_eq!(bin.documents, [bin.rise.len()]);
        }
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
