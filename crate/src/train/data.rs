//! What a model is trained on: windows of a corpus, mixed with passkey prompts and with keys to copy. A batch is a function of seed and
//! step alone, so a resumed run sees what the whole one would have seen.

use crate::corpus::{Corpus, copying, passkey};
use crate::error::{Error, Result};
use crate::model::init::stream;
use crate::model::tokenizer::Tokenizer;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How batches are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mixture {
    /// Sequences of a step.
    pub batch_size: usize,
    /// Tokens of a sequence: the training length.
    pub seq_len: usize,
    /// Share of sequences made of passkey prompts.
    pub passkey: f64,
    /// Digits of a key.
    pub digits: usize,
    /// Share of sequences made of keys to copy ([`copying`]).
    pub copying: f64,
    /// Keys of such a text.
    pub keys: usize,
    /// Steps over which the most filler of a prompt grows from none to all that fits. Recall is learnt at once over a
    /// few dozen tokens and then stretches; over hundreds of tokens it is not found in the first place.
    pub curriculum: u64,
    /// Loss weight of what is recalled: the key's tokens where the needle repeats it and after the question, and the values of keys to copy. They are few, and the rest
    /// of a prompt is soon known by heart.
    pub key_weight: f32,
    /// Loss weight of all other tokens of such a sequence.
    pub filler_weight: f32,
}

impl Default for Mixture {
    fn default() -> Self {
        Self {
            batch_size: 4,
            seq_len: 1024,
            passkey: 0.2,
            digits: 5,
            copying: 0.0,
            keys: 4,
            curriculum: 1000,
            key_weight: 10.0,
            filler_weight: 0.1,
        }
    }
}

/// One step's sequences, flattened [batch · seq_len].
pub struct Batch {
    /// Input tokens.
    pub inputs: Vec<u32>,
    /// The token after each input.
    pub targets: Vec<u32>,
    /// Loss weight of each target.
    pub weights: Vec<f32>,
}

/// A tokenized corpus and the recipe of its batches.
pub struct Data {
    mixture: Mixture,
    tokens: Vec<u32>,
    tokenizer: Tokenizer,
    seed: u64,
}

impl Data {
    /// Tokenizes a corpus for training.
    pub fn new(mixture: Mixture, corpus: &Corpus, tokenizer: Tokenizer, seed: u64) -> Result<Self> {
        let tokens = tokenizer.encode(&corpus.joined())?;
        if tokens.len() <= mixture.seq_len {
            return Err(Error::input(format!(
                "{} tokens are too few for sequences of {}",
                tokens.len(),
                mixture.seq_len
            ))
            .at(&corpus.name));
        }
        Ok(Self { mixture, tokens, tokenizer, seed })
    }

    /// The batch of one step.
    pub fn batch(&self, step: u64) -> Result<Batch> {
        let Mixture { batch_size, seq_len, passkey, copying, .. } = self.mixture;
        let mut batch = Batch { inputs: vec![], targets: vec![], weights: vec![] };
        for row in 0..batch_size {
            let mut rng = stream(self.seed, &format!("step {step} row {row}"));
            let (tokens, weights) = if rng.random_bool(passkey) {
                self.passkeys(&mut rng, step)?
            } else if copying > 0.0 && rng.random_bool((copying / (1.0 - passkey)).min(1.0)) {
                self.copies(&mut rng, step)?
            } else {
                let start = rng.random_range(0..self.tokens.len() - seq_len);
                (self.tokens[start..=start + seq_len].to_vec(), vec![1.0; seq_len + 1])
            };
            batch.inputs.extend(&tokens[..seq_len]);
            batch.targets.extend(&tokens[1..=seq_len]);
            batch.weights.extend(&weights[1..=seq_len]);
        }
        Ok(batch)
    }

    /// Prompts of random lengths until the sequence is full; what is left over is corpus text.
    fn passkeys(&self, rng: &mut ChaCha8Rng, step: u64) -> Result<(Vec<u32>, Vec<f32>)> {
        let Mixture { seq_len, digits, key_weight, filler_weight, .. } = self.mixture;
        let (mut tokens, mut weights) = (vec![], vec![]);
        let count = |text: &str| Ok(self.tokenizer.encode(text)?.len());
        let ending = count(&format!(" {}.\n", "0".repeat(digits)))?;
        let room = |tokens: &Vec<u32>| (seq_len + 1).saturating_sub(tokens.len());
        let filler = self.filler(step);
        while let Some(prompt) = passkey::training_prompt(rng, room(&tokens), ending, filler, digits, &count)?
        {
            let again = prompt.repetition();
            let again = self.tokenizer.encoding(&prompt.text)?.tokens(again);
            let answer = format!("{}.\n", prompt.answer());
            let (prompt, answer) = self.tokenizer.continued(&prompt.text, &answer)?;
            let weight = |i| if again.contains(&i) { key_weight } else { filler_weight };
            weights.extend((0..prompt.len()).map(weight));
            weights.extend(std::iter::repeat_n(key_weight, answer.len()));
            tokens.extend(prompt);
            tokens.extend(answer);
        }
        Ok(self.filled(rng, tokens, weights))
    }

