//! Weighted cross-entropy, fused with its softmax.

use crate::error::{Error, Result};
use crate::kernel::softmax;

/// Σ wᵢ nllᵢ in nats for logits [T, vocabulary] and one target and weight a row; `grad` [T, vocabulary], overwritten, is its
/// gradient with respect to the logits.
pub fn cross_entropy(logits: &[f32], targets: &[u32], weights: &[f32], grad: &mut [f32]) -> f32 {
    let vocab = logits.len() / targets.len().max(1);
    let nll = softmax::nll(logits, vocab, targets);
    softmax::nll_grad(logits, vocab, targets, weights, grad);
    nll.iter().zip(weights).map(|(nll, w)| f64::from(nll * w)).sum::<f64>() as f32
}

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
