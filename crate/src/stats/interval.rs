//! Intervals of what is averaged over a text, from blocks of it or from its documents.
//!
//! The losses of neighbouring tokens go up and down together, over words, over speeches and over acts, so that the
//! standard error of independent values is too small, and that of short blocks too. What is compared here are the means of
//! long blocks, few enough that their number counts: the quantiles are those of Student's t. Where two models read the same
//! tokens, both losses of a token stay a pair, and what the text does to both cancels in their difference.
//!
//! **What the intervals are of.** A text of at least [`DOCUMENTS`] documents speaks for documents of its kind: they are
//! what is drawn. One of fewer speaks for more text of these documents, and for others only as far as they differ among
//! themselves.

use super::quantile_of_t;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Into how many blocks a text is cut where nothing else is said; the widest of the three intervals counts.
///
/// The best length of a block is not known, and rules that choose it for the error of the variance (D. N. Politis,
/// H. White, Econometric Reviews 23, 2004) end below what losses of real models need: a correlation of .1 over 5,000 bytes
/// hides in the noise of single windows and doubles the error of a mean. Blocks of a sixteenth, an eighth and a quarter of
/// the text reach as far as the text can tell, and the widest is the one that its correlation asks for. The coverage on
/// real losses is in `crate/tests/fixtures/losses/README.md`.
pub const BLOCKS: [usize; 3] = [16, 8, 4];

/// Degrees of freedom of the p-value where the widest of three intervals counts. It is as wide as its own Student's t says,
/// but it is the widest: errors beyond it become rare faster than with the three degrees of freedom of four blocks. Of
/// series of 128 and 400 values that keep .9 and .97 of the one before, errors were twice the half-width in .0043 and .0062
/// of 12,000 cases, three times in .0002 and .0005; five degrees of freedom give .0036 and .0006, three .0079 and .0024.
const TAIL: f64 = 5.0;

/// From this number of documents on, counted as if they were equally long, they are what is drawn.
pub const DOCUMENTS: f64 = 4.0;

/// Where documents are drawn, the interval is at least that of as many blocks of the whole text: a few documents that differ
/// from all others (verse among plays) make means skewed, which Student's t of many documents does not know.
pub const GROUPS: usize = 8;

/// How intervals of what is averaged over a text are found: delete-one jackknife over blocks or documents, with Student's
/// t. For a mean this is the error of drawing blocks with replacement, in closed form and without a seed.
///
/// H. R. Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of Statistics 17 (1989);
/// B. Schmeiser, "Batch size effects in the analysis of simulation output", Operations Research 30 (1982), on how little
/// more than 10 to 30 blocks bring.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interval {
    /// Blocks that the text is cut into, all of one length, whatever its documents; `None`: the documents where they are
    /// at least [`DOCUMENTS`] (or [`GROUPS`] blocks, if that is wider), else the number of [`BLOCKS`] with the widest
    /// interval.
    pub blocks: Option<usize>,
    /// Share of the interval: .95.
    pub level: f64,
}

impl Default for Interval {
    fn default() -> Self {
        Self { blocks: None, level: 0.95 }
    }
}

/// A value with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value itself, from the series as it is.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
    /// Lower end of its interval; NaN where the text is too little to say.
    pub low: f64,
    /// Upper end of its interval.
    pub high: f64,
    /// Two-sided p-value of the value being 0. Below 1 − level exactly where the interval does not hold 0.
    pub p: f64,
    /// The effective number of blocks or documents that the error comes from: one more than the degrees of freedom.
    pub blocks: f64,
}

impl Estimate {
    /// From a value and the error that so many independent parts tell of it.
    fn new(value: f64, error: f64, blocks: f64, level: f64) -> Self {
        let half = error * quantile_of_t(blocks - 1.0, (1.0 + level) / 2.0);
        // A value without any error is 0, or it is not.
        let p = match error > 0.0 {
            true => super::two_sided_t(value / error, blocks - 1.0),
            false if error.is_nan() => f64::NAN,
            false => f64::from(u8::from(value == 0.0)),
        };
        Self { value, error, low: value - half, high: value + half, p, blocks }
    }

