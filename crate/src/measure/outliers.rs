//! Activation outliers: how large they are, and whether they stay in their channels.
//!
//! What is looked at are the inputs of the matrices, as they meet them (rotated, where the scheme rotates), and x, B and C
//! as the recurrence gets them. Large values cost bits twice: a token's largest value sets the scale of all its values
//! (its crest), and a method that scales channels apart, as SmoothQuant does, helps only while the large values stay in
//! the same channels. So each token's largest channels are compared with those of a token `lag` tokens later. Chance
//! would have k of n channels in common k / n of the time; **persistence** is how far beyond that they agree:
//! (overlap − chance) / (1 − chance), 1 if the same channels are large in both, 0 if they have nothing to do with each
//! other.

use super::watch::Watched;
use super::window::{Sliding, Window};
use super::{Measure, subject};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Reading, fingerprint};
use crate::stats::quantile;
use crate::threads::install;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// On which text, and how many channels count as large.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outliers {
    /// A text file, a JSONL file, or a folder of texts or of splits.
    pub corpus: PathBuf,
    /// The split, if the folder has splits.
    pub split: Option<String>,
    /// Tokens of a window, each read from a state of zeros.
    pub seq_len: usize,
    /// Read only the first tokens of the text.
    pub max_tokens: Option<usize>,
    /// Share of the channels that are a token's largest; at least one channel.
    pub top_share: f64,
}

impl Default for Outliers {
    fn default() -> Self {
        let split = Some("test".to_string());
        Self {
            corpus: PathBuf::from("data/corpus"),
            split,
            seq_len: 1024,
            max_tokens: Some(8192),
            top_share: 0.02,
        }
    }
}

impl Outliers {
    /// Sets the text: a file, or a folder of texts.
    #[must_use]
    pub fn on(mut self, corpus: impl Into<PathBuf>) -> Self {
        (self.corpus, self.split) = (corpus.into(), None);
        self
    }

    /// Reads only the first `count` tokens.
    #[must_use]
    pub fn max_tokens(mut self, count: usize) -> Self {
        self.max_tokens = Some(count);
        self
    }

    fn sliding(&self) -> Sliding<'_> {
        Sliding {
            corpus: &self.corpus,
            split: self.split.as_deref(),
            seq_len: self.seq_len,
            stride: self.seq_len,
            max_tokens: self.max_tokens,
        }
    }

    fn identity(&self, model: &Model, corpus: &Corpus) -> Result<String> {
        let settings = json!([self.sliding().identity(), self.top_share]);
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &corpus.sha256)
    }
}

impl Measure for Outliers {
    const NAME: &'static str = "outliers";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        self.identity(model, &self.sliding().text()?)
    }

    fn check(&self, model: &Model) -> Result<()> {
        if !(self.top_share > 0.0 && self.top_share < 1.0) {
            return Err(Error::input(format!(
                "top_share is a share between 0 and 1, found {}",
                self.top_share
            )));
        }
        if !model.device().is_cpu() {
            return Err(Error::input("activations are looked at on the CPU").hint("use --device cpu"));
        }
        self.sliding().check()
    }

    /// A row for each input of each layer, one for each role, one for each role and lag, and a summary.
    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let text = self.sliding().cut(model)?;
        let clock = Instant::now();
        let mut streams: Vec<Stream> = Vec::new();
        let watched = Watched::new(model);
        let progress = Progress::new("outliers", text.scored(), "tokens");
        for Window { scored, start } in &text.windows {
            let seen = inputs(model, &watched, &text.ids[*start..scored.end - 1])?;
            if streams.is_empty() {
                streams = seen
                    .iter()
                    .map(|(role, layer, x)| Stream::new(role, *layer, x.dims()[1], self))
                    .collect();
            }
            for (stream, (_, _, x)) in streams.iter_mut().zip(&seen) {
                with_floats([x], |[x]| stream.add(x))?;
            }
            progress.tick(scored.len() as u64)?;
        }
        let identity = self.identity(model, &text.corpus)?;
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.sliding().conditions())
                .fingerprint(&identity)
        };
        let mut rows: Vec<Reading> = streams.iter().map(|stream| stream.describe(row())).collect();
        rows.extend(by_role(&streams, &row));
        let worst = streams.iter().max_by(|a, b| a.kurtosis().total_cmp(&b.kurtosis()));
        let summary = row()
            .value("kurtosis_max", worst.map(Stream::kurtosis))
            .value("worst_role", worst.map(|stream| stream.role))
            .value("worst_layer", worst.and_then(|stream| stream.layer))
            .value("top_share", self.top_share);
        rows.push(text.describe(summary, clock.elapsed().as_secs_f64()));
        Ok(rows)
    }
}

