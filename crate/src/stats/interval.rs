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
mod tests;
