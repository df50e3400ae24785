//! Passkey retrieval: is a key, said once in a long filler text, recalled at its end?

use super::finite::{self, Known};
use super::{Measure, subject};
use crate::corpus::passkey::{PasskeyPrompt, PasskeyTemplate, first_number, passkey_prompt, trial};
use crate::error::{Error, Result};
use crate::kernel::softmax;
use crate::layer::op::with_floats;
use crate::model::generate::argmax;
use crate::model::{Model, Positions};
use crate::progress::Progress;
use crate::record::{Conditions, Reading, fingerprint};
use crate::stats::wilson;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Instant;

/// Tokens generated beyond the key's digits, for a space and punctuation around it.
const EXTRA_TOKENS: usize = 3;

/// The longest key.
const MOST_DIGITS: usize = 100;

/// Which prompts, and how many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Passkey {
    /// Lengths of the prompt in tokens.
    pub lengths: Vec<usize>,
    /// Prompts of each length.
    pub trials: usize,
    /// Depths of the key, spread evenly and taken in turn: (i + ½) / depths.
    pub depths: usize,
    /// Digits of a key.
    pub digits: usize,
    /// Seed of the keys.
    pub seed: u64,
}

impl Default for Passkey {
    fn default() -> Self {
        Self { lengths: vec![256, 512, 1024, 2048, 4096], trials: 50, depths: 10, digits: 5, seed: 7 }
    }
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

    fn prompt(&self, model: &Model, length: usize, index: usize) -> Result<PasskeyPrompt> {
        let (key, depth) = trial(self.seed, length, index, self.digits, self.depths)?;
        passkey_prompt(length, depth, &key, &|text| Ok(model.tokenizer.encode(text)?.len()))
    }

    /// Reads the prompt once; from there continues greedily and, on a copy of the state, scores the right answer.
    fn ask(&self, model: &Model, prompt: &PasskeyPrompt) -> Result<Outcome> {
        let mut state = model.state(1)?;
        let mut logits = model.prefill(&model.tokenizer.encode(&prompt.text)?, &mut state)?;

        let answer = model.tokenizer.encode(&prompt.answer())?;
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
        while generated.len() < self.digits + EXTRA_TOKENS {
            let last = generated[generated.len() - 1];
            model.step_into(last, &mut state, &mut logits)?;
            known &= numbers(&logits);
            generated.push(argmax(&logits));
        }
        let answer = first_number(&model.tokenizer.decode(&generated)?);
        let correct = answer.as_deref() == Some(prompt.key.as_str());
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
        let (mut rows, mut correct, mut logprob, mut odd) = (vec![], 0, 0.0, vec![]);
        for index in 0..self.trials {
            let prompt = self.prompt(model, length, index)?;
            let outcome = self.ask(model, &prompt)?;
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
        let (low, high) = wilson(correct, self.trials as u64, 1.96);
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
                .value("template_version", PasskeyTemplate::VERSION)
                .value("template_hash", PasskeyTemplate::hash())
                .value("runtime_s", clock.elapsed().as_secs_f64()),
        );
        finite::told(rows, &[("", model)], odd.iter().map(Vec::as_slice))
    }
}

impl Measure for Passkey {
    const NAME: &'static str = "passkey";
    const VERSION: u32 = 1;

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
        if self.digits > MOST_DIGITS {
            let what = format!("a key has at most {MOST_DIGITS} digits, found {}", self.digits);
            return Err(Error::input(what));
        }
        for length in &self.lengths {
            self.prompt(model, *length, 0)?;
        }
        Ok(())
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let rows: Result<Vec<_>> =
            self.lengths.iter().map(|length| self.measure_length(model, *length)).collect();
        Ok(rows?.concat())
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
        let prompt = sweep.prompt(&model, 300, 1).unwrap();
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
