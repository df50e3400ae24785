//! Layers: tensors in, tensors out; the fused kernels on a CPU, tensor operations elsewhere.
//!
//! | file | holds |
//! |---|---|
//! | [`linear`] | the one seam of quantization: every matrix of a model is a [`linear::Linear`] |
//! | [`norm`] | RMSNorm |
//! | [`mamba2`] | Mamba2's mixer: projections, convolution, recurrence, gated norm |
//! | [`state`] | what a recurrent model carries from token to token |
//!
//! Activations are f32 throughout; a weight's dtype says how it is stored.

pub mod linear;
pub mod mamba2;
pub mod norm;
pub mod state;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The values of a contiguous f32 argument of an operation of ours.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("expected a contiguous f32 tensor of shape {:?}", layout.shape()),
    }
}

/// Runs `f` on the values of a contiguous f32 tensor on the CPU.
pub(crate) fn with_floats<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(floats(storage, layout)?),
        _ => bail!("expected a tensor on the CPU"),
    }
}
