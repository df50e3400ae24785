//! [`Model`]: a network with its tokenizer, its config and its origin.
//!
//! | file | holds |
//! |---|---|
//! | [`checkpoint`] | what is there: folders, files, hub ids |
//! | `contents`, `files` | what a folder holds, and which of its files are weights |
//! | `finite` | weights that are no numbers |
//! | `weights` | the network's part of a checkpoint |
//! | [`safetensors`], `pickle`, `gguf`, [`artifact`] | the kinds of files |
//! | `claim` | what a pickled file says was done to weights that are floating-point numbers all the same |
//! | `stored`, `pass` | tensors in a file, and one pass through it for those that are wanted |
//! | [`hub`] | finding a checkpoint in the hub's cache or fetching it |
//! | [`tokenizer`] | text ↔ tokens |
//! | [`init`] | seeded initial weights |
//! | [`singular`] | singular values, read and replaced |
//! | `bounds` | how far a model reads, and whether it has a recurrent state |
//! | `kept` | blocks of a file that stay as they are |
//! | `card` | what was loaded, in lines |
//! | `loading` | where to and in which storage, by name |
//! | `forward` | tokens through the network, whole and block by block |
//! | `onward` | a text for many models that differ from one in one matrix |
//! | [`generate`] | continuations and scores of tokens |
//! | [`sampling`] | which token comes next |
//! | `spoken` | a continuation as text while it comes |
//! | [`quantization`] | the report of a quantized model |
//! | `saved` | its parts in a file |
//! | `save` | a model into a folder |
//! | `destination` | what may be replaced in that folder, and how as a whole |

pub mod artifact;
pub(crate) mod bounds;
mod card;
mod caught;
pub mod checkpoint;
mod claim;
mod contents;
mod destination;
mod files;
mod finite;
mod forward;
pub mod generate;
mod gguf;
pub mod hub;
pub mod init;
mod kept;
mod loading;
pub(crate) mod onward;
mod pass;
mod pickle;
pub mod quantization;
pub mod safetensors;
pub mod sampling;
mod save;
mod saved;
mod side_by_side;
pub mod singular;
mod spoken;
mod stored;
pub mod tokenizer;
mod weights;

use crate::error::{Error, Result};
use crate::family::stack::Recurring;
use crate::family::{self, Config, Matrices, Stack, Tensors};
use crate::layer::linear::{Linear, Tap};
use crate::layer::quantized::Quantized;
use crate::layer::state::State;
use candle_core::{DType, Device, Tensor};
use checkpoint::Checkpoint;
pub(crate) use loading::cast;
pub use loading::{Loading, parse_device, parse_dtype, parse_tokenizer};
use quantization::{Made, Quantization};
use save::Origin;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokenizer::Tokenizer;
use weights::Weights;

/// Which positions of a forward pass get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Every position.
    All,
    /// The last one of each sequence.
    Last,
}

/// A loaded model. Cloning shares the weights.
#[derive(Clone, Debug)]
pub struct Model {
    /// Short name: the folder's or the file's, or the hub id.
    pub name: String,
    /// What was given to load it; empty if it was made of tensors.
    pub source: String,
    /// Hub revision, if it came from the hub.
    pub revision: Option<String>,
    /// SHA-256 of the weight files, or of the tensors that it was made of; with the name of a dtype behind it if the
    /// weights were rounded to that one on their way to [`dtype`](Self::dtype).
    pub hash: String,
    /// The network's sizes.
    pub config: Config,
    /// What neither the config nor the shapes say, and the family's default was taken for.
    pub assumed: Vec<String>,
    /// Tensors of the checkpoint that the network has no use for.
    pub unused: Vec<String>,
    /// Text ↔ tokens.
    pub tokenizer: Tokenizer,
    /// Storage of the matrices.
    pub dtype: DType,
    /// What the weights were stored in where they were first read, in a line, if that says more than a dtype: the block types
    /// of a GGUF file. They are widened to [`dtype`](Self::dtype) unless the scheme `gguf` keeps them; a saved model still
    /// says it.
    pub stored_as: Option<String>,
    /// Longest sequence of the training, where the checkpoint says it.
    pub training_length: Option<usize>,
    /// The report of its quantization, if it is quantized.
    pub quantization: Option<Quantization>,
    /// What its quantization took, if it was quantized here.
    pub made: Option<Made>,
    /// The dtype that the matrices had when they were read or last rounded.
    rounded: DType,
    origin: Option<Arc<Origin>>,
    device: Device,
    tensors: Tensors,
    matrices: Matrices,
    stack: Stack,
}

