//! AdamW (Loshchilov & Hutter 2019).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

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
    /// Gradients are scaled down to this global norm, those that Muon takes among them; 0 never.
    pub clip: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

impl AdamW {
    /// Update number `step` (from 1) of one parameter with a learning rate and a factor on the decay, by gradients that are
    /// multiplied by `scale`.
    pub(super) fn update(
        &self,
        step: u64,
        (lr, decay): (f64, f64),
        scale: f32,
        (weights, grad): (&mut [f32], &[f32]),
        (mean, square): (&mut [f32], &mut [f32]),
    ) {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let (beta1, beta2) = (self.beta1 as f32, self.beta2 as f32);
        let root2 = correction(self.beta2).sqrt() as f32;
        let rate = (lr / correction(self.beta1)) as f32;
        let keep = (1.0 - lr * decay * self.weight_decay) as f32;
        let eps = self.eps as f32;
        let one = |(((w, g), m), v): (((&mut f32, &f32), &mut f32), &mut f32)| {
            let g = g * scale;
            *m += (1.0 - beta1) * (g - *m);
            *v += (1.0 - beta2) * (g * g - *v);
            *w = *w * keep - rate * *m / (v.sqrt() / root2 + eps);
        };
        let all = weights.par_iter_mut().zip(grad).zip(mean).zip(square);
        all.with_min_len(1 << 14).for_each(one);
    }
}
