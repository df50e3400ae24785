//! AdamW (Loshchilov & Hutter 2019) with parameter groups, and clipping by the global gradient norm.

use crate::error::{Error, Result};
use crate::family::{Gradients, Tensors};
use crate::layer::op::in_place;
use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The optimizer's constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate; groups may scale it.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 never.
    pub clip: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

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
}

/// A parameter with its moments.
struct Parameter {
    weights: Tensor,
    mean: Vec<f32>,
    square: Vec<f32>,
    lr: f64,
    decay: f64,
}

/// The parameters under optimization.
pub struct Optimizer {
    settings: AdamW,
    parameters: BTreeMap<String, Parameter>,
    /// Updates made so far.
    pub steps: u64,
}

impl Optimizer {
    /// Puts tensors under optimization. Those decay whose names `decays` holds for, unless a group says otherwise.
    pub fn new(
        settings: AdamW,
        groups: &[Group],
        tensors: &Tensors,
        decays: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let parameters = tensors.iter().map(|(name, tensor)| {
            let group = groups.iter().find(|group| name.ends_with(&group.suffix));
            let decays = if decays(name) { 1.0 } else { 0.0 };
            let zeros = vec![0.0; tensor.elem_count()];
            let (lr, decay) = group.map_or((1.0, decays), |group| (group.lr, group.decay));
            let weights = tensor.copy()?; // changed in place: nobody else's
            let parameter = Parameter { weights, mean: zeros.clone(), square: zeros, lr, decay };
            Ok((name.clone(), parameter))
        });
        Ok(Self { settings, parameters: parameters.collect::<Result<_>>()?, steps: 0 })
    }

    /// The parameters as they are, and as later updates leave them.
    pub fn tensors(&self) -> Tensors {
        self.parameters.iter().map(|(name, p)| (name.clone(), p.weights.clone())).collect()
    }

    /// One update with learning rate `lr`; returns the gradients' global norm before clipping.
    pub fn update(&mut self, grads: &Gradients, lr: f64) -> Result<f64> {
        let mut square = 0.0;
        for (name, parameter) in &self.parameters {
            let grad = grads.get(name).filter(|grad| grad.len() == parameter.mean.len());
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
        let s = &self.settings;
        let scale = if s.clip > 0.0 && norm > s.clip { s.clip / norm } else { 1.0 } as f32;
        let correction = |beta: f64| 1.0 - beta.powf(self.steps as f64);
        let (beta1, beta2) = (s.beta1 as f32, s.beta2 as f32);
        let root2 = correction(s.beta2).sqrt() as f32;
        for (name, parameter) in &mut self.parameters {
            let (Parameter { weights, mean, square, lr: factor, decay }, grad) = (parameter, &grads[name]);
            let rate = (lr * *factor / correction(s.beta1)) as f32;
            let keep = (1.0 - lr * *factor * *decay * s.weight_decay) as f32;
            let eps = s.eps as f32;
            in_place(weights, |weights| {
                let one = |(((w, g), m), v): (((&mut f32, &f32), &mut f32), &mut f32)| {
                    let g = g * scale;
                    *m += (1.0 - beta1) * (g - *m);
                    *v += (1.0 - beta2) * (g * g - *v);
                    *w = *w * keep - rate * *m / (v.sqrt() / root2 + eps);
                };
                let all = weights.par_iter_mut().zip(grad).zip(mean).zip(square);
                all.with_min_len(1 << 14).for_each(one);
            })?;
        }
        Ok(norm)
    }

    /// Weights and moments, as a checkpoint holds them.
    pub fn save(&self) -> Result<Tensors> {
        let mut tensors = Tensors::new();
        for (name, p) in &self.parameters {
            let shape = p.weights.shape();
            tensors.insert(name.clone(), p.weights.copy()?);
            for (moment, values) in [("mean", &p.mean), ("square", &p.square)] {
                let tensor = Tensor::from_slice(values, shape, p.weights.device())?;
                tensors.insert(format!("{moment}/{name}"), tensor);
            }
        }
        Ok(tensors)
    }

    /// Takes up what [`Optimizer::save`] gave after `steps` updates.
    pub fn restore(&mut self, tensors: &Tensors, steps: u64) -> Result<()> {
        let get = |name: &str, like: &Tensor| match tensors.get(name) {
            Some(tensor) if tensor.shape() == like.shape() => Ok(tensor.copy()?),
            Some(tensor) => {
                let (expected, found) = (like.dims(), tensor.dims());
                Err(Error::input(format!("expected shape {expected:?}, found {found:?}")).at(name))
            }
            None => Err(Error::input("missing from the training checkpoint").at(name)),
        };
        for (name, p) in &mut self.parameters {
            p.weights = get(name, &p.weights)?;
            p.mean = get(&format!("mean/{name}"), &p.weights)?.flatten_all()?.to_vec1()?;
            p.square = get(&format!("square/{name}"), &p.weights)?.flatten_all()?.to_vec1()?;
        }
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Three steps on w with loss Σ w³/3, against the published update written out for one number.
    #[test]
    fn updates_are_adamw() {
        let start = [0.7f32, -0.4];
        let tensors = Tensors::from([("a.weight".to_string(), Tensor::new(&[start], &Device::Cpu).unwrap())]);
        let settings = AdamW { clip: 0.0, ..AdamW::default() };
        let mut optimizer = Optimizer::new(settings.clone(), &[], &tensors, |_| true).unwrap();
        let (mut w, mut m, mut v) = (f64::from(start[0]), 0.0, 0.0);
        for t in 1..=3 {
            let x = optimizer.tensors()["a.weight"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let grad = x.iter().map(|x| x * x).collect();
            optimizer.update(&Gradients::from([("a.weight".to_string(), grad)]), 0.1).unwrap();
            let g = w * w;
            m = 0.9 * m + 0.1 * g;
            v = 0.95 * v + 0.05 * g * g;
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.95f64.powi(t)));
            w = w - 0.1 * 0.1 * w - 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
        }
        let found = optimizer.tensors()["a.weight"].to_vec2::<f32>().unwrap()[0][0];
        assert!((f64::from(found) - w).abs() < 1e-6, "{found} instead of {w}");
    }

    #[test]
    fn clipping_bounds_the_step_and_groups_set_their_own_rate() {
        let one = || Tensor::new(&[[1.0f32, 1.0]], &Device::Cpu).unwrap();
        let tensors = Tensors::from([("a.slow".to_string(), one()), ("b".to_string(), one())]);
        let groups = [Group { suffix: "slow".into(), lr: 0.0, decay: 0.0 }];
        let mut optimizer = Optimizer::new(AdamW::default(), &groups, &tensors, |_| true).unwrap();
        let grads = [("a.slow".to_string(), vec![30.0; 2]), ("b".to_string(), vec![40.0; 2])].into();
        let norm = optimizer.update(&grads, 0.1).unwrap();
        assert!((norm - (2.0f64 * (900.0 + 1600.0)).sqrt()).abs() < 1e-4);
        assert_eq!(optimizer.tensors()["a.slow"].to_vec2::<f32>().unwrap(), [[1.0, 1.0]]);
        assert!(optimizer.tensors()["b"].to_vec2::<f32>().unwrap()[0][0] < 0.95);
    }
}
