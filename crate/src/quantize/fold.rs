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
    for site in sites.iter().filter(|site| site.residual != Residual::Ends) {
        let mut weight = tensor(tensors, &site.weight)?.to_dtype(DType::F32)?; // [out, in]
        match site.residual {
            Residual::Reads => {
                let name =
                    site.norm.as_ref().ok_or_else(|| Error::internal("a stream is read without a norm"))?;
                let norm = tensor(tensors, name)?.clone();
                weight = residual.forward(&weight.broadcast_mul(&norm)?)?;
                tensors.insert(name.clone(), norm.ones_like()?);
            }
            _ => {
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
    Ok(())
}

/// R W: the columns of a matrix rotated.
fn columns(weight: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    Ok(rotation.forward(&weight.t()?.contiguous()?)?.t()?.contiguous()?)
}

/// Divides the inputs of a matrix by `by`, one number for each, by way of the norm before it, and multiplies its columns.
///
/// # Errors
/// If other layers see these inputs too.
pub fn divide(tensors: &mut Tensors, site: &Site, by: &[f32]) -> Result<()> {
    let norm = norm(site)?;
    let weight = tensor(tensors, &site.weight)?.to_dtype(DType::F32)?;
    let by = Tensor::from_slice(by, by.len(), weight.device())?;
    tensors.insert(site.weight.clone(), weight.broadcast_mul(&by)?);
    let scaled = tensor(tensors, norm)?.div(&by)?;
    tensors.insert(norm.clone(), scaled);
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

/// SmoothQuant's divisors (Xiao et al. 2023): max|X_j|^α / max|W_j|^(1−α) for every input channel j.
pub fn smoothing(tensors: &Tensors, site: &Site, inputs: &Inputs, exponent: f32) -> Result<Vec<f32>> {
    let weight = tensor(tensors, &site.weight)?.to_dtype(DType::F32)?;
    let columns = weight.abs()?.max(0)?.to_vec1::<f32>()?;
    let divisor = |(x, w): (&f32, f32)| {
        let by = x.powf(exponent) / w.powf(1.0 - exponent);
        if by.is_finite() && by > 0.0 { by } else { 1.0 }
    };
    Ok(inputs.absmax.iter().zip(columns).map(divisor).collect())
}

fn tensor<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).ok_or_else(|| Error::internal(format!("missing tensor {name}")))
}