    /// Keys to copy until the sequence is full; what is left over is corpus text.
    fn copies(&self, rng: &mut ChaCha8Rng, step: u64) -> Result<(Vec<u32>, Vec<f32>)> {
        let Mixture { seq_len, keys, key_weight, filler_weight, .. } = self.mixture;
        let (mut tokens, mut weights) = (vec![], vec![]);
        let filler = self.filler(step);
        while let Some(text) =
            copying::training(rng, (seq_len + 1).saturating_sub(tokens.len()), filler, keys)?
        {
            let (prompt, answers) = copying::tokens(|text| self.tokenizer.encode(text), &text)?;
            weights.extend(std::iter::repeat_n(filler_weight, prompt.len()));
            weights.extend((0..answers.len()).map(|i| if i % 2 == 1 { key_weight } else { filler_weight }));
            tokens.extend(prompt.into_iter().chain(answers));
        }
        Ok(self.filled(rng, tokens, weights))
    }

    /// The most filler of a prompt at this step, in tokens.
    fn filler(&self, step: u64) -> usize {
        let Mixture { seq_len, curriculum, .. } = self.mixture;
        if step < curriculum { seq_len * step as usize / curriculum as usize } else { seq_len }
    }

    /// A sequence and its weights, filled up with corpus text.
    fn filled(
        &self,
        rng: &mut ChaCha8Rng,
        mut tokens: Vec<u32>,
        mut weights: Vec<f32>,
    ) -> (Vec<u32>, Vec<f32>) {
        let seq_len = self.mixture.seq_len;
        tokens.truncate(seq_len + 1); // a tokenizer may spell another key longer
        weights.truncate(seq_len + 1);
        let rest = (seq_len + 1).saturating_sub(tokens.len());
        let start = rng.random_range(0..self.tokens.len() - rest);
        tokens.extend(&self.tokens[start..start + rest]);
        weights.extend(std::iter::repeat_n(1.0, rest));
        (tokens, weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Document;

    fn data(mixture: Mixture) -> Data {
        let letters = Document { name: "letters".to_string(), text: "abcdefghij".repeat(400) };
        let corpus = Corpus::new("letters", vec![letters]).unwrap();
        Data::new(mixture, &corpus, Tokenizer::Bytes, 3).unwrap()
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_alone() {
        let mixture = Mixture { passkey: 0.5, ..Mixture::default() };
        let of = |step| data(mixture.clone()).batch(step).unwrap();
        assert_eq!((of(7).inputs, of(7).weights), (of(7).inputs, of(7).weights));
        assert_ne!(of(7).inputs, of(8).inputs);
    }

    #[test]
    fn keys_weigh_where_they_can_be_recalled_and_filler_grows() {
        let mixture = Mixture { passkey: 1.0, batch_size: 8, curriculum: 100, ..Mixture::default() };
        let text = |step| {
            let batch = data(mixture.clone()).batch(step).unwrap();
            let targets: Vec<u8> = batch.targets.iter().map(|token| *token as u8).collect();
            let heavy: Vec<u8> =
                targets.iter().zip(&batch.weights).filter(|(_, w)| **w == 10.0).map(|(t, _)| *t).collect();
            (String::from_utf8(targets).unwrap(), String::from_utf8(heavy).unwrap())
        };
        let (first, heavy) = text(0);
        assert!(!first.contains("grass") && first.contains("There is an important info"));
        // Each key weighs twice: "12345" in the needle and " 12345.\n" after the question.
        let keys: Vec<&str> = heavy.split(".\n").filter(|pair| !pair.is_empty()).collect();
        assert!(keys.len() >= 24, "{heavy}"); // 1,024 bytes hold three prompts without filler
        assert!(
            keys.iter().all(|pair| pair.split_once(' ').is_some_and(|(a, b)| a == b && a.len() == 5)),
            "{heavy}"
        );
        assert!(text(100).0.matches("grass").count() > text(30).0.matches("grass").count());
    }

    #[test]
    fn values_weigh_where_they_can_be_copied_and_nothing_else_changes_a_batch() {
        let mixture = Mixture {
            passkey: 0.0,
            copying: 1.0,
            keys: 3,
            batch_size: 4,
            curriculum: 10,
            ..Mixture::default()
        };
        let batch = data(mixture).batch(9).unwrap();
        let of = |heavy: bool| -> String {
            let all = batch.targets.iter().zip(&batch.weights).filter(|(_, w)| (**w == 10.0) == heavy);
            all.map(|(t, _)| char::from(*t as u8)).collect()
        };
        let (heavy, light) = (of(true), of(false));
        assert!(heavy.len() >= 12 && heavy.chars().all(|c| c.is_ascii_lowercase()), "{heavy}");
        // As many keys are asked for as were said.
        assert_eq!(light.matches('?').count() * 3, heavy.len(), "{light}");
        let without = Mixture { keys: 9, ..Mixture::default() };
        assert_eq!(data(without).batch(3).unwrap().inputs, data(Mixture::default()).batch(3).unwrap().inputs);
    }
}