/// Role, layer and values [T, channels] of everything looked at, for one window.
fn inputs(
    model: &Model,
    watched: &Watched,
    ids: &[u32],
) -> Result<Vec<(&'static str, Option<usize>, Tensor)>> {
    let (sites, mut all, mut layer) = (model.config.sites(), vec![], 0);
    for (((_, linear), input), site) in model.linears().into_iter().zip(watched.inputs(ids)?).zip(&sites) {
        let Some(input) = input else { continue };
        let role = site.roles[0];
        let of_block = ["in_proj", "out_proj"].contains(&role);
        all.push((role, of_block.then_some(layer), input.to_device(&Device::Cpu)?.squeeze(0)?.contiguous()?));
        if role == "in_proj" {
            let rows = install(|| linear.forward(&input))?; // [1, T, R]
            let parts = model.config.recurrence_inputs(model.tensors(), layer, &rows)?;
            all.extend(parts.into_iter().map(|(name, part)| (name, Some(layer), part)));
        }
        layer += usize::from(role == "out_proj");
    }
    Ok(all)
}

/// Lags in tokens at which largest channels are compared.
fn lags(seq_len: usize) -> Vec<usize> {
    (0..).map(|k| 1 << k).take_while(|lag| 2 * lag <= seq_len).collect()
}

/// What is gathered of one input of one layer.
struct Stream {
    role: &'static str,
    layer: Option<usize>,
    channels: usize,
    /// Channels that count as a token's largest.
    top: usize,
    lags: Vec<usize>,
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
    fn new(role: &'static str, layer: Option<usize>, channels: usize, settings: &Outliers) -> Self {
        Self {
            role,
            layer,
            channels,
            top: ((settings.top_share * channels as f64).ceil() as usize).clamp(1, channels),
            lags: lags(settings.seq_len),
            sums: [0.0; 4],
            count: 0.0,
            squares: vec![0.0; channels],
            maxima: vec![],
            crests: vec![],
            tops: vec![],
        }
    }

