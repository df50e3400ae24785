//! Negative log-likelihoods under a softmax and their gradient; how far two softmaxes are apart.

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

/// Σ wᵢ nllᵢ in nats for logits [T, vocabulary] and one target and weight a row; `grad` [T, vocabulary], overwritten, is its
/// gradient with respect to the logits.
pub fn cross_entropy(logits: &[f32], targets: &[u32], weights: &[f32], grad: &mut [f32]) -> f32 {
    let vocab = logits.len() / targets.len().max(1);
    let nll = nll(logits, vocab, targets);
    nll_grad(logits, vocab, targets, weights, grad);
    nll.iter().zip(weights).map(|(nll, w)| f64::from(nll * w)).sum::<f64>() as f32
}

/// [`nll`] of logits plus `bias`; adds the mean over the rows of softmax(logits + bias) − onehot to `gradient`. Rows follow one
/// another, whatever the number of threads.
pub fn biased_nll(logits: &[f32], bias: &[f32], targets: &[u32], gradient: &mut [f32]) -> Vec<f32> {
    let (vocab, share) = (bias.len(), 1.0 / targets.len().max(1) as f32);
    let mut row = vec![0.0; vocab];
    let each = logits.chunks(vocab).zip(targets).map(|(logits, target)| {
        let target = *target as usize;
        row.copy_from_slice(logits);
        super::norm::add(bias, &mut row);
        let (log_sum, picked) = (log_sum_exp(&row), row[target]);
        softmax_added(&row, log_sum, share, gradient);
        gradient[target] -= share;
        log_sum - picked
    });
    each.collect()
}

dispatch! { fn softmax_added(row: &[f32], log_sum: f32, scale: f32, out: &mut [f32]) = softmax_added_body; }

/// out += softmax(row) · scale.
#[inline(always)]
fn softmax_added_body<V: Lanes>(row: &[f32], log_sum: f32, scale: f32, out: &mut [f32]) {
    let (shift, factor) = (V::splat(log_sum), V::splat(scale));
    let whole = row.len() / V::N * V::N;
    for i in (0..whole).step_by(V::N) {
        let share = V::load(&row[i..]).sub(shift).exp();
        share.fma(factor, V::load(&out[i..])).store(&mut out[i..]);
    }
    for (out, x) in out[whole..].iter_mut().zip(&row[whole..]) {
        *out += (x - log_sum).exp() * scale;
    }
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

/// How the distribution that logits give differs from that of reference logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Kullback–Leibler divergence Σ_v p_v ln(p_v / q_v) of q from the reference p, in nats.
    pub kl: f64,
    /// −ln p of the target under the reference.
    pub reference_nll: f64,
    /// −ln q of the target.
    pub nll: f64,
    /// Whether both have the same most likely value; of equal ones the first counts.
    pub same_top: bool,
}

/// The divergence of each row of `vocab` logits from the same row of `reference`, both finite.
///
/// Exponentials are f32, sums f64: KL is right to about 1e-7, and 0 for equal rows.
pub fn divergence(reference: &[f32], logits: &[f32], vocab: usize, targets: &[u32]) -> Vec<Divergence> {
    let row = |((p, q), target): ((&[f32], &[f32]), &u32)| {
        let (p_top, q_top) = (argmax(p), argmax(q));
        let (p_shift, q_shift) = (p[p_top as usize], q[q_top as usize]);
        let [p_sum, q_sum, weighted] = divergence_sums(p, q, p_shift, q_shift);
        let (p_log, q_log) = (p_sum.ln(), q_sum.ln());
        let at = *target as usize;
        Divergence {
            kl: weighted / p_sum + q_log - p_log,
            reference_nll: f64::from(p_shift) - f64::from(p[at]) + p_log,
            nll: f64::from(q_shift) - f64::from(q[at]) + q_log,
            same_top: p_top == q_top,
        }
    };
    let rows = reference.par_chunks(vocab).zip(logits.par_chunks(vocab)).zip(targets);
    rows.with_min_len(64).map(row).collect()
}

/// The first of the largest values.
pub fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best as u32
}

dispatch! {
    /// With x = p − `p_shift` and y = q − `q_shift`: Σ e^x, Σ e^y, Σ e^x (x − y).
    fn divergence_sums(p: &[f32], q: &[f32], p_shift: f32, q_shift: f32) -> [f64; 3] = divergence_sums_body;
}

