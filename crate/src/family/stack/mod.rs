//! The one decoder: embedding → blocks → last norm → head. A family is a recipe for one; see [`Family`](super::Family).
//!
//! | file | holds |
//! |---|---|
//! | `entry` | what happens to the embedding before the first block |
//! | `exit` | what is done to the logits after the head |
//! | `block` | what is mixed into the stream before a block's branches, and how they join it |
//! | `parts` | tensors and matrices, as a recipe asks for them |
//! | `walk` | the blocks by the kernels on a CPU |
//! | `relay` | pieces of a text on their way through the blocks, side by side |
//! | `ask` | what measurements ask of single blocks |
//! | `back` | the gradient of a loss |

mod ask;
mod back;
mod block;
mod entry;
mod exit;
mod parts;
mod relay;
#[cfg(test)]
mod tests;
mod walk;

use super::Ends;
use crate::layer::attention::Width;
use crate::layer::linear::Linear;
use crate::layer::norm::Norm;
use crate::layer::recurrence::Recurrence;
use crate::layer::room::{Buffer, Room};
use crate::layer::rotation::Rotation;
use crate::layer::state::{LayerState, Spare, State};
pub use ask::Recurring;
use block::Pass;
pub use block::{Block, Mixing, Parameter, Scale, Skip, Step};
use candle_core::{D, Device, Result, Tensor, bail};
pub use entry::{Entry, Pairs, Positions, bucket};
use exit::{Exit, Factor};
pub use parts::Parts;
use std::ops::Range;

/// The layers of a model of any family.
///
/// The residual stream goes from block to block as [B, T, hidden]; where later blocks mix in what it was before, as
/// [B, T, (1 + copies) · hidden]: the stream, the one that entered the first block, and those that left the blocks which
/// [keep](Block::keeps) a copy.
#[derive(Clone, Debug)]
pub struct Stack {
    ends: Ends,
    /// None where the head's matrix is the embedding too.
    embedding: Option<Linear>,
    entry: Option<Entry>,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    exit: Exit,
    /// By which the weights of the blocks hold the residual stream rotated.
    rotation: Option<Rotation>,
    /// Streams that are kept beside the residual stream.
    copies: usize,
    spare: Spare,
}

impl Stack {
    /// Puts blocks between an embedding and a last norm with a head; `tied` where embedding and head are one matrix.
    ///
    /// # Errors
    /// If a tensor is not there.
    pub fn new(
        parts: &Parts<'_>,
        ends: Ends,
        tied: bool,
        blocks: Vec<impl Into<Block>>,
        norm: Norm,
    ) -> Result<Self> {
        let embedding = parts.linear(ends.embedding, false)?;
        let (embedding, head) = match tied {
            true => (None, embedding),
            false => (Some(embedding), parts.linear(ends.head, false)?),
        };
        let blocks: Vec<Block> = blocks.into_iter().map(Into::into).collect();
        // Those who look into a recurrence know its state by its block.
        let recurs = |block: &&Block| block.steps.iter().any(|step| step.branch.recurrence().is_some());
        if blocks.iter().filter(|block| block.again > 0).any(|block| recurs(&block)) {
            bail!("a block with a recurrence is passed once")
        }
        let mixed = blocks.iter().any(|block| block.mixing.is_some());
        let kept = blocks.iter().filter_map(|block| block.keeps).max();
        let copies = kept.map_or(usize::from(mixed), |last| last + 1);
        let (entry, exit, rotation, spare) = (None, Exit::default(), None, Spare::default());
        Ok(Self { ends, embedding, entry, blocks, norm, head, exit, rotation, copies, spare })
    }

    /// With something done to the embedding before the first block.
    #[must_use]
    pub fn entered_by(self, entry: Entry) -> Self {
        Self { entry: Some(entry), ..self }
    }

    /// With logits that are c · tanh(x / c).
    #[must_use]
    pub fn capped(self, c: f64) -> Self {
        Self { exit: Exit { softcap: Some(c as f32), ..self.exit }, ..self }
    }

    /// With logits multiplied by a constant.
    #[must_use]
    pub fn with_logits_times(self, factor: f64) -> Self {
        Self { exit: Exit { factor: Some(Factor::Times(factor as f32)), ..self.exit }, ..self }
    }

    /// With logits divided by a constant.
    #[must_use]
    pub fn with_logits_over(self, factor: f64) -> Self {
        Self { exit: Exit { factor: Some(Factor::Over(factor as f32)), ..self.exit }, ..self }
    }

    /// Declares that the weights hold the residual stream rotated: what enters it is rotated, what leaves it rotated
    /// back.
    pub fn rotate(&mut self, residual: &Rotation) {
        self.rotation = Some(residual.clone());
    }

