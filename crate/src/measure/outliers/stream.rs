//! What is gathered of one input of one layer, token by token, and the statistics of it.

use super::Outliers;
use crate::record::Reading;
use crate::stats::{largest, quantile};

/// Lags in tokens at which largest channels are compared.
fn lags(seq_len: usize) -> Vec<usize> {
    (0..).map(|k| 1 << k).take_while(|lag| 2 * lag <= seq_len).collect()
}

/// What is gathered of one input of one layer.
pub(super) struct Stream {
    /// What the values are the input of, or which part of the recurrence's.
    pub role: &'static str,
    /// Of which layer.
    pub layer: Option<usize>,
    channels: usize,
    /// Channels that count as a token's largest.
    top: usize,
    /// Distances in tokens at which largest channels are compared.
    pub lags: Vec<usize>,
    /// Σ x, Σ x², Σ x³, Σ x⁴ and how many.
    sums: [f64; 4],
    count: f64,
    /// Σ x² of each channel.
    squares: Vec<f64>,
    /// Largest magnitude of each token, and that over its root mean square.
    maxima: Vec<f64>,
    crests: Vec<f64>,
    /// Largest channels of each token, by window: a bit for each channel.
    tops: Vec<Vec<Vec<u64>>>,
}

impl Stream {
    /// Of so many channels, before the first window. Of a `sparse` one neighbours in a window are no neighbours in the text: no lag
    /// is looked at.
    pub fn new(
        role: &'static str,
        layer: Option<usize>,
        channels: usize,
        settings: &Outliers,
        sparse: bool,
    ) -> Self {
        Self {
            role,
            layer,
            channels,
            top: ((settings.top_share * channels as f64).ceil() as usize).clamp(1, channels),
            lags: if sparse { vec![] } else { lags(settings.seq_len) },
            sums: [0.0; 4],
            count: 0.0,
            squares: vec![0.0; channels],
            maxima: vec![],
            crests: vec![],
            tops: vec![],
        }
    }

    /// Adds a window [T, channels].
    pub fn add(&mut self, x: &[f32]) {
        let mut tops = Vec::with_capacity(x.len() / self.channels);
        for token in x.chunks(self.channels) {
            let (mut largest, mut power) = (0.0_f32, 0.0);
            for (channel, x) in token.iter().enumerate() {
                let (size, value) = (x.abs(), f64::from(*x));
                let square = value * value;
                for (sum, power) in self.sums.iter_mut().zip([value, square, square * value, square * square])
                {
                    *sum += power;
                }
                self.squares[channel] += square;
                // Once NaN, always NaN.
                if size > largest || size.is_nan() {
                    largest = size;
                }
                power += square;
            }
            self.count += self.channels as f64;
            self.maxima.push(f64::from(largest));
            if power != 0.0 {
                self.crests.push(f64::from(largest) / (power / self.channels as f64).sqrt());
            }
            let sizes: Vec<f64> = token.iter().map(|x| f64::from(x.abs())).collect();
            tops.push(largest_of(&sizes, self.top));
        }
        self.tops.push(tops);
    }

    /// Fourth central moment over the squared second: 3 for normal values, more with outliers.
    pub fn kurtosis(&self) -> f64 {
        let [m1, m2, m3, m4] = self.sums.map(|sum| sum / self.count);
        let variance = m2 - m1 * m1;
        (m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1.powi(4)) / (variance * variance)
    }

    fn chance(&self) -> f64 {
        self.top as f64 / self.channels as f64
    }

    /// How far beyond chance a share of common channels is; no number where values were none.
    fn beyond_chance(&self, overlap: f64) -> f64 {
        let beyond = (overlap - self.chance()) / (1.0 - self.chance());
        if self.sums[1].is_nan() { f64::NAN } else { beyond }
    }

    /// Mean share of a token's largest channels that are among those of the token `lag` later.
    fn overlap(&self, lag: usize) -> Option<f64> {
        let pairs = self.tops.iter().flat_map(|tops| tops.iter().zip(tops.iter().skip(lag)));
        let (common, all) =
            pairs.fold((0, 0), |(common, all), (a, b)| (common + shared(a, b), all + self.top as u32));
        (all > 0).then(|| f64::from(common) / f64::from(all))
    }

    /// The persistence at each lag.
    pub fn persistence(&self) -> Vec<Option<f64>> {
        self.lags.iter().map(|lag| self.overlap(*lag).map(|overlap| self.beyond_chance(overlap))).collect()
    }

