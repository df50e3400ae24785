//! Distillation: what a network learns from the predictions of another beside the text (Hinton et al. 2015).

use super::Training;
use crate::error::{Error, Result};
use crate::kernel::softmax::{cross_entropy, log_sum_exp};
use crate::layer::op::with_floats;
use crate::model::{Loading, Model, Positions};
use candle_core::DType;
use serde::{Deserialize, Serialize};

/// A model to learn from, such as the one that a pruned model was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distillation {
    /// The model: a folder, a file or a hub id. It reads the same tokens.
    pub teacher: String,
    /// The share of the loss that is its: (1 − share) · CE + share · τ² · KL(teacher ‖ student), both at temperature τ.
    pub share: f32,
    /// τ.
    #[serde(default = "one")]
    pub temperature: f32,
}

fn one() -> f32 {
    1.0
}

/// A teacher at work.
pub(super) struct Teacher {
    model: Model,
    share: f32,
    temperature: f32,
}

impl Training {
    /// The teacher, if there is one.
    ///
    /// # Errors
    /// If it cannot be loaded, has another vocabulary, or reads less than a sequence; or the settings are none.
    pub(super) fn teacher(&self) -> Result<Option<Teacher>> {
        let Some(Distillation { teacher, share, temperature }) = &self.distillation else { return Ok(None) };
        let refused = |what: String| Err(Error::input(what).at("distillation"));
        if !(*share > 0.0 && *share <= 1.0) {
            return refused(format!("share is a share above 0 and up to 1, found {share}"));
        }
        if !(temperature.is_finite() && *temperature > 0.0) {
            return refused(format!("temperature must be a positive number, found {temperature}"));
        }
        let model = Model::load_with(teacher, &Loading { dtype: Some(DType::F32), ..Loading::default() })?;
        let (found, expected) = (model.config.vocab_size(), self.model.vocab_size());
        if found != expected {
            return refused(format!(
                "the teacher has a vocabulary of {found}, and the model one of {expected}"
            ));
        }
        model.fits("mixture.seq_len", self.mixture.seq_len)?;
        Ok(Some(Teacher { model, share: *share, temperature: *temperature }))
    }
}

impl Teacher {
    /// The teacher's logits [T, vocabulary] for a sequence.
    pub(super) fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let logits = self.model.forward(&self.model.tokens(ids)?, None, Positions::All)?;
        Ok(with_floats([&logits.contiguous()?], |[logits]| logits.to_vec())?)
    }

    /// The loss of `logits` [T, vocabulary] beside the teacher's, token by token by their weights, and its gradient, overwritten.
    pub(super) fn loss(
        &self,
        logits: &[f32],
        teacher: &[f32],
        targets: &[u32],
        weights: &[f32],
        grad: &mut [f32],
    ) -> f32 {
        let (share, tau) = (self.share, self.temperature);
        let own = cross_entropy(logits, targets, weights, grad);
        let vocab = logits.len() / targets.len().max(1);
        let mut divergence = 0.0;
        let (mut own_row, mut their_row) = (vec![0.0; vocab], vec![0.0; vocab]);
        let rows = logits.chunks(vocab).zip(teacher.chunks(vocab)).zip(grad.chunks_mut(vocab));
        for (((logits, teacher), grad), weight) in rows.zip(weights) {
            for (row, values) in [(&mut own_row, logits), (&mut their_row, teacher)] {
                row.iter_mut().zip(values).for_each(|(x, value)| *x = value / tau);
                let all = log_sum_exp(row);
                row.iter_mut().for_each(|x| *x -= all);
            }
            let mut apart = 0.0;
            for ((grad, own), their) in grad.iter_mut().zip(&own_row).zip(&their_row) {
                let (p, q) = (own.exp(), their.exp());
                apart += q * (their - own);
                // Of τ² KL: τ (p − q).
                *grad = (1.0 - share) * *grad + share * weight * tau * (p - q);
            }
            divergence += weight * tau * tau * apart;
        }
        (1.0 - share) * own + share * divergence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device, Tensor, Var};
    use candle_nn::ops::log_softmax;

    #[test]
    fn loss_and_gradient_are_those_of_tensor_operations() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let (targets, weights) = ([3u32, 0, 40], [0.5f32, 0.0, 0.25]);
        let wave = |seed: usize| -> Vec<f32> {
            (0..3 * 41).map(|i| ((i * 7919 + seed) % 1009) as f32 / 200.0 - 2.5).collect()
        };
        let (values, teacher) = (wave(13), wave(400));
        for (share, temperature) in [(1.0, 1.0), (0.3, 2.0), (0.7, 0.5)] {
            let logits = Var::from_slice(&values, (3, 41), &Device::Cpu).unwrap();
            let other = Tensor::from_slice(&teacher, (3, 41), &Device::Cpu).unwrap();
            let weight = Tensor::new(&weights, &Device::Cpu).unwrap();
            let at = Tensor::new(&targets, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
            let picked = log_softmax(&logits, D::Minus1).unwrap().gather(&at, 1).unwrap().squeeze(1).unwrap();
            let text = (picked * &weight).unwrap().sum_all().unwrap().neg().unwrap();
            let tau = f64::from(temperature);
            let [p, q] =
                [logits.as_tensor(), &other].map(|x| log_softmax(&(x / tau).unwrap(), D::Minus1).unwrap());
            let apart = (q.exp().unwrap() * (q - p).unwrap()).unwrap().sum(1).unwrap();
            let apart = ((apart * &weight).unwrap().sum_all().unwrap() * (tau * tau)).unwrap();
            let share_wide = f64::from(share);
            let expected = ((text * (1.0 - share_wide)).unwrap() + (apart * share_wide).unwrap()).unwrap();
            let slope = expected.backward().unwrap().get(&logits).unwrap().flatten_all().unwrap();
            let mut grad = vec![f32::NAN; values.len()];
            let by = Teacher { model: model.clone(), share, temperature };
            let loss = by.loss(&values, &teacher, &targets, &weights, &mut grad);
            assert!((loss - expected.to_scalar::<f32>().unwrap()).abs() < 1e-5, "{loss}");
            for (found, expected) in grad.iter().zip(slope.to_vec1::<f32>().unwrap()) {
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }
}
