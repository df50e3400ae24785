//! The one decoder: embedding → blocks → last norm → head. A family is a recipe for one; see [`Family`](super::Family).
//!
//! | file | holds |
//! |---|---|
//! | `parts` | tensors and matrices, as a recipe asks for them |
//! | `relay` | pieces of a text on their way through the blocks, side by side |
//! | `back` | the gradient of a loss |

mod back;
mod parts;
mod relay;
#[cfg(test)]
mod tests;

use super::Ends;
use crate::kernel::norm::add;
use crate::kernel::scan::CHUNK;
use crate::layer::attention::Width;
use crate::layer::branch::Branch;
use crate::layer::linear::Linear;
use crate::layer::meeting::Meeting;
use crate::layer::norm::RmsNorm;
use crate::layer::op::with_floats;
use crate::layer::recurrence::{Recurrence, Recurrent};
use crate::layer::room::Room;
use crate::layer::rotation::Rotation;
use crate::layer::state::{LayerState, Spare, State};
use candle_core::{Device, Result, Tensor};
pub use parts::Parts;
use relay::{Turn, relay};
use std::ops::Range;

/// The layers of a model of any family.
#[derive(Clone, Debug)]
pub struct Stack {
    ends: Ends,
    /// None where the head's matrix is the embedding too.
    embedding: Option<Linear>,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    /// By which the weights of the blocks hold the residual stream rotated.
    rotation: Option<Rotation>,
    spare: Spare,
}

/// A block: its branches join the residual stream one after the other.
pub type Block = Vec<Step>;

/// A branch and the norm by which it reads the stream: x ← x + branch(norm(x)).
#[derive(Clone, Debug)]
pub struct Step {
    /// What the names of its parameters begin with in a checkpoint, such as `backbone.layers.0.mixer`.
    pub path: String,
    /// What the name of the norm's weight begins with, such as `backbone.layers.0.norm`.
    pub norm_path: String,
    /// The norm.
    pub norm: RmsNorm,
    /// The branch.
    pub branch: Box<dyn Branch>,
}

/// A recurrence of a stack, and where it is.
#[derive(Clone, Copy)]
pub struct Recurring<'a> {
    /// Number of its block.
    pub layer: usize,
    /// Number in [`Stack::linears`] of a matrix that reads what its branch reads.
    pub entry: usize,
    /// The recurrence.
    pub recurrence: &'a dyn Recurrent,
}

/// Tokens that go through all layers together, at most: what a layer hands to the next stays in the caches.
const PIECE: usize = 256;

/// Tokens of each piece of a text of `time` tokens: as equal as whole chunks of the scan allow.
fn piece(time: usize) -> usize {
    time.div_ceil(time.div_ceil(PIECE).max(1)).next_multiple_of(CHUNK)
}

impl Stack {
    /// Puts blocks between an embedding and a head; `tied` where those are one matrix. `eps` is that of the last norm.
    ///
    /// # Errors
    /// If a tensor is not there.
    pub fn new(parts: &Parts<'_>, ends: Ends, tied: bool, blocks: Vec<Block>, eps: f64) -> Result<Self> {
        let embedding = parts.linear(ends.embedding, false)?;
        let (embedding, head) = match tied {
            true => (None, embedding),
            false => (Some(embedding), parts.linear(ends.head, false)?),
        };
        let norm = parts.norm(ends.norm, eps)?;
        Ok(Self { ends, embedding, blocks, norm, head, rotation: None, spare: Spare::default() })
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
        let x = self.through(self.embed(tokens)?, 0..self.blocks.len(), state.as_deref_mut())?;
        if let Some(state) = state {
            state.position += tokens.dim(1)?;
        }
        Ok(x)
    }