    /// tokens [B, T] (u32) → hidden states [B, T, hidden] after the last norm, moving `state` on by T tokens.
    /// Without a state the sequence starts from nothing and nothing is kept.
    ///
    /// # Errors
    /// If a token lies outside the vocabulary, or shapes do not fit.
    pub fn hidden(&self, tokens: &Tensor, state: Option<&mut State>) -> Result<Tensor> {
        self.close(&self.stream(tokens, state)?)
    }

    /// tokens [B, T] → the residual stream that leaves the last block, [B, T, hidden]; otherwise as
    /// [`hidden`](Self::hidden).
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn stream(&self, tokens: &Tensor, mut state: Option<&mut State>) -> Result<Tensor> {
        let before = state.as_ref().map_or(&[][..], |state| state.tokens.as_slice());
        let entering = self.embed_after(tokens, before, state.as_ref().map_or(0, |state| state.position))?;
        let x = self.through(entering, 0..self.blocks.len(), state.as_deref_mut())?;
        if let Some(state) = state {
            state.position += tokens.dim(1)?;
            if self.looks_back() {
                let read = tokens.to_vec2::<u32>()?;
                state.tokens.iter_mut().zip(read).for_each(|(tokens, read)| tokens.extend(read));
            }
        }
        Ok(x)
    }

