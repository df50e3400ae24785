//! Shares of trials, and pairs of them.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, Discrete, DiscreteCDF};

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

/// McNemar's test: the same trials under two conditions, of which only those count that came out differently.
///
/// If neither condition is better, each such pair falls either way like a fair coin. Both p-values are two-sided and
/// follow from the binomial distribution, however many pairs there are; 1 where no pair differs.
///
/// Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12 (1947);
/// M. W. Fagerland, S. Lydersen, P. Laake, "The McNemar test for binary matched-pairs data", BMC Medical Research
/// Methodology 13 (2013), who recommend the mid-p value: the exact one is conservative.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct McNemar {
    /// Pairs that the first condition passed and the second failed.
    pub lost: u64,
    /// Pairs that the first condition failed and the second passed.
    pub gained: u64,
    /// The exact p-value.
    pub exact: f64,
    /// The mid-p value.
    pub mid: f64,
}

impl McNemar {
    /// The test of these pairs of (first passed, second passed).
    pub fn of(pairs: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let (mut lost, mut gained) = (0, 0);
        for pair in pairs {
            lost += u64::from(pair == (true, false));
            gained += u64::from(pair == (false, true));
        }
        Self::counts(lost, gained)
    }

    /// The test of so many pairs of either kind.
    pub fn counts(lost: u64, gained: u64) -> Self {
        let (fewer, all) = (lost.min(gained), lost + gained);
        // A fair coin is a distribution for any number of throws.
        let Ok(coin) = Binomial::new(0.5, all) else { unreachable!("½ is a probability") };
        let (tail, point) = (coin.cdf(fewer), coin.pmf(fewer));
        let exact = (2.0 * tail).min(1.0);
        let mid = if lost == gained { 1.0 - 0.5 * point } else { (2.0 * tail - point).min(1.0) };
        Self { lost, gained, exact, mid: if all == 0 { 1.0 } else { mid } }
    }

    /// The probability that so many differing pairs have an exact p-value of at most `p` if neither condition is better: the
    /// largest of their p-values up to `p`, 0 if all are larger.
    pub fn reach(&self, p: f64) -> f64 {
        let all = self.lost + self.gained;
        let values = (0..=all / 2).map(|fewer| Self::counts(all - fewer, fewer).exact);
        values.filter(|value| *value <= p * (1.0 + 1e-12)).fold(0.0, f64::max)
    }
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
    fn mcnemar_agrees_with_published_values() {
        // Fagerland, Lydersen and Laake (2013): airway hyper-responsiveness before and after stem cell transplantation.
        let airways = McNemar::counts(1, 7);
        assert!((airways.exact - 0.0703).abs() < 5e-5 && (airways.mid - 0.0391).abs() < 5e-5, "{airways:?}");
        // By hand: 2 · (1 + 5 + 10) / 32 and less 10 / 32.
        let few = McNemar::counts(3, 2);
        assert!((few.exact - 1.0).abs() < 1e-12 && (few.mid - 0.6875).abs() < 1e-12, "{few:?}");
        // A. Agresti, "Categorical data analysis": approval of a prime minister in two surveys. R's binom.test(86, 236).
        let many = McNemar::counts(150, 86);
        assert!((many.exact / 3.715_936e-5 - 1.0).abs() < 1e-6, "{many:?}");
    }

    #[test]
    fn mcnemar_counts_the_pairs_that_differ() {
        let pairs = [(true, true), (true, false), (false, false), (true, false), (false, true)];
        let test = McNemar::of(pairs);
        assert_eq!((test.lost, test.gained), (2, 1));
        let swapped = McNemar::of(pairs.map(|(a, b)| (b, a)));
        assert_eq!((swapped.exact, swapped.mid), (test.exact, test.mid));
        let same = McNemar::of([(true, true); 50]);
        assert_eq!((same.exact, same.mid), (1.0, 1.0));
        let close = |p: f64, all: McNemar, reached: f64| (all.reach(p) - reached).abs() < 1e-12;
        assert!(close(0.5, same, 0.0) && close(1.0, same, 1.0));
        // 2 / 32, 2 · 6 / 32, all.
        let five = McNemar::counts(3, 2);
        for (p, reached) in [(0.06, 0.0), (0.0625, 0.0625), (0.4, 0.375), (1.0, 1.0)] {
            assert!(close(p, five, reached), "{p}: {}", five.reach(p));
        }
        let one_way = McNemar::counts(0, 50);
        assert!((one_way.exact - 2.0_f64.powi(-49)).abs() < 1e-18, "{one_way:?}");
    }
}
