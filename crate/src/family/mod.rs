//! Model families: each a folder with its config, its checkpoint's names, how to infer the one from the other, and
//! the recipe of its blocks.

mod check;
pub mod mamba2;
mod names;
mod relay;
pub mod site;

use crate::error::{Error, Result};
use crate::layer::linear::Linear;
use crate::layer::mamba2::Recurrence;
use crate::layer::quantized::Quantized;
use crate::layer::room::Room;
use crate::layer::rotation::Rotation;
use crate::layer::state::State;
use candle_core::{Device, Tensor};
pub use check::{check, shapes, some_of};
pub use names::Names;
use serde::{Deserialize, Serialize};
pub use site::Site;
use std::collections::BTreeMap;
use std::ops::Range;

/// The tensors of a checkpoint by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The shapes of a checkpoint's tensors by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// What a file beside the weights states of a model: `config.json`, or `params.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Stated {
    /// The file's name.
    pub file: String,
    /// What it says.
    pub json: serde_json::Value,
}

/// Matrices in few bits by the name that their tensor would have.
pub type Matrices = BTreeMap<String, Quantized>;

/// The gradient of a loss with respect to every tensor of a checkpoint, by name, each in the order of its tensor.
pub type Gradients = BTreeMap<String, Vec<f32>>;

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
    /// Takes what a config states, filling what it leaves out from the shapes of the tensors; or infers everything from
    /// the shapes. Also returns what had to be assumed because neither says it.
    ///
    /// A head of the embedding's shape is taken to be the embedding, unless something says otherwise: whether it is,
    /// only its values tell.
    pub fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        let named = Self::stated_family(stated)?;
        // Original checkpoints name no type, and Mistral's call it mamba; the tensors tell.
        if named != Some("mamba2") && !mamba2::Config::recognizes(shapes) {
            return Err(match (named, stated) {
                (Some(name), Some(stated)) => unknown(name).at(&stated.file),
                _ => Error::input("no known model family has tensors of these names").hint(KNOWN),
            });
        }
        let (config, assumed) = mamba2::Config::resolve(stated, shapes)?;
        Ok((Self::Mamba2(config), assumed))
    }

    /// The family that is stated, if one is.
    ///
    /// # Errors
    /// It is not known, or is no name, or what is stated is no object of settings.
    pub fn stated_family(stated: Option<&Stated>) -> Result<Option<&str>> {
        let Some(Stated { file, json }) = stated else { return Ok(None) };
        if !json.is_object() {
            let start: String = json.to_string().chars().take(20).collect();
            return Err(Error::input(format!("expected an object of settings, found {start}")).at(file));
        }
        match json.get("model_type") {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(serde_json::Value::String(name)) if ["mamba2", "mamba"].contains(&&**name) => Ok(Some(name)),
            Some(serde_json::Value::String(name)) => Err(unknown(name).at(file)),
            Some(named) => {
                let what = format!("model_type must be a name such as \"mamba2\", found {named}");
                Err(Error::input(what).at(file))
            }
        }
    }

    /// The `config.json` of such a model, as transformers reads it. `source` is the one that the model came with: what it
    /// says beside is kept where it still holds.
    pub fn hugging_face(&self, source: Option<&serde_json::Value>) -> Result<serde_json::Value> {
        match self {
            Self::Mamba2(config) => Ok(serde_json::Value::Object(config.hugging_face(source)?)),
        }
    }

    /// Why transformers cannot read a model of this shape, if it cannot.
    pub fn foreign_to_transformers(&self) -> Option<String> {
        match self {
            Self::Mamba2(config) if config.expand().is_none() => Some(format!(
                "num_heads × head_dim = {} is no multiple of hidden_size = {}",
                config.num_heads * config.head_dim,
                config.hidden_size
            )),
            Self::Mamba2(_) => None,
        }
    }

    /// Whether what is stated says that head and embedding are one matrix; none if it does not say.
    pub fn states_tied(stated: Option<&Stated>) -> Option<bool> {
        mamba2::Config::states_tied(&stated?.json)
    }

    /// The names of the head and of the embedding that is the head too, if it is.
    pub fn tied(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Mamba2(config) => {
                config.tie_word_embeddings.then_some(("lm_head.weight", "backbone.embeddings.weight"))
            }
        }
    }

    /// Gives the head a matrix of its own.
    pub fn untie(&mut self) {
        match self {
            Self::Mamba2(config) => config.tie_word_embeddings = false,
        }
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

    /// Refuses sizes that no network can have.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Mamba2(config) => config.check(),
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

    /// A place for the gradient of every tensor.
    pub fn zero_gradients(&self) -> Gradients {
        let place = |spec: TensorSpec| (spec.name, vec![0.0; spec.shape.iter().product()]);
        self.tensors().into_iter().map(place).collect()
    }

    /// Every matrix that can be quantized, in forward order. A tied head is listed once, as the head.
    pub fn sites(&self) -> Vec<Site> {
        match self {
            Self::Mamba2(config) => config.sites(),
        }
    }

    /// How fast the heads of every layer forget.
    ///
    /// # Errors
    /// If a tensor is not there.
    pub fn steps(&self, tensors: &Tensors) -> Result<Vec<mamba2::Steps>> {
        match self {
            Self::Mamba2(config) => Ok(config.steps(tensors)?),
        }
    }

    /// What the recurrence of a layer gets, by name and as rows of tokens, from what in_proj gave.
    ///
    /// # Errors
    /// If a tensor is not there, or anything is not on the CPU.
    pub fn recurrence_inputs(
        &self,
        tensors: &Tensors,
        layer: usize,
        rows: &Tensor,
    ) -> Result<Vec<(&'static str, Tensor)>> {
        match self {
            Self::Mamba2(config) => Ok(config.recurrence_inputs(tensors, layer, rows)?),
        }
    }

    /// Whether a tensor of this name would be part of what a block or the head computes.
    fn is_of_block(&self, name: &str) -> bool {
        match self {
            Self::Mamba2(_) => name.starts_with("backbone.layers.") || name == "lm_head.bias",
        }
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
    /// Builds the layers from tensors that [`check`] has passed; of `matrices` those that are in few bits.
    pub fn new(config: &Config, tensors: &Tensors, matrices: &Matrices) -> Result<Self> {
        match config {
            Config::Mamba2(config) => Ok(Self::Mamba2(mamba2::Mamba2::new(config, tensors, matrices)?)),
        }
    }

    /// Declares that the weights hold the residual stream rotated: what enters it is rotated, what leaves it rotated
    /// back.
    pub fn rotate(&mut self, residual: &Rotation) {
        match self {
            Self::Mamba2(network) => network.rotation = Some(residual.clone()),
        }
    }

    /// tokens [B, T] (u32) → hidden states [B, T, hidden] after the last norm, moving `state` on by T tokens.
    /// Without a state the sequence starts from nothing and nothing is kept.
    pub fn hidden(&self, tokens: &Tensor, state: Option<&mut State>) -> Result<Tensor> {
        self.close(&self.stream(tokens, state)?)
    }

    /// tokens [B, T] → the residual stream that leaves the last block, [B, T, hidden]; otherwise as
    /// [`hidden`](Self::hidden).
    pub fn stream(&self, tokens: &Tensor, mut state: Option<&mut State>) -> Result<Tensor> {
        let x = self.through(self.embed(tokens)?, 0..self.blocks(), state.as_deref_mut())?;
        if let Some(state) = state {
            state.position += tokens.dim(1)?;
        }
        Ok(x)
    }

    /// Blocks.
    fn blocks(&self) -> usize {
        match self {
            Self::Mamba2(network) => network.blocks(),
        }
    }

    /// tokens [B, T] (u32) → the residual stream that enters the first block, [B, T, hidden] in f32.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mamba2(network) => Ok(network.embed(tokens)?),
        }
    }

    /// The residual stream [B, T, hidden] that enters the first of these blocks → the stream that leaves the last,
    /// moving their part of `state` on by T tokens. A stream that another network of the same blocks before them gave
    /// may enter: that is how one changed layer is measured without reading what comes before it again.
    pub fn through(&self, stream: Tensor, blocks: Range<usize>, state: Option<&mut State>) -> Result<Tensor> {
        match self {
            Self::Mamba2(network) => Ok(network.through(stream, blocks, state)?),
        }
    }

    /// The residual stream [B, T, hidden] that leaves the last block → hidden states after the last norm.
    pub fn close(&self, stream: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mamba2(network) => Ok(network.close(stream)?),
        }
    }

    /// hidden states [.., hidden] → logits [.., vocabulary].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mamba2(network) => Ok(network.head.forward(hidden)?),
        }
    }

    /// Reads at least one token of one sequence, on a CPU, moving `state` on; `logits` `[vocabulary]`, if given, are
    /// overwritten with those after the last token. The steps of [`stream`](Self::stream) in buffers of the state: once
    /// they are there, a step allocates none.
    ///
    /// # Errors
    /// If a tensor is on another device.
    pub(crate) fn read(&self, tokens: &[u32], state: &mut State, logits: Option<&mut [f32]>) -> Result<()> {
        match self {
            Self::Mamba2(network) => network.read(tokens, state, logits)?,
        }
        state.position += tokens.len();
        Ok(())
    }

    /// Reads `tokens` from a state of zeros, on a CPU, and returns what `loss` gives for their logits [T, vocabulary] in f32.
    /// `loss` also writes its gradient with respect to them; from it come those of all tensors: `grads` has a place for
    /// each, see [`Config::zero_gradients`], and all are overwritten.
    ///
    /// Products are as exact as those of training: see [`kernel::linear::trained`](crate::kernel::linear::trained).
    ///
    /// # Errors
    /// If the network is rotated or anything of it is quantized or stored in less than f32.
    pub(crate) fn gradients(
        &self,
        tokens: &[u32],
        loss: impl FnOnce(&[f32], &mut [f32]) -> f32,
        grads: &mut Gradients,
        room: &mut Room,
    ) -> Result<f32> {
        match self {
            Self::Mamba2(network) => Ok(network.gradients(tokens, loss, grads, room)?),
        }
    }

    /// A state before the first token, for `batch` sequences.
    pub fn zero_state(&self, batch: usize, device: &Device) -> Result<State> {
        match self {
            Self::Mamba2(network) => Ok(network.zero_state(batch, device)?),
        }
    }

    /// Bytes of the state of `batch` sequences in the widths that it is kept in, scales included. A [`State`] holds
    /// integers, and the residual of their error feedback, in f32.
    pub fn state_bytes(&self, batch: usize) -> usize {
        match self {
            Self::Mamba2(network) => network.state_bytes(batch),
        }
    }

    /// Sets the bits of what goes through the recurrence: inputs and state of every layer.
    ///
    /// # Errors
    /// If a width is not one of 2 … 8 bits, or the network is on a GPU.
    pub fn set_recurrence(&mut self, recurrence: Recurrence) -> Result<()> {
        match self {
            Self::Mamba2(network) => network.set_recurrence(recurrence),
        }
    }

    /// Every linear of the model with its path, in the order of [`Config::sites`].
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        match self {
            Self::Mamba2(network) => network.linears(),
        }
    }

    /// As [`linears`](Self::linears), to be changed.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        match self {
            Self::Mamba2(network) => network.linears_mut(),
        }
    }
}

const KNOWN: &str = "this version knows: mamba2";

fn unknown(family: &str) -> Error {
    Error::input(format!("unknown model family {family:?}")).hint(KNOWN)
}
