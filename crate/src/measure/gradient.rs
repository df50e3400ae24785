//! What the gradient says of a change of weights before anything is evaluated.

use crate::error::Result;
use crate::family::{Gradients as Sums, Tensors};
use crate::model::Model;
use crate::quantize::calibrate::Sample;
use candle_core::{DType, Device, Tensor};

/// The gradients of a text's mean NLL (nats a token) with respect to every matrix.
pub(super) struct Gradients {
    /// The mean gradient of each matrix.
    mean: Tensors,
    /// Its diagonal Fisher information for one token: tokens of a window times the mean square of a window's gradient,
    /// since the gradients of a window's tokens are taken for independent.
    fisher: Tensors,
}

impl Gradients {
    /// Reads the sample, each window from a state of zeros. None for a rotated model: rotations have no gradient.
    ///
    /// # Errors
    /// If the model cannot read the tokens, or it is interrupted.
    pub fn of(model: &Model, sample: &Sample) -> Result<Option<Self>> {
        if model.quantization.as_ref().is_some_and(|q| q.rotation.is_some()) {
            return Ok(None);
        }
        let [mut mean, mut fisher] = [(); 2].map(|()| model.config.zero_gradients());
        let (share, length) = (1.0 / sample.windows.len() as f32, sample.about.length);
        model.slopes(sample, |grads| {
            for ((mean, fisher), grad) in mean.values_mut().zip(fisher.values_mut()).zip(grads.values()) {
                for ((mean, fisher), grad) in mean.iter_mut().zip(fisher).zip(grad) {
                    *mean += grad * share;
                    *fisher += grad * grad * share * (length - 1) as f32;
                }
            }
        })?;
        let as_tensors = |sums: Sums| {
            let one = |(name, sum)| {
                let shape = model.tensors()[&name].shape();
                Ok((name, Tensor::from_vec(sum, shape, &Device::Cpu)?))
            };
            sums.into_iter().map(one).collect::<Result<Tensors>>()
        };
        Ok(Some(Self { mean: as_tensors(mean)?, fisher: as_tensors(fisher)? }))
    }

    /// The change of the mean NLL that ΔW of some rows predicts: to first order, Σ g ΔW, and to second order with the
    /// diagonal Fisher information in the Hessian's place, ½ Σ F ΔW².
    ///
    /// # Errors
    /// If a change does not fit its matrix.
    pub fn predict(&self, changes: &[(&str, usize, Tensor)]) -> Result<(f64, f64)> {
        let (mut first, mut second) = (0.0, 0.0);
        for (name, row, change) in changes {
            let of = |all: &Tensors| all[*name].narrow(0, *row, change.dim(0)?);
            first += sum(&(of(&self.mean)? * change)?)?;
            second += sum(&(of(&self.fisher)? * change.sqr()?)?)? / 2.0;
        }
        Ok((first, second))
    }
}

fn sum(values: &Tensor) -> Result<f64> {
    Ok(values.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::quantization::Calibrated;

    #[test]
    fn the_gradient_is_the_slope() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let window = |i: u32| (i as usize, (0..40).map(|t| (t * 31 + i * 7) % 256).collect::<Vec<u32>>());
        let about =
            Calibrated { corpus: String::new(), sha256: String::new(), samples: 2, length: 40, seed: 0 };
        let sample = Sample { windows: vec![window(1), window(2)], about };
        let gradients = Gradients::of(&model, &sample).unwrap().unwrap();
        // A step along the gradient of some rows, small enough for the first order.
        let name = "backbone.layers.2.mixer.in_proj.weight";
        let rows = gradients.mean[name].narrow(0, 600, 100).unwrap();
        let nll = |model: &Model| {
            let each = sample.windows.iter().map(|(_, ids)| model.nll(ids, 39).unwrap());
            each.flatten().map(f64::from).sum::<f64>() / 78.0
        };
        let moved = |step: f64| {
            let mut tensors = model.tensors().clone();
            let whole = tensors[name].clone();
            let part = (whole.narrow(0, 600, 100).unwrap() + (&rows * step).unwrap()).unwrap();
            let parts = [whole.narrow(0, 0, 600).unwrap(), part, whole.narrow(0, 700, 460).unwrap()];
            tensors.insert(name.to_string(), Tensor::cat(&parts, 0).unwrap());
            nll(&Model::from_tensors("moved", model.config.clone(), tensors, &Default::default()).unwrap())
        };
        let step = 0.02 / sum(&rows.sqr().unwrap()).unwrap();
        let change = vec![(name, 600, (&rows * step).unwrap())];
        let (predicted, fisher) = gradients.predict(&change).unwrap();
        let measured = (moved(step) - moved(-step)) / 2.0;
        assert!(
            (predicted - 0.02).abs() < 1e-6 && (measured / predicted - 1.0).abs() < 0.05,
            "{measured} {predicted}"
        );
        assert!(fisher > 0.0);
    }
}
