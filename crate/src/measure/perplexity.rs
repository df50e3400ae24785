//! Sliding-window perplexity: e^(mean −ln p) over the tokens of a text, each scored exactly once; see [`super::window`]. No
//! token for the beginning (BOS) is put before a window; see [`super`] for what other programs do.

use super::instrument::{Listed, Table};
use super::window::Window;
use super::{Measure, finite, subject, work};
use crate::corpus::Corpus;
use crate::error::Result;
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Reading, fingerprint};
use crate::warning::warn;
use std::path::PathBuf;
use std::time::Instant;

settings! {
    /// Perplexity and bits per byte of a text.
    pub struct Perplexity(windows) {}
}

impl Default for Perplexity {
    fn default() -> Self {
        Self {
            corpus: PathBuf::from("data/corpus"),
            split: Some("test".to_string()),
            seq_len: 1024,
            stride: 512,
            max_tokens: None,
        }
    }
}

impl Perplexity {
    /// Perplexity of a text or a folder of texts.
    pub fn of(corpus: impl Into<PathBuf>) -> Self {
        Self { corpus: corpus.into(), split: None, ..Self::default() }
    }

    /// Scores a split of the folder.
    #[must_use]
    pub fn split(mut self, split: &str) -> Self {
        self.split = Some(split.to_string());
        self
    }

    fn identity(&self, model: &Model, corpus: &Corpus) -> Result<String> {
        let settings = self.reads().identity();
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &corpus.sha256)
    }
}

impl Measure for Perplexity {
    const NAME: &'static str = "perplexity";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        self.identity(model, &self.reads().text()?)
    }

    fn check(&self, model: &Model) -> Result<()> {
        self.reads().cut(model).map(drop)
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        let text = self.reads().cut(model)?;
        let progress = Progress::new("perplexity", text.scored(), "tokens");
        let clock = Instant::now();
        let (mut sums, mut counts) = (vec![], vec![]);
        for Window { scored, start } in &text.windows {
            let nll = model.nll(&text.ids[*start..scored.end], scored.len())?;
            sums.push(nll.iter().map(|x| f64::from(*x)).sum::<f64>());
            counts.push(scored.len() as u64);
            progress.tick(scored.len() as u64)?;
        }
        let runtime = clock.elapsed().as_secs_f64();
        let sum = sums.iter().sum::<f64>();
        let (nll, vocab) = (sum / text.scored() as f64, model.config.vocab_size());
        let worse = nll.exp() >= vocab as f64;
        let warning =
            worse.then(|| format!("perplexity ≥ vocabulary size {vocab}: worse than a uniform guess"));
        warning.iter().for_each(warn);
        let conditions = self.reads().conditions();
        let reading = Reading::new(Self::NAME, Self::VERSION, &subject(model), &conditions)
            .fingerprint(&self.identity(model, &text.corpus)?)
            .value("ppl", nll.exp())
            .value("bits_per_byte", sum / std::f64::consts::LN_2 / text.bytes as f64)
            .value("nll", nll)
            .value("n_bytes", text.bytes)
            .value("vocab_size", vocab)
            .value("warning", warning)
            .value("window_nll", sums.clone())
            .value("window_tokens", counts)
            .value("document_windows", text.windows_by_document());
        let odd = finite::windows(&text).zip(&sums).filter(|(_, sum)| !sum.is_finite());
        finite::told(vec![text.describe(reading, runtime)], &[("", model)], odd.map(|(ids, _)| ids))
    }
}

impl Listed for Perplexity {
    const COMMAND: &'static str = "ppl";
    const TABLES: &'static [Table] = &[Table::of(
        "perplexity",
        &["model", "scheme", "weight_bytes", "corpus", "ppl", "bits_per_byte", "n_tokens", "tokens_per_s"],
    )];

    fn work(&self, model: &Model) -> f64 {
        work::windows(&self.reads(), model)
    }

    fn small(&mut self) {
        self.max_tokens = Some(4096);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_window_over_all_is_the_whole_texts_score() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        let text =
            "It is a truth universally acknowledged, that a model in possession of few bits. ".repeat(4);
        std::fs::write(&file, &text).unwrap();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let ids = model.tokenizer.encode(&text).unwrap();
        let nll: f64 = model.nll(&ids, ids.len() - 1).unwrap().iter().map(|x| f64::from(*x)).sum();
        let expected = nll / (ids.len() - 1) as f64;
        let found = |seq_len, stride| {
            let readings = Perplexity::of(&file).windows(seq_len, stride).measure(&model).unwrap();
            (readings[0].number("nll").unwrap(), readings[0].number("bits_per_byte").unwrap())
        };
        let (whole, bits) = found(ids.len(), 1);
        assert!((whole - expected).abs() < 1e-9);
        assert!((bits - expected / std::f64::consts::LN_2).abs() < 1e-9); // a token is a byte
        // Less context gives another, still finite, score of as many tokens.
        assert!((found(16, 16).0 - expected).abs() > 1e-9);
    }

    #[test]
    fn bad_settings_are_refused_in_a_sentence() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let error = |p: Perplexity| p.measure(&model).unwrap_err().to_string();
        assert!(error(Perplexity::default().windows(0, 0)).contains("seq_len must be at least 1"));
        let sentence = error(Perplexity::default().windows(8, 9));
        assert!(sentence.contains("stride 9 is larger than seq_len 8"), "{sentence}");
        assert!(error(Perplexity::of("no/such/text.txt")).contains("no such file"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("short.txt"), "x").unwrap();
        let short = Perplexity::of(folder.path().join("short.txt")).check(&model).unwrap_err().to_string();
        assert!(short.contains("1 tokens leave nothing to score"), "{short}");
    }
}
