//! The optimizer: AdamW, or Muon for the matrices of products; groups of parameters, and clipping by the global gradient norm.
//!
//! | file | holds |
//! |---|---|
//! | [`adamw`] | AdamW |
//! | [`muon`] | Muon: momentum, orthogonalized |
//! | [`average`] | means of the weights over steps |

pub mod adamw;
pub mod average;
pub mod muon;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::family::{Config, Gradients, Tensors};
use crate::layer::op::in_place;
pub use adamw::AdamW;
pub use average::Average;
use candle_core::Tensor;
pub use muon::Muon;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How a group of parameters departs from the common settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Parameters whose name ends so. The first group that matches a name has it.
    pub suffix: String,
    /// Factor on the learning rate.
    pub lr: f64,
    /// Factor on the weight decay.
    pub decay: f64,
    /// Whether Muon moves it, where Muon is asked for; none: the matrices of products but the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon: Option<bool>,
}

/// What is common to all parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// AdamW's constants.
    pub adamw: AdamW,
    /// Muon's, where it is asked for.
    pub muon: Option<Muon>,
    /// Parameters with settings of their own.
    pub groups: Vec<Group>,
}

/// What an optimizer keeps of the gradients of a parameter.
enum Moments {
    AdamW { mean: Vec<f32>, square: Vec<f32> },
    Muon { momentum: Vec<f32> },
}

impl Moments {
    /// With their names in a checkpoint.
    fn named(&mut self) -> Vec<(&'static str, &mut Vec<f32>)> {
        match self {
            Self::AdamW { mean, square } => vec![("mean", mean), ("square", square)],
            Self::Muon { momentum } => vec![("momentum", momentum)],
        }
    }
}

/// A parameter with its moments.
struct Parameter {
    weights: Tensor,
    moments: Moments,
    lr: f64,
    decay: f64,
}

/// The parameters under optimization.
pub struct Optimizer {
    settings: Settings,
    parameters: BTreeMap<String, Parameter>,
    /// Updates made so far.
    pub steps: u64,
}

impl Optimizer {
    /// Puts the tensors of such a model under optimization. Matrices decay, unless a group says otherwise.
    ///
    /// # Errors
    /// If Muon is asked for what is no matrix.
    pub fn new(settings: Settings, model: &Config, tensors: &Tensors) -> Result<Self> {
        let matrices: BTreeSet<String> =
            model.tensors().into_iter().filter(|spec| spec.matrix).map(|spec| spec.name).collect();
        let sites = model.sites().into_iter();
        let products = sites.filter(|site| !site.is_table() && !site.roles.contains(&"head"));
        let products: BTreeSet<String> = products.map(|site| site.weight).collect();
        let parameters = tensors.iter().map(|(name, tensor)| {
            let group = settings.groups.iter().find(|group| name.ends_with(&group.suffix));
            let decays = if matrices.contains(name) { 1.0 } else { 0.0 };
            let (lr, decay) = group.map_or((1.0, decays), |group| (group.lr, group.decay));
            let chosen = group.and_then(|group| group.muon);
            let zeros = vec![0.0; tensor.elem_count()];
            let moments = match settings.muon.is_some() && chosen.unwrap_or(products.contains(name)) {
                true if tensor.rank() != 2 => {
                    let what = format!("Muon moves matrices, and this has shape {:?}", tensor.dims());
                    return Err(Error::input(what).at(name).hint("set muon: false for its group"));
                }
                true => Moments::Muon { momentum: zeros },
                false => Moments::AdamW { mean: zeros.clone(), square: zeros },
            };
            let weights = tensor.copy()?; // changed in place: nobody else's
            Ok((name.clone(), Parameter { weights, moments, lr, decay }))
        });
        let parameters = parameters.collect::<Result<_>>()?;
        Ok(Self { settings, parameters, steps: 0 })
    }

    /// The parameters as they are, and as later updates leave them.
    pub fn tensors(&self) -> Tensors {
        self.parameters.iter().map(|(name, p)| (name.clone(), p.weights.clone())).collect()
    }