#[inline(always)]
fn divergence_sums_body<V: Lanes>(p: &[f32], q: &[f32], p_shift: f32, q_shift: f32) -> [f64; 3] {
    let whole = p.len() / V::N * V::N;
    let (p_shift_all, q_shift_all) = (V::splat(p_shift), V::splat(q_shift));
    let (mut sums, mut terms) = ([[0.0_f64; 16]; 3], [[0.0_f32; 16]; 3]);
    for i in (0..whole).step_by(V::N) {
        let (x, y) = (V::load(&p[i..]).sub(p_shift_all), V::load(&q[i..]).sub(q_shift_all));
        let weight = x.exp();
        weight.store(&mut terms[0]);
        y.exp().store(&mut terms[1]);
        weight.mul(x.sub(y)).store(&mut terms[2]);
        for (sums, terms) in sums.iter_mut().zip(&terms) {
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum += f64::from(*term);
            }
        }
    }
    for (p, q) in p[whole..].iter().zip(&q[whole..]) {
        let (x, y) = (p - p_shift, q - q_shift);
        sums[0][0] += f64::from(x.exp());
        sums[1][0] += f64::from(y.exp());
        sums[2][0] += f64::from(x.exp() * (x - y));
    }
    [sums[0].iter().sum(), sums[1].iter().sum(), sums[2].iter().sum()]
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

    /// The definition of [`divergence`], one value after the other in f64.
    fn definition(p: &[f32], q: &[f32], target: usize) -> Divergence {
        let logs = |row: &[f32]| {
            let top = row.iter().fold(f64::NEG_INFINITY, |top, x| top.max(f64::from(*x)));
            let sum: f64 = row.iter().map(|x| (f64::from(*x) - top).exp()).sum();
            row.iter().map(|x| f64::from(*x) - top - sum.ln()).collect::<Vec<_>>()
        };
        let best = |row: &[f32]| row.iter().position(|x| row.iter().all(|other| other <= x));
        let same_top = best(p) == best(q);
        let (p, q) = (logs(p), logs(q));
        let kl = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        Divergence { kl, reference_nll: -p[target], nll: -q[target], same_top }
    }

    #[test]
    fn divergence_is_its_definition() {
        for (vocab, size, apart) in
            [(1, 1.0, 1.0), (7, 3.0, 2.0), (37, 20.0, 0.1), (256, 5.0, 5.0), (1000, 60.0, 1e-3)]
        {
            let rows = 65;
            let wave = |i: usize, step: f32| (i as f32 * step).sin() + (i as f32 * step * 0.37).cos();
            let p: Vec<f32> = (0..rows * vocab).map(|i| size * wave(i, 1.3)).collect();
            let q: Vec<f32> = p.iter().enumerate().map(|(i, p)| p + apart * wave(i, 2.9) + 3.0).collect();
            let targets: Vec<u32> = (0..rows).map(|i| (i * 31 % vocab) as u32).collect();
            for (i, found) in divergence(&p, &q, vocab, &targets).into_iter().enumerate() {
                let row = i * vocab..(i + 1) * vocab;
                let expected = definition(&p[row.clone()], &q[row], targets[i] as usize);
                let close = |a: f64, b: f64| (a - b).abs() < 2e-7 + 1e-6 * b.abs();
                assert!(close(found.kl, expected.kl), "{vocab}: {found:?} {expected:?}");
                assert!(close(found.reference_nll, expected.reference_nll) && close(found.nll, expected.nll));
                assert_eq!(found.same_top, expected.same_top);
            }
            let same = divergence(&p, &p, vocab, &targets);
            assert!(same.iter().all(|row| row.kl == 0.0 && row.same_top && row.nll == row.reference_nll));
        }
        // Portable code gives what the processor's widest vectors give.
        let (p, q): (Vec<_>, Vec<_>) = (0..53).map(|i| ((i as f32).sin(), (i as f32).cos())).unzip();
        let (wide, plain) =
            (divergence_sums(&p, &q, 1.0, 1.0), divergence_sums_body::<[f32; 8]>(&p, &q, 1.0, 1.0));
        assert!(wide.iter().zip(plain).all(|(a, b)| (a - b).abs() < 1e-6), "{wide:?} {plain:?}");
    }
}
