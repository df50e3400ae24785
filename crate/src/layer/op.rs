//! The way from tensors to the slices of the kernels, and back: shared by every operation that has a fused form.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, WithDType, bail};
use half::bf16;
use std::cell::RefCell;

/// Runs `f` on the values of contiguous tensors of that type on the CPU.
pub(crate) fn with_values<T: WithDType, const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut values = [&[][..]; N];
    for (values, (storage, layout)) in values.iter_mut().zip(&held) {
        match (&**storage, layout.contiguous_offsets()) {
            (Storage::Cpu(storage), Some((start, end))) => {
                *values = &T::cpu_storage_as_slice(storage)?[start..end];
            }
            _ => bail!("expected a contiguous tensor of shape {:?} on the CPU", layout.shape()),
        }
    }
    Ok(f(values))
}

/// [`with_values`] of f32.
pub(crate) fn with_floats<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    with_values(tensors, f)
}

/// The values of a tensor, to be changed.
pub(crate) enum Values<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

impl<'a> Values<'a> {
    /// Those of f32.
    ///
    /// # Errors
    /// If they are bf16.
    pub fn floats(self) -> Result<&'a mut [f32]> {
        match self {
            Self::F32(values) => Ok(values),
            Self::Bf16(_) => bail!("expected an f32 tensor"),
        }
    }
}

/// Lets `f` change the values of a contiguous f32 or bf16 tensor on the CPU; every tensor that shares them sees it.
pub(crate) fn values_in_place<R>(tensor: &Tensor, f: impl FnOnce(Values<'_>) -> R) -> Result<R> {
    let op = InPlace { f: RefCell::new(Some(f)), out: RefCell::new(None) };
    tensor.inplace_op1(&op)?;
    op.out.into_inner().ok_or_else(|| candle_core::Error::Msg("the tensor was not changed".into()))
}

/// [`values_in_place`] of an f32 tensor.
pub(crate) fn in_place<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    values_in_place(tensor, |values| Ok(f(values.floats()?)))?
}

struct InPlace<F, R> {
    f: RefCell<Option<F>>,
    out: RefCell<Option<R>>,
}

impl<R, F: FnOnce(Values<'_>) -> R> InplaceOp1 for InPlace<F, R> {
    fn name(&self) -> &'static str {
        "in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (Some((start, end)), Some(f)) = (layout.contiguous_offsets(), self.f.borrow_mut().take()) else {
            bail!("only a contiguous tensor can be changed in place")
        };
        let values = match storage {
            CpuStorage::F32(values) => Values::F32(&mut values[start..end]),
            CpuStorage::BF16(values) => Values::Bf16(&mut values[start..end]),
            _ => bail!("only values in f32 or bf16 can be changed in place"),
        };
        *self.out.borrow_mut() = Some(f(values));
        Ok(())
    }
}
