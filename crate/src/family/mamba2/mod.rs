//! Mamba2 (Dao & Gu 2024), in the Hugging Face checkpoint layout; original checkpoints are renamed on the way in.

mod config;
mod resolve;

use super::Tensors;
use crate::layer::linear::Linear;
use crate::layer::mamba2::{Mamba2 as Mixer, Parts, Recurrence};
use crate::layer::norm::RmsNorm;
use crate::layer::state::State;
use candle_core::{DType, Device, Result, Tensor};
pub use config::Config;
pub use resolve::canonical_name;

/// The layers of a Mamba2.
#[derive(Clone, Debug)]
pub struct Mamba2 {
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// The output matrix, shared with the embedding where the config ties them.
    pub head: Linear,
}

#[derive(Clone, Debug)]
struct Block {
    norm: RmsNorm,
    mixer: Mixer,
}

impl Mamba2 {
    /// Builds the layers from tensors of the right names and shapes; small parameters are widened to f32.
    pub fn new(config: &Config, tensors: &Tensors) -> Result<Self> {
        let get = |name: &str| match tensors.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => candle_core::bail!("missing tensor {name}"),
        };
        let small = |name: &str| get(name)?.to_dtype(DType::F32);
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
            let in_proj = Linear::dense(get(&at("mixer.in_proj.weight"))?, bias("mixer.in_proj.bias")?);
            let out_proj = Linear::dense(get(&at("mixer.out_proj.weight"))?, bias("mixer.out_proj.bias")?);
            Ok(Block {
                norm: RmsNorm::new(small(&at("norm.weight"))?, config.layer_norm_epsilon),
                mixer: Mixer::new(s, in_proj, &parts, out_proj)?,
            })
        });
        let embedding = get("backbone.embeddings.weight")?;
        let head = if config.tie_word_embeddings { embedding.clone() } else { get("lm_head.weight")? };
        Ok(Self {
            blocks: blocks.collect::<Result<_>>()?,
            norm: RmsNorm::new(small("backbone.norm_f.weight")?, config.layer_norm_epsilon),
            head: Linear::dense(head, None),
            embedding,
        })
    }

    /// tokens [B, T] → [B, T, hidden] after the last norm; see [`super::Network::hidden`].
    pub fn hidden(&self, tokens: &Tensor, mut state: Option<&mut State>) -> Result<Tensor> {
        let (batch, time) = tokens.dims2()?;
        let rows = self.embedding.index_select(&tokens.flatten_all()?, 0)?.to_dtype(DType::F32)?;
        let mut x = rows.reshape((batch, time, ()))?; // the residual stream, [B, T, hidden], f32
        for (i, block) in self.blocks.iter().enumerate() {
            let layer = state.as_deref_mut().map(|state| &mut state.layers[i]);
            x = (block.mixer.forward(&block.norm.forward(&x)?, layer)? + x)?;
        }
        if let Some(state) = state {
            state.position += time;
        }
        self.norm.forward(&x)
    }

    /// A state before the first token.
    pub fn zero_state(&self, batch: usize, device: &Device) -> Result<State> {
        let layers =
            self.blocks.iter().map(|block| block.mixer.zero_state(batch, device)).collect::<Result<_>>()?;
        Ok(State { layers, position: 0 })
    }

    /// Sets the bits of the recurrence of every block; see [`super::Network::set_recurrence`].
    pub fn set_recurrence(&mut self, recurrence: Recurrence) -> crate::error::Result<()> {
        self.blocks.iter_mut().try_for_each(|block| block.mixer.set_recurrence(recurrence))
    }

    /// in_proj and out_proj of every block, then the head.
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            let at = move |name: &str| format!("backbone.layers.{i}.mixer.{name}");
            [(at("in_proj"), &block.mixer.in_proj), (at("out_proj"), &block.mixer.out_proj)]
        });
        blocks.chain([("lm_head".to_string(), &self.head)]).collect()
    }
}
