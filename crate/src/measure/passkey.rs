//! Passkey retrieval: is a key, said once in a long filler text, recalled at its end?
//!
//! The answer is the first number that the model says. It is read from the tokens as the vocabulary spells them, and the
//! right one is read from the key's own tokens in the same way: no decoder, which may put blanks between tokens or take
//! them away, has a say in it. Where a vocabulary spells digits otherwise, the tokens themselves are compared.

use super::finite::{self, Known};
use super::instrument::{Listed, Table};
use super::limit::{DIGITS, MADE, at_most, fits, smaller};
use super::{Measure, subject, work};
use crate::corpus::passkey::{PasskeyPrompt, PasskeyTemplate, first_number, passkey_prompt, trial};
use crate::error::{Error, Result};
use crate::kernel::softmax;
use crate::layer::op::with_floats;
use crate::model::generate::argmax;
use crate::model::tokenizer::{Encoding, Tokenizer};
use crate::model::{Model, Positions};
use crate::progress::Progress;
use crate::record::{Conditions, Reading, fingerprint};
use crate::stats::{Z95, wilson};
use crate::warning::warn;
use serde_json::json;
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

/// Tokens generated beyond the key's digits, for a space and punctuation around it.
const EXTRA_TOKENS: usize = 3;

settings! {
    /// Passkey retrieval against context length.
    pub struct Passkey {
        /// Prompt lengths in tokens.
        #[arg(long, value_delimiter = ',')]
        pub lengths: Vec<usize>,
        /// Prompts of each length.
        #[arg(long)]
        pub trials: usize,
        /// Depths of the key, spread evenly and taken in turn: (i + ½) / depths.
        #[arg(long)]
        pub depths: usize,
        /// Digits of a key.
        #[arg(long)]
        pub digits: usize,
        /// Seed of the keys.
        #[arg(long)]
        pub seed: u64,
    }
}

impl Default for Passkey {
    fn default() -> Self {
        Self { lengths: vec![256, 512, 1024, 2048, 4096], trials: 50, depths: 10, digits: 5, seed: 7 }
    }
}

/// A prompt in tokens, and those of its right answer.
struct Asked {
    prompt: PasskeyPrompt,
    text: Encoding,
    answer: Vec<u32>,
}

/// What one prompt gave.
struct Outcome {
    answer: Option<String>,
    correct: bool,
    key_logprob: f64,
    /// Whether the answer comes of logits that are numbers.
    known: bool,
}

