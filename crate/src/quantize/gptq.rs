//! GPTQ (Frantar et al. 2022): a layer's weights are rounded column by column, and the columns still to come make up
//! for what the rounded ones did to the layer's output.
//!
//! Rounding a row w to q changes the outputs on inputs X by e H eᵀ in all, where e = w − q and H = XᵀX. With
//! H + λI = R Rᵀ and R upper triangular this is ‖e R‖², whose part c is made of the columns up to c only. So, given
//! the columns before it, column c does best to round
//!
//! > w_c + Σ_{j<c} e_j R_jc / R_cc.
//!
//! This is GPTQ's update by the inverse Hessian in another form (Chee et al. 2023, theorem 6): the same codes of one
//! factorization, without an inverse. Every row goes its own way, so that rows are the unit of parallel work.

use crate::error::{Error, Result};
use crate::kernel::tile::{View, matmul_add};
use crate::threads;
use faer::{Mat, Side};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Columns that are rounded before the later ones hear of them, in one product.
const BLOCK: usize = 128;
/// Rows of one task.
const ROWS: usize = 32;
/// How often the damping is raised tenfold for a Hessian that has no factor.
const RAISES: usize = 3;

/// The constants of GPTQ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gptq {
    /// λ as a share of the Hessian's mean diagonal.
    pub damping: f32,
    /// Whether columns are rounded by falling diagonal, the most active inputs first ("activation order").
    pub order: bool,
}

impl Default for Gptq {
    fn default() -> Self {
        Self { damping: 0.01, order: true }
    }
}

/// Rounds `weights` [n, k] with error feedback: they are replaced by the values that `round` gives for (row, column,
/// adjusted weight); its codes [n, k] are returned. `hessian` [k, k] is XᵀX over the inputs X [_, k], at any scale.
///
/// `round` must not depend on what it was asked before: scales are fixed beforehand, from the weights as they were.
/// An input that was never active (diagonal 0) gives and takes no feedback: its column is rounded as it is.
///
/// # Errors
/// Sizes that do not fit, a damping that is negative or not a number, a Hessian that is not finite, or not positive
/// definite even with the damping raised a thousandfold, feedback that overflows.
pub fn gptq(
    weights: &mut [f32],
    n: usize,
    k: usize,
    hessian: &[f32],
    settings: Gptq,
    round: impl Fn(usize, usize, f32) -> (u8, f32) + Sync,
) -> Result<Vec<u8>> {
    if weights.len() != n * k || hessian.len() != k * k {
        let (w, h) = (weights.len(), hessian.len());
        return Err(Error::input(format!("weights [{n}, {k}] of {w} values with a Hessian of {h}")));
    }
    let mut order: Vec<usize> = (0..k).collect();
    if settings.order {
        order.sort_by(|a, b| hessian[b * k + b].total_cmp(&hessian[a * k + a]));
    }
    let feedback = feedback(hessian, &order, settings.damping)?;
    let mut codes = vec![0; n * k];
    let rows = ROWS * k.max(1);
    let finite = threads::install(|| {
        let tasks = weights.par_chunks_mut(rows).zip(codes.par_chunks_mut(rows)).enumerate();
        tasks.all(|(i, (weights, codes))| {
            round_rows(weights, codes, &order, &feedback, |row, column, x| round(i * ROWS + row, column, x))
        })
    });
    match finite {
        true => Ok(codes),
        false => Err(Error::input("the feedback of rounding errors overflows")
            .hint("the weights are too large for GPTQ; leave it out of the scheme")),
    }
}

/// R_jc / R_cc at [j, c] for j < c, the rest 0, with the columns in the given order.
fn feedback(hessian: &[f32], order: &[usize], damping: f32) -> Result<Vec<f32>> {
    if !(damping >= 0.0 && damping.is_finite()) {
        return Err(Error::input(format!("a damping of {damping}")).hint("give a small share, such as 0.01"));
    }
    if !hessian.iter().all(|h| h.is_finite()) {
        return Err(Error::input("the Hessian holds values that are not finite")
            .hint("check the calibration text and the model's activations"));
    }
    let k = order.len();
    let diagonal = |i: &usize| f64::from(hessian[i * k + i]);
    let live = order.iter().map(diagonal).filter(|h| *h != 0.0);
    let mean = live.clone().sum::<f64>() / live.count().max(1) as f64;
    let mut share = f64::from(damping);
    for _ in 0..=RAISES {
        // With both axes reversed, R is the lower factor that libraries compute.
        let damped = Mat::from_fn(k, k, |i, j| {
            let (i, j) = (order[k - 1 - i], order[k - 1 - j]);
            match f64::from(hessian[j * k + i]) {
                h if i != j => h,
                0.0 => 1.0,
                h => h + share * mean,
            }
        });
        if let Ok(factor) = damped.llt(Side::Lower) {
            let lower = factor.L();
            // A pivot that is all rounding error would make feedback of noise.
            if (0..k).all(|i| lower[(i, i)].powi(2) > 1e-10 * damped[(i, i)]) {
                let entry = |j: usize, c: usize| lower[(k - 1 - j, k - 1 - c)];
                let ratio = |j, c| if j < c { (entry(j, c) / entry(c, c)) as f32 } else { 0.0 };
                return Ok((0..k * k).map(|jc| ratio(jc / k, jc % k)).collect());
            }
        }
        share = if share > 0.0 { 10.0 * share } else { 0.001 };
    }
    Err(Error::input("the Hessian is not positive definite, not even with its damping raised a thousandfold")
        .hint("take it as XᵀX of the layer's inputs"))
}

