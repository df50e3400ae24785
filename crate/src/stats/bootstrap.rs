//! Intervals of what is averaged over a text, from resampled blocks.
//!
//! The losses of neighbouring tokens go up and down together, so that the standard error of independent values is too
//! small. Blocks of neighbours, drawn with replacement and joined to a series as long as the original, keep most of
//! what holds them together. Where two models read the same tokens, both losses of a token stay a pair, and what the
//! text does to both cancels in their difference.

use super::quantile;
use crate::error::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The most series that are drawn: their means are kept until they are sorted.
const MOST: usize = 10_000_000;

/// The circular block bootstrap with percentile intervals.
///
/// D. N. Politis, J. P. Romano, "A circular block-resampling procedure for stationary data", in: Exploring the limits of
/// bootstrap (1992); H. R. Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of
/// Statistics 17 (1989).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bootstrap {
    /// Neighbours that are drawn together. Longer than what neighbours have to do with each other, and so short that
    /// the series holds some forty; 1 takes the values for independent.
    pub block: usize,
    /// Series that are drawn.
    pub resamples: usize,
    /// Share of the interval: .95.
    pub level: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { block: 256, resamples: 10_000, level: 0.95, seed: 0 }
    }
}

/// A value with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value itself, from the series as it is.
    pub value: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end of its interval.
    pub high: f64,
    /// Two-sided p-value of the value being 0: twice the share of the resampled values on the rarer side of it, counting
    /// the series itself among them. At least 2 / (resamples + 1).
    pub p: f64,
}

impl Bootstrap {
    /// Sets the number of neighbours that are drawn together.
    #[must_use]
    pub fn block(mut self, block: usize) -> Self {
        self.block = block;
        self
    }

    /// Sets the number of series that are drawn.
    #[must_use]
    pub fn resamples(mut self, resamples: usize) -> Self {
        self.resamples = resamples;
        self
    }

    /// Sets the seed of the draws.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Refuses settings that give no interval.
    ///
    /// # Errors
    /// A block or a number of resamples of 0, more resamples than memory holds, a level that is no share.
    pub fn check(&self) -> Result<()> {
        let at_least_one = [("block", self.block), ("resamples", self.resamples)];
        if let Some((name, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::input(format!("{name} must be at least 1, found 0")).at("bootstrap"));
        }
        if self.resamples > MOST {
            let what = format!("resamples must be at most {MOST}, found {}", self.resamples);
            return Err(Error::input(what).at("bootstrap"));
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            let what = format!("level is a share between 0 and 1, found {}", self.level);
            return Err(Error::input(what).at("bootstrap").hint("such as 0.95"));
        }
        Ok(())
    }

    /// The mean of a series. Where a value is not finite, the interval is NaN, and the mean is what it then is.
    ///
    /// `None` if there are no values, or with a block or a number of resamples of 0.
    pub fn mean(&self, values: &[f64]) -> Option<Estimate> {
        self.of([values], |[mean]| mean)
    }

