//! How fast the heads of a layer forget.

use super::Config;
use crate::family::Tensors;
use crate::kernel::softplus::step_sizes;
use candle_core::{DType, Result};

/// What decides a layer's decay d = e^(ΔA), A = −e^A_log, Δ = softplus(dt + dt_bias): the share of its state that a head
/// keeps from one token to the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// A `[H]`.
    rates: Vec<f32>,
    /// `[H]`.
    dt_bias: Vec<f32>,
    limit: (f32, f32),
}

impl Config {
    /// The steps of every layer, from its small parameters.
    ///
    /// # Errors
    /// If a tensor is not there.
    pub fn steps(&self, tensors: &Tensors) -> Result<Vec<Steps>> {
        let small =
            |layer: usize, name: &str| match tensors.get(&format!("backbone.layers.{layer}.mixer.{name}")) {
                Some(tensor) => tensor.to_dtype(DType::F32)?.to_vec1::<f32>(),
                None => candle_core::bail!("missing {name} of layer {layer}"),
            };
        let each = (0..self.num_hidden_layers).map(|layer| {
            let rates = small(layer, "A_log")?.into_iter().map(|a| -a.exp()).collect();
            Ok(Steps { rates, dt_bias: small(layer, "dt_bias")?, limit: self.mixer().dt_limit })
        });
        each.collect()
    }
}

impl Steps {
    /// Heads H.
    pub fn heads(&self) -> usize {
        self.rates.len()
    }

    /// The decays [T, H] for rows [T, `row`] that in_proj gave, of which the last H values are dt.
    pub fn decays(&self, rows: &[f32], row: usize) -> Vec<f32> {
        let mut steps = vec![0.0; rows.len() / row * self.heads()];
        step_sizes(rows, row, &self.dt_bias, self.limit, &mut steps);
        for steps in steps.chunks_mut(self.heads()) {
            steps.iter_mut().zip(&self.rates).for_each(|(step, rate)| *step = (*step * rate).exp());
        }
        steps
    }

    /// The decays `[H]` where dt is 0: all that the weights alone tell.
    pub fn at_rest(&self) -> Vec<f32> {
        self.decays(&vec![0.0; self.heads()], self.heads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn decays_are_those_of_the_definition() {
        let config = Config { num_hidden_layers: 1, ..Config::default() };
        let wave = |name: &str, from: f32| {
            let values: Vec<f32> = (0..config.num_heads).map(|i| from + (i as f32).sin()).collect();
            let tensor = Tensor::new(values, &Device::Cpu).unwrap();
            (format!("backbone.layers.0.mixer.{name}"), tensor)
        };
        let mut tensors = Tensors::from([wave("A_log", 1.0), wave("dt_bias", -3.0)]);
        let steps = &config.steps(&tensors).unwrap()[0];
        let rows: Vec<f32> = (0..3 * (steps.heads() + 2)).map(|i| (i as f32 * 0.7).sin()).collect();
        let found = steps.decays(&rows, steps.heads() + 2);
        for (token, row) in rows.chunks(steps.heads() + 2).enumerate() {
            for head in 0..steps.heads() {
                let step = (f64::from(row[2 + head]) + f64::from(steps.dt_bias[head])).exp().ln_1p();
                let expected = (step * f64::from(steps.rates[head])).exp();
                assert!((f64::from(found[token * steps.heads() + head]) - expected).abs() < 1e-6);
            }
        }
        assert!(steps.at_rest().iter().all(|d| (0.0..1.0).contains(d)));
        tensors.clear();
        assert!(config.steps(&tensors).unwrap_err().to_string().contains("missing A_log of layer 0"));
    }
}