/// Rounds whole rows, a block of columns at a time. Gives whether all that was rounded were numbers.
fn round_rows(
    weights: &mut [f32],
    codes: &mut [u8],
    order: &[usize],
    feedback: &[f32],
    round: impl Fn(usize, usize, f32) -> (u8, f32),
) -> bool {
    let (k, mut finite) = (order.len(), true);
    let rows = weights.len() / k;
    // In the order of rounding: the weights plus the feedback so far.
    let mut aims: Vec<f32> = weights.chunks(k).flat_map(|row| order.iter().map(|c| row[*c])).collect();
    let mut errors = vec![0.0; rows * BLOCK];
    for start in (0..k).step_by(BLOCK) {
        let end = k.min(start + BLOCK);
        for row in 0..rows {
            let aims = &mut aims[row * k..][start..end];
            for (i, column) in order[start..end].iter().enumerate() {
                let at = row * k + column;
                finite &= aims[i].is_finite();
                let (code, value) = round(row, *column, aims[i]);
                let error = weights[at] - value;
                let factors = &feedback[(start + i) * k..][start + i + 1..end];
                for (aim, factor) in aims[i + 1..].iter_mut().zip(factors) {
                    *aim += error * factor;
                }
                (codes[at], weights[at], errors[row * BLOCK + i]) = (code, value, error);
            }
        }
        let (width, later) = (end - start, k - end);
        let errors = View::rows(&errors, BLOCK);
        matmul_add(rows, width, later, errors, &feedback[start * k + end..], k, &mut aims[end..], k);
    }
    finite
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};

    fn normal(n: usize, seed: u64) -> Vec<f32> {
        StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(seed)).take(n).collect()
    }

    /// XᵀX of inputs whose channels have unequal strengths and lean on their neighbours.
    fn hessian(k: usize, tokens: usize) -> Vec<f32> {
        let raw = normal(tokens * k, 1);
        let x: Vec<Vec<f64>> = raw
            .chunks(k)
            .map(|x| {
                let leaning = |c: usize| f64::from(x[c]) + 0.9 * f64::from(x[c / 2]) + 0.7 * f64::from(x[0]);
                (0..k).map(|c| leaning(c) * (1.0 + (c % 5) as f64)).collect()
            })
            .collect();
        (0..k * k).map(|ij| x.iter().map(|x| x[ij / k] * x[ij % k]).sum::<f64>() as f32).collect()
    }

    /// 4 bits with a scale of its own for each row and each 16 columns.
    fn round(row: usize, column: usize, x: f32) -> (u8, f32) {
        let scale = 0.3 + 0.02 * ((row + column / 16) % 5) as f32;
        let q = (x / scale).round().clamp(-7.0, 7.0);
        ((q + 8.0) as u8, q * scale)
    }

    fn plain(weights: &[f32], k: usize) -> (Vec<u8>, Vec<f32>) {
        weights.iter().enumerate().map(|(i, w)| round(i / k, i % k, *w)).unzip()
    }

    /// tr(E H Eᵀ)
    fn harm(weights: &[f32], values: &[f32], k: usize, hessian: &[f32]) -> f64 {
        let errors: Vec<f64> = weights.iter().zip(values).map(|(w, v)| f64::from(w - v)).collect();
        let row =
            |e: &[f64]| -> f64 { (0..k * k).map(|ij| e[ij / k] * f64::from(hessian[ij]) * e[ij % k]).sum() };
        errors.chunks(k).map(row).sum()
    }

    /// One column at a time by the inverse Hessian, from which the column is then eliminated: GPTQ by its definition.
    fn definition(weights: &[f32], k: usize, hessian: &[f32], settings: Gptq) -> Vec<u8> {
        let mean = (0..k).map(|i| f64::from(hessian[i * k + i])).sum::<f64>() / k as f64;
        let damped = Mat::from_fn(k, k, |i, j| {
            f64::from(hessian[i * k + j]) + if i == j { f64::from(settings.damping) * mean } else { 0.0 }
        });
        let mut inverse = faer::linalg::solvers::DenseSolveCore::inverse(&damped.partial_piv_lu());
        let mut order: Vec<usize> = (0..k).collect();
        if settings.order {
            order.sort_by(|a, b| hessian[b * k + b].total_cmp(&hessian[a * k + a]));
        }
        let mut w: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
        let mut codes = vec![0; w.len()];
        for (done, c) in order.iter().enumerate() {
            for row in 0..w.len() / k {
                let (code, value) = round(row, *c, w[row * k + c] as f32);
                let step = (w[row * k + c] - f64::from(value)) / inverse[(*c, *c)];
                order[done..].iter().for_each(|j| w[row * k + j] -= step * inverse[(*c, *j)]);
                codes[row * k + c] = code;
            }
            let before = inverse.clone();
            for (i, j) in order[done..].iter().flat_map(|i| order[done..].iter().map(move |j| (*i, *j))) {
                inverse[(i, j)] -= before[(i, *c)] * before[(*c, j)] / before[(*c, *c)];
            }
        }
        codes
    }

    #[test]
    fn codes_are_those_of_the_definition() {
        for (n, k) in [(1, 1), (13, 37), (5, 128), (7, 200), (3, 261)] {
            for order in [false, true] {
                let (mut weights, hessian) = (normal(n * k, 2), hessian(k, k / 2 + 1));
                let settings = Gptq { order, ..Default::default() };
                let expected = definition(&weights, k, &hessian, settings);
                let codes = gptq(&mut weights, n, k, &hessian, settings, round).unwrap();
                let apart = codes.iter().zip(&expected).filter(|(a, b)| a != b).count();
                assert_eq!(apart, 0, "{n}×{k}, order {order}");
            }
        }
    }

    #[test]
    fn the_output_keeps_more_than_by_plain_rounding() {
        let (n, k) = (24, 160);
        let (weights, hessian) = (normal(n * k, 3), hessian(k, 400));
        let nearest = harm(&weights, &plain(&weights, k).1, k, &hessian);
        for order in [false, true] {
            let mut values = weights.clone();
            gptq(&mut values, n, k, &hessian, Gptq { order, ..Default::default() }, round).unwrap();
            let ratio = harm(&weights, &values, k, &hessian) / nearest;
            assert!(ratio < 0.5, "{ratio}");
        }
    }

    #[test]
    fn inputs_that_tell_nothing_of_each_other_are_rounded_plainly() {
        let (n, k) = (40, 150);
        let weights = normal(n * k, 4);
        let identity: Vec<f32> = (0..k * k).map(|ij| f32::from(ij / k == ij % k)).collect();
        for hessian in [identity, vec![0.0; k * k]] {
            let mut values = weights.clone();
            let codes = gptq(&mut values, n, k, &hessian, Gptq::default(), round).unwrap();
            assert_eq!((codes, values), plain(&weights, k));
        }
        assert!(gptq(&mut [], 0, 3, &[1.0; 9], Gptq::default(), round).unwrap().is_empty());
        assert!(gptq(&mut [], 3, 0, &[], Gptq::default(), round).unwrap().is_empty());
    }

    #[test]
    fn a_dead_input_changes_nothing_for_the_others() {
        let (n, k, dead) = (9, 40, 17);
        let (weights, mut hessian) = (normal(n * k, 5), hessian(k, 100));
        (0..k).for_each(|i| (hessian[i * k + dead], hessian[dead * k + i]) = (0.0, 0.0));
        let mut values = weights.clone();
        let codes = gptq(&mut values, n, k, &hessian, Gptq::default(), round).unwrap();
        let keep = |i: &usize| i / k != dead && i % k != dead;
        let alive: Vec<f32> = (0..k * k).filter(keep).map(|i| hessian[i]).collect();
        let mut rest: Vec<f32> = (0..n * k).filter(|i| i % k != dead).map(|i| weights[i]).collect();
        let shifted = |row, column, x| round(row, if column < dead { column } else { column + 1 }, x);
        let others = gptq(&mut rest, n, k - 1, &alive, Gptq::default(), shifted).unwrap();
        let nearest = plain(&weights, k).0;
        let expected: Vec<u8> = codes.chunks(k).map(|row| row[dead]).collect();
        assert_eq!(expected, (0..n).map(|row| nearest[row * k + dead]).collect::<Vec<_>>());
        let alive: Vec<u8> = (0..n * k).filter(|i| i % k != dead).map(|i| codes[i]).collect();
        assert_eq!(alive, others);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (n, k) = (150, 300);
        let hessian = hessian(k, 200);
        let run = |count| {
            let mut values = normal(n * k, 6);
            let codes =
                threads::with_threads(count, || gptq(&mut values, n, k, &hessian, Gptq::default(), round));
            (codes.unwrap(), values)
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn a_hessian_that_is_none_is_one_sentence() {
        let run = |hessian: &[f32], damping| {
            let settings = Gptq { damping, order: true };
            gptq(&mut [0.4, 0.6], 1, 2, hessian, settings, round).map_err(|e| e.to_string())
        };
        assert!(run(&[1.0, 1.0, 1.0, 1.0], 0.0).is_ok()); // singular: some damping is taken
        assert!(run(&[1.0, 3.0, 3.0, 1.0], 0.01).is_ok()); // indefinite, within the raised damping
        assert!(run(&[1.0, 30.0, 30.0, 1.0], 0.01).unwrap_err().contains("not positive definite"));
        assert!(run(&[1.0, f32::NAN, 0.0, 1.0], 0.01).unwrap_err().contains("not finite"));
        assert!(run(&[1.0], 0.01).unwrap_err().contains("[1, 2]"));
        assert!(run(&[1.0, 0.0, 0.0, 1.0], -1.0).unwrap_err().contains("damping of -1"));
    }
}
