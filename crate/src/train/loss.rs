//! Weighted mean cross-entropy, fused with its softmax.

use crate::kernel::softmax;
use crate::layer::op::{floats, gradients};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// Σ wᵢ nllᵢ / Σ wᵢ in nats, for logits [.., vocabulary] and one target and weight a row.
pub fn cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    let vocab = logits.dim(candle_core::D::Minus1)?;
    if logits.elem_count() != vocab * targets.len() || targets.len() != weights.len() {
        bail!("{} targets and {} weights for logits {:?}", targets.len(), weights.len(), logits.shape())
    }
    if let Some(target) = targets.iter().find(|target| **target as usize >= vocab) {
        bail!("target {target} lies outside a vocabulary of {vocab}")
    }
    if !logits.device().is_cpu() {
        let log_probs = candle_nn::ops::log_softmax(&logits.reshape(((), vocab))?, 1)?;
        let picked =
            log_probs.gather(&Tensor::new(targets, logits.device())?.unsqueeze(1)?, 1)?.squeeze(1)?;
        let weighted = (picked * Tensor::new(weights, logits.device())?)?.sum_all()?;
        return weighted / -f64::from(weights.iter().sum::<f32>());
    }
    logits.contiguous()?.apply_op1(CrossEntropy {
        vocab,
        targets: targets.to_vec(),
        weights: weights.to_vec(),
    })
}

struct CrossEntropy {
    vocab: usize,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let nll = softmax::nll(floats(storage, layout)?, self.vocab, &self.targets);
        let sum: f64 = nll.iter().zip(&self.weights).map(|(nll, w)| f64::from(nll * w)).sum();
        let total: f64 = self.weights.iter().map(|w| f64::from(*w)).sum();
        Ok((CpuStorage::F32(vec![(sum / total) as f32]), ().into()))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let scale = dloss.to_scalar::<f32>()? / self.weights.iter().sum::<f32>();
        let weights: Vec<f32> = self.weights.iter().map(|w| w * scale).collect();
        let [grad] = gradients([logits], [logits], |[logits], [grad]| {
            softmax::nll_grad(logits, self.vocab, &self.targets, &weights, grad);
        })?;
        Ok(grad)
    }
}