impl Passkey {
    /// A sweep over these prompt lengths, in tokens.
    pub fn lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self { lengths: lengths.into_iter().collect(), ..Self::default() }
    }

    /// Sets the number of prompts of each length.
    #[must_use]
    pub fn trials(mut self, trials: usize) -> Self {
        self.trials = trials;
        self
    }

    /// Sets the seed of the keys.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn prompt(&self, model: &Model, length: usize, index: usize) -> Result<Asked> {
        let tokenizer = &model.tokenizer;
        let (key, depth) = trial(self.seed, length, index, self.digits, self.depths)?;
        let prompt = passkey_prompt(length, depth, &key, &|text| Ok(tokenizer.encode(text)?.len()))?;
        let (_, answer) = tokenizer.continued(&prompt.text, &prompt.answer())?;
        let (text, said) = (tokenizer.encoding(&prompt.text)?, tokenizer.encoding(&prompt.answer())?);
        let again = prompt.repetition();
        if answer.is_empty() || lacks(&text, again) || lacks(&said, 1..prompt.answer().len()) {
            return Err(Error::input(format!(
                "the tokenizer '{}' has no tokens for the key",
                tokenizer.name()
            ))
            .at(key)
            .hint("passkeys need a tokenizer that has tokens for digits"));
        }
        model.tokens(&answer)?; // held to the vocabulary
        Ok(Asked { prompt, text, answer })
    }

    /// Reads the prompt once; from there continues greedily and, on a copy of the state, scores the right answer.
    fn ask(&self, model: &Model, asked: &Asked) -> Result<Outcome> {
        let mut state = model.state(1)?;
        let mut logits = model.prefill(&asked.text.ids, &mut state)?;

        let answer = &asked.answer;
        let mut nll = f64::from(softmax::nll(&logits, logits.len(), &answer[..1])[0]);
        if answer.len() > 1 {
            let tokens = model.tokens(&answer[..answer.len() - 1])?;
            let rest = model.forward(&tokens, Some(&mut state.clone()), Positions::All)?;
            let rest = rest.to_device(&candle_core::Device::Cpu)?;
            let each = with_floats([&rest], |[x]| softmax::nll(x, logits.len(), &answer[1..]))?;
            nll += each.iter().map(|x| f64::from(*x)).sum::<f64>();
        }

        let numbers = |logits: &[f32]| logits.iter().all(|logit| !logit.is_nan());
        let mut known = numbers(&logits) && nll.is_finite();
        let mut generated = vec![argmax(&logits)];
        while generated.len() < (self.digits + EXTRA_TOKENS).max(answer.len()) {
            let last = generated[generated.len() - 1];
            model.step_into(last, &mut state, &mut logits)?;
            known &= numbers(&logits);
            generated.push(argmax(&logits));
        }
        let (answer, correct) = heard(&model.tokenizer, &generated, answer, &asked.prompt.key)?;
        Ok(Outcome { answer: answer.filter(|_| known), correct, key_logprob: -nll, known })
    }

    fn measure_length(&self, model: &Model, length: usize) -> Result<Vec<Reading>> {
        let identity = Self { lengths: vec![length], ..self.clone() }.fingerprint(model)?;
        let conditions = Conditions {
            batch_size: Some(1),
            gen_len: Some((self.digits + EXTRA_TOKENS) as u64),
            seed: Some(self.seed),
            threads: Some(crate::threads::threads() as u64),
            ..Conditions::default()
        };
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &conditions)
                .fingerprint(&identity)
                .value("context_length", length)
                .value("training_length", model.training_length)
        };
        let progress = Progress::new(&format!("passkey {length}"), self.trials as u64, "prompts");
        let clock = Instant::now();
        let (mut rows, mut correct, mut logprob) = (vec![], 0, 0.0);
        let (mut lost, mut odd) = ((0, 0), vec![]);
        for index in 0..self.trials {
            let asked = self.prompt(model, length, index)?;
            let outcome = self.ask(model, &asked)?;
            let Asked { prompt, text, .. } = asked;
            lost = (lost.0 + text.dropped(), lost.1 + text.unknown());
            if index == 0 {
                let title = format!("passkey prompt of {length} tokens");
                text.loss(model.tokenizer.name(), &title).iter().for_each(warn);
            }
            correct += u64::from(outcome.correct);
            logprob += outcome.key_logprob;
            rows.push(
                row()
                    .row("trial")
                    .value("trial", index)
                    .value("depth", prompt.depth)
                    .value("prompt_tokens", prompt.tokens)
                    .value("key", prompt.key)
                    .value("answer", outcome.answer)
                    .value("correct", Known(u8::from(outcome.correct), outcome.known))
                    .value("key_logprob", outcome.key_logprob),
            );
            if !outcome.known {
                odd.push(model.tokenizer.encode(&prompt.text)?);
            }
            progress.tick(1)?;
        }
        let some = |count: usize| Some(count).filter(|count| *count > 0);
        let (low, high) = wilson(correct, self.trials as u64, Z95);
        let known = |share: f64| Known(share, odd.is_empty());
        rows.push(
            row()
                .value("trials", self.trials)
                .value("accuracy", known(correct as f64 / self.trials as f64))
                .value("accuracy_low", known(low))
                .value("accuracy_high", known(high))
                .value("key_logprob", logprob / self.trials as f64)
                .value("depths", self.depths)
                .value("digits", self.digits)
                .value("dropped_bytes", some(lost.0))
                .value("unknown_tokens", some(lost.1))
                .value("template_version", PasskeyTemplate::VERSION)
                .value("template_hash", PasskeyTemplate::hash())
                .value("runtime_s", clock.elapsed().as_secs_f64()),
        );
        finite::told(rows, &[("", model)], odd.iter().map(Vec::as_slice))
    }
}

/// Whether some of these bytes of a text have no tokens of their own.
fn lacks(text: &Encoding, bytes: Range<usize>) -> bool {
    text.dropped_of(bytes.clone()) > 0 || text.unknown_of(text.tokens(bytes)) > 0
}

