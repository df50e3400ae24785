//! Multiple choice by likelihood: which of the choices does the model hold likeliest after the question?
//!
//! By the conventions of lm-evaluation-harness's `multiple_choice` (`lm_eval/api/task.py`): each choice follows the question
//! after one blank, and is scored as `likelihood` tells.
//!
//! - `accuracy`: the share of questions whose right choice has the greatest ln p; of equal ones the first counts.
//! - `accuracy_norm`: the same by ln p / bytes of the choice, the blank not counted. Its documentation calls its `acc_norm`
//!   so, but what it divides by are characters: `accuracy_norm_characters` does that. They differ beyond ASCII alone.
//!
//! The harness knows tasks that put a choice's letter after the question; such a question has its choices in its text, and
//! the letters as its choices.

use super::finite::Known;
use super::instrument::{Listed, Table};
use super::items::{self, Answered, Asking, Item, Items};
use super::work;
use crate::corpus::questions::{Question, Questions};
use crate::error::Result;
use crate::model::Model;
use crate::record::{Reading, Row};
use std::path::PathBuf;

settings! {
    /// Multiple choice by likelihood: how often the right choice is the likeliest, as it is and by its length.
    pub struct MultipleChoice {
        /// A JSONL file of questions: query, choices and gold, the index of the right one from 0.
        #[arg(long, value_name = "FILE")]
        pub corpus: PathBuf,
        /// Ask only the first items.
        #[arg(long)]
        pub items: Option<usize>,
    }
}

impl Default for MultipleChoice {
    /// The file is to be named.
    fn default() -> Self {
        Self { corpus: PathBuf::new(), items: None }
    }
}

impl MultipleChoice {
    /// The questions of a file, as [`Questions`] are written.
    pub fn of(corpus: impl Into<PathBuf>) -> Self {
        Self { corpus: corpus.into(), ..Self::default() }
    }

    fn questions(&self) -> Result<Questions> {
        items::named(&self.corpus, r#"{"query": "…", "choices": ["…", "…"], "gold": 0}"#)?;
        let mut questions = Questions::load(&self.corpus)?;
        questions.all = items::first(questions.all, self.items)?;
        Ok(questions)
    }
}

/// The index of the greatest value; of equal ones the first.
fn greatest(values: impl Iterator<Item = f64>) -> usize {
    let best = |best: Option<(usize, f64)>, (i, value): (usize, f64)| match best {
        Some((_, top)) if value <= top => best,
        _ => Some((i, value)),
    };
    values.enumerate().fold(None, best).map_or(0, |(i, _)| i)
}

impl Asking for MultipleChoice {
    const IS: (&'static str, u32) = ("choice", 1);

    fn items(&self) -> Result<Items> {
        let Questions { name, all, sha256 } = self.questions()?;
        let item = |question: Question| Item {
            name: question.name,
            context: question.query,
            continuations: question.choices.iter().map(|choice| format!(" {choice}")).collect(),
            gold: question.gold,
        };
        Ok(Items { title: name, sha256, all: all.into_iter().map(item).collect() })
    }

    fn describe(&self, reading: Reading, item: &Item, answered: &Answered) -> Reading {
        let logprobs: Vec<f64> = answered.likelihoods.iter().map(|found| found.logprob).collect();
        // Beyond the blank.
        let per = |length: fn(&str) -> usize| {
            let lengths = item.continuations.iter().map(|choice| length(&choice[1..]) as f64);
            greatest(logprobs.iter().zip(lengths).map(|(logprob, length)| logprob / length))
        };
        let (chosen, by_bytes) = (greatest(logprobs.iter().copied()), per(str::len));
        let by_characters = per(|choice| choice.chars().count());
        let right = |chosen: usize| Known(u8::from(chosen == item.gold), answered.known);
        reading
            .value("gold", item.gold)
            .value("chosen", Known(chosen as u64, answered.known))
            .value("chosen_norm", Known(by_bytes as u64, answered.known))
            .value("correct", right(chosen))
            .value("correct_norm", right(by_bytes))
            .value("correct_norm_characters", right(by_characters))
            .value("logprobs", logprobs)
    }

    fn summarize(&self, reading: Reading, rows: &[Row]) -> Reading {
        ["", "_norm", "_norm_characters"].into_iter().fold(reading, |reading, by| {
            items::share(reading, &format!("accuracy{by}"), rows, &format!("correct{by}"))
        })
    }
}

impl Listed for MultipleChoice {
    const TABLES: &'static [Table] = &[Table::of(
        "choice",
        &[
            "model",
            "scheme",
            "corpus",
            "items",
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "accuracy_norm",
            "accuracy_norm_low",
            "accuracy_norm_high",
            "cut_items",
        ],
    )];