    /// A function of the means of several series that belong together item by item: a difference or a ratio of them.
    ///
    /// As [`mean`](Self::mean); `None` also if the series differ in length.
    pub fn of<const N: usize>(
        &self,
        series: [&[f64]; N],
        of_means: impl Fn([f64; N]) -> f64,
    ) -> Option<Estimate> {
        let n = series.first()?.len();
        let matched = series.iter().all(|values| values.len() == n);
        if n == 0 || !matched || self.block == 0 || self.resamples == 0 {
            return None;
        }
        if !series.iter().all(|values| values.iter().all(|v| v.is_finite())) {
            let value = of_means(series.map(|values| values.iter().sum::<f64>() / n as f64));
            return Some(Estimate { value, low: f64::NAN, high: f64::NAN, p: f64::NAN });
        }
        let block = self.block.min(n);
        // Sums of the first values, on a circle that is walked around once more: a block is a difference of two.
        let sums: Vec<[f64; N]> = (0..n + block)
            .scan([0.0; N], |sums, i| {
                let before = *sums;
                sums.iter_mut().zip(&series).for_each(|(sum, values)| *sum += values[i % n]);
                Some(before)
            })
            .collect();
        let value = of_means(sums[n].map(|sum| sum / n as f64));
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut drawn: Vec<f64> = (0..self.resamples)
            .map(|_| {
                let (mut means, mut left) = ([0.0; N], n);
                while left > 0 {
                    // The last block is cut to the length of the series.
                    let (start, len) = (rng.random_range(0..n), block.min(left));
                    for (k, mean) in means.iter_mut().enumerate() {
                        *mean += (sums[start + len][k] - sums[start][k]) / n as f64;
                    }
                    left -= len;
                }
                of_means(means)
            })
            .collect();
        drawn.sort_by(f64::total_cmp);
        let below = drawn.iter().filter(|v| **v <= 0.0).count();
        let above = drawn.iter().filter(|v| **v >= 0.0).count();
        let p = 2.0 * (below.min(above) + 1) as f64 / (self.resamples + 1) as f64;
        let tail = (1.0 - self.level) / 2.0;
        let (low, high) = (quantile(&drawn, tail)?, quantile(&drawn, 1.0 - tail)?);
        Some(Estimate { value, low, high, p: p.min(1.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_distr::{Distribution, StandardNormal};

    /// A series in which each value keeps `keep` of the one before it: mean 0, variance 1.
    fn series(len: usize, keep: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let mut normal = || -> f64 { StandardNormal.sample(rng) };
        let mut x = normal();
        (0..len)
            .map(|_| {
                x = keep * x + (1.0 - keep * keep).sqrt() * normal();
                x
            })
            .collect()
    }

    /// Share of 95 % intervals that hold the true mean of such a series.
    fn coverage(keep: f64, block: usize) -> f64 {
        let (repetitions, mut rng) = (500, ChaCha8Rng::seed_from_u64(11));
        let covered = (0..repetitions).filter(|i| {
            let bootstrap = Bootstrap { block, resamples: 400, seed: *i, ..Bootstrap::default() };
            let found = bootstrap.mean(&series(2_000, keep, &mut rng)).unwrap();
            found.low <= 0.0 && 0.0 <= found.high
        });
        covered.count() as f64 / repetitions as f64
    }

    #[test]
    fn blocks_cover_where_single_values_do_not() {
        let (independent, blocks, single) = (coverage(0.0, 1), coverage(0.7, 50), coverage(0.7, 1));
        assert!((0.91..=0.98).contains(&independent), "{independent}");
        assert!((0.91..=0.98).contains(&blocks), "{blocks}");
        // √((1 + .7) / (1 − .7)) = 2.4 times too narrow: 59 % by theory.
        assert!((0.5..0.7).contains(&single), "{single}");
    }

    #[test]
    fn the_error_is_that_of_theory() {
        // For independent values the spread of the resampled means is s / √n.
        let values = series(4_000, 0.0, &mut ChaCha8Rng::seed_from_u64(5));
        let found = Bootstrap::default().block(1).mean(&values).unwrap();
        let error = super::super::Mean::of(&values).unwrap().error;
        assert!(
            ((found.high - found.low) / (2.0 * super::super::Z95 * error) - 1.0).abs() < 0.03,
            "{found:?}"
        );
        assert_eq!(found, Bootstrap::default().block(1).mean(&values).unwrap());
        assert_ne!(found, Bootstrap::default().block(1).seed(1).mean(&values).unwrap());
    }

    #[test]
    fn pairs_cancel_what_they_share() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let text = series(3_000, 0.5, &mut rng);
        let noise = series(3_000, 0.0, &mut rng);
        let other: Vec<f64> = text.iter().zip(&noise).map(|(t, e)| t + 0.02 + 0.1 * e).collect();
        let bootstrap = Bootstrap::default().block(50);
        let paired = bootstrap.of([&other, &text], |[a, b]| a - b).unwrap();
        assert!(paired.low > 0.0 && paired.high < 0.04 && paired.p < 0.01, "{paired:?}");
        assert!(bootstrap.mean(&text).unwrap().low < -0.02);
        // The same as the interval of the differences themselves.
        let differences: Vec<f64> = other.iter().zip(&text).map(|(a, b)| a - b).collect();
        let direct = bootstrap.mean(&differences).unwrap();
        assert!((direct.low - paired.low).abs() < 1e-9 && (direct.p - paired.p).abs() < 1e-9);
    }

    #[test]
    fn odd_lengths_and_nothing_at_all() {
        let bootstrap = Bootstrap { resamples: 200, ..Bootstrap::default() };
        // A series that never changes has no spread, whatever its length and the block's.
        for (len, block) in [(1, 1), (7, 3), (7, 7), (5, 100)] {
            let found = bootstrap.block(block).mean(&vec![2.0; len]).unwrap();
            assert!(
                [found.value, found.low, found.high].iter().all(|v| (v - 2.0).abs() < 1e-12),
                "{found:?}"
            );
            assert_eq!(found.p, 2.0 / 201.0);
        }
        let zero = bootstrap.mean(&[0.0; 9]).unwrap();
        assert_eq!((zero.value, zero.low, zero.high, zero.p), (0.0, 0.0, 0.0, 1.0));
        assert_eq!(bootstrap.mean(&[]), None);
        for odd in [f64::NAN, f64::INFINITY] {
            let found = bootstrap.mean(&[1.0, odd]).unwrap();
            assert!(!found.value.is_finite() && [found.low, found.high, found.p].iter().all(|x| x.is_nan()));
        }
        for (bad, part) in [
            (bootstrap.block(0), "bootstrap: block must be at least 1"),
            (bootstrap.resamples(0), "resamples must be at least 1"),
            (bootstrap.resamples(usize::MAX), "resamples must be at most 10000000"),
            (Bootstrap { level: f64::NAN, ..bootstrap }, "level is a share between 0 and 1, found NaN"),
            (Bootstrap { level: 1.0, ..bootstrap }, "level is a share between 0 and 1, found 1"),
        ] {
            let sentence = bad.check().unwrap_err().to_string();
            assert!(sentence.contains(part), "{sentence}");
        }
        assert!(bootstrap.check().is_ok());
        assert_eq!(bootstrap.block(0).mean(&[1.0]), None);
        assert_eq!(bootstrap.of([&[1.0, 2.0], &[1.0]], |[a, b]| a / b), None);
    }
}
