//! How a model is to be loaded: storage, device, revision, tokenizer.

use super::checkpoint::Checkpoint;
use super::finite::non_finite;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// What safetensors metadata call the tokenizer of a model whose text was chosen to be bytes.
pub(super) const TOKENIZER: &str = "tokenizer";

/// Where and how to load a model.
#[derive(Clone, Debug, Default)]
pub struct Loading {
    /// Storage of the matrices; the checkpoint's own by default. Everything else is f32.
    pub dtype: Option<DType>,
    /// The CPU by default.
    pub device: Option<Device>,
    /// A hub revision: branch, tag or commit.
    pub revision: Option<String>,
    /// How text is read; by default with the tokenizer in the weights' file or the `tokenizer.json` beside it, see
    /// [`tokenizer`](super::tokenizer).
    pub tokenizer: Option<Tokenizer>,
}

impl Loading {
    /// The tokenizer of a checkpoint, and what is assumed by it.
    pub(super) fn tokenizer_of(
        &self,
        found: &Checkpoint,
        vocab_size: usize,
    ) -> Result<(Tokenizer, Option<String>)> {
        let file = found.tokenizer.as_ref().filter(|_| self.tokenizer.is_none());
        let own = if self.tokenizer.is_some() { None } else { found.own_tokenizer().transpose()? };
        let (tokenizer, assumed) = match (&self.tokenizer, file) {
            _ if let Some(own) = own => own,
            (Some(chosen), _) => (chosen.clone(), None),
            (None, Some(file)) => (Tokenizer::load(file)?, None),
            (None, None) if found.metadata.get(TOKENIZER).is_some_and(|name| name == "bytes") => {
                (Tokenizer::Bytes, None)
            }
            (None, None) => {
                let source = found.source.as_path();
                let folder = if source.is_dir() { Some(source) } else { source.parent() };
                let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
                Tokenizer::without_file(vocab_size, folder.unwrap_or(Path::new(".")))
            }
        };
        let told_by = file.unwrap_or(&found.source);
        tokenizer.check(vocab_size).map_err(|error| error.at(told_by.display()))?;
        Ok((tokenizer, assumed))
    }

    /// The tokenizer of a model that has no checkpoint: bytes, where the vocabulary holds them.
    pub(super) fn tokenizer_without_checkpoint(&self, vocab_size: usize) -> Result<Tokenizer> {
        let tokenizer = match &self.tokenizer {
            Some(chosen) => chosen.clone(),
            None if vocab_size >= Tokenizer::Bytes.vocab_size() => Tokenizer::Bytes,
            None => Tokenizer::without_file(vocab_size, Path::new(".")).0,
        };
        tokenizer.check(vocab_size)?;
        Ok(tokenizer)
    }
}

/// The tokenizer of that name: bytes, or the path of a `tokenizer.json` or of its folder.
pub fn parse_tokenizer(name: &str) -> Result<Tokenizer> {
    match name {
        "bytes" => Ok(Tokenizer::Bytes),
        path => Tokenizer::load(path).map_err(|error| match Path::new(path).exists() {
            true => error,
            false => error.hint("give bytes, or the path of a tokenizer.json or of its folder"),
        }),
    }
}

/// The storage dtype of that name: f32, bf16 or f16.
pub fn parse_dtype(name: &str) -> Result<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        _ => Err(Error::input(format!("unknown dtype {name:?}")).hint("known are f32, bf16 and f16")),
    }
}

/// A tensor in another type.
///
/// # Errors
/// A number is too large for the type.
pub(crate) fn cast(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    let cast = tensor.to_dtype(dtype)?;
    let infinite = |tensor: &Tensor| -> Result<usize> {
        Ok(non_finite(&tensor.to_device(&Device::Cpu)?.force_contiguous()?))
    };
    // What is not finite already is told where it is read.
    if dtype == tensor.dtype() || infinite(&cast)? == 0 || infinite(tensor)? > 0 {
        return Ok(cast);
    }
    let wider = match dtype {
        DType::F16 => "ask for bf16 or f32",
        DType::BF16 => "ask for f32",
        _ => "lowbit computes in f32: scale the weights down before they are saved",
    };
    Err(Error::input(format!("a weight is too large for {}", dtype.as_str())).hint(wider))
}

/// The device of that name: cpu, cuda, or cuda:N.
pub fn parse_device(name: &str) -> Result<Device> {
    let index = match name.split_once(':') {
        _ if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => 0,
        Some(("cuda", index)) => {
            index.parse().map_err(|_| Error::input(format!("no GPU has the number {index:?}")))?
        }
        _ => {
            return Err(
                Error::input(format!("unknown device {name:?}")).hint("known are cpu, cuda and cuda:N")
            );
        }
    };
    Device::new_cuda(index).map_err(|error| {
        let reason = Error::from(error);
        Error::unavailable(format!("{name} cannot be used: {reason}"))
            .hint("use --device cpu, or build with --features cuda on a machine with an NVIDIA GPU")
    })
}
