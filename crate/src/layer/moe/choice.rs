//! Which experts see a token, and how much of each it gets.

use candle_core::Tensor;
use smallvec::SmallVec;

/// One token's way to one expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// Number of the expert.
    pub expert: u32,
    /// Row of the token.
    pub row: u32,
    /// What its output is weighed by.
    pub weight: f32,
}

/// The ways of some tokens; those of one need no memory of their own.
pub type Picks = SmallVec<[Pick; 16]>;

/// How a router's logits become a choice.
#[derive(Clone, Debug)]
pub enum Rule {
    /// The k of largest logits, by softmax over those alone (Shazeer et al. 2017).
    Softmax,
    /// See [`Scores`].
    Sigmoid(Scores),
}

/// The choice by scores s = σ(logits) (DeepSeek-AI 2024): the k of largest s + correction, weighed by s.
#[derive(Clone, Debug)]
pub struct Scores {
    /// What is added to scores for the choice alone, `[E]` in f32: moved by a balance of use, not by gradients.
    pub correction: Tensor,
    /// What that is called within the branch.
    pub name: &'static str,
    /// Groups of experts, of E / groups each; experts are chosen in those groups alone whose two largest add to most.
    pub groups: usize,
    /// How many groups those are.
    pub of_groups: usize,
    /// Whether the weights of a token add to 1 before the factor.
    pub normed: bool,
    /// A factor on all weights.
    pub factor: f32,
}

/// What the scores of a token's experts are divided by, beside their sum.
const LEAST: f32 = 1e-20;

impl Scores {
    /// The weights, by the scores of a token's experts.
    pub fn weights(&self, scores: &mut [f32]) {
        let sum = if self.normed { scores.iter().sum::<f32>() + LEAST } else { 1.0 };
        scores.iter_mut().for_each(|score| *score = *score / sum * self.factor);
    }

    /// The gradient by a token's logits, by its scores and by that of its weights, in the place of the latter.
    pub fn back(&self, scores: &[f32], dweights: &mut [f32]) {
        let (sum, middle) = match self.normed {
            true => {
                let sum = scores.iter().sum::<f32>() + LEAST;
                (sum, scores.iter().zip(&*dweights).map(|(s, d)| s * d).sum::<f32>() / sum)
            }
            false => (1.0, 0.0),
        };
        for (d, s) in dweights.iter_mut().zip(scores) {
            *d = self.factor * (*d - middle) / sum * s * (1.0 - s);
        }
    }
}

/// σ(x).
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The `k` experts of each row of logits [T, E] by [`Scores`], with `correction` `[E]`; of equal ones, and in the order, of
/// [`choose`].
pub fn choose_by_scores(logits: &[f32], correction: &[f32], k: usize, by: &Scores) -> Picks {
    let (mut picks, experts) = (Picks::new(), correction.len());
    for (row, logits) in logits.chunks(experts).enumerate() {
        let scores: SmallVec<[f32; 16]> = logits.iter().map(|x| sigmoid(*x)).collect();
        let mut ranks: SmallVec<[f32; 16]> = scores.iter().zip(correction).map(|(s, c)| s + c).collect();
        let first = picks.len();
        keep_groups(&mut ranks, by);
        picks.extend(largest(&ranks, k).into_iter().map(|expert| Pick {
            expert: expert as u32,
            row: row as u32,
            weight: scores[expert],
        }));
        let mut weights: SmallVec<[f32; 16]> = picks[first..].iter().map(|pick| pick.weight).collect();
        by.weights(&mut weights);
        picks[first..].iter_mut().zip(weights).for_each(|(pick, weight)| pick.weight = weight);
    }
    picks.sort_by_key(|pick| (pick.expert, pick.row));
    picks
}

/// Ranks outside the best groups become −∞.
fn keep_groups(ranks: &mut [f32], by: &Scores) {
    if by.groups <= 1 {
        return;
    }
    let size = ranks.len() / by.groups;
    let of = |group: &[f32]| largest(group, 2).into_iter().map(|at| group[at]).sum::<f32>();
    let sums: SmallVec<[f32; 16]> = ranks.chunks(size).map(of).collect();
    let kept = largest(&sums, by.of_groups);
    let others = ranks.chunks_mut(size).enumerate().filter(|(group, _)| !kept.contains(group));
    others.for_each(|(_, ranks)| ranks.fill(f32::NEG_INFINITY));
}

/// Where the `k` largest are, the largest first; of equal ones the first.
fn largest(values: &[f32], k: usize) -> SmallVec<[usize; 16]> {
    let mut taken = SmallVec::<[usize; 16]>::new();
    for _ in 0..k.min(values.len()) {
        let free = (0..values.len()).filter(|at| !taken.contains(at));
        // Strictly larger: of equal ones the first stays.
        taken.extend(free.reduce(|best, at| if values[at] > values[best] { at } else { best }));
    }
    taken
}

/// The `k` experts of largest logits of each row [T, E], by softmax over those alone (Shazeer et al. 2017); of equal logits the
/// expert of the lower number comes first. In the order of experts, and of rows within each: what an expert sees lies together,
/// and a token's parts are added in the same order whatever others are read with it.
pub fn choose(logits: &[f32], experts: usize, k: usize) -> Picks {
    let mut picks = Picks::new();
    for (row, logits) in logits.chunks(experts).enumerate() {
        let first = picks.len();
        picks.extend(largest(logits, k).into_iter().map(|expert| Pick {
            expert: expert as u32,
            row: row as u32,
            weight: logits[expert],
        }));
        softmax(&mut picks[first..]);
    }
    picks.sort_by_key(|pick| (pick.expert, pick.row));
    picks
}