    /// How far beyond chance tokens' largest channels are those that are largest overall: what scales that are fixed
    /// for each channel can reach.
    pub fn fixed(&self) -> f64 {
        let overall = largest_of(&self.squares, self.top);
        let tokens = self.tops.iter().flatten();
        let (common, count) = tokens.fold((0, 0), |(common, n), own| (common + shared(own, &overall), n + 1));
        self.beyond_chance(f64::from(common) / f64::from((count * self.top as u32).max(1)))
    }

    /// The median token's crest.
    pub fn crest(&self) -> Option<f64> {
        middle(self.crests.iter().copied())
    }

    /// The largest channel's root mean square over the median channel's.
    pub fn channel_ratio(&self) -> Option<f64> {
        let most = largest(self.squares.iter().copied())?;
        Some((most / middle(self.squares.iter().copied()).filter(|middle| *middle != 0.0)?).sqrt())
    }

    /// The row of this input.
    pub fn describe(&self, row: Reading) -> Reading {
        let persistence = self.persistence();
        let mut maxima = self.maxima.clone();
        maxima.sort_by(f64::total_cmp);
        row.row("layer")
            .value("role", self.role)
            .value("layer", self.layer)
            .value("channels", self.channels)
            .value("top", self.top)
            .value("chance", self.chance())
            .value("absmax", quantile(&maxima, 1.0))
            .value("absmax_median", quantile(&maxima, 0.5))
            .value("absmax_q99", quantile(&maxima, 0.99))
            .value("rms", (self.sums[1] / self.count).sqrt())
            .value("kurtosis", self.kurtosis())
            .value("crest", self.crest())
            .value("channel_ratio", self.channel_ratio())
            .value("persistence_near", persistence.first().copied().flatten())
            .value("persistence_far", persistence.last().copied().flatten())
            .value("persistence_fixed", self.fixed())
            .value("lags", self.lags.clone())
            .value("persistence_at", persistence)
    }
}

/// The `count` largest of some values, as bits; of equal values the first.
fn largest_of(values: &[f64], count: usize) -> Vec<u64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.select_nth_unstable_by(count - 1, |a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    let mut bits = vec![0; values.len().div_ceil(64)];
    order[..count].iter().for_each(|channel| bits[channel / 64] |= 1 << (channel % 64));
    bits
}

/// How many bits two sets have in common.
fn shared(a: &[u64], b: &[u64]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a & b).count_ones()).sum()
}

/// The median.
pub(super) fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn settings() -> Outliers {
        Outliers { seq_len: 64, top_share: 0.05, ..Outliers::default() }
    }

    /// Forty channels of noise, of which two are ten times as large: the same two, or two others at every token.
    fn stream(stays: bool) -> Stream {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut stream = Stream::new("x", Some(0), 40, &settings(), false);
        for _ in 0..20 {
            let mut window = vec![0.0; 64 * 40];
            for token in window.chunks_mut(40) {
                token.iter_mut().for_each(|x| *x = rng.random_range(-1.0..1.0_f32));
                let (a, b) =
                    if stays { (3, 17) } else { (rng.random_range(0..20), rng.random_range(20..40)) };
                (token[a], token[b]) = (10.0, -10.0);
            }
            stream.add(&window);
        }
        stream
    }

    #[test]
    fn channels_that_stay_are_told_from_those_that_move() {
        let (fixed, moving) = (stream(true), stream(false));
        assert_eq!((fixed.top, fixed.chance()), (2, 0.05));
        assert_eq!(fixed.lags, [1, 2, 4, 8, 16, 32]);
        assert!(fixed.persistence().iter().all(|p| (p.unwrap() - 1.0).abs() < 1e-12));
        assert!((fixed.fixed() - 1.0).abs() < 1e-12);
        for found in moving.persistence().into_iter().flatten().chain([moving.fixed()]) {
            assert!(found.abs() < 0.05, "{found}");
        }
        // To a single token both look alike.
        assert!(
            (fixed.crest().unwrap() - moving.crest().unwrap()).abs() < 0.1 && fixed.crest().unwrap() > 4.0
        );
        assert!(fixed.channel_ratio().unwrap() > 15.0 && moving.channel_ratio().unwrap() < 1.5);
    }

    #[test]
    fn kurtosis_is_that_of_known_distributions() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let mut even = Stream::new("x", None, 50, &settings(), false);
        even.add(&(0..100_000).map(|_| rng.random_range(2.0..3.0_f32)).collect::<Vec<_>>());
        assert!(
            (even.kurtosis() - 1.8).abs() < 0.02,
            "a uniform distribution, off center: {}",
            even.kurtosis()
        );
        let mut coin = Stream::new("x", None, 2, &settings(), false);
        coin.add(&[1.0, -1.0, -1.0, 1.0]);
        assert_eq!(coin.kurtosis(), 1.0);
    }
}
