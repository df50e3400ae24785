//! Reading a prompt, continuing it greedily, and scoring given tokens.

use super::{Model, Positions};
use crate::error::{Error, Result};
use crate::kernel::softmax;
pub use crate::kernel::softmax::argmax;
use crate::layer::op::with_floats;
use crate::layer::state::State;
use crate::progress::check_interrupt;
use crate::threads::install;
use candle_core::{DType, Tensor};
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

    /// Refuses a sequence longer than the model reads.
    pub(crate) fn admit_length(&self, length: usize) -> Result<()> {
        match self.config.longest().filter(|longest| length > *longest) {
            None => Ok(()),
            Some(longest) => Err(Error::input(format!(
                "a sequence of {length} tokens is longer than {longest}, the longest that {} reads",
                self.name
            ))
            .hint("choose a shorter length")),
        }
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
        let ids = self.tokenizer.encode(prompt)?;
        self.tokenizer.decode(&self.continue_greedily(&ids, count)?)
    }

    /// −ln p of each of the last `scored` tokens of `ids`, given all tokens before it. The first token of `ids` has
    /// nothing before it and cannot be scored.
    pub fn nll(&self, ids: &[u32], scored: usize) -> Result<Vec<f32>> {
        let hidden = self.predicting(ids, scored)?;
        let targets = &ids[ids.len() - scored..];
        let mut nll = Vec::with_capacity(scored);
        for piece in self.pieces(scored) {
            let logits = self.logits(&hidden, &piece)?;
            let vocab = self.config.vocab_size();
            nll.extend(with_floats([&logits], |[x]| softmax::nll(x, vocab, &targets[piece]))?);
            check_interrupt()?;
        }
        Ok(nll)
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
