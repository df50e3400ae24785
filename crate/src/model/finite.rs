//! Weights that are no numbers.

use crate::error::{Error, Result};
use candle_core::{CpuStorage, Storage, Tensor};
use rayon::prelude::*;

/// Refuses weights that are not all finite.
pub(super) fn refuse_non_finite(tensor: &Tensor) -> Result<()> {
    match (non_finite(tensor), tensor.elem_count()) {
        (0, _) => Ok(()),
        (found, all) => Err(Error::input(format!("{found} of {all} weights are NaN or infinite"))
            .hint("the checkpoint is damaged or its training diverged; use another one")),
    }
}

/// How many elements of a tensor are NaN or infinite: those whose exponent bits are all set.
pub(super) fn non_finite(tensor: &Tensor) -> usize {
    // The loops without branches inside a block run at the speed of memory.
    fn count<T: Copy + Sync>(values: &[T], is_bad: impl Fn(T) -> bool + Sync) -> usize {
        let block = |block: &[T]| block.iter().map(|&value| u32::from(is_bad(value))).sum::<u32>() as usize;
        values.par_chunks(1 << 16).map(block).sum()
    }
    // Tensors just read or cast own their storage, so it holds nothing but them.
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return 0 };
    match storage {
        CpuStorage::F64(values) => count(values, |v| !v.is_finite()),
        CpuStorage::F32(values) => count(values, |v| v.to_bits() & 0x7f80_0000 == 0x7f80_0000),
        CpuStorage::BF16(values) => count(values, |v| v.to_bits() & 0x7f80 == 0x7f80),
        CpuStorage::F16(values) => count(values, |v| v.to_bits() & 0x7c00 == 0x7c00),
        CpuStorage::F8E4M3(values) => count(values, |v| v.to_bits() & 0x7f == 0x7f),
        _ => 0,
    }
}
