//! Which experts see a token, and how much of each it gets.

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

/// The `k` experts of largest logits of each row [T, E], by softmax over those alone (Shazeer et al. 2017); of equal logits the
/// expert of the lower number comes first. In the order of experts, and of rows within each: what an expert sees lies together,
/// and a token's parts are added in the same order whatever others are read with it.
pub fn choose(logits: &[f32], experts: usize, k: usize) -> Picks {
    let mut picks = Picks::new();
    for (row, logits) in logits.chunks(experts).enumerate() {
        let first = picks.len();
        for _ in 0..k.min(experts) {
            let taken = |expert: usize| picks[first..].iter().any(|pick| pick.expert as usize == expert);
            let free = (0..experts).filter(|expert| !taken(*expert));
            // Strictly larger: of equal ones the first stays.
            let best = free.reduce(|best, expert| if logits[expert] > logits[best] { expert } else { best });
            let Some(best) = best else { break };
            picks.push(Pick { expert: best as u32, row: row as u32, weight: logits[best] });
        }
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