    fn work(&self, model: &Model) -> f64 {
        work::of_bytes(self.items().map_or(0, |items| items::bytes(&items)), model)
    }

    fn small(&mut self) {
        self.items = Some(16);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Measure;
    use super::super::likelihood::Likelihood;
    use super::*;

    fn file(lines: &str) -> (tempfile::TempDir, MultipleChoice) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.jsonl");
        std::fs::write(&path, lines).unwrap();
        (folder, MultipleChoice::of(path))
    }

    /// What is chosen of choices with these log-probabilities.
    fn chosen(choices: &[&str], logprobs: &[f64]) -> [f64; 3] {
        let continuations = choices.iter().map(|choice| format!(" {choice}")).collect();
        let item = Item { name: String::new(), context: "q".into(), continuations, gold: 1 };
        let likelihoods = logprobs.iter().map(|logprob| Likelihood { logprob: *logprob, greedy: false });
        let answered = Answered { likelihoods: likelihoods.collect(), known: true };
        let row = MultipleChoice::default().describe(Reading::default(), &item, &answered);
        ["correct", "correct_norm", "correct_norm_characters"].map(|name| row.number(name).unwrap())
    }

    #[test]
    fn choices_are_made_by_likelihood_and_by_length() {
        // −3 is more than −4; but −4 over four bytes is more than −3 over two.
        assert_eq!(chosen(&["ab", "abcd"], &[-3.0, -4.0]), [0.0, 1.0, 1.0]);
        assert_eq!(chosen(&["ab", "abcd"], &[-3.0, -2.0]), [1.0, 1.0, 1.0]);
        assert_eq!(chosen(&["ab", "abcd"], &[-3.0, -7.0]), [0.0, 0.0, 0.0]);
        // Four bytes are two characters: −1 each by bytes, −2 by characters, beside −1.5.
        assert_eq!(chosen(&["ab", "éé"], &[-3.0, -4.0]), [0.0, 1.0, 0.0]);
        // Of equal ones the first.
        assert_eq!(chosen(&["ab", "cd"], &[-3.0, -3.0]), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn each_choice_is_the_end_of_its_question() {
        let lines =
            "{\"query\": \"To be, or not to\", \"choices\": [\"be\", \"bee\", \"see\"], \"gold\": 0}\n";
        let (_folder, choice) = file(&lines.repeat(3));
        let model = Model::load("random:mamba2-tiny").unwrap();
        let rows = choice.measure(&model).unwrap();
        let items: Vec<&Reading> = rows.iter().filter(|row| row.row == "item").collect();
        assert_eq!(items.len(), 3);
        let logprobs = items[1].values["logprobs"].as_array().unwrap();
        for (logprob, choice) in logprobs.iter().zip([" be", " bee", " see"]) {
            let ids = model.tokenizer.encode(&format!("To be, or not to{choice}")).unwrap();
            let nll: f32 = model.nll(&ids, choice.len()).unwrap().iter().sum();
            assert!((logprob.as_f64().unwrap() + f64::from(nll)).abs() < 1e-4);
        }
        let summary = rows.last().unwrap();
        let share = summary.number("accuracy").unwrap();
        assert!((share == 0.0 || share == 1.0) && summary.number("accuracy_low").unwrap() < 1.0);
        assert_eq!((summary.number("items"), summary.number("cut_items")), (Some(3.0), Some(0.0)));
        let sentence = MultipleChoice::default().check(&model).unwrap_err().to_string();
        assert!(sentence.contains("no file is named"), "{sentence}");
        let (_folder, empty) = file("{\"query\": \"\", \"choices\": [\"be\", \"bee\"], \"gold\": 0}\n");
        let sentence = empty.check(&model).unwrap_err().to_string();
        assert!(sentence.contains("set:1: there is nothing before it"), "{sentence}");
    }
}
