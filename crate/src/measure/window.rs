//! Sliding windows over a text: what perplexity and divergence have in common.
//!
//! The documents are joined by a blank line and tokenized once (the convention of GPTQ and Quamba). A window adds
//! `stride` tokens and conditions them on at most `seq_len` tokens in all. The text's first token has nothing before it
//! and is not scored; every other is scored exactly once.

use super::limit::{WINDOW, at_most, fits};
use crate::corpus::{Corpus, SEPARATOR};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::tokenizer::Encoding;
use crate::record::{Conditions, Reading};
use crate::warning::warn;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;

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
        let end = done.saturating_add(if done == 1 { seq_len } else { stride }).min(tokens);
        all.push(Window { scored: done..end, start: (end - 1).saturating_sub(seq_len) });
        done = end;
    }
    all
}

/// The settings of a measurement that slides over a text.
#[derive(Clone, Copy)]
pub(super) struct Sliding<'a> {
    pub corpus: &'a Path,
    pub split: Option<&'a str>,
    pub seq_len: usize,
    pub stride: usize,
    pub max_tokens: Option<usize>,
}

/// A text as tokens, and its windows: at least one.
pub(super) struct Excerpt {
    pub corpus: Corpus,
    pub ids: Vec<u32>,
    pub windows: Vec<Window>,
    /// Bytes of the text that the scored tokens stand for.
    pub bytes: usize,
    /// Position after the last token of each document that tokens are scored of.
    ends: Vec<usize>,
    /// Bytes of the text that no token stands for.
    dropped: usize,
    /// Tokens that stand for what the tokenizer does not know.
    unknown: usize,
}

impl Sliding<'_> {
    /// The text itself.
    pub fn text(&self) -> Result<Corpus> {
        Corpus::open(self.corpus, self.split)
    }

    /// Refuses settings that leave tokens out, and texts that cannot be read.
    pub fn check(&self, model: &Model) -> Result<()> {
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
        at_most("seq_len", [self.seq_len], WINDOW)?;
        fits(model, "seq_len", [self.seq_len])?;
        if self.stride > self.seq_len {
            return Err(Error::input(format!(
                "stride {} is larger than seq_len {}: tokens between two windows would not be scored",
                self.stride, self.seq_len
            ))
            .hint("choose a stride of at most seq_len"));
        }
        model.tokenizer.present()?;
        self.text().map(|_| ())
    }

    /// The text in the model's tokens, cut into windows.
    pub fn cut(&self, model: &Model) -> Result<Excerpt> {
        self.check(model)?;
        let corpus = self.text()?;
        let mut text = model.tokenizer.encoding(&corpus.joined())?;
        text.truncate(self.max_tokens.unwrap_or(usize::MAX));
        text.loss(model.tokenizer.name(), &corpus.title()).iter().for_each(warn);
        let (bytes, dropped, unknown) = (text.bytes(1..text.ids.len()), text.dropped(), text.unknown());
        let ends = document_ends(&corpus, &text);
        let ids = text.ids;
        let windows = windows(ids.len(), self.seq_len, self.stride);
        if windows.is_empty() {
            return Err(Error::input(format!("{} tokens leave nothing to score", ids.len()))
                .at(self.corpus.display())
                .hint("a text is scored from its second token on"));
        }
        Ok(Excerpt { corpus, ids, windows, bytes, ends, dropped, unknown })
    }

    /// What of these settings decides the scores, for fingerprints.
    pub fn identity(&self) -> Value {
        json!({"seq_len": self.seq_len, "stride": self.stride, "max_tokens": self.max_tokens})
    }

    /// The settings as records hold them.
    pub fn conditions(&self) -> Conditions {
        Conditions {
            batch_size: Some(1),
            seq_len: Some(self.seq_len as u64),
            stride: Some(self.stride as u64),
            threads: Some(crate::threads::threads() as u64),
            ..Conditions::default()
        }
    }
}

/// Position after the last token of each document of a text, blank lines counted with the document before them.
fn document_ends(corpus: &Corpus, text: &Encoding) -> Vec<usize> {
    let starts = corpus.documents.iter().scan(0, |start, document| {
        let own = *start;
        *start += document.text.len() + SEPARATOR.len();
        Some(text.tokens(own..own + document.text.len()).start)
    });
    // The text's first token is not scored; a document without a token of its own has none.
    let mut ends: Vec<usize> =
        starts.skip(1).map(|start| start.min(text.ids.len())).chain([text.ids.len()]).collect();
    ends.dedup();
    ends.retain(|end| *end > 1);
    ends
}

impl Excerpt {
    /// Scored tokens of each document.
    pub fn documents(&self) -> Vec<usize> {
        let starts = std::iter::once(1).chain(self.ends.iter().copied());
        self.ends.iter().zip(starts).map(|(end, start)| end - start).collect()
    }

    /// The document, as an index, of the token at a position.
    pub fn document_at(&self, position: usize) -> usize {
        self.ends.partition_point(|end| *end <= position)
    }

    /// Windows of each document; one that reaches into the next belongs to the document of its first scored token.
    pub fn windows_by_document(&self) -> Vec<usize> {
        let mut counts = vec![0; self.ends.len()];
        for window in &self.windows {
            if let Some(count) = counts.get_mut(self.document_at(window.scored.start)) {
                *count += 1;
            }
        }
        counts.retain(|count| *count > 0);
        counts
    }

    /// Tokens that are scored.
    pub fn scored(&self) -> u64 {
        self.ids.len() as u64 - 1
    }

    /// A reading with what it says about the text and the time it took.
    pub fn describe(&self, reading: Reading, runtime: f64) -> Reading {
        self.name(reading)
            .value("n_tokens", self.scored())
            .value("documents", self.ends.len())
            .value("runtime_s", runtime)
            .value("tokens_per_s", self.scored() as f64 / runtime)
    }

    /// A reading with the text's name, and how much of it is not in the tokens; null where all of it is.
    pub fn name(&self, reading: Reading) -> Reading {
        let some = |count: usize| Some(count).filter(|count| *count > 0);
        reading
            .value("corpus", self.corpus.title())
            .value("corpus_hash", self.corpus.sha256.as_str())
            .value("dropped_bytes", some(self.dropped))
            .value("unknown_tokens", some(self.unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Document;

    #[test]
    fn every_scored_token_is_of_one_document() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let document = |name: &str, text: &str| Document { name: name.into(), text: text.into() };
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("a.txt", "first"), ("b.txt", "the second"), ("c.txt", "3")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let sliding =
            |max_tokens| Sliding { corpus: folder.path(), split: None, seq_len: 4, stride: 4, max_tokens };
        let text = sliding(None).cut(&model).unwrap();
        // Five bytes less the first, ten, one; a blank line after the first two.
        assert_eq!(text.documents(), [4 + 2, 10 + 2, 1]);
        assert_eq!(text.scored(), text.documents().iter().sum::<usize>() as u64);
        assert_eq!([1, 6, 7, 18, 19].map(|at| text.document_at(at)), [0, 0, 1, 1, 2]);
        // Windows begin at 1, 5, 9, 13 and 17: none at the last byte.
        assert_eq!(text.windows_by_document(), [2, 3]);
        assert_eq!(sliding(Some(8)).cut(&model).unwrap().documents(), [6, 1]);
        // What no token stands for is no document.
        let corpus =
            Corpus::new("c", vec![document("a", "ab"), document("b", ""), document("c", "cd")]).unwrap();
        let ends = document_ends(&corpus, &model.tokenizer.encoding(&corpus.joined()).unwrap());
        assert_eq!(ends, [4, 6, 8]);
    }

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
}
