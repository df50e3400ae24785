//! How well one ranking agrees with another.

use super::Z95;
use serde::{Deserialize, Serialize};

/// Kendall's τ-b with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kendall {
    /// 1 where both rank alike, −1 where they rank in reverse, around 0 where they have nothing to do with each other.
    pub tau: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
    /// Items ranked.
    pub items: usize,
}

/// Kendall's τ-b of two values for each of several items; ties in either are taken into account.
///
/// The interval is the asymptotic one without assumptions on the distribution, from the spread of Cᵢ, item i's
/// concordant less its discordant pairs: σ² = 2 / (n (n−1)) · [2 (n−2) / (n (n−1)²) · Σ (Cᵢ − C̄)² + 1 − τ²]. It is sound
/// from some ten items on; rankings that agree in every pair leave it a point, which with few items says too much.
///
/// `None` with fewer than three items, if a value is NaN, or if one of the two is the same for all items.
///
/// M. G. Kendall, "The treatment of ties in ranking problems", Biometrika 33 (1945); P. Samara-Abdallah and R. H.
/// Randles, "A test for correlation based on Kendall's tau", Communications in Statistics 17 (1988); M. Hollander, D. A.
/// Wolfe, E. Chicken, "Nonparametric statistical methods" (2014), section 8.3.
pub fn kendall(x: &[f64], y: &[f64]) -> Option<Kendall> {
    let n = x.len();
    if n < 3 || y.len() != n || x.iter().chain(y).any(|value| value.is_nan()) {
        return None;
    }
    // Pairs are few: layers, heads, segments.
    let sign = |a: f64, b: f64| f64::from(i8::from(a < b) - i8::from(a > b));
    let (mut each, mut untied) = (vec![0.0; n], [0.0; 2]);
    for i in 0..n {
        for j in 0..i {
            let (dx, dy) = (sign(x[i], x[j]), sign(y[i], y[j]));
            each[i] += dx * dy;
            each[j] += dx * dy;
            untied[0] += dx.abs();
            untied[1] += dy.abs();
        }
    }
    let scale = (untied[0] * untied[1]).sqrt();
    if scale == 0.0 {
        return None;
    }
    let concordance = each.iter().sum::<f64>() / 2.0;
    let (tau, items) = (concordance / scale, n);
    let n = n as f64;
    let mean = 2.0 * concordance / n;
    let spread: f64 = each.iter().map(|c| (c - mean).powi(2)).sum();
    let variance =
        2.0 / (n * (n - 1.0)) * (2.0 * (n - 2.0) / (n * (n - 1.0).powi(2)) * spread + 1.0 - tau * tau);
    let half = Z95 * variance.max(0.0).sqrt();
    Some(Kendall { tau, low: (tau - half).max(-1.0), high: (tau + half).min(1.0), items })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};

    #[test]
    fn tau_agrees_with_published_values() {
        // The example of scipy.stats.kendalltau, with ties in both.
        let found = kendall(&[12.0, 2.0, 1.0, 12.0, 2.0], &[1.0, 4.0, 7.0, 1.0, 0.0]).unwrap();
        assert!((found.tau + 0.471_404_520_791_031_7).abs() < 1e-12, "{found:?}");
        // Hollander and Wolfe, chapter 8: colour of canned tuna against a panel's score, 26 of 36 pairs concordant, and
        // the interval from −.05 to .94.
        let color = [44.4, 45.9, 41.9, 53.3, 44.7, 44.1, 50.7, 45.2, 60.1];
        let panel = [2.6, 3.1, 2.5, 5.0, 3.6, 4.0, 5.2, 2.8, 3.8];
        let tuna = kendall(&color, &panel).unwrap();
        assert!((tuna.tau - 16.0 / 36.0).abs() < 1e-12, "{tuna:?}");
        assert!((tuna.low + 0.0526).abs() < 1e-4 && (tuna.high - 0.9415).abs() < 1e-4, "{tuna:?}");
    }

    #[test]
    fn what_has_no_ranking_has_no_tau() {
        assert_eq!(kendall(&[1.0, 2.0], &[1.0, 2.0]), None);
        assert_eq!(kendall(&[1.0, 1.0, 1.0], &[1.0, 2.0, 3.0]), None);
        assert_eq!(kendall(&[1.0, f64::NAN, 1.0], &[1.0, 2.0, 3.0]), None);
        assert_eq!(kendall(&[1.0, 2.0, 3.0], &[1.0, 2.0]), None);
        let same = kendall(&[1.0, 2.0, 5.0, 9.0], &[-3.0, -2.0, 0.0, 1e9]).unwrap();
        assert_eq!((same.tau, same.low, same.high), (1.0, 1.0, 1.0));
    }

    #[test]
    fn the_interval_covers_as_it_says() {
        // Normal pairs of correlation ρ have τ = 2/π · asin ρ.
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut normal = || -> f64 { StandardNormal.sample(&mut rng) };
        let (rho, items, repetitions) = (0.6_f64, 24, 600);
        let truth = std::f64::consts::FRAC_2_PI * rho.asin();
        let covered = (0..repetitions).filter(|_| {
            let pairs: Vec<(f64, f64)> = (0..items)
                .map(|_| {
                    let (a, b) = (normal(), normal());
                    (a, rho * a + (1.0 - rho * rho).sqrt() * b)
                })
                .collect();
            let (x, y): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let found = kendall(&x, &y).unwrap();
            (found.low..=found.high).contains(&truth)
        });
        let coverage = covered.count() as f64 / f64::from(repetitions);
        assert!((0.91..0.98).contains(&coverage), "{coverage}");
    }

    proptest! {
        // A ranking is all that counts, and reversing one of the two reverses the sign.
        #[test]
        fn tau_is_of_ranks(pairs in prop::collection::vec((0_i32..12, 0_i32..12), 3..30)) {
            let (x, y): (Vec<f64>, Vec<f64>) =
                pairs.iter().map(|(a, b)| (f64::from(*a), f64::from(*b))).unzip();
            let found = kendall(&x, &y);
            let cubes: Vec<f64> = x.iter().map(|x| x.powi(3)).collect();
            prop_assert_eq!(found, kendall(&cubes, &y));
            prop_assert_eq!(found, kendall(&y, &x));
            let reversed: Vec<f64> = y.iter().map(|y| -y).collect();
            if let (Some(found), Some(reversed)) = (found, kendall(&x, &reversed)) {
                prop_assert!((found.tau + reversed.tau).abs() < 1e-12);
                prop_assert!((-1.0..=1.0).contains(&found.low) && found.low <= found.high);
            }
        }
    }
}