    /// One update with learning rate `lr`; returns the gradients' global norm before clipping.
    ///
    /// # Errors
    /// If a gradient is missing, or their norm is not finite.
    pub fn update(&mut self, grads: &Gradients, lr: f64) -> Result<f64> {
        let mut square = 0.0;
        for (name, parameter) in &self.parameters {
            let count = parameter.weights.elem_count();
            let grad = grads.get(name).filter(|grad| grad.len() == count);
            let grad = grad.ok_or_else(|| Error::internal("no gradient of this parameter").at(name))?;
            // Sums of equal parts in their order, whatever the number of threads.
            let parts =
                grad.par_chunks(1 << 14).map(|g| g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>());
            square += parts.collect::<Vec<f64>>().iter().sum::<f64>();
        }
        let norm = square.sqrt();
        if !norm.is_finite() {
            return Err(Error::input(format!("the gradient norm is {norm} at step {}", self.steps))
                .hint("lower the learning rate or clip harder"));
        }
        self.steps += 1;
        let Self { settings: Settings { adamw, muon, .. }, parameters, steps } = self;
        let scale = if adamw.clip > 0.0 && norm > adamw.clip { adamw.clip / norm } else { 1.0 } as f32;
        let (mut ours, mut matrices) = (vec![], vec![]);
        for (name, parameter) in parameters {
            match parameter.moments {
                Moments::AdamW { .. } => ours.push((parameter, &grads[name])),
                Moments::Muon { .. } => matrices.push((parameter, &grads[name])),
            }
        }
        for (Parameter { weights, moments, lr: factor, decay }, grad) in ours {
            let Moments::AdamW { mean, square } = moments else { continue };
            in_place(weights, |weights| {
                let rates = (lr * *factor, *decay);
                adamw.update(*steps, rates, scale, (weights, grad), (mean, square));
            })?;
        }
        let Some(muon) = muon else { return Ok(norm) };
        let moved = matrices.into_par_iter().map(|(parameter, grad)| {
            let Parameter { weights, moments, lr: factor, decay } = parameter;
            let (Moments::Muon { momentum }, (rows, cols)) = (moments, weights.dims2()?) else {
                return Ok(());
            };
            in_place(weights, |weights| {
                muon.update((lr * *factor, *decay), scale, (rows, cols), (weights, grad), momentum);
            })
        });
        moved.collect::<Vec<candle_core::Result<()>>>().into_iter().collect::<candle_core::Result<()>>()?;
        Ok(norm)
    }

    /// Weights and moments, as a checkpoint holds them.
    ///
    /// # Errors
    /// If memory is short.
    pub fn save(&mut self) -> Result<Tensors> {
        let mut tensors = Tensors::new();
        for (name, p) in &mut self.parameters {
            let shape = p.weights.shape();
            tensors.insert(name.clone(), p.weights.copy()?);
            for (moment, values) in p.moments.named() {
                let tensor = Tensor::from_slice(values, shape, p.weights.device())?;
                tensors.insert(format!("{moment}/{name}"), tensor);
            }
        }
        Ok(tensors)
    }

    /// Takes up what [`Optimizer::save`] gave after `steps` updates.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn restore(&mut self, tensors: &Tensors, steps: u64) -> Result<()> {
        for (name, p) in &mut self.parameters {
            p.weights = restored(tensors, name, &p.weights)?;
            for (moment, values) in p.moments.named() {
                *values =
                    restored(tensors, &format!("{moment}/{name}"), &p.weights)?.flatten_all()?.to_vec1()?;
            }
        }
        self.steps = steps;
        Ok(())
    }
}

/// A tensor of a training checkpoint, which has the shape of another.
fn restored(tensors: &Tensors, name: &str, like: &Tensor) -> Result<Tensor> {
    match tensors.get(name) {
        Some(tensor) if tensor.shape() == like.shape() => Ok(tensor.copy()?),
        Some(tensor) => {
            let (expected, found) = (like.dims(), tensor.dims());
            Err(Error::input(format!("expected shape {expected:?}, found {found:?}")).at(name))
        }
        None => Err(Error::input("missing from the training checkpoint").at(name)),
    }
}
