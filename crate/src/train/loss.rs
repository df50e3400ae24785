//! Weighted cross-entropy, fused with its softmax, and what it takes.

use crate::error::{Error, Result};
pub use crate::kernel::softmax::cross_entropy;

/// Refuses targets that the logits of a model have no place for.
///
/// # Errors
/// Naming the first of them.
pub fn check(targets: &[u32], vocab: usize) -> Result<()> {
    match targets.iter().find(|target| **target as usize >= vocab) {
        Some(target) => Err(Error::input(format!("target {target} lies outside a vocabulary of {vocab}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device, Tensor, Var};

    #[test]
    fn loss_and_gradient_are_those_of_tensor_operations() {
        let (targets, weights) = ([3u32, 0, 40], [1.0f32, 0.0, 10.0]);
        let values: Vec<f32> = (0..3 * 41).map(|i| ((i * 7919 + 13) % 1009) as f32 / 100.0 - 5.0).collect();
        let logits = Var::from_slice(&values, (3, 41), &Device::Cpu).unwrap();
        let log_probs = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap();
        let at = Tensor::new(&targets, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let picked = log_probs.gather(&at, 1).unwrap().squeeze(1).unwrap();
        let weighted = (picked * Tensor::new(&weights, &Device::Cpu).unwrap()).unwrap();
        let expected = weighted.sum_all().unwrap().neg().unwrap();
        let slope = expected.backward().unwrap().get(&logits).unwrap().flatten_all().unwrap();

        let mut grad = vec![f32::NAN; values.len()];
        let loss = cross_entropy(&values, &targets, &weights, &mut grad);
        assert!((loss - expected.to_scalar::<f32>().unwrap()).abs() < 1e-4, "{loss}");
        for (found, expected) in grad.iter().zip(slope.to_vec1::<f32>().unwrap()) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        assert!(check(&targets, 41).is_ok() && check(&targets, 40).is_err());
    }
}