/// Refuses a tokenizer that gives the same tokens to different digits: every answer would be right.
fn distinct(tokenizer: &Tokenizer) -> Result<()> {
    let spelled =
        (0..10).map(|digit| tokenizer.encode(&digit.to_string())).collect::<Result<BTreeSet<_>>>()?;
    match spelled.len() {
        10 => Ok(()),
        found => Err(Error::input(format!(
            "the tokenizer '{}' tells only {found} of ten digits apart: keys cannot be recalled in it",
            tokenizer.name()
        ))),
    }
}

/// What was said after a prompt, and whether it is the key.
fn heard(tokenizer: &Tokenizer, said: &[u32], answer: &[u32], key: &str) -> Result<(Option<String>, bool)> {
    let number = |tokens: &[u32]| first_number(&tokenizer.spell(tokens));
    if number(answer).as_deref() == Some(key) {
        let said = number(said);
        let correct = said.as_deref() == Some(key);
        return Ok((said, correct));
    }
    Ok((Some(tokenizer.decode(said)?), said.starts_with(answer)))
}

impl Measure for Passkey {
    const NAME: &'static str = "passkey";
    const VERSION: u32 = 2;

    fn units(&self) -> Vec<Self> {
        self.lengths.iter().map(|length| Self { lengths: vec![*length], ..self.clone() }).collect()
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        let template = json!({"version": PasskeyTemplate::VERSION, "tokenizer": model.tokenizer.hash()});
        fingerprint(Self::NAME, Self::VERSION, self, &subject(model), &template)
    }

    fn check(&self, model: &Model) -> Result<()> {
        if self.trials == 0 || self.lengths.is_empty() {
            return Err(Error::input("a passkey sweep needs at least one length and one trial"));
        }
        at_most("lengths", self.lengths.iter().copied(), MADE)?;
        at_most("trials", [self.trials], MADE)?;
        at_most("digits", [self.digits], DIGITS)?;
        let whole = self.lengths.iter().map(|length| length + self.digits + EXTRA_TOKENS);
        fits(model, "lengths with the answer", whole)?;
        for length in &self.lengths {
            self.prompt(model, *length, 0)?;
        }
        distinct(&model.tokenizer)
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let rows: Result<Vec<_>> =
            self.lengths.iter().map(|length| self.measure_length(model, *length)).collect();
        Ok(rows?.concat())
    }
}

impl Listed for Passkey {
    const TABLES: &'static [Table] = &[Table::of(
        "passkey",
        &["model", "scheme", "context_length", "accuracy", "accuracy_low", "accuracy_high", "key_logprob"],
    )];

    fn work(&self, _model: &Model) -> f64 {
        self.trials as f64 * work::prompts(&self.lengths, 2 * self.digits)
    }

    fn small(&mut self) {
        (self.lengths, self.trials) = (smaller(&self.lengths, [300, 600]), 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_the_same_every_time_and_scores_agree_with_nll() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let sweep = Passkey { lengths: vec![300], trials: 3, ..Passkey::default() };
        let (first, second) = (sweep.measure(&model).unwrap(), sweep.measure(&model).unwrap());
        assert_eq!(first.len(), 4);
        for (a, b) in first.iter().zip(&second) {
            let stable = |r: &Reading| {
                r.values
                    .iter()
                    .filter(|(k, _)| *k != "runtime_s")
                    .map(|(k, v)| format!("{k}{v}"))
                    .collect::<Vec<_>>()
            };
            assert_eq!(stable(a), stable(b));
        }
        // The key's log-probability by another path: the whole text scored at once.
        let prompt = sweep.prompt(&model, 300, 1).unwrap().prompt;
        let ids = model.tokenizer.encode(&(prompt.text.clone() + &prompt.answer())).unwrap();
        let nll: f32 = model.nll(&ids, prompt.answer().len()).unwrap().iter().sum();
        assert!((first[1].number("key_logprob").unwrap() + f64::from(nll)).abs() < 1e-4);
    }

    #[test]
    fn a_length_shorter_than_the_prompt_is_refused() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let error = Passkey::lengths([4096, 20]).measure(&model).unwrap_err().to_string();
        assert!(error.contains("20"), "{error}");
    }
}