    /// tokens [B, T] (u32) → the residual stream that enters the first block, [B, T, hidden] in f32.
    ///
    /// # Errors
    /// If a token lies outside the vocabulary.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        let x = self.embedding().weight.lookup(tokens)?;
        match &self.rotation {
            Some(rotation) => rotation.forward(&x),
            None => Ok(x),
        }
    }

    fn embedding(&self) -> &Linear {
        self.embedding.as_ref().unwrap_or(&self.head)
    }

    /// The residual stream [B, T, hidden] that enters the first of these blocks → the stream that leaves the last,
    /// moving their part of `state` on by T tokens. A stream that another stack of the same blocks before them gave
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
                for i in blocks {
                    for Step { norm, branch, .. } in &self.blocks[i] {
                        let layer = state.as_deref_mut().map(|state| &mut state.layers[i]);
                        x = (branch.forward(&norm.forward(&x)?, layer)? + x)?;
                    }
                }
                Ok(x)
            }
        }
    }

    /// The residual stream [B, T, hidden] that leaves the last block → hidden states after the last norm.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn close(&self, x: &Tensor) -> Result<Tensor> {
        match &self.rotation {
            Some(rotation) => self.norm.forward(&rotation.backward(x)?),
            None => self.norm.forward(x),
        }
    }

    /// hidden states [.., hidden] → logits [.., vocabulary].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }

    /// The output matrix.
    pub fn head(&self) -> &Linear {
        &self.head
    }

    /// The residual stream [B, T, hidden] that enters a block → [B, H, T]: the share of its attention there that each token
    /// pays to the first; none where the block has no attention.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn first_shares(&self, x: &Tensor, block: usize) -> Result<Option<Tensor>> {
        self.at_branch(x, block, |branch, u| {
            branch.attention().map(|attention| attention.first_shares(u)).transpose()
        })
    }

    /// The residual stream [1, T, hidden] that enters a block → how the tokens of its whole chunks meet there; none where they
    /// do not, or no chunk is whole.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn meeting(&self, x: &Tensor, block: usize) -> Result<Option<Meeting>> {
        match x.dim(1)? / CHUNK * CHUNK {
            0 => Ok(None),
            whole => {
                self.at_branch(&x.narrow(1, 0, whole)?.contiguous()?, block, |branch, u| branch.meeting(u))
            }
        }
    }

    /// What the first branch of a block that has anything to say says of what it reads.
    fn at_branch<T>(
        &self,
        x: &Tensor,
        block: usize,
        ask: impl Fn(&dyn Branch, &Tensor) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let (mut x, steps) = (x.clone(), &self.blocks[block]);
        for (i, Step { norm, branch, .. }) in steps.iter().enumerate() {
            let u = norm.forward(&x)?;
            let said = ask(&**branch, &u)?;
            if said.is_some() || i + 1 == steps.len() {
                return Ok(said);
            }
            x = (branch.forward(&u, None)? + x)?;
        }
        Ok(None)
    }

    /// Reads at least one token of one sequence, on a CPU, moving `state` on; `logits` `[vocabulary]`, if given, are
    /// overwritten with those after the last token. The steps of [`stream`](Self::stream) in buffers of the state: once
    /// they are there, a step allocates none.
    ///
    /// # Errors
    /// If a tensor is on another device.
    pub(crate) fn read(&self, tokens: &[u32], state: &mut State, logits: Option<&mut [f32]>) -> Result<()> {
        let hidden = self.head.weight.shape()?.1;
        let pieces = tokens.chunks(piece(tokens.len()));
        let (last, mut logits) = (pieces.len() - 1, logits);
        let pieces = pieces.enumerate().map(|(i, piece)| (piece, logits.take_if(|_| i == last)));
        relay(pieces, &mut state.layers, &mut state.rooms, |(tokens, logits), turn, room| {
            let mut stream = room.take(tokens.len() * hidden);
            self.embedding().weight.rows(tokens, &mut stream)?;
            if let Some(rotation) = &self.rotation {
                rotation.apply(&mut stream);
            }
            self.walk(&mut stream, 1, 0..self.blocks.len(), turn, room)?;
            if let Some(logits) = logits {
                let mut closed = room.take(hidden);
                let last = &mut stream[(tokens.len() - 1) * hidden..];
                if let Some(rotation) = &self.rotation {
                    rotation.apply_transposed(last);
                }
                self.norm.apply(last, &mut closed)?;
                self.head.apply(&closed, logits, room)?;
                room.give(closed);
            }
            room.give(stream);
            Ok(())
        })?;
        state.position += tokens.len();
        Ok(())
    }

    /// [`Self::through`] by the kernels on a CPU.
    fn apply(&self, x: Tensor, blocks: Range<usize>, state: &mut State) -> Result<Tensor> {
        let (batch, time, hidden) = x.dims3()?;
        let mut all = with_floats([&x.contiguous()?], |[x]| x.to_vec())?;
        drop(x);
        // The tokens of one sequence follow one another.
        let piece = if batch == 1 { piece(time) } else { time };
        let (pieces, layers) = (all.chunks_mut(batch * piece * hidden), &mut state.layers[blocks.clone()]);
        relay(pieces, layers, &mut state.rooms, |stream, turn, room| {
            self.walk(stream, batch, blocks.clone(), turn, room)
        })?;
        Tensor::from_vec(all, (batch, time, hidden), &Device::Cpu)
    }

    /// The steps of [`Self::through`] for a piece of a text, in the place of its stream [B, T, hidden].
    fn walk(
        &self,
        stream: &mut [f32],
        batch: usize,
        blocks: Range<usize>,
        turn: &mut Turn<'_>,
        room: &mut Room,
    ) -> Result<()> {
        let time = stream.len() / (batch * self.head.weight.shape()?.1);
        let (mut u, mut first) = (room.take(stream.len()), true);
        for block in &self.blocks[blocks] {
            turn.layer(|layer| {
                for Step { norm, branch, .. } in block {
                    match first {
                        true => norm.apply(stream, &mut u)?,
                        false => norm.apply_after(stream, &mut u)?,
                    }
                    first = false;
                    branch.apply(&mut u, (batch, time), layer, room)?;
                }
                Ok(())
            })?;
        }
        if !first {
            add(&u, stream);
        }
        room.give(u);
        Ok(())
    }

    /// A state before the first token, for `batch` sequences.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn zero_state(&self, batch: usize, device: &Device) -> Result<State> {
        let block = |block: &Block| {
            let mut state = LayerState::default();
            for step in block {
                state.join(step.branch.zero_state(batch, device)?)?;
            }
            Ok(state)
        };
        Ok(State::new(self.blocks.iter().map(block).collect::<Result<_>>()?, batch))
    }

    /// Bytes of the state of `batch` sequences after `tokens` tokens in the widths that it is kept in, scales included. A
    /// [`State`] holds integers of a recurrence, and the residual of their error feedback, in f32.
    pub fn state_bytes(&self, batch: usize, tokens: usize) -> usize {
        self.steps().map(|step| step.branch.state_bytes(batch, tokens)).sum()
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.blocks.iter().flatten()
    }

    /// The recurrences of its blocks, for those who look into them.
    pub fn recurrences(&self) -> Vec<Recurring<'_>> {
        let (mut all, mut entry) = (vec![], 0);
        for (layer, block) in self.blocks.iter().enumerate() {
            for Step { branch, .. } in block {
                all.extend(branch.recurrence().map(|recurrence| Recurring { layer, entry, recurrence }));
                entry += branch.linears().len();
            }
        }
        all
    }

    /// Sets the bits of what goes through the recurrence: inputs and state of every layer.
    ///
    /// # Errors
    /// If a width is not one of 2 … 8 bits, the stack is on a GPU, or no layer has a recurrence whose bits could be set.
    pub fn set_recurrence(&mut self, recurrence: Recurrence) -> crate::error::Result<()> {
        let mut any = false;
        for step in self.blocks.iter_mut().flatten() {
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
        for step in self.blocks.iter_mut().flatten() {
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

    /// Every linear of the model with its path: those of the blocks in the order in which they are used, an embedding of its
    /// own, then the head.
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        let blocks = self.steps().flat_map(|Step { path, branch, .. }| {
            branch.linears().into_iter().map(move |(name, linear)| (format!("{path}.{name}"), linear))
        });
        let embedding = self.embedding.iter().map(|linear| (self.ends.embedding.to_string(), linear));
        blocks.chain(embedding).chain([(self.ends.head.to_string(), &self.head)]).collect()
    }

    /// As [`linears`](Self::linears), to be changed.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let blocks = self.blocks.iter_mut().flatten().flat_map(|Step { path, branch, .. }| {
            branch.linears_mut().into_iter().map(move |(name, linear)| (format!("{path}.{name}"), linear))
        });
        let embedding = self.embedding.iter_mut().map(|linear| (self.ends.embedding.to_string(), linear));
        blocks.chain(embedding).chain([(self.ends.head.to_string(), &mut self.head)]).collect()
    }
}