    /// tokens [B, T] (u32) → the residual stream that enters the first block, in f32.
    ///
    /// # Errors
    /// If a token lies outside the vocabulary.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        self.embed_after(tokens, &[], 0)
    }

    /// As [`embed`](Self::embed), of sequences that go on from `count` tokens, which are these where that matters.
    fn embed_after(&self, tokens: &Tensor, before: &[Vec<u32>], count: usize) -> Result<Tensor> {
        let x = match &self.entry {
            Some(entry) => entry.definition(self.embedding(), tokens, before, count)?,
            None => self.embedding().weight.lookup(tokens)?,
        };
        let x = match &self.rotation {
            Some(rotation) => rotation.forward(&x)?,
            None => x,
        };
        if self.copies == 0 {
            return Ok(x);
        }
        let mut all = vec![x.clone(), x.clone()];
        all.resize(1 + self.copies, x.zeros_like()?);
        Tensor::cat(&all, D::Minus1)
    }

    /// Whether what enters the first block depends on the tokens before.
    fn looks_back(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.looks_back() > 0)
    }

    /// Buffers for the copies of a piece of which `stream` enters the first block.
    fn copies_of(&self, stream: &[f32], room: &mut Room) -> Vec<Buffer> {
        let mut copies: Vec<Buffer> = (0..self.copies).map(|_| room.take(stream.len())).collect();
        if let Some(first) = copies.first_mut() {
            first.copy_from_slice(stream);
        }
        copies
    }

    /// The residual stream alone, [.., hidden], without the copies beside it.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn residual(&self, stream: &Tensor) -> Result<Tensor> {
        match self.copies {
            0 => Ok(stream.clone()),
            copies => stream.narrow(D::Minus1, 0, stream.dim(D::Minus1)? / (1 + copies))?.contiguous(),
        }
    }

    fn embedding(&self) -> &Linear {
        self.embedding.as_ref().unwrap_or(&self.head)
    }

    /// The residual stream that enters the first of these blocks → the stream that leaves the last, with the copies beside
    /// it, moving their part of `state` on by T tokens. A stream that another stack of the same blocks before them gave
    /// may enter: that is how one changed layer is measured without reading what comes before it again.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn through(&self, mut x: Tensor, blocks: Range<usize>, state: Option<&mut State>) -> Result<Tensor> {
        let tracked = x.track_op() || self.norm.tracked() || self.head.tracked();
        match state {
            Some(state) if x.device().is_cpu() && !tracked => self.apply(x, blocks, state),
            None if x.device().is_cpu() && !tracked => {
                let batch = x.dim(0)?;
                let mut state = self.spare.take(batch, || self.zero_state(batch, x.device()))?;
                let read = self.apply(x, blocks, &mut state);
                self.spare.give(state);
                read
            }
            mut state => {
                let mut copies = x.chunk(1 + self.copies, D::Minus1)?;
                x = copies.remove(0);
                for (slot, pass) in self.slots(blocks.clone()).zip(self.passes(blocks)) {
                    let layer = state.as_deref_mut().map(|state| &mut state.layers[slot]);
                    x = pass.definition(x, &copies, layer)?;
                    if let Some(copy) = pass.block.keeps.filter(|_| pass.last) {
                        copies[copy] = x.clone();
                    }
                }
                match self.copies {
                    0 => Ok(x),
                    _ => Tensor::cat(&[&[x], copies.as_slice()].concat(), D::Minus1),
                }
            }
        }
    }

    /// The residual stream that leaves the last block → hidden states [.., hidden] after the last norm.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn close(&self, stream: &Tensor) -> Result<Tensor> {
        let x = self.residual(stream)?;
        match &self.rotation {
            Some(rotation) => self.norm.forward(&rotation.backward(&x)?),
            None => self.norm.forward(&x),
        }
    }

    /// hidden states [.., hidden] → logits [.., vocabulary].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.exit.forward(self.head.forward(hidden)?)
    }

    /// The output matrix.
    pub fn head(&self) -> &Linear {
        &self.head
    }

    /// A state before the first token, for `batch` sequences.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn zero_state(&self, batch: usize, device: &Device) -> Result<State> {
        let block = |block: &Block| {
            let mut state = LayerState::default();
            for step in &block.steps {
                state.join(step.branch.zero_state(batch, device)?)?;
            }
            Ok(state)
        };
        let passes = self.passes(0..self.blocks.len()).map(|pass| block(pass.block));
        let mut state = State::new(passes.collect::<Result<_>>()?, batch);
        if self.looks_back() {
            state.tokens.resize(batch, vec![]);
        }
        Ok(state)
    }

    /// Bytes of the state of `batch` sequences after `tokens` tokens in the widths that it is kept in, scales included. A
    /// [`State`] holds integers of a recurrence, and the residual of their error feedback, in f32.
    pub fn state_bytes(&self, batch: usize, tokens: usize) -> usize {
        let ids = if self.looks_back() { batch * tokens * size_of::<u32>() } else { 0 };
        let passes = self.passes(0..self.blocks.len()).flat_map(|pass| &pass.block.steps);
        passes.map(|step| step.branch.state_bytes(batch, tokens)).sum::<usize>() + ids
    }

    /// The passes through these blocks, in order.
    fn passes(&self, blocks: Range<usize>) -> impl Iterator<Item = Pass<'_>> {
        self.blocks[blocks].iter().flat_map(Block::passes)
    }

    /// Where a state has what these passes carry.
    fn slots(&self, blocks: Range<usize>) -> Range<usize> {
        let before = self.blocks[..blocks.start].iter().map(|block| 1 + block.again).sum();
        before..before + self.passes(blocks).count()
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.blocks.iter().flat_map(|block| &block.steps)
    }

    fn steps_mut(&mut self) -> impl Iterator<Item = &mut Step> {
        self.blocks.iter_mut().flat_map(|block| &mut block.steps)
    }

    /// Sets the bits of what goes through the recurrence: inputs and state of every layer.
    ///
    /// # Errors
    /// If a width is not one of 2 … 8 bits, the stack is on a GPU, or no layer has a recurrence whose bits could be set.
    pub fn set_recurrence(&mut self, recurrence: Recurrence) -> crate::error::Result<()> {
        let mut any = false;
        for step in self.steps_mut() {
            any |= step.branch.set_recurrence(recurrence)?;
        }
        match any || recurrence == Recurrence::default() {
            true => Ok(()),
            false => Err(crate::error::Error::input(
                "the model has no recurrence whose inputs, state or products could be rounded",
            )
            .hint("leave x, bc, h and the products of chunks out of the scheme")),
        }
    }

    /// Sets how attention keeps keys and values.
    ///
    /// # Errors
    /// If no layer keeps any.
    pub fn set_cache(&mut self, width: Width) -> crate::error::Result<()> {
        let mut any = false;
        for step in self.steps_mut() {
            any |= step.branch.set_cache(width);
        }
        match any || width == Width::F32 {
            true => Ok(()),
            false => {
                Err(crate::error::Error::input("the model keeps no keys and values that could be rounded")
                    .hint("leave kv out of the scheme"))
            }
        }
    }

    /// Every linear of the model with its path: those of the blocks in the order in which they are used, those of the entry,
    /// an embedding of its own, then the head.
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        let blocks = self.steps().flat_map(|Step { path, branch, .. }| {
            branch.linears().into_iter().map(move |(name, linear)| (format!("{path}.{name}"), linear))
        });
        let entry = self.entry.iter().flat_map(Entry::linears);
        let embedding = self.embedding.iter().map(|linear| (self.ends.embedding.to_string(), linear));
        let head = [(self.ends.head.to_string(), &self.head)];
        blocks.chain(entry).chain(embedding).chain(head).collect()
    }

    /// As [`linears`](Self::linears), to be changed.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let blocks = self.blocks.iter_mut().flat_map(|block| &mut block.steps);
        let blocks = blocks.flat_map(|Step { path, branch, .. }| {
            branch.linears_mut().into_iter().map(move |(name, linear)| (format!("{path}.{name}"), linear))
        });
        let entry = self.entry.iter_mut().flat_map(Entry::linears_mut);
        let embedding = self.embedding.iter_mut().map(|linear| (self.ends.embedding.to_string(), linear));
        let head = [(self.ends.head.to_string(), &mut self.head)];
        blocks.chain(entry).chain(embedding).chain(head).collect()
    }
}
