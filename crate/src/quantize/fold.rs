//! Changes of a model that leave its function as it is and make it easier to quantize: rotation and smoothing.

use super::calibrate::Inputs;
use crate::error::{Error, Result};
use crate::family::Tensors;
use crate::family::site::{Residual, Site};
use crate::layer::rotation::Rotation;
use crate::model::quantization::rotation;
use candle_core::{DType, Tensor};

/// Rotates the residual stream, and the inputs of the matrices that write to it (QuaRot, Ashkboos et al. 2024): the
/// weights of the norms before the matrices are folded into them; W_in ← W_in Rᵀ, W_out ← R W_out R'ᵀ. What is left to do
/// at run time is R' before W_out, and R where the stream begins and its reverse where it ends, which lets a tied
/// embedding stay tied.
pub fn rotate(tensors: &mut Tensors, sites: &[Site], hidden: usize, seed: u64) -> Result<()> {
    let residual = rotation(seed, hidden);
    // A norm may have several readers: it is one only after the last has taken it in.
    let mut norms = Tensors::new();
    for site in sites {
        let mut weight = tensor(tensors, &site.weight)?.to_dtype(DType::F32)?; // [out, in]
        match site.residual {
            Residual::Ends | Residual::Apart => continue,
            Residual::Reads => {
                let name =
                    site.norm.as_ref().ok_or_else(|| Error::internal("a stream is read without a norm"))?;
                let norm = tensor(tensors, name)?;
                weight = residual.forward(&weight.broadcast_mul(norm)?)?;
                norms.insert(name.clone(), norm.ones_like()?);
            }
            Residual::Writes => {
                weight = columns(&rotation(seed, site.cols).forward(&weight)?, &residual)?;
                let name = format!("{}.bias", site.path);
                if let Some(bias) = tensors.get(&name) {
                    let turned = residual.forward(bias)?;
                    tensors.insert(name, turned);
                }
            }
        }
        tensors.insert(site.weight.clone(), weight);
    }
    tensors.extend(norms);
    Ok(())
}

/// R W: the columns of a matrix rotated.
fn columns(weight: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    Ok(rotation.forward(&weight.t()?.contiguous()?)?.t()?.contiguous()?)
}

/// Divides what a norm gives by `by`, one number for each channel, and multiplies the columns of all matrices that read it.
///
/// # Errors
/// If a tensor is not there.
pub fn divide(tensors: &mut Tensors, norm: &str, readers: &[&Site], by: &[f32]) -> Result<()> {
    let scaled = tensor(tensors, norm)?.clone();
    let by = Tensor::from_slice(by, by.len(), scaled.device())?;
    for site in readers {
        let weight = tensor(tensors, &site.weight)?.to_dtype(DType::F32)?;
        tensors.insert(site.weight.clone(), weight.broadcast_mul(&by)?);
    }
    tensors.insert(norm.to_string(), scaled.div(&by)?);
    Ok(())
}

/// The norm by way of which the inputs of a matrix can be rescaled.
pub(super) fn norm(site: &Site) -> Result<&String> {
    site.norm.as_ref().ok_or_else(|| {
        Error::input("its input does not come from a norm of its own, which could be rescaled")
            .at(&site.path)
            .hint("leave this layer out of smoothing and of scales by channel")
    })
}

/// SmoothQuant's divisors (Xiao et al. 2023): max|X_j|^α / max|W_j|^(1−α) for every input channel j, over all matrices that
/// read the norm.
///
/// # Errors
/// If a tensor is not there.
pub fn smoothing(tensors: &Tensors, readers: &[&Site], inputs: &Inputs, exponent: f32) -> Result<Vec<f32>> {
    let mut columns: Vec<f32> = vec![];
    for site in readers {
        let weight = tensor(tensors, &site.weight)?.to_dtype(DType::F32)?;
        let own = weight.abs()?.max(0)?.to_vec1::<f32>()?;
        columns.resize(own.len(), 0.0);
        columns.iter_mut().zip(own).for_each(|(top, w)| *top = top.max(w));
    }
    let divisor = |(x, w): (&f32, f32)| {
        let by = x.powf(exponent) / w.powf(1.0 - exponent);
        if by.is_finite() && by > 0.0 { by } else { 1.0 }
    };
    Ok(inputs.absmax.iter().zip(columns).map(divisor).collect())
}

fn tensor<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).ok_or_else(|| Error::internal(format!("missing tensor {name}")))
}
