//! What a run is held to on its way: bits per byte of held-out text, and recall of passkeys at the training length.

use super::Training;
use crate::corpus::{Corpus, passkey};
use crate::error::{Error, Result};
use crate::family::Stack;
use crate::kernel::softmax;
use crate::layer::op::with_floats;
use crate::model::generate::argmax;
use crate::model::tokenizer::Tokenizer;
use candle_core::{Device, Tensor};

/// Prompts that a validation asks.
const TRIALS: usize = 20;

/// Windows of held-out text, scored as they stand.
pub(super) struct Text {
    inputs: Tensor,
    targets: Vec<u32>,
    bytes: usize,
}

impl Text {
    pub(super) fn new(corpus: &Corpus, tokenizer: &Tokenizer, training: &Training) -> Result<Self> {
        let text = tokenizer.encoding(&corpus.joined())?;
        let (tokens, len) = (&text.ids, training.mixture.seq_len);
        let available = tokens.len().saturating_sub(1) / len;
        if available == 0 {
            return Err(Error::input(format!("fewer than the {len} tokens of one sequence"))
                .at(corpus.title())
                .hint("choose a smaller mixture.seq_len"));
        }
        // Spread over the whole split, so that every document counts.
        let windows = training.validate_windows.clamp(1, available);
        let starts: Vec<_> = (0..windows).map(|i| i * available / windows * len).collect();
        let inputs: Vec<_> = starts.iter().flat_map(|s| &tokens[*s..s + len]).copied().collect();
        let targets: Vec<_> = starts.iter().flat_map(|s| &tokens[s + 1..=s + len]).copied().collect();
        let bytes = starts.iter().map(|s| text.bytes(s + 1..s + len + 1)).sum();
        Ok(Self { inputs: Tensor::from_vec(inputs, (windows, len), &Device::Cpu)?, targets, bytes })
    }

    pub(super) fn bits_per_byte(&self, network: &Stack) -> Result<f64> {
        let (windows, len) = self.inputs.dims2()?;
        let mut sum = 0.0;
        for first in (0..windows).step_by(8) {
            let count = 8.min(windows - first);
            let hidden = network.hidden(&self.inputs.narrow(0, first, count)?, None)?.detach();
            let logits = network.logits(&hidden)?;
            let targets = &self.targets[first * len..][..count * len];
            let nll = with_floats([&logits], |[x]| softmax::nll(x, x.len() / targets.len(), targets))?;
            sum += nll.iter().map(|x| f64::from(*x)).sum::<f64>();
        }
        Ok(sum / std::f64::consts::LN_2 / self.bytes as f64)
    }
}

/// Passkey prompts that fill the training length with their answer.
pub(super) struct Recall {
    /// The tokens of prompt and answer, and the length of the answer.
    prompts: Vec<(Vec<u32>, usize)>,
}

impl Recall {
    /// No prompts, where the training has none or where none fits.
    pub(super) fn new(tokenizer: &Tokenizer, training: &Training) -> Result<Self> {
        let super::data::Mixture { seq_len, digits, passkey: share, .. } = training.mixture;
        let count = |text: &str| Ok(tokenizer.encode(text)?.len());
        let mut prompts = vec![];
        for index in 0..if share > 0.0 { TRIALS } else { 0 } {
            let (key, depth) = passkey::trial(training.seed, seq_len, index, digits, TRIALS)?;
            let answer = tokenizer.encode(&format!(" {key}"))?; // as long as it may be after a prompt
            let room = seq_len.saturating_sub(answer.len());
            let Ok(prompt) = passkey::passkey_prompt(room, depth, &key, &count) else { break };
            let (mut tokens, answer) = tokenizer.continued(&prompt.text, &prompt.answer())?;
            tokens.extend(&answer);
            prompts.push((tokens, answer.len()));
        }
        Ok(Self { prompts })
    }

    /// The share of keys that greedy continuation says right, and the mean log-probability of a key in nats.
    pub(super) fn of(&self, network: &Stack) -> Result<Option<(f64, f64)>> {
        let (mut right, mut logprob) = (0, 0.0);
        for (tokens, answer) in &self.prompts {
            let inputs =
                Tensor::from_slice(&tokens[..tokens.len() - 1], (1, tokens.len() - 1), &Device::Cpu)?;
            let hidden = network.hidden(&inputs, None)?.detach();
            let logits = network.logits(&hidden.narrow(1, tokens.len() - 1 - answer, *answer)?)?;
            let targets = &tokens[tokens.len() - answer..];
            let vocab = logits.dim(2)?;
            with_floats([&logits], |[x]| {
                logprob -= softmax::nll(x, vocab, targets).iter().map(|x| f64::from(*x)).sum::<f64>();
                right +=
                    usize::from(x.chunks(vocab).zip(targets).all(|(row, target)| argmax(row) == *target));
            })?;
        }
        let n = self.prompts.len() as f64;
        Ok((!self.prompts.is_empty()).then_some((right as f64 / n, logprob / n)))
    }
}
