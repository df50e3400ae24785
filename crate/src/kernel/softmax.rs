//! Negative log-likelihoods under a softmax, and their gradient.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// `nll[i] = ln Σ_v e^{logits[i, v]} − logits[i, target[i]]`, for rows of `vocab` logits.
pub fn nll(logits: &[f32], vocab: usize, targets: &[u32]) -> Vec<f32> {
    let row = |(row, target): (&[f32], &u32)| log_sum_exp(row) - row[*target as usize];
    logits.par_chunks(vocab).zip(targets).with_min_len(64).map(row).collect()
}

/// `grad[i, v] = (softmax(logits[i])[v] − [v = target[i]]) · weight[i]`.
pub fn nll_grad(logits: &[f32], vocab: usize, targets: &[u32], weights: &[f32], grad: &mut [f32]) {
    let rows = grad.par_chunks_mut(vocab).zip(logits.par_chunks(vocab)).zip(targets).zip(weights);
    rows.with_min_len(64).for_each(|(((grad, row), target), weight)| {
        softmax_scaled(row, log_sum_exp(row), *weight, grad);
        grad[*target as usize] -= weight;
    });
}

dispatch! {
    /// ln Σ e^x, without overflow.
    pub fn log_sum_exp(row: &[f32]) -> f32 = log_sum_exp_body;
}

#[inline(always)]
fn log_sum_exp_body<V: Lanes>(row: &[f32]) -> f32 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shift = V::splat(top);
    let chunks = row.chunks_exact(V::N);
    let rest: f32 = chunks.remainder().iter().map(|x| (x - top).exp()).sum();
    let mut sum = V::splat(0.0);
    for x in chunks {
        sum = sum.add(V::load(x).sub(shift).exp());
    }
    top + (sum.sum() + rest).ln()
}

dispatch! { fn softmax_scaled(row: &[f32], log_sum: f32, scale: f32, out: &mut [f32]) = softmax_scaled_body; }

#[inline(always)]
fn softmax_scaled_body<V: Lanes>(row: &[f32], log_sum: f32, scale: f32, out: &mut [f32]) {
    let (shift, factor) = (V::splat(log_sum), V::splat(scale));
    let whole = row.len() / V::N * V::N;
    for i in (0..whole).step_by(V::N) {
        V::load(&row[i..]).sub(shift).exp().mul(factor).store(&mut out[i..]);
    }
    for i in whole..row.len() {
        out[i] = (row[i] - log_sum).exp() * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nll_and_its_gradient_are_the_definition() {
        let (rows, vocab) = (3, 37);
        let logits: Vec<f32> = (0..rows * vocab).map(|i| ((i * 31 % 17) as f32 - 8.0) * 1.5).collect();
        let (targets, weights) = ([5, 36, 0], [1.0, 0.5, 2.0]);
        let found = nll(&logits, vocab, &targets);
        let mut grad = vec![0.0; logits.len()];
        nll_grad(&logits, vocab, &targets, &weights, &mut grad);
        for i in 0..rows {
            let row = &logits[i * vocab..][..vocab];
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            let expected = sum.ln() - f64::from(row[targets[i] as usize]);
            assert!((f64::from(found[i]) - expected).abs() < 1e-5);
            for v in 0..vocab {
                let p = f64::from(row[v]).exp() / sum - f64::from(u8::from(v == targets[i] as usize));
                assert!((f64::from(grad[i * vocab + v]) - p * f64::from(weights[i])).abs() < 1e-6);
            }
        }
        // Large logits neither overflow nor lose the answer.
        assert_eq!(nll(&[1000.0, 0.0], 2, &[0]), [0.0]);
    }
}
