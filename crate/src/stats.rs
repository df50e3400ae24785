//! Intervals and summaries of repeated measurements.

use serde::{Deserialize, Serialize};

/// The normal deviate of a two-sided 95 % interval.
pub const Z95: f64 = 1.959_963_984_540_054;

/// Wilson score interval of a proportion: `successes` of `trials`, at normal deviate `z` ([`Z95`] for 95 %).
///
/// It stays within [0, 1] and is sound at 0 and at 1, where the textbook interval collapses to a point.
/// No trials give (0, 1): nothing is known.
///
/// E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927);
/// recommended by L. D. Brown, T. T. Cai, A. DasGupta, "Interval estimation for a binomial proportion",
/// Statistical Science 16 (2001).
pub fn wilson(successes: u64, trials: u64, z: f64) -> (f64, f64) {
    if trials == 0 {
        return (0.0, 1.0);
    }
    let n = trials as f64;
    let p = successes.min(trials) as f64 / n;
    let z2 = z * z;
    let center = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // At p = 0 and p = 1 the bound is exact; rounding would leave 1e-17.
    let low = if successes == 0 { 0.0 } else { (center - half).max(0.0) };
    let high = if successes >= trials { 1.0 } else { (center + half).min(1.0) };
    (low, high)
}

/// Smallest, middle and largest of repeated measurements, in their unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Smallest value.
    pub min: f64,
    /// Median: the mean of the two middle values when their number is even.
    pub median: f64,
    /// Largest value.
    pub max: f64,
}

impl Summary {
    /// Summary of the values; `None` if there are none, or if one is NaN.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.iter().any(|v| v.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) };
        Some(Self { min: sorted[0], median, max: sorted[sorted.len() - 1] })
    }
}

/// A mean with its standard error, √(s² / n), which takes the values for independent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error; NaN for a single value, which says nothing of the spread.
    pub error: f64,
}

impl Mean {
    /// Mean of the values; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (!values.is_empty()).then(|| Self { mean, error: (squares / (n - 1.0) / n).sqrt() })
    }
}

/// The quantile of ascending values at `fraction` (0 … 1), linear between neighbours (Hyndman & Fan 1996, type 7);
/// `None` if there are no values.
pub fn quantile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let at = fraction.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wilson_agrees_with_published_values() {
        // R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        for ((x, n), (low, high)) in [
            ((81, 263), (0.2553, 0.3662)),
            ((15, 148), (0.0624, 0.1605)),
            ((0, 20), (0.0, 0.1611)),
            ((1, 29), (0.0061, 0.1718)),
        ] {
            let (a, b) = wilson(x, n, Z95);
            assert!((a - low).abs() < 5.1e-5 && (b - high).abs() < 5.1e-5, "{x}/{n}: {a} {b}");
        }
        assert_eq!(wilson(0, 0, Z95), (0.0, 1.0));
    }

    proptest! {
        // The score interval holds exactly the proportions q with |p − q| ≤ z √(q(1−q)/n): its definition.
        #[test]
        fn wilson_bounds_solve_the_score_equation(n in 1_u64..2_000, part in 0.0..=1.0_f64) {
            let x = (part * n as f64) as u64;
            let (low, high) = wilson(x, n, Z95);
            let p = x as f64 / n as f64;
            prop_assert!(0.0 <= low && low <= p && p <= high && high <= 1.0);
            for q in [low, high] {
                let score = (p - q).abs() - Z95 * (q * (1.0 - q) / n as f64).sqrt();
                prop_assert!(score.abs() < 1e-9, "{} at {}", score, q);
            }
        }
    }

    #[test]
    fn summaries_of_few_values() {
        assert_eq!(Summary::of(&[3.0, 1.0, 2.0]), Some(Summary { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Summary::of(&[4.0, 1.0]), Some(Summary { min: 1.0, median: 2.5, max: 4.0 }));
        assert_eq!((Summary::of(&[]), Summary::of(&[1.0, f64::NAN])), (None, None));
    }

    #[test]
    fn means_and_quantiles_of_few_values() {
        let Mean { mean, error } = Mean::of(&[1.0, 2.0, 4.0, 5.0]).unwrap();
        assert!(mean == 3.0 && (error - (10.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        assert!(Mean::of(&[7.0]).unwrap().error.is_nan() && Mean::of(&[]).is_none());
        let sorted = [1.0, 2.0, 4.0, 8.0];
        let found = [0.0, 0.5, 0.9, 1.0].map(|fraction| quantile(&sorted, fraction).unwrap());
        assert!((found[2] - 6.8).abs() < 1e-12 && found[..2] == [1.0, 3.0] && found[3] == 8.0, "{found:?}");
        assert_eq!((quantile(&[], 0.5), quantile(&[3.0], 0.7)), (None, Some(3.0)));
    }
}
