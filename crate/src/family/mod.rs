//! Model families: each a folder with its config, its checkpoint's names, how to infer the one from the other, and
//! the recipe of its blocks.

pub mod mamba2;

use crate::error::{Error, Result};
use crate::layer::linear::Linear;
use crate::layer::state::State;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The tensors of a checkpoint by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A tensor that a config calls for.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name in a checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How training starts it.
    pub init: Init,
    /// Matrices of linears and embeddings may be stored in bf16 or f16; everything else stays f32.
    pub matrix: bool,
}

/// How a tensor starts before training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Constant(f32),
    /// Normal deviates with this standard deviation.
    Normal(f32),
    /// Uniform in ± this bound.
    Uniform(f32),
    /// ln of a uniform deviate between the two bounds.
    LogUniform(f32, f32),
    /// x with softplus(x) log-uniform between the two bounds: Mamba's dt_bias.
    InverseSoftplus(f32, f32),
}

/// The config of a model of any family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum Config {
    /// Mamba2.
    Mamba2(mamba2::Config),
}

impl Config {
    /// Reads a `config.json`, filling what it leaves out from the shapes of the tensors; or infers everything from the
    /// shapes. Also returns what had to be assumed because neither says it.
    pub fn resolve(json: Option<&serde_json::Value>, tensors: &Tensors) -> Result<(Self, Vec<String>)> {
        let named = json.and_then(|json| json.get("model_type")).and_then(|t| t.as_str());
        let is_mamba2 = match named {
            Some(name) => name == "mamba2",
            // Original checkpoints name no type; the tensors tell.
            None => mamba2::Config::recognizes(tensors),
        };
        if !is_mamba2 {
            let found = match named {
                Some(name) => format!("unknown model family {name:?}"),
                None => "no known model family has tensors of these names".to_string(),
            };
            return Err(Error::input(found).hint("this version knows: mamba2"));
        }
        let (config, assumed) = mamba2::Config::resolve(json, tensors)?;
        Ok((Self::Mamba2(config), assumed))
    }

    /// A published or customary shape by name.
    pub fn named(shape: &str) -> Result<Self> {
        match shape {
            "mamba2-130m" => Ok(Self::Mamba2(mamba2::Config::mamba2_130m())),
            "mamba2-tiny" => Ok(Self::Mamba2(mamba2::Config::default())),
            _ => Err(Error::input(format!("unknown shape {shape:?}"))
                .hint("known are mamba2-130m and mamba2-tiny")),
        }
    }

    /// The family's name, as records hold it.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Mamba2(_) => "mamba2",
        }
    }

    /// Every tensor of such a model.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        match self {
            Self::Mamba2(config) => config.tensors(),
        }
    }

    /// A checkpoint's tensor name in the family's own spelling.
    pub fn canonical_name(name: &str) -> String {
        mamba2::canonical_name(name)
    }

    /// Vocabulary size, rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Mamba2(config) => config.vocab_size,
        }
    }

    /// Blocks.
    pub fn layers(&self) -> usize {
        match self {
            Self::Mamba2(config) => config.num_hidden_layers,
        }
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Mamba2(config) => config.hidden_size,
        }
    }
}

/// The layers of a model of any family.
#[derive(Clone, Debug)]
pub enum Network {
    /// Mamba2.
    Mamba2(mamba2::Mamba2),
}

impl Network {
    /// Builds the layers from tensors that [`check`] has passed.
    pub fn new(config: &Config, tensors: &Tensors) -> Result<Self> {
        match config {
            Config::Mamba2(config) => Ok(Self::Mamba2(mamba2::Mamba2::new(config, tensors)?)),
        }
    }

    /// tokens [B, T] (u32) → hidden states [B, T, hidden] after the last norm, moving `state` on by T tokens.
    /// Without a state the sequence starts from nothing and nothing is kept.
    pub fn hidden(&self, tokens: &Tensor, state: Option<&mut State>) -> Result<Tensor> {
        match self {
            Self::Mamba2(network) => Ok(network.hidden(tokens, state)?),
        }
    }

    /// hidden states [.., hidden] → logits [.., vocabulary].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mamba2(network) => Ok(network.head.forward(hidden)?),
        }
    }

    /// A state before the first token, for `batch` sequences.
    pub fn zero_state(&self, batch: usize, device: &Device) -> Result<State> {
        match self {
            Self::Mamba2(network) => Ok(network.zero_state(batch, device)?),
        }
    }

    /// Every linear of the model with its path, in forward order. A tied head is listed once, as the head.
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        match self {
            Self::Mamba2(network) => network.linears(),
        }
    }
}

/// Holds the tensors to the config: every missing tensor and every wrong shape is an error; returns the unused ones.
pub fn check(config: &Config, tensors: &Tensors) -> Result<Vec<String>> {
    let specs = config.tensors();
    let missing: Vec<_> = specs
        .iter()
        .filter(|spec| !tensors.contains_key(&spec.name))
        .map(|spec| spec.name.as_str())
        .collect();
    if !missing.is_empty() {
        let (shown, more) = (missing[..missing.len().min(8)].join(", "), missing.len().saturating_sub(8));
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let unused: Vec<_> =
            tensors.keys().filter(|name| specs.iter().all(|spec| spec.name != **name)).collect();
        return Err(Error::input(format!("missing {} tensors: {shown}{more}", missing.len()))
            .hint(format!("the checkpoint has {} tensors that the config does not call for", unused.len())));
    }
    for spec in &specs {
        let found = tensors[&spec.name].dims();
        if found != spec.shape {
            return Err(Error::input(format!("expected shape {:?}, found {found:?}", spec.shape))
                .at(&spec.name)
                .hint("the config and the checkpoint disagree: are they of the same model?"));
        }
    }
    Ok(tensors.keys().filter(|name| specs.iter().all(|spec| spec.name != **name)).cloned().collect())
}