impl Model {
    /// Loads a folder, a weight file, a hub id such as `state-spaces/mamba2-130m`, or `random:SHAPE` with seeded
    /// random weights.
    ///
    /// ```
    /// # use lowbit::model::Model;
    /// let model = Model::load("random:mamba2-tiny")?;
    /// assert_eq!(model.parameters(), 3_521_984);
    /// # Ok::<(), lowbit::Error>(())
    /// ```
    pub fn load(source: &str) -> Result<Self> {
        Self::load_with(source, &Loading::default())
    }

    /// Loads with a chosen dtype, device or revision.
    pub fn load_with(source: &str, how: &Loading) -> Result<Self> {
        if let Some(shape) = source.strip_prefix("random:") {
            let config = Config::named(shape)?;
            return Ok(Self { source: source.to_string(), ..Self::random(source, config, 0, how)? });
        }
        let found = Checkpoint::open(source, how.revision.as_deref())?;
        let at = |error: Error| error.at(found.source.display());
        let Weights { config, mut assumed, unused, quantization, tensors, matrices, hash } =
            Weights::read(&found)?;
        let (tokenizer, told) = how.tokenizer_of(&found, config.vocab_size())?;
        assumed.extend(told);
        let training_length = found.metadata.get("training_length").and_then(|text| text.parse().ok());
        let built = Self::build(config, tensors, matrices, quantization, tokenizer, how).map_err(at)?;
        let origin = Some(Arc::new(Origin::of(&found)));
        let (name, revision, stored_as) =
            (found.name.clone(), found.revision.clone(), found.stored_as.clone());
        Ok(Self {
            name,
            source: source.to_string(),
            revision,
            hash,
            assumed,
            unused,
            training_length,
            stored_as,
            origin,
            ..built
        })
    }

    /// A model of this shape with seeded random weights.
    pub fn random(name: &str, config: Config, seed: u64, how: &Loading) -> Result<Self> {
        let tensors = init::initialize(&config, seed)?;
        let built = Self::build(config, tensors, Matrices::new(), None, Tokenizer::Bytes, how)?;
        Ok(Self { name: name.to_string(), hash: format!("random-{seed}"), ..built })
    }

    /// A model of tensors at hand, reading bytes if no other tokenizer is chosen.
    pub fn from_tensors(name: &str, config: Config, tensors: Tensors, how: &Loading) -> Result<Self> {
        let hash = content_hash(&tensors)?;
        let tokenizer = how.tokenizer_without_checkpoint(config.vocab_size())?;
        let built = Self::build(config, tensors, Matrices::new(), None, tokenizer, how)?;
        Ok(Self { name: name.to_string(), hash, ..built })
    }