    /// Adds a window [T, channels].
    fn add(&mut self, x: &[f32]) {
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
                largest = largest.max(size);
                power += square;
            }
            self.count += self.channels as f64;
            self.maxima.push(f64::from(largest));
            if power > 0.0 {
                self.crests.push(f64::from(largest) / (power / self.channels as f64).sqrt());
            }
            let sizes: Vec<f64> = token.iter().map(|x| f64::from(x.abs())).collect();
            tops.push(largest_of(&sizes, self.top));
        }
        self.tops.push(tops);
    }

    /// Fourth central moment over the squared second: 3 for normal values, more with outliers.
    fn kurtosis(&self) -> f64 {
        let [m1, m2, m3, m4] = self.sums.map(|sum| sum / self.count);
        let variance = m2 - m1 * m1;
        (m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1.powi(4)) / (variance * variance)
    }

    fn chance(&self) -> f64 {
        self.top as f64 / self.channels as f64
    }

    /// How far beyond chance a share of common channels is.
    fn beyond_chance(&self, overlap: f64) -> f64 {
        (overlap - self.chance()) / (1.0 - self.chance())
    }

    /// Mean share of a token's largest channels that are among those of the token `lag` later.
    fn overlap(&self, lag: usize) -> Option<f64> {
        let pairs = self.tops.iter().flat_map(|tops| tops.iter().zip(tops.iter().skip(lag)));
        let (common, all) =
            pairs.fold((0, 0), |(common, all), (a, b)| (common + shared(a, b), all + self.top as u32));
        (all > 0).then(|| f64::from(common) / f64::from(all))
    }

    /// The persistence at each lag.
    fn persistence(&self) -> Vec<Option<f64>> {
        self.lags.iter().map(|lag| self.overlap(*lag).map(|overlap| self.beyond_chance(overlap))).collect()
    }

    /// How far beyond chance tokens' largest channels are those that are largest overall: what scales that are fixed
    /// for each channel can reach.
    fn fixed(&self) -> f64 {
        let overall = largest_of(&self.squares, self.top);
        let tokens = self.tops.iter().flatten();
        let (common, count) = tokens.fold((0, 0), |(common, n), own| (common + shared(own, &overall), n + 1));
        self.beyond_chance(f64::from(common) / f64::from((count * self.top as u32).max(1)))
    }

    /// The median token's crest.
    fn crest(&self) -> Option<f64> {
        middle(self.crests.iter().copied())
    }

    /// The largest channel's root mean square over the median channel's.
    fn channel_ratio(&self) -> Option<f64> {
        let largest = self.squares.iter().copied().fold(0.0, f64::max);
        Some((largest / middle(self.squares.iter().copied()).filter(|middle| *middle > 0.0)?).sqrt())
    }

    fn describe(&self, row: Reading) -> Reading {
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

/// A row for each role, and one for each role and lag: medians over the layers, with quartiles over the lags.
fn by_role(streams: &[Stream], row: &impl Fn() -> Reading) -> Vec<Reading> {
    let mut roles: Vec<&'static str> = Vec::new();
    for stream in streams {
        if !roles.contains(&stream.role) {
            roles.push(stream.role);
        }
    }
    let mut rows = vec![];
    for role in roles {
        let own: Vec<&Stream> = streams.iter().filter(|stream| stream.role == role).collect();
        let over = |f: &dyn Fn(&Stream) -> Option<f64>| middle(own.iter().filter_map(|stream| f(stream)));
        let far = |stream: &Stream| stream.persistence().last().copied().flatten();
        rows.push(
            row()
                .row("role")
                .value("role", role)
                .value("kurtosis", over(&|stream| Some(stream.kurtosis())))
                .value("crest", over(&Stream::crest))
                .value("channel_ratio", over(&Stream::channel_ratio))
                .value("persistence_near", over(&|stream| stream.persistence().first().copied().flatten()))
                .value("persistence_far", over(&far))
                .value("persistence_fixed", over(&|stream| Some(stream.fixed()))),
        );
        for (at, lag) in own[0].lags.iter().enumerate() {
            let mut values: Vec<f64> = own.iter().filter_map(|stream| stream.persistence()[at]).collect();
            values.sort_by(f64::total_cmp);
            rows.push(
                row()
                    .row("lag")
                    .value("role", role)
                    .value("lag", *lag)
                    .value("persistence", quantile(&values, 0.5))
                    .value("persistence_q25", quantile(&values, 0.25))
                    .value("persistence_q75", quantile(&values, 0.75)),
            );
        }
    }
    rows
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

fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
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
        let mut stream = Stream::new("x", Some(0), 40, &settings());
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
        let mut even = Stream::new("x", None, 50, &settings());
        even.add(&(0..100_000).map(|_| rng.random_range(2.0..3.0_f32)).collect::<Vec<_>>());
        assert!(
            (even.kurtosis() - 1.8).abs() < 0.02,
            "a uniform distribution, off center: {}",
            even.kurtosis()
        );
        let mut coin = Stream::new("x", None, 2, &settings());
        coin.add(&[1.0, -1.0, -1.0, 1.0]);
        assert_eq!(coin.kurtosis(), 1.0);
    }

    #[test]
    fn every_input_of_a_model_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "The outlier that moves is no channel's own. ".repeat(20)).unwrap();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let outliers = Outliers { seq_len: 128, ..Outliers::default() }.on(file).max_tokens(500);
        let rows = outliers.measure(&model).unwrap();
        let of = |kind: &str| rows.iter().filter(|row| row.row == kind).collect::<Vec<_>>();
        assert_eq!((of("layer").len(), of("role").len(), of("lag").len()), (8 * 5 + 1, 6, 6 * 7));
        let roles: Vec<_> = of("role").iter().map(|row| row.values["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["in_proj", "x", "B", "C", "out_proj", "head"]);
        // SiLU gives nothing below −.28: what comes after it is x.
        let x = of("layer").into_iter().find(|row| row.values["role"] == "x").unwrap();
        assert_eq!(x.number("channels"), Some(512.0));
        for row in of("layer") {
            assert!(row.number("kurtosis").unwrap() > 1.0 && row.number("crest").unwrap() > 1.0, "{row:?}");
            let far = row.number("persistence_far").unwrap();
            assert!((-0.1..=1.0).contains(&far), "{far}");
        }
        let same = outliers.measure(&model).unwrap();
        assert_eq!(same[0].values, rows[0].values);
        let sentence = Outliers { top_share: 0.0, ..outliers }.check(&model).unwrap_err().to_string();
        assert!(sentence.contains("a share between 0 and 1"), "{sentence}");
    }
}