    /// The same interval with a p-value of other degrees of freedom, still below 1 − level exactly where 0 is not held.
    fn with_tail(self, freedom: f64, level: f64) -> Self {
        let half = self.high - self.value;
        let p = match half > 0.0 {
            true => {
                super::two_sided_t(self.value / half * quantile_of_t(freedom, (1.0 + level) / 2.0), freedom)
            }
            false => self.p,
        };
        Self { p, ..self }
    }

    /// A value of which nothing more is known.
    fn alone(value: f64) -> Self {
        Self { value, error: f64::NAN, low: f64::NAN, high: f64::NAN, p: f64::NAN, blocks: f64::NAN }
    }

    /// How far this value is above one of other tokens.
    ///
    /// B. L. Welch, "The generalization of Student's problem when several different population variances are involved",
    /// Biometrika 34 (1947).
    #[must_use]
    pub fn above(&self, other: &Self, level: f64) -> Self {
        let part = |one: &Self| one.error.powi(4) / (one.blocks - 1.0);
        let error = self.error.hypot(other.error);
        let freedom = error.powi(4) / (part(self) + part(other));
        let value = self.value - other.value;
        match error > 0.0 {
            true => Self::new(value, error, freedom + 1.0, level),
            false => Self::new(value, error, self.blocks.min(other.blocks), level),
        }
    }

    /// Whether there was too little text for an interval.
    pub fn is_alone(&self) -> bool {
        self.value.is_finite() && self.low.is_nan()
    }
}

impl Interval {
    /// Sets the number of blocks.
    #[must_use]
    pub fn blocks(mut self, blocks: usize) -> Self {
        self.blocks = Some(blocks);
        self
    }

    /// Refuses settings that give no interval.
    ///
    /// # Errors
    /// Fewer than two blocks, a level that is no share.
    pub fn check(&self) -> Result<()> {
        if let Some(blocks) = self.blocks.filter(|blocks| *blocks < 2) {
            let what = format!("blocks must be at least 2, found {blocks}: the spread of one says nothing");
            return Err(Error::input(what).at("interval"));
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            let what = format!("level is a share between 0 and 1, found {}", self.level);
            return Err(Error::input(what).at("interval").hint("such as 0.95"));
        }
        Ok(())
    }

    /// The mean of a series, in the order of the text; `documents` are the lengths of its documents in values, and may be
    /// left empty for a single one.
    ///
    /// As [`of`](Self::of); `None` if there are no values.
    pub fn mean(&self, values: &[f64], documents: &[usize]) -> Option<Estimate> {
        self.of([values], documents, |[mean]| mean)
    }

