//! Reading a prompt, continuing it greedily or by sampling, and scoring given tokens.

pub use super::sampling::Sampling;
use super::sampling::draw;
use super::spoken::Spoken;
use super::{Model, Positions};
use crate::error::{Error, Result};
pub use crate::kernel::softmax::argmax;
use crate::layer::state::State;
use crate::progress::check_interrupt;
use crate::threads::install;
use candle_core::{DType, Tensor};
use std::fmt;
use std::io::Write;
use std::ops::Range;

/// Prompts are read in pieces of this many tokens: between them an interrupt is heeded, and on a GPU memory does not grow with
/// their length.
const PIECE: usize = 2048;
/// Logits are made for at most this many values at a time: a large vocabulary never fills the memory.
const LOGIT_VALUES: usize = 1 << 24;

impl Model {
    /// Token ids as a tensor [1, T], held to the vocabulary.
    pub fn tokens(&self, ids: &[u32]) -> Result<Tensor> {
        self.check(ids, ids.len())?;
        Ok(Tensor::from_slice(ids, (1, ids.len()), self.device())?)
    }

    /// The one place where tokens come in: none lies outside the vocabulary, there is at least one, and they end no
    /// sequence, of `length` tokens with those read before, that is longer than the model reads.
    fn check(&self, ids: &[u32], length: usize) -> Result<()> {
        let vocab = self.config.vocab_size();
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::input(format!("token {id} lies outside the model's vocabulary of {vocab}"))
                .hint("the tokenizer belongs to another model"));
        }
        if ids.is_empty() {
            return Err(Error::input("there are no tokens to read"));
        }
        self.admit_length(length)?;
        Ok(())
    }

    /// As [`check`](Self::check), of tokens [B, T] that a caller made.
    pub(super) fn admit(&self, tokens: &Tensor, state: Option<&State>) -> Result<()> {
        let (dims, dtype) = (tokens.dims(), tokens.dtype());
        if dims.len() != 2 || dtype != DType::U32 {
            return Err(Error::input(format!(
                "tokens are [B, T] in u32, found {dims:?} in {}",
                dtype.as_str()
            )));
        }
        if let Some(held) = state.map(|state| state.batch).filter(|held| *held != dims[0]) {
            return Err(Error::input(format!("{} sequences cannot move a state of {held} on", dims[0])));
        }
        let length = state.map_or(0, |state| state.position) + dims[1];
        self.check(&tokens.flatten_all()?.to_vec1()?, length)
    }

    /// Reads a prompt, moving `state` on, and returns the logits after its last token.
    pub fn prefill(&self, ids: &[u32], state: &mut State) -> Result<Vec<f32>> {
        let mut logits = vec![];
        self.read_into(ids, state, &mut logits)?;
        Ok(logits)
    }

    /// Reads one token and returns the logits after it.
    pub fn step(&self, id: u32, state: &mut State) -> Result<Vec<f32>> {
        self.prefill(&[id], state)
    }

    /// [`step`](Self::step) with the logits in the place of those before: on a CPU no buffer is allocated from the second
    /// step on.
    pub fn step_into(&self, id: u32, state: &mut State, logits: &mut Vec<f32>) -> Result<()> {
        self.read_into(&[id], state, logits)
    }

    fn read_into(&self, ids: &[u32], state: &mut State, logits: &mut Vec<f32>) -> Result<()> {
        self.check(ids, state.position + ids.len())?;
        if state.batch != 1 {
            let found = state.batch;
            return Err(Error::input(format!("a prompt moves the state of one sequence on, not of {found}")));
        }
        let cpu = self.device().is_cpu();
        let mut pieces = ids.chunks(PIECE).peekable();
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            if cpu {
                logits.resize(self.config.vocab_size(), 0.0);
                install(|| self.stack.read(piece, state, last.then_some(&mut *logits)))?;
            } else if last {
                let found = self.forward_admitted(&self.tokens(piece)?, Some(state), Positions::Last)?;
                *logits = found.flatten_all()?.to_vec1()?;
            } else {
                self.stack.stream(&self.tokens(piece)?, Some(state))?;
            }
            check_interrupt()?;
        }
        Ok(())
    }

    /// The `count` most likely tokens after `ids`, each fed back in; ties go to the lowest id.
    pub fn continue_greedily(&self, ids: &[u32], count: usize) -> Result<Vec<u32>> {
        // The pool is entered once, not for each token: the step of a small model takes no longer than crossing into it.
        install(|| self.continued(ids, count))
    }

    fn continued(&self, ids: &[u32], count: usize) -> Result<Vec<u32>> {
        let mut state = self.state(1)?;
        let mut logits = self.prefill(ids, &mut state)?;
        let mut out = vec![];
        while out.len() < count {
            let best = argmax(&logits);
            out.push(best);
            if out.len() < count {
                self.step_into(best, &mut state, &mut logits)?;
            }
            check_interrupt()?;
        }
        Ok(out)
    }

    /// The greedy continuation of a text by `count` tokens.
    pub fn generate(&self, prompt: &str, count: usize) -> Result<String> {
        let ids = self.tokenizer.encode_prompt(prompt)?;
        self.tokenizer.decode(&self.continue_greedily(&ids, count)?)
    }

    /// −ln p of each of the last `scored` tokens of `ids`, given all tokens before it. The first token of `ids` has
    /// nothing before it and cannot be scored.
    pub fn nll(&self, ids: &[u32], scored: usize) -> Result<Vec<f32>> {
        self.nll_of(&self.predicting(ids, scored)?, &ids[ids.len() - scored..])
    }

    /// The hidden states [1, scored, hidden] that predict the last `scored` tokens of `ids`, each from all before it.
    pub(crate) fn predicting(&self, ids: &[u32], scored: usize) -> Result<Tensor> {
        if scored >= ids.len() {
            let (all, most) = (ids.len(), ids.len().saturating_sub(1));
            return Err(Error::input(format!(
                "at most {most} of {all} tokens have one before them, not {scored}"
            )));
        }
        let read = ids.len() - 1;
        let hidden = self.hidden(&self.tokens(&ids[..read])?, None)?; // [1, T − 1, hidden]
        self.tokens(&ids[ids.len() - scored..])?; // targets are held to the vocabulary too
        Ok(hidden.narrow(1, read - scored, scored)?)
    }

    /// `positions` positions cut so that the logits of a piece fit into memory.
    pub(crate) fn pieces(&self, positions: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = (LOGIT_VALUES / self.config.vocab_size()).max(1);
        (0..positions).step_by(rows).map(move |first| first..(first + rows).min(positions))
    }

    /// Logits [1, piece, vocabulary] of a piece of hidden states [1, T, hidden], on the CPU.
    pub(crate) fn logits(&self, hidden: &Tensor, piece: &Range<usize>) -> Result<Tensor> {
        let logits = self.head(&hidden.narrow(1, piece.start, piece.len())?)?;
        Ok(logits.to_device(&candle_core::Device::Cpu)?)
    }
}