    fn build(
        config: Config,
        mut tensors: Tensors,
        matrices: Matrices,
        quantization: Option<Quantization>,
        tokenizer: Tokenizer,
        how: &Loading,
    ) -> Result<Self> {
        let unused = family::check(&config, &family::shapes(&tensors, &matrices))?;
        for name in &unused {
            tensors.remove(name);
        }
        let device = how.device.clone().unwrap_or(Device::Cpu);
        if quantization.is_some() && !device.is_cpu() {
            return Err(Error::input("quantized models run on the CPU").hint("use --device cpu"));
        }
        let specs = config.tensors();
        let mut stored = specs.iter().filter(|spec| spec.matrix).filter_map(|spec| tensors.get(&spec.name));
        let stored =
            stored.next().map(Tensor::dtype).or_else(|| matrices.values().find_map(Quantized::dtype));
        let dtype = how.dtype.or(stored).unwrap_or(DType::F32);
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(Error::input(format!("weights of dtype {dtype:?} cannot be used as they are"))
                .hint("ask for f32, bf16 or f16"));
        }
        for spec in &specs {
            if let Some(tensor) = tensors.get_mut(&spec.name) {
                let wanted = if spec.matrix { dtype } else { DType::F32 };
                let cast = cast(tensor, wanted).map_err(|error| error.at(&spec.name))?;
                *tensor = cast.to_device(&device)?.contiguous()?;
            }
        }
        if device.is_cpu() {
            let matrices = specs.iter().filter(|spec| spec.matrix && tensors.contains_key(&spec.name));
            let names: Vec<&str> = matrices.map(|spec| spec.name.as_str()).collect();
            side_by_side::place(&mut tensors, &names, dtype)?;
        }
        let mut stack = config.stack(&tensors, &matrices)?;
        if let Some(quantization) = &quantization {
            quantization.apply(&config, &mut stack)?;
        }
        Ok(Self {
            name: String::new(),
            source: String::new(),
            revision: None,
            hash: String::new(),
            config,
            assumed: vec![],
            unused,
            tokenizer,
            dtype,
            stored_as: None,
            training_length: None,
            quantization,
            made: None,
            rounded: stored.unwrap_or(dtype),
            origin: None,
            device,
            tensors,
            matrices,
            stack,
        })
    }

    /// The same model with its matrices stored in another dtype. Widening does not bring back what narrowing lost.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        let how = Loading { dtype: Some(dtype), device: Some(self.device.clone()), ..Loading::default() };
        let built = Self::build(
            self.config.clone(),
            self.tensors.clone(),
            self.matrices.clone(),
            self.quantization.clone(),
            self.tokenizer.clone(),
            &how,
        )?;
        // The name of the new dtype would not tell what the one between took away.
        let lossy = self.dtype != self.rounded && self.dtype != dtype;
        let (hash, rounded) = match lossy {
            true => (format!("{}-{}", self.hash, self.dtype.as_str()), self.dtype),
            false => (self.hash.clone(), self.rounded),
        };
        let Self { tensors, matrices, stack, .. } = built;
        Ok(Self { dtype, hash, rounded, tensors, matrices, stack, ..self.clone() })
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The parameters by checkpoint name, without the matrices that are quantized.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// The matrices in few bits, by the names of their tensors.
    pub(crate) fn matrices(&self) -> &Matrices {
        &self.matrices
    }

    /// Parameters; tied matrices count once.
    pub fn parameters(&self) -> usize {
        self.config.tensors().iter().map(|spec| spec.shape.iter().product::<usize>()).sum()
    }

    /// Bytes of all stored parameters.
    pub fn bytes(&self) -> usize {
        let tensors = self.tensors.values().map(|t| t.elem_count() * t.dtype().size_in_bytes());
        tensors.chain(self.matrices.values().map(Quantized::bytes)).sum()
    }

    /// Every linear with its path, in forward order.
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        self.stack.linears()
    }

    /// Its recurrences, for those who look into them; see [`Stack::recurrences`].
    pub fn recurrences(&self) -> Vec<Recurring<'_>> {
        self.stack.recurrences()
    }

    /// As [`linears`](Self::linears), to be changed: taps, formats.
    pub(crate) fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        self.stack.linears_mut()
    }

    /// The same model, whose linears show their inputs to `tap` of their number when it [reads](Self::read).
    pub(crate) fn tapped<F: Fn(&Tensor) -> candle_core::Result<()> + Send + Sync + 'static>(
        &self,
        tap: impl Fn(usize) -> F,
    ) -> Self {
        let mut model = self.clone();
        for (i, (_, linear)) in model.linears_mut().into_iter().enumerate() {
            linear.tap = Some(Tap(Arc::new(tap(i))));
        }
        model
    }

    /// A state before the first token, for `batch` sequences.
    pub fn state(&self, batch: usize) -> Result<State> {
        Ok(self.stack.zero_state(batch, &self.device)?)
    }

    /// Bytes of the state of `batch` sequences after `tokens` tokens in the widths that it is kept in; see
    /// [`Stack::state_bytes`].
    pub fn state_bytes(&self, batch: usize, tokens: usize) -> usize {
        self.stack.state_bytes(batch, tokens)
    }
}

/// SHA-256 over the names, dtypes, shapes and bytes of tensors.
fn content_hash(tensors: &Tensors) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, tensor) in tensors {
        let tensor = tensor.to_device(&Device::Cpu)?;
        hash.update(format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.dims()));
        hash.update(safetensors::bytes(&tensor));
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
