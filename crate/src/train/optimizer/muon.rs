//! Muon (Jordan et al. 2024): momentum whose matrix is brought close to an orthogonal one by Newton–Schulz steps.

use crate::kernel::linear::{input_grad, trained};
use half::bf16;
use serde::{Deserialize, Serialize};

/// The optimizer's constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Muon {
    /// Factor on the learning rate of the schedule.
    pub lr: f64,
    /// Share of the momentum that is kept.
    pub momentum: f64,
    /// Whether the gradient is added once more, as Nesterov does.
    pub nesterov: bool,
    /// Newton–Schulz steps.
    pub steps: usize,
    /// Decoupled weight decay, per unit of learning rate; groups may scale it.
    pub weight_decay: f64,
    /// Whether weights decay after the step, as in parameter-golf's pull request 316, and not before it.
    pub decay_last: bool,
    /// In what the Newton–Schulz steps are made.
    pub precision: Precision,
}

/// In what Newton–Schulz steps are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Every result rounded to bf16, sums in f32: as the published program does on its devices.
    Bf16,
}

impl Default for Muon {
    fn default() -> Self {
        Self {
            lr: 1.0,
            momentum: 0.95,
            nesterov: true,
            steps: 5,
            weight_decay: 0.0,
            decay_last: false,
            precision: Precision::F32,
        }
    }
}

/// The coefficients of X ← aX + (bA + cA²)X, where A = XXᵀ.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

impl Muon {
    /// One update of a matrix [rows, cols] with a learning rate and a factor on the decay, by gradients that are multiplied by
    /// `scale`: buf ← μ buf + g; w ← w (1 − lr · decay) − lr · √max(1, rows / cols) · NS(g + μ buf).
    pub(super) fn update(
        &self,
        (lr, decay): (f64, f64),
        scale: f32,
        (rows, cols): (usize, usize),
        (weights, grad): (&mut [f32], &[f32]),
        momentum: &mut [f32],
    ) {
        let (lr, mu) = (self.lr * lr, self.momentum as f32);
        let mut update = vec![0.0; grad.len()];
        for ((u, buf), g) in update.iter_mut().zip(momentum).zip(grad) {
            let g = g * scale;
            *buf = mu * *buf + g;
            *u = if self.nesterov { g + mu * *buf } else { *buf };
        }
        orthogonalize(&mut update, rows, cols, self.steps, self.precision);
        let tall = (rows as f64 / cols as f64).max(1.0).sqrt() as f32;
        let keep = (1.0 - lr * decay * self.weight_decay) as f32;
        let (before, after) = if self.decay_last { (1.0, keep) } else { (keep, 1.0) };
        for (w, u) in weights.iter_mut().zip(update) {
            let u = self.precision.round(u * tall);
            *w = (*w * before - lr as f32 * u) * after;
        }
    }
}

impl Precision {
    fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    fn round_all(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            values.iter_mut().for_each(|x| *x = self.round(*x));
        }
    }
}

/// X [rows, cols], in its place → about U Vᵀ of its singular value decomposition U S Vᵀ: X / (‖X‖ + 1e-7), then `steps` times
/// X ← aX + (bA + cA²)X with A = XXᵀ, transposed if there are more rows than columns.
pub fn orthogonalize(x: &mut [f32], rows: usize, cols: usize, steps: usize, precision: Precision) {
    let round = |x: f32| precision.round(x);
    precision.round_all(x);
    let norm = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
    let norm = round(round(norm) + 1e-7);
    x.iter_mut().for_each(|x| *x = round(*x / norm));
    if rows > cols {
        let mut wide = transposed(x, rows, cols);
        iterate(&mut wide, cols, rows, steps, precision);
        x.copy_from_slice(&transposed(&wide, cols, rows));
    } else {
        iterate(x, rows, cols, steps, precision);
    }
}

/// The steps of [`orthogonalize`] for X [m, n] with m ≤ n.
fn iterate(x: &mut [f32], m: usize, n: usize, steps: usize, precision: Precision) {
    let ([a, b, c], round) = (COEFFICIENTS, |x: f32| precision.round(x));
    let (mut gram, mut square, mut product) = (vec![0.0; m * m], vec![0.0; m * m], vec![0.0; m * n]);
    for _ in 0..steps {
        trained(m, n, m, x, x, &mut gram); // A = XXᵀ [m, m]
        precision.round_all(&mut gram);
        let scaled: Vec<f32> = gram.iter().map(|a| round(c * a)).collect();
        trained(m, m, m, &scaled, &gram, &mut square); // cAAᵀ, and A is symmetric
        for (square, gram) in square.iter_mut().zip(&gram) {
            *square = round(round(b * gram) + round(*square)); // B = bA + cA²
        }
        input_grad(m, n, m, &square, x, &mut product); // BX [m, n]
        for (x, product) in x.iter_mut().zip(&product) {
            *x = round(round(a * *x) + round(*product));
        }
    }
}

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}