/// A continuation that was sampled. Its `Debug` form, which ends a cell, says how it ended: the text was seen already.
#[derive(Clone, PartialEq, Eq)]
pub struct Generated {
    /// The text, without the stop text.
    pub text: String,
    /// The tokens that were said, those of the stop text among them.
    pub tokens: Vec<u32>,
    /// The stop text that ended it; none where `max_tokens` did.
    pub stopped: Option<String>,
}

impl fmt::Display for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.tokens.len();
        match &self.stopped {
            Some(stop) => write!(f, "({count} tokens, ended by {stop:?})"),
            None => write!(f, "({count} tokens, as many as were asked for)"),
        }
    }
}

impl Model {
    /// Continues a text as [`Sampling`] says; it is seen on standard output, in the terminal or under the cell, as it comes.
    ///
    /// # Errors
    /// Those of [`sample_with`](Self::sample_with).
    pub fn sample(&self, prompt: &str, how: &Sampling) -> Result<Generated> {
        let mut out = std::io::stdout();
        // Nobody may be reading, or not any longer.
        let mut show = |text: &str| drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
        let found = self.sample_with(prompt, how, |text| {
            show(text);
            Ok(())
        });
        show("\n");
        found
    }

    /// Continues a text as [`Sampling`] says, and hands each piece of it to `tell` as it comes: whole characters, which may
    /// turn out to be nothing of a stop text.
    ///
    /// # Errors
    /// If a setting means nothing, prompt and continuation are longer than the model can read, a logit is not finite, or
    /// those of `tell`.
    pub fn sample_with(
        &self,
        prompt: &str,
        how: &Sampling,
        mut tell: impl FnMut(&str) -> Result<()>,
    ) -> Result<Generated> {
        how.check()?;
        let ids = self.tokenizer.encode_prompt(prompt)?;
        self.fits("prompt and max_tokens", ids.len().saturating_add(how.max_tokens))?;
        let mut state = self.state(1)?;
        let mut logits = self.prefill(&ids, &mut state)?;
        let (mut draws, mut seen) = (how.draws(), vec![false; self.config.vocab_size()]);
        ids.iter().for_each(|id| seen[*id as usize] = true); // held to the vocabulary by now
        let (mut spoken, mut tokens) = (Spoken::new(&self.tokenizer, &ids, &how.stop), vec![]);
        loop {
            let id = draw(&how.candidates(&logits, &seen).map_err(|error| error.at(&self.name))?, &mut draws);
            tokens.push(id);
            seen[id as usize] = true;
            tell(spoken.push(id)?)?;
            if spoken.stopped().is_some() || tokens.len() == how.max_tokens {
                break;
            }
            self.step_into(id, &mut state, &mut logits)?;
        }
        tell(spoken.rest()?)?;
        let stopped = spoken.stopped().map(String::from);
        Ok(Generated { text: spoken.into_text(), tokens, stopped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(how: &Sampling) -> (Generated, Vec<String>) {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let mut pieces = vec![];
        let found = model.sample_with("Now is the winter of ", how, |piece| {
            pieces.push(piece.to_string());
            Ok(())
        });
        (found.unwrap(), pieces)
    }

    #[test]
    fn a_seed_is_a_text_and_no_settings_are_greedy() {
        let how =
            Sampling { temperature: 1.0, top_k: Some(40), seed: 3, max_tokens: 30, ..Sampling::default() };
        let (first, shown) = pieces(&how);
        assert_eq!((first.tokens.len(), shown.concat()), (30, first.text.clone()));
        assert_eq!(pieces(&how).0, first);
        assert_ne!(pieces(&Sampling { seed: 4, ..how.clone() }).0.tokens, first.tokens);
        assert_eq!(format!("{first:?}"), "(30 tokens, as many as were asked for)");
        let model = Model::load("random:mamba2-tiny").unwrap();
        let ids = model.tokenizer.encode("Now is the winter of ").unwrap();
        let greedy = pieces(&Sampling { max_tokens: 20, ..Sampling::default() }).0;
        assert_eq!(greedy.tokens, model.continue_greedily(&ids, 20).unwrap());
        // A penalty beyond all measure says nothing twice.
        let once = Sampling { repetition_penalty: 1e6, max_tokens: 40, ..Sampling::default() };
        let mut tokens = pieces(&once).0.tokens;
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), 40);
    }

    #[test]
    fn a_stop_text_ends_it() {
        // Letters of ASCII alone, so that a stop can be cut from the middle of what is said.
        let how = Sampling { temperature: 1.5, seed: 11, max_tokens: 200, ..Sampling::default() };
        let whole = pieces(&how).0.text;
        let letters: Vec<(usize, char)> = whole.char_indices().collect();
        let (at, _) = letters[letters.len() / 2];
        let stop = &whole[at..letters[letters.len() / 2 + 2].0];
        let first = whole.find(stop).unwrap();
        let (found, shown) = pieces(&Sampling { stop: vec![stop.to_string()], ..how });
        assert_eq!((found.text.as_str(), found.stopped.as_deref()), (&whole[..first], Some(stop)));
        assert_eq!(shown.concat(), found.text);
        assert!(found.tokens.len() < 200 && format!("{found:?}").ends_with(&format!("ended by {stop:?})")));
    }
}
