//! Mamba2 (Dao & Gu 2024), in the Hugging Face checkpoint layout; original checkpoints are renamed on the way in.

mod backward;
mod config;
mod hugging_face;
mod inputs;
mod resolve;
mod steps;

use super::relay::{Turn, relay};
use super::{Matrices, Tensors};
use crate::kernel::norm::add;
use crate::kernel::scan::CHUNK;
use crate::layer::linear::{Linear, Weight};
use crate::layer::mamba2::{Mamba2 as Mixer, Parts, Recurrence};
use crate::layer::norm::RmsNorm;
use crate::layer::op::with_floats;
use crate::layer::room::Room;
use crate::layer::rotation::Rotation;
use crate::layer::state::{Spare, State};
use candle_core::{DType, Device, Result, Tensor};
pub use config::Config;
pub use resolve::{before_body, name_in_body};
use std::ops::Range;
pub use steps::Steps;

/// The layers of a Mamba2.
#[derive(Clone, Debug)]
pub struct Mamba2 {
    /// None where the head's matrix is the embedding too.
    embedding: Option<Linear>,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// The output matrix.
    pub head: Linear,
    /// By which the weights of the blocks hold the residual stream rotated.
    pub rotation: Option<Rotation>,
    spare: Spare,
}

/// Tokens that go through all layers together, at most: what a layer hands to the next stays in the caches.
const PIECE: usize = 256;

/// Tokens of each piece of a text of `time` tokens: as equal as whole chunks of the scan allow.
fn piece(time: usize) -> usize {
    time.div_ceil(time.div_ceil(PIECE).max(1)).next_multiple_of(CHUNK)
}

#[derive(Clone, Debug)]
struct Block {
    norm: RmsNorm,
    mixer: Mixer,
}

