//! Sliding-window perplexity: e^(mean −ln p) over the tokens of a text, each scored exactly once.
//!
//! The documents are joined by a blank line and tokenized once (the convention of GPTQ and Quamba). A window adds
//! `stride` tokens and conditions them on at most `seq_len` tokens in all. The text's first token has nothing before it and is not scored.

use super::{Measure, subject};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Conditions, Reading, fingerprint};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// What to score and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Perplexity {
    /// A text file, a JSONL file, or a folder of texts or of splits.
    pub corpus: PathBuf,
    /// The split, if the folder has splits.
    pub split: Option<String>,
    /// Most tokens that a prediction is conditioned on.
    pub seq_len: usize,
    /// Tokens that a window adds; `seq_len` makes windows that share nothing.
    pub stride: usize,
    /// Score only the first tokens of the text.
    pub max_tokens: Option<usize>,
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

/// One window: the tokens it scores, and the tokens it reads to do so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Positions of the scored tokens.
    pub scored: Range<usize>,
    /// Position of the first token read.
    pub start: usize,
}

/// The windows over `tokens` tokens. Together they score every token but the first, each once.
pub fn windows(tokens: usize, seq_len: usize, stride: usize) -> Vec<Window> {
    let (mut all, mut done) = (vec![], 1);
    while done < tokens {
        // The first window has no context to spare: it scores all that it can read.
        let end = (done + if done == 1 { seq_len } else { stride }).min(tokens);
        all.push(Window { scored: done..end, start: (end - 1).saturating_sub(seq_len) });
        done = end;
    }
    all
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

    /// Sets window length and stride.
    #[must_use]
    pub fn windows(mut self, seq_len: usize, stride: usize) -> Self {
        (self.seq_len, self.stride) = (seq_len, stride);
        self
    }

    /// Scores only the first `count` tokens.
    #[must_use]
    pub fn max_tokens(mut self, count: usize) -> Self {
        self.max_tokens = Some(count);
        self
    }

    fn text(&self) -> Result<Corpus> {
        match &self.split {
            Some(split) => Corpus::split(&self.corpus, split),
            None => Corpus::load(&self.corpus),
        }
    }

    fn identity(&self, model: &Model, corpus: &Corpus) -> Result<String> {
        let settings = json!({"seq_len": self.seq_len, "stride": self.stride, "max_tokens": self.max_tokens});
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
        self.identity(model, &self.text()?)
    }

    fn check(&self, _model: &Model) -> Result<()> {
        let least = [
            ("seq_len", Some(self.seq_len), 1),
            ("stride", Some(self.stride), 1),
            ("max_tokens", self.max_tokens, 2),
        ];
        for (name, value, least) in least {
            if let Some(value) = value.filter(|value| *value < least) {
                return Err(Error::input(format!("{name} must be at least {least}, found {value}")));
            }
        }
        if self.stride > self.seq_len {
            return Err(Error::input(format!(
                "stride {} is larger than seq_len {}: tokens between two windows would not be scored",
                self.stride, self.seq_len
            ))
            .hint("choose a stride of at most seq_len"));
        }
        self.text().map(|_| ())
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let corpus = self.text()?;
        let mut ids = model.tokenizer.encode(&corpus.joined())?;
        ids.truncate(self.max_tokens.unwrap_or(usize::MAX));
        let windows = windows(ids.len(), self.seq_len, self.stride);
        if windows.is_empty() {
            return Err(Error::input(format!("{} tokens leave nothing to score", ids.len()))
                .at(self.corpus.display())
                .hint("perplexity needs at least two tokens"));
        }
        let progress = Progress::new("perplexity", ids.len() as u64 - 1, "tokens");
        let clock = Instant::now();
        let (mut sums, mut counts) = (vec![], vec![]);
        for Window { scored, start } in windows {
            let nll = model.nll(&ids[start..scored.end], scored.len())?;
            sums.push(nll.iter().map(|x| f64::from(*x)).sum::<f64>());
            counts.push(scored.len() as u64);
            progress.tick(scored.len() as u64)?;
        }
        let runtime = clock.elapsed().as_secs_f64();
        let (sum, tokens) = (sums.iter().sum::<f64>(), counts.iter().sum::<u64>());
        let bytes = model.tokenizer.decode(&ids[1..])?.len();
        let (nll, vocab) = (sum / tokens as f64, model.config.vocab_size());
        let worse = nll.exp() >= vocab as f64;
        let warning =
            worse.then(|| format!("perplexity ≥ vocabulary size {vocab}: worse than a uniform guess"));
        let conditions = Conditions {
            batch_size: Some(1),
            seq_len: Some(self.seq_len as u64),
            stride: Some(self.stride as u64),
            threads: Some(crate::threads::threads() as u64),
            ..Conditions::default()
        };
        let reading = Reading::new(Self::NAME, Self::VERSION, &subject(model), &conditions)
            .fingerprint(&self.identity(model, &corpus)?)
            .value("corpus", corpus.title())
            .value("corpus_hash", corpus.sha256.as_str())
            .value("ppl", nll.exp())
            .value("bits_per_byte", sum / std::f64::consts::LN_2 / bytes as f64)
            .value("nll", nll)
            .value("n_tokens", tokens)
            .value("n_bytes", bytes)
            .value("vocab_size", vocab)
            .value("warning", warning)
            .value("runtime_s", runtime)
            .value("tokens_per_s", tokens as f64 / runtime)
            .value("window_nll", sums)
            .value("window_tokens", counts);
        Ok(vec![reading])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_scored_exactly_once() {
        for tokens in 0..60 {
            for seq_len in 1..12 {
                for stride in 1..=seq_len {
                    let mut times = vec![0; tokens];
                    for (i, Window { scored, start }) in
                        windows(tokens, seq_len, stride).into_iter().enumerate()
                    {
                        assert!(scored.start > start && scored.end - 1 - start <= seq_len);
                        // Beyond the first window there is as much context as fits.
                        assert!(i == 0 || scored.end - 1 - start == seq_len.min(scored.end - 1));
                        scored.for_each(|t| times[t] += 1);
                    }
                    let expected: Vec<_> = (0..tokens).map(|t| i32::from(t > 0)).collect();
                    assert_eq!(times, expected, "{tokens} {seq_len} {stride}");
                }
            }
        }
    }

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
    }
}
