//! LAMBADA: is the last word of a passage predicted, which needs the whole passage and not its last sentence alone?
//!
//! D. Paperno et al., "The LAMBADA dataset: word prediction requiring a broad discourse context" (2016). By the conventions of
//! lm-evaluation-harness's `lambada_openai` (`lm_eval/tasks/lambada/lambada_openai.yaml`), on texts as OpenAI prepared them:
//!
//! - The word is what follows the last blank of the text; the context is the text before that blank, and what is predicted
//!   is the blank with the word. How that is tokenized, and cut where it is too long, is told in `likelihood`.
//! - `accuracy`: the share of words all of whose tokens greedy decoding would say.
//! - `ppl`, the perplexity of the word: e^(mean −ln p(word)), where p is that of the whole word and not of a token of it.
//!
//! The interval of the accuracy is Wilson's. That of the perplexity is e to the ends of the interval of the mean −ln p, from the
//! jackknife over items ([`Interval`]): the error of drawing items with replacement, as the harness does, in closed form and
//! without a seed.

use super::finite::Known;
use super::instrument::{Listed, Table};
use super::items::{self, Answered, Asking, Item, Items};
use super::{too_little, work};
use crate::corpus::{Corpus, Document};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::record::{Reading, Row};
use crate::stats::Interval;
use std::path::PathBuf;

settings! {
    /// Prediction of a passage's last word (LAMBADA): how often greedy decoding says it, and its perplexity.
    pub struct Lambada(text) {
        /// Ask only the first items.
        #[arg(long)]
        pub items: Option<usize>,
    }
}

impl Default for Lambada {
    /// The file is to be named.
    fn default() -> Self {
        Self { corpus: PathBuf::new(), split: None, items: None }
    }
}

impl Lambada {
    /// The last words of a file's texts: JSON Lines such as `{"text": "…"}`.
    pub fn of(corpus: impl Into<PathBuf>) -> Self {
        Self::default().on(corpus)
    }

    fn texts(&self) -> Result<Corpus> {
        items::named(&self.corpus, r#"{"text": "…"}"#)?;
        Corpus::open(&self.corpus, self.split.as_deref())
    }
}

impl Asking for Lambada {
    const IS: (&'static str, u32) = ("lambada", 1);

    fn items(&self) -> Result<Items> {
        let corpus = self.texts()?;
        let title = corpus.title();
        let documents = items::first(corpus.documents, self.items)?;
        let item = |document: Document| match document.text.rsplit_once(' ') {
            Some((context, word)) if !word.is_empty() => Ok(Item {
                name: document.name,
                context: context.to_string(),
                continuations: vec![format!(" {word}")],
                gold: 0,
            }),
            Some(_) => Err(Error::input("the text ends in a blank: it has no last word").at(document.name)),
            None => Err(Error::input("the text has no blank: nothing stands before its last word")
                .at(document.name)
                .hint("each text is an item: name a file of JSON Lines")),
        };
        let all = documents.into_iter().map(item).collect::<Result<Vec<_>>>();
        Ok(Items { title, sha256: corpus.sha256, all: all.map_err(|error| error.at(self.corpus.display()))? })
    }

    fn describe(&self, reading: Reading, _item: &Item, answered: &Answered) -> Reading {
        let word = answered.likelihoods[0];
        reading.value("logprob", word.logprob).value("correct", Known(u8::from(word.greedy), answered.known))
    }

    fn summarize(&self, reading: Reading, rows: &[Row]) -> Reading {
        let number = |row: &Row| row.get("logprob").and_then(|value| value.as_f64()).unwrap_or(f64::NAN);
        let nll: Vec<f64> = rows.iter().map(|row| -number(row)).collect();
        // Items stand alone: each is a block.
        let nll = Interval::default().blocks(nll.len()).mean(&nll, &[]);
        let reading = items::share(reading, "accuracy", rows, "correct")
            .value("ppl", nll.map(|nll| nll.value.exp()))
            .value("ppl_low", nll.map(|nll| nll.low.exp()))
            .value("ppl_high", nll.map(|nll| nll.high.exp()))
            .value("nll", nll.map(|nll| nll.value));
        too_little(reading, nll)
    }
}

impl Listed for Lambada {
    const TABLES: &'static [Table] = &[Table::of(
        "lambada",
        &[
            "model",
            "scheme",
            "corpus",
            "items",
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "ppl",
            "ppl_low",
            "ppl_high",
            "cut_items",
        ],
    )];

    fn work(&self, model: &Model) -> f64 {
        work::of_bytes(self.items().map_or(0, |items| items::bytes(&items)), model)
    }

    fn small(&mut self) {
        self.items = Some(32);
    }
}

#[cfg(test)]
mod tests;
