//! How a model is to be loaded: storage, device, revision.

use super::checkpoint::non_finite;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Where and how to load a model.
#[derive(Clone, Debug, Default)]
pub struct Loading {
    /// Storage of the matrices; the checkpoint's own by default. Everything else is f32.
    pub dtype: Option<DType>,
    /// The CPU by default.
    pub device: Option<Device>,
    /// A hub revision: branch, tag or commit.
    pub revision: Option<String>,
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

/// The numbers of a tensor in another dtype.
///
/// # Errors
/// If one is too large for it.
pub(crate) fn cast(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    let cast = tensor.to_dtype(dtype)?;
    if cast.dtype() == tensor.dtype() || non_finite(&cast) == 0 {
        return Ok(cast);
    }
    Err(Error::input(format!("a weight is too large for {}", dtype.as_str())).hint(match dtype {
        DType::F16 => "ask for bf16 or f32",
        DType::BF16 => "ask for f32",
        _ => "the checkpoint is damaged or its training diverged; use another one",
    }))
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