    /// A function of the means of several series that belong together item by item: a difference or a ratio of them.
    ///
    /// Where a value is not finite or there are fewer than four, the interval is NaN, and the value is what it then is.
    /// `None` if there are no values or the series differ in length.
    pub fn of<const N: usize>(
        &self,
        series: [&[f64]; N],
        documents: &[usize],
        of_means: impl Fn([f64; N]) -> f64,
    ) -> Option<Estimate> {
        let n = series.first()?.len();
        if n == 0 || series.iter().any(|values| values.len() != n) {
            return None;
        }
        let sum =
            |part: std::ops::Range<usize>| series.map(|values| values[part.clone()].iter().sum::<f64>());
        let value = of_means(sum(0..n).map(|sum| sum / n as f64));
        if !series.iter().all(|values| values.iter().all(|v| v.is_finite())) {
            return Some(Estimate::alone(value));
        }
        // Means without one of the parts, whose ends these are.
        let jackknife = |ends: &[usize], effective: f64| {
            let parts: Vec<_> =
                std::iter::once(0).chain(ends.iter().copied()).zip(ends.iter().copied()).collect();
            let sums: Vec<[f64; N]> = parts.iter().map(|(start, end)| sum(*start..*end)).collect();
            let total: [f64; N] = std::array::from_fn(|k| sums.iter().map(|sum| sum[k]).sum());
            let without: Vec<f64> = parts
                .iter()
                .zip(&sums)
                .map(|((start, end), own)| {
                    let left = (n - (end - start)) as f64;
                    of_means(std::array::from_fn(|k| (total[k] - own[k]) / left))
                })
                .collect();
            let mean = without.iter().sum::<f64>() / without.len() as f64;
            let squares: f64 = without.iter().map(|one| (one - mean).powi(2)).sum();
            let error = (squares * (1.0 - 1.0 / without.len() as f64)).sqrt();
            Estimate::new(value, error, effective, self.level)
        };
        let cut = |blocks: usize| -> Vec<usize> { (1..=blocks).map(|i| n * i / blocks).collect() };
        if let Some(blocks) = self.blocks {
            return Some(if blocks > n {
                Estimate::alone(value)
            } else {
                jackknife(&cut(blocks), blocks as f64)
            });
        }
        let known = documents.iter().sum::<usize>() == n;
        let squares: f64 = documents.iter().map(|length| (*length as f64).powi(2)).sum();
        let effective = (n as f64).powi(2) / squares;
        let widest = |all: Vec<Estimate>| {
            // Of equally wide ones the first, of most parts.
            all.into_iter().reduce(|a, b| if b.high - b.low > a.high - a.low { b } else { a })
        };
        if known && effective >= DOCUMENTS {
            let ends = documents.iter().filter(|length| **length > 0).scan(0, |end, length| {
                *end += length;
                Some(*end)
            });
            let drawn = jackknife(&ends.collect::<Vec<_>>(), effective);
            let grouped = (GROUPS <= n).then(|| jackknife(&cut(GROUPS), GROUPS as f64));
            return widest([drawn].into_iter().chain(grouped).collect());
        }
        let tried = BLOCKS.into_iter().filter(|blocks| *blocks <= n);
        let widest = widest(tried.map(|blocks| jackknife(&cut(blocks), blocks as f64)).collect());
        Some(widest.map_or_else(|| Estimate::alone(value), |widest| widest.with_tail(TAIL, self.level)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};
    use serde_json::Value;
    use std::collections::BTreeMap;

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

    /// Share of intervals that hold what they are to hold.
    fn covered(found: impl IntoIterator<Item = (Estimate, f64)>) -> f64 {
        let (mut held, mut all) = (0, 0);
        for (found, truth) in found {
            held += usize::from(found.low <= truth && truth <= found.high);
            all += 1;
        }
        f64::from(held as u32) / f64::from(all)
    }

    #[test]
    fn intervals_cover_where_neighbours_hold_together() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut of = |keep: f64, interval: Interval| {
            covered((0..600).map(|_| (interval.mean(&series(2_000, keep, &mut rng), &[]).unwrap(), 0.0)))
        };
        for keep in [0.0, 0.7, 0.97] {
            let found = of(keep, Interval::default());
            assert!((0.94..=0.99).contains(&found), "{keep}: {found}");
        }
        // Values taken for independent: √((1 + .7) / (1 − .7)) = 2.4 times too narrow, 59 % by theory.
        // Small p-values are not much more frequent than they say, also where six values of 400 are independent.
        for keep in [0.0, 0.7, 0.97] {
            let small = (0..2_000)
                .filter(|_| Interval::default().mean(&series(400, keep, &mut rng), &[]).unwrap().p < 0.01);
            let share = small.count() as f64 / 2_000.0;
            assert!(share < 0.03, "{keep}: {share}");
        }
        let mut of = |keep: f64, interval: Interval| {
            covered((0..600).map(|_| (interval.mean(&series(2_000, keep, &mut rng), &[]).unwrap(), 0.0)))
        };
        let single = of(0.7, Interval::default().blocks(2_000));
        assert!((0.5..0.7).contains(&single), "{single}");
    }

    /// Rises of real losses, document by document: see the README beside the file.
    fn rises() -> BTreeMap<String, Vec<Vec<f64>>> {
        let text = include_str!("../../tests/fixtures/losses/rises.json");
        let all: Value = serde_json::from_str(text).unwrap();
        serde_json::from_value(all["rises"].clone()).unwrap()
    }

    /// Each part of a document against the whole of it. A part is of the whole, so that its error is smaller by √(1 − share).
    #[test]
    fn real_losses_are_covered_within_documents() {
        let (rises, interval) = (rises(), Interval::default());
        assert_eq!(rises.len(), 2);
        let mut found = vec![];
        for documents in rises.values() {
            for document in documents {
                let n = document.len();
                let truth = document.iter().sum::<f64>() / n as f64;
                for parts in [2, 3, 4, 6] {
                    let shrunk = (1.0 - 1.0 / f64::from(parts as u32)).sqrt();
                    for i in 0..parts {
                        let part = interval.mean(&document[n * i / parts..n * (i + 1) / parts], &[]).unwrap();
                        found.push((
                            Estimate {
                                low: part.value - shrunk * (part.value - part.low),
                                high: part.value + shrunk * (part.high - part.value),
                                ..part
                            },
                            truth,
                        ));
                    }
                }
            }
        }
        let found = covered(found);
        assert!((0.93..=0.98).contains(&found), "{found}");
    }

    /// Texts of some documents against the mean of all: the long correlation, since documents differ more than their insides.
    #[test]
    fn real_losses_are_covered_across_documents() {
        let (rises, interval) = (rises(), Interval::default());
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for documents in [1, 2, 3, 4, 6, 8, 12, 16, 24] {
            let mut found = vec![];
            for all in rises.values() {
                let means: Vec<f64> = all.iter().map(|d| d.iter().sum::<f64>() / d.len() as f64).collect();
                let truth = means.iter().sum::<f64>() / means.len() as f64;
                for _ in 0..500 {
                    let drawn: Vec<&Vec<f64>> = (0..documents)
                        .map(|_| &all[rand::RngExt::random_range(&mut rng, 0..all.len())])
                        .collect();
                    let lengths: Vec<usize> = drawn.iter().map(|d| d.len()).collect();
                    let text: Vec<f64> = drawn.into_iter().flatten().copied().collect();
                    found.push((interval.mean(&text, &lengths).unwrap(), truth));
                }
            }
            let found = covered(found);
            assert!((0.93..=0.985).contains(&found), "{documents} documents: {found}");
        }
    }

    #[test]
    fn the_error_is_that_of_theory() {
        // For independent values the error of the mean is s / √n, and many blocks have the quantile of the normal.
        let values = series(4_000, 0.0, &mut ChaCha8Rng::seed_from_u64(5));
        let found = Interval::default().blocks(4_000).mean(&values, &[]).unwrap();
        let error = super::super::Mean::of(&values).unwrap().error;
        assert!((found.error / error - 1.0).abs() < 1e-9, "{found:?} {error}");
        assert!(((found.high - found.low) / (2.0 * super::super::Z95 * error) - 1.0).abs() < 1e-3);
        // Blocks by hand: means 1, 2, 6 and 7, s = 2.944, t(3) = 3.182, t = 4 / 1.472 = 2.718: p = .0727.
        let found =
            Interval::default().blocks(4).mean(&[0.0, 2.0, 2.0, 2.0, 5.0, 7.0, 7.0, 7.0], &[]).unwrap();
        assert!(
            (found.value, found.blocks) == (4.0, 4.0) && (found.error - 1.471_960).abs() < 1e-6,
            "{found:?}"
        );
        assert!(
            (found.high - 4.0 - 3.182_446 * 1.471_960).abs() < 1e-5 && (found.p - 0.0727).abs() < 2e-4,
            "{found:?}"
        );
    }

    #[test]
    fn documents_are_drawn_where_there_are_enough() {
        // Four documents, each the same throughout: blocks within them see nothing, and their number is what counts.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i / 100)).collect();
        let found = Interval::default().mean(&values, &[100; 4]).unwrap();
        assert_eq!((found.value, found.blocks), (1.5, 4.0));
        assert!((found.error - (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12, "{found:?}");
        // One of nearly all the text is no four.
        let uneven = Interval::default().mean(&values, &[397, 1, 1, 1]).unwrap();
        assert!(BLOCKS.contains(&(uneven.blocks as usize)), "{uneven:?}");
        // The block that the correlation asks for: two halves that differ leave four blocks.
        let halves: Vec<f64> = (0..320).map(|i| f64::from(i / 160) + 0.01 * f64::from(i % 7)).collect();
        assert_eq!(Interval::default().mean(&halves, &[160, 160]).unwrap().blocks, 4.0);
    }

    #[test]
    fn pairs_cancel_what_they_share() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let text = series(3_000, 0.5, &mut rng);
        let noise = series(3_000, 0.0, &mut rng);
        let other: Vec<f64> = text.iter().zip(&noise).map(|(t, e)| t + 0.02 + 0.1 * e).collect();
        let interval = Interval::default();
        let paired = interval.of([&other, &text], &[], |[a, b]| a - b).unwrap();
        assert!(paired.low > 0.0 && paired.high < 0.04 && paired.p < 0.01, "{paired:?}");
        assert!(interval.mean(&text, &[]).unwrap().low < -0.02);
        // The same as the interval of the differences themselves.
        let differences: Vec<f64> = other.iter().zip(&text).map(|(a, b)| a - b).collect();
        let direct = interval.mean(&differences, &[]).unwrap();
        assert!((direct.low - paired.low).abs() < 1e-9 && (direct.p - paired.p).abs() < 1e-9);
        // Of other tokens nothing cancels.
        let apart = interval.mean(&other, &[]).unwrap().above(&interval.mean(&text, &[]).unwrap(), 0.95);
        assert!((apart.value - paired.value).abs() < 1e-9 && apart.error > 5.0 * paired.error, "{apart:?}");
    }

    #[test]
    fn odd_lengths_and_nothing_at_all() {
        let interval = Interval::default();
        // A series that never changes has no spread, whatever its length.
        for len in [4, 7, 17, 100] {
            let found = interval.mean(&vec![2.0; len], &[]).unwrap();
            assert!(
                [found.value, found.low, found.high].iter().all(|v| (v - 2.0).abs() < 1e-12),
                "{found:?}"
            );
        }
        let zero = interval.mean(&[0.0; 9], &[]).unwrap();
        assert_eq!((zero.value, zero.low, zero.high, zero.p), (0.0, 0.0, 0.0, 1.0));
        // Three values say nothing of how far a fourth may be.
        let little = interval.mean(&[1.0, 2.0, 3.0], &[]).unwrap();
        assert!(little.is_alone() && little.value == 2.0 && little.p.is_nan(), "{little:?}");
        assert!(!zero.is_alone());
        assert_eq!(interval.mean(&[], &[]), None);
        for odd in [f64::NAN, f64::INFINITY] {
            let found = interval.mean(&[1.0, 1.0, 1.0, 1.0, odd], &[]).unwrap();
            assert!(!found.value.is_finite() && [found.low, found.high, found.p].iter().all(|x| x.is_nan()));
            assert!(!found.is_alone());
        }
        for (bad, part) in [
            (interval.blocks(1), "interval: blocks must be at least 2, found 1"),
            (Interval { level: f64::NAN, ..interval }, "level is a share between 0 and 1, found NaN"),
            (Interval { level: 1.0, ..interval }, "level is a share between 0 and 1, found 1"),
        ] {
            let sentence = bad.check().unwrap_err().to_string();
            assert!(sentence.contains(part), "{sentence}");
        }
        assert!(interval.check().is_ok());
        assert_eq!(interval.of([&[1.0, 2.0], &[1.0]], &[], |[a, b]| a / b), None);
    }
}