impl Mamba2 {
    /// Builds the layers from tensors and matrices of the right names and shapes; small parameters are widened to f32.
    pub fn new(config: &Config, tensors: &Tensors, matrices: &Matrices) -> Result<Self> {
        let get = |name: &str| match tensors.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => candle_core::bail!("missing tensor {name}"),
        };
        let small = |name: &str| get(name)?.to_dtype(DType::F32);
        let linear = |name: &str, bias| -> Result<Linear> {
            let weight = match matrices.get(name) {
                Some(matrix) => Weight::Quantized(matrix.clone()),
                None => Weight::Dense(get(name)?),
            };
            Ok(Linear::new(weight, bias))
        };
        let s = config.sizes();
        let blocks = (0..config.num_hidden_layers).map(|i| {
            let at = |name: &str| format!("backbone.layers.{i}.{name}");
            let bias = |name: &str| config.use_bias.then(|| small(&at(name))).transpose();
            let conv_weight = small(&at("mixer.conv1d.weight"))?.squeeze(1)?; // [C, K]
            let conv_bias = if config.use_conv_bias {
                small(&at("mixer.conv1d.bias"))?
            } else {
                Tensor::zeros(s.channels(), DType::F32, conv_weight.device())?
            };
            let parts = Parts {
                conv_weight,
                conv_bias,
                dt_bias: small(&at("mixer.dt_bias"))?,
                a_log: small(&at("mixer.A_log"))?,
                d: small(&at("mixer.D"))?,
                norm: small(&at("mixer.norm.weight"))?,
            };
            let in_proj = linear(&at("mixer.in_proj.weight"), bias("mixer.in_proj.bias")?)?;
            let out_proj = linear(&at("mixer.out_proj.weight"), bias("mixer.out_proj.bias")?)?;
            Ok(Block {
                norm: RmsNorm::new(small(&at("norm.weight"))?, config.layer_norm_epsilon),
                mixer: Mixer::new(s, in_proj, &parts, out_proj)?,
            })
        });
        let embedding = linear("backbone.embeddings.weight", None)?;
        let (embedding, head) = match config.tie_word_embeddings {
            true => (None, embedding),
            false => (Some(embedding), linear("lm_head.weight", None)?),
        };
        Ok(Self {
            blocks: blocks.collect::<Result<_>>()?,
            norm: RmsNorm::new(small("backbone.norm_f.weight")?, config.layer_norm_epsilon),
            head,
            embedding,
            rotation: None,
            spare: Spare::default(),
        })
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// tokens [B, T] → the residual stream that enters the first block, [B, T, hidden] in f32.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        let x = self.embedding.as_ref().unwrap_or(&self.head).weight.lookup(tokens)?;
        match &self.rotation {
            Some(rotation) => rotation.forward(&x),
            None => Ok(x),
        }
    }

    /// The residual stream after the last block → [B, T, hidden] after the last norm.
    pub fn close(&self, x: &Tensor) -> Result<Tensor> {
        match &self.rotation {
            Some(rotation) => self.norm.forward(&rotation.backward(x)?),
            None => self.norm.forward(x),
        }
    }

    /// The residual stream [B, T, hidden] through some blocks; see [`super::Network::through`].
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
                    let layer = state.as_deref_mut().map(|state| &mut state.layers[i]);
                    let Block { norm, mixer } = &self.blocks[i];
                    x = (mixer.forward(&norm.forward(&x)?, layer)? + x)?;
                }
                Ok(x)
            }
        }
    }

    /// Reads tokens of one sequence, moving `state` on; see [`super::Network::read`].
    pub(crate) fn read(&self, tokens: &[u32], state: &mut State, logits: Option<&mut [f32]>) -> Result<()> {
        let hidden = self.head.weight.shape()?.1;
        let pieces = tokens.chunks(piece(tokens.len()));
        let (last, mut logits) = (pieces.len() - 1, logits);
        let pieces = pieces.enumerate().map(|(i, piece)| (piece, logits.take_if(|_| i == last)));
        relay(pieces, &mut state.layers, &mut state.rooms, |(tokens, logits), turn, room| {
            let mut stream = room.take(tokens.len() * hidden);
            self.embedding.as_ref().unwrap_or(&self.head).weight.rows(tokens, &mut stream)?;
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
        })
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
        let mut u = room.take(stream.len());
        for i in blocks.clone() {
            let Block { norm, mixer } = &self.blocks[i];
            match i == blocks.start {
                true => norm.apply(stream, &mut u)?,
                false => norm.apply_after(stream, &mut u)?,
            }
            turn.layer(|layer| mixer.apply(&mut u, (batch, time), layer, room))?;
        }
        if !blocks.is_empty() {
            add(&u, stream);
        }
        room.give(u);
        Ok(())
    }

    /// A state before the first token.
    pub fn zero_state(&self, batch: usize, device: &Device) -> Result<State> {
        let layers =
            self.blocks.iter().map(|block| block.mixer.zero_state(batch, device)).collect::<Result<_>>()?;
        Ok(State::new(layers, 0))
    }

    /// Bytes of such a state in the widths that it is kept in; see [`super::Network::state_bytes`].
    pub fn state_bytes(&self, batch: usize) -> usize {
        self.blocks.iter().map(|block| block.mixer.state_bytes(batch)).sum()
    }

    /// Sets the bits of the recurrence of every block; see [`super::Network::set_recurrence`].
    pub fn set_recurrence(&mut self, recurrence: Recurrence) -> crate::error::Result<()> {
        self.blocks.iter_mut().try_for_each(|block| block.mixer.set_recurrence(recurrence))
    }

    /// in_proj and out_proj of every block, an embedding of its own, then the head.
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            [(path(i, "in_proj"), &block.mixer.in_proj), (path(i, "out_proj"), &block.mixer.out_proj)]
        });
        let embedding = self.embedding.iter().map(|linear| ("backbone.embeddings".to_string(), linear));
        blocks.chain(embedding).chain([("lm_head".to_string(), &self.head)]).collect()
    }

    /// As [`linears`](Self::linears), to be changed.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let blocks = self.blocks.iter_mut().enumerate().flat_map(|(i, block)| {
            let Mixer { in_proj, out_proj, .. } = &mut block.mixer;
            [(path(i, "in_proj"), in_proj), (path(i, "out_proj"), out_proj)]
        });
        let embedding = self.embedding.iter_mut().map(|linear| ("backbone.embeddings".to_string(), linear));
        blocks.chain(embedding).chain([("lm_head".to_string(), &mut self.head)]).collect()
    }
}

/// Path of a mixer's linear.
fn path(layer: usize, name: &str) -> String {
    format!("backbone.layers.{layer}.mixer.{name}")
}
