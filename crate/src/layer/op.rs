//! The way from tensors to the slices of the kernels, and back: shared by every operation that has a fused form.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use std::cell::RefCell;

/// The values of a contiguous f32 argument of an operation of ours.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("expected a contiguous f32 tensor of shape {:?}", layout.shape()),
    }
}

/// Runs `f` on the values of contiguous f32 tensors on the CPU.
pub(crate) fn with_floats<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut values = [&[][..]; N];
    for (values, (storage, layout)) in values.iter_mut().zip(&held) {
        match &**storage {
            Storage::Cpu(storage) => *values = floats(storage, layout)?,
            _ => bail!("expected a tensor on the CPU"),
        }
    }
    Ok(f(values))
}

/// Lets `f` change the values of a contiguous f32 tensor on the CPU; every tensor that shares them sees it.
pub(crate) fn in_place<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let op = InPlace { f: RefCell::new(Some(f)), out: RefCell::new(None) };
    tensor.inplace_op1(&op)?;
    op.out.into_inner().ok_or_else(|| candle_core::Error::Msg("the tensor was not changed".into()))
}

struct InPlace<F, R> {
    f: RefCell<Option<F>>,
    out: RefCell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for InPlace<F, R> {
    fn name(&self) -> &'static str {
        "in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, layout.contiguous_offsets(), self.f.borrow_mut().take()) {
            (CpuStorage::F32(values), Some((start, end)), Some(f)) => {
                *self.out.borrow_mut() = Some(f(&mut values[start..end]));
                Ok(())
            }
            _ => bail!("only a contiguous f32 tensor can be changed in place"),
        }
    }
}
