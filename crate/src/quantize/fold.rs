//! Changes of a model that leave its function as it is and make it easier to quantize: rotation and smoothing.

use crate::error::{Error, Result};
use crate::family::Tensors;
use crate::family::site::{Fed, Residual, Site};
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

/// What gives the inputs of a matrix, where it can be rescaled without a change of function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source<'a> {
    /// The weight of a norm, by channel; by its name.
    Norm(&'a str),
    /// The rows of another matrix.
    Rows(&'a Fed),
}

impl<'a> Source<'a> {
    /// That of a site; none if nothing can be rescaled for it.
    pub fn of(site: &'a Site) -> Option<Self> {
        site.norm.as_deref().map(Self::Norm).or(site.fed.as_ref().map(Self::Rows))
    }

    /// Channels that can only be rescaled together all get the largest value of them.
    pub fn join(self, values: &mut [f32]) {
        let Self::Rows(fed) = self else { return };
        let mut tops = vec![0.0f32; fed.first + values.len()];
        values.iter().enumerate().for_each(|(c, value)| tops[fed.row(c)] = tops[fed.row(c)].max(*value));
        values.iter_mut().enumerate().for_each(|(c, value)| *value = tops[fed.row(c)]);
    }

    /// Divides what is given by `by`, one number for each channel, and multiplies the columns of all matrices that read it.
    ///
    /// # Errors
    /// If a tensor is not there.
    pub fn divide(self, tensors: &mut Tensors, sites: &[Site], by: &[f32]) -> Result<()> {
        let numbers = |by: &[f32], like: &Tensor| Tensor::from_slice(by, by.len(), like.device());
        for site in self.readers(sites) {
            let weight = tensor(tensors, &site.weight)?.to_dtype(DType::F32)?;
            let scaled = weight.broadcast_mul(&numbers(by, &weight)?)?;
            tensors.insert(site.weight.clone(), scaled);
        }
        match self {
            Self::Norm(name) => {
                // What a LayerNorm adds goes to the same channels.
                let bias = name.strip_suffix(".weight").map(|path| format!("{path}.bias"));
                let bias = bias.filter(|bias| tensors.contains_key(bias));
                for name in [Some(name.to_string()), bias].into_iter().flatten() {
                    let norm = tensor(tensors, &name)?;
                    let scaled = norm.div(&numbers(by, norm)?)?;
                    tensors.insert(name, scaled);
                }
            }
            Self::Rows(fed) => {
                let giver = sites.iter().find(|site| site.path == fed.path);
                let giver = giver.ok_or_else(|| Error::internal(format!("no site {}", fed.path)))?;
                let mut rows = vec![1.0; giver.rows];
                by.iter().enumerate().for_each(|(c, by)| rows[fed.row(c)] = *by);
                let weight = tensor(tensors, &giver.weight)?.to_dtype(DType::F32)?; // [rows, in]
                let rows = numbers(&rows, &weight)?;
                tensors.insert(giver.weight.clone(), weight.broadcast_div(&rows.unsqueeze(1)?)?);
                let name = format!("{}.bias", giver.path);
                if let Some(bias) = tensors.get(&name) {
                    let scaled = bias.to_dtype(DType::F32)?.div(&rows)?.to_dtype(bias.dtype())?;
                    tensors.insert(name, scaled);
                }
            }
        }
        Ok(())
    }

    /// SmoothQuant's divisors (Xiao et al. 2023): max|X_j|^α / max|W_j|^(1−α) for every input channel j, over all matrices
    /// that read what is given; `absmax` is of joined channels.
    ///
    /// # Errors
    /// If a tensor is not there.
    pub fn smoothing(
        self,
        tensors: &Tensors,
        sites: &[Site],
        absmax: &[f32],
        exponent: f32,
    ) -> Result<Vec<f32>> {
        let mut columns: Vec<f32> = vec![];
        for site in self.readers(sites) {
            let weight = tensor(tensors, &site.weight)?.to_dtype(DType::F32)?;
            let own = weight.abs()?.max(0)?.to_vec1::<f32>()?;
            columns.resize(own.len(), 0.0);
            columns.iter_mut().zip(own).for_each(|(top, w)| *top = top.max(w));
        }
        self.join(&mut columns);
        let divisor = |(x, w): (&f32, f32)| {
            let by = x.powf(exponent) / w.powf(1.0 - exponent);
            if by.is_finite() && by > 0.0 { by } else { 1.0 }
        };
        Ok(absmax.iter().zip(columns).map(divisor).collect())
    }

    /// The matrices that read what is given: they are rescaled together.
    fn readers(self, sites: &[Site]) -> impl Iterator<Item = &Site> {
        sites.iter().filter(move |site| Source::of(site) == Some(self))
    }
}

fn tensor<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).ok_or_else(|| Error::internal(format!("missing tensor {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Config;
    use candle_core::Device;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_rescaled_leaves_the_function_of_a_hybrid_as_it_is() {
        for shape in ["granite-hybrid-tiny", "bamba-tiny", "falcon-h1-tiny", "nemotron-h-tiny"] {
            let config = Config::named(shape).unwrap();
            let (mut tensors, sites) = (crate::model::init::initialize(&config, 3).unwrap(), config.sites());
            let ids: Vec<u32> = (0..9).map(|i| i * 29 % 256).collect();
            let ids = Tensor::from_vec(ids, (1, 9), &Device::Cpu).unwrap();
            let logits = |tensors: &Tensors| {
                let stack = config.stack(tensors, &Default::default()).unwrap();
                stack.logits(&stack.hidden(&ids, None).unwrap()).unwrap()
            };
            let before = logits(&tensors);
            let sources: BTreeSet<Source<'_>> = sites.iter().filter_map(Source::of).collect();
            for source in &sources {
                let cols = sites.iter().find(|site| Source::of(site) == Some(*source)).unwrap().cols;
                let mut by: Vec<f32> = (0..cols).map(|c| 0.5 + (c * 7 % 11) as f32 / 8.0).collect();
                source.join(&mut by);
                source.divide(&mut tensors, &sites, &by).unwrap();
            }
            let fed = sources.iter().filter(|source| matches!(source, Source::Rows(_))).count();
            assert!(fed > 0, "{shape}");
            let far = (logits(&tensors) - &before).unwrap().abs().unwrap().max_all().unwrap();
            let size = before.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let far = far.to_scalar::<f32>().unwrap();
            assert!(far < 1e-4 * size, "{shape}: {far} of {size}");
        }
    }
}