/// Logits, the largest first, become weights.
fn softmax(picks: &mut [Pick]) {
    let top = picks.first().map_or(0.0, |pick| pick.weight);
    picks.iter_mut().for_each(|pick| pick.weight = (pick.weight - top).exp());
    let sum: f32 = picks.iter().map(|pick| pick.weight).sum();
    picks.iter_mut().for_each(|pick| pick.weight /= sum);
}

/// The loss of experts that are used unequally, by the probabilities `p̄` `[E]` that the router gives them in the mean: λ (s / (m +
/// 10⁻⁶))², with m = 1/E the mean of p̄ and s its standard deviation (n − 1). 0 of one expert. Also its slopes by p̄, but for what is
/// the same for all, which no softmax lets through.
pub fn balance(probabilities: &[f64], weight: f64) -> (f64, Vec<f64>) {
    let count = probabilities.len() as f64;
    if count < 2.0 {
        return (0.0, vec![0.0; probabilities.len()]);
    }
    let mean = probabilities.iter().sum::<f64>() / count;
    let factor = weight / ((count - 1.0) * (mean + 1e-6).powi(2));
    let loss = factor * probabilities.iter().map(|p| (p - mean).powi(2)).sum::<f64>();
    (loss, probabilities.iter().map(|p| 2.0 * factor * (p - mean)).collect())
}

/// softmax of each row [T, E].
pub fn probabilities(logits: &[f32], experts: usize) -> Vec<f32> {
    let mut all = logits.to_vec();
    for row in all.chunks_mut(experts) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x = (*x - top).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_taken_and_ties_go_to_the_first() {
        let found = |logits: &[f32], experts, k| -> Vec<(u32, u32)> {
            choose(logits, experts, k).iter().map(|pick| (pick.row, pick.expert)).collect()
        };
        assert_eq!(found(&[1.0, 1.0, 1.0], 3, 2), [(0, 0), (0, 1)]);
        assert_eq!(found(&[0.0, 2.0, 2.0, 1.0], 4, 1), [(0, 1)]);
        assert_eq!(found(&[0.0, 2.0, 3.0, -1.0], 2, 2), [(0, 0), (1, 0), (0, 1), (1, 1)]);
        assert_eq!(found(&[5.0], 1, 4), [(0, 0)]);
        let picks = choose(&[0.0, 3.0_f32.ln(), -9.0], 3, 2);
        assert!((picks[0].weight - 0.25).abs() < 1e-6 && (picks[1].weight - 0.75).abs() < 1e-6);
        assert_eq!(choose(&[4.0, -2.0], 2, 1)[0].weight, 1.0);
        // No panic, whatever the numbers.
        assert_eq!(choose(&[f32::NAN, f32::NAN, 1.0], 3, 2).len(), 2);
    }

    #[test]
    fn scores_choose_in_the_best_groups_and_weigh_without_the_correction() {
        let by = |groups, of_groups, normed| {
            let correction = Tensor::zeros(4, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
            Scores { correction, name: "bias", groups, of_groups, normed, factor: 2.0 }
        };
        let found = |correction: [f32; 4], by: &Scores| -> Vec<(u32, f32)> {
            let picks = choose_by_scores(&[2.0, -3.0, 1.0, 0.5], &correction, 2, by);
            picks.iter().map(|pick| (pick.expert, pick.weight)).collect()
        };
        let close = |found: Vec<(u32, f32)>, expected: [(u32, f32); 2]| {
            assert!(
                found.iter().zip(&expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6),
                "{found:?}"
            );
        };
        let s = [2.0, -3.0, 1.0, 0.5].map(sigmoid);
        close(found([0.0; 4], &by(1, 1, false)), [(0, 2.0 * s[0]), (2, 2.0 * s[2])]);
        // The second pair has the larger sum, though the largest of all is in the first.
        let sum = s[2] + s[3];
        close(found([0.0; 4], &by(2, 1, true)), [(2, 2.0 * s[2] / sum), (3, 2.0 * s[3] / sum)]);
        // A correction moves the choice and no weight.
        close(found([0.0, 1.0, 0.0, 0.0], &by(1, 1, false)), [(0, 2.0 * s[0]), (1, 2.0 * s[1])]);
    }

    #[test]
    fn balance_is_its_formula_and_its_slope() {
        assert_eq!(balance(&[1.0], 0.01).0, 0.0);
        let (even, slopes) = balance(&[0.25; 4], 0.01);
        assert!(even.abs() < 1e-12 && slopes.iter().all(|slope| slope.abs() < 1e-12));
        let p = [0.5, 0.3, 0.2];
        let mean: f64 = 1.0 / 3.0;
        let deviation = (p.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
        let (loss, slopes) = balance(&p, 0.01);
        assert!((loss - 0.01 * (deviation / (mean + 1e-6)).powi(2)).abs() < 1e-9);
        // Along a change that keeps the sum.
        let moved = |by: f64| balance(&[0.5 + by, 0.3 - by, 0.2], 0.01).0;
        assert!(((moved(1e-6) - moved(-1e-6)) / 2e-6 - (slopes[0] - slopes[1])).abs() < 1e-6);
    }
}
