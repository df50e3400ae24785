//! The matrices of a model in one stretch of memory, each from a cache line on: kernels read them in place, tiles line by
//! line and decoding from end to end.

use crate::family::Tensors;
use crate::kernel::pages::large;
use crate::layer::op::with_values;
use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

/// Bytes of a cache line, and of a row of a tile of the matrix unit.
const LINE: usize = 64;

/// Moves the tensors of these names into one buffer, in this order. They are contiguous, on the CPU and of type `dtype`:
/// f32, bf16 or f16.
pub(super) fn place(tensors: &mut Tensors, names: &[&str], dtype: DType) -> Result<()> {
    match dtype {
        DType::F32 => place_as::<f32>(tensors, names),
        DType::BF16 => place_as::<bf16>(tensors, names),
        DType::F16 => place_as::<f16>(tensors, names),
        other => bail!("no matrices are made of {other:?}"),
    }
}

fn place_as<T: WithDType>(tensors: &mut Tensors, names: &[&str]) -> Result<()> {
    let mut aligned = true;
    for name in names {
        aligned &=
            with_values([&tensors[*name]], |[values]: [&[T]; 1]| values.as_ptr().align_offset(LINE) == 0)?;
    }
    if aligned {
        return Ok(()); // as when a model is built of another's tensors
    }
    let line = LINE / size_of::<T>();
    let room = |name: &&str| tensors[*name].elem_count().next_multiple_of(line);
    let mut all: Vec<T> = large(line + names.iter().map(room).sum::<usize>());
    all.resize(all.as_ptr().align_offset(LINE), T::zero());
    let first = all.len();
    let mut places = vec![];
    for name in names {
        all.resize(first + (all.len() - first).next_multiple_of(line), T::zero());
        // It goes before the next one comes: there is never more than one of them twice.
        let Some(tensor) = tensors.remove(*name) else { bail!("missing tensor {name}") };
        places.push((all.len(), tensor.dims().to_vec()));
        with_values([&tensor], |[values]: [&[T]; 1]| all.extend_from_slice(values))?;
    }
    let len = all.len();
    let all = Tensor::from_vec(all, len, &Device::Cpu)?;
    for (name, (start, dims)) in names.iter().zip(places) {
        let tensor = all.narrow(0, start, dims.iter().product())?.reshape(dims)?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(tensor: &Tensor) -> usize {
        match tensor.dtype() {
            DType::F32 => with_values([tensor], |[values]: [&[f32]; 1]| values.as_ptr() as usize),
            DType::BF16 => with_values([tensor], |[values]: [&[bf16]; 1]| values.as_ptr() as usize),
            _ => with_values([tensor], |[values]: [&[f16]; 1]| values.as_ptr() as usize),
        }
        .unwrap()
    }

    #[test]
    fn every_matrix_keeps_its_values_and_starts_a_line() {
        let names = ["b", "a", "c"];
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let tensor = |rows: usize, first: f32| {
                Tensor::arange(first, first + 7.0 * rows as f32, &Device::Cpu)
                    .and_then(|values| values.reshape((rows, 7))?.to_dtype(dtype))
                    .unwrap()
            };
            let before: Tensors =
                names.iter().zip(1..).map(|(n, i)| (n.to_string(), tensor(i, i as f32))).collect();
            let mut after = before.clone();
            place(&mut after, &names, dtype).unwrap();
            for (name, tensor) in &after {
                assert_eq!(tensor.dims(), before[name].dims());
                let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
                assert_eq!(values(tensor), values(&before[name]));
                assert_eq!(address(tensor) % LINE, 0, "{name} as {dtype:?}");
            }
            let again = after.clone();
            place(&mut after, &names, dtype).unwrap();
            for name in names {
                assert_eq!(address(&after[name]), address(&again[name]), "it stays");
            }
        }
    }
}
