//! Calibration: what the inputs of a model's matrices look like on a sample of text.
//!
//! Everything gathered is a maximum, a count, or a sum that is taken in the order of the text, so that it does not
//! depend on the order in which windows were drawn.

use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::kernel::linear::gram;
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::model::init::stream;
use crate::model::quantization::Calibrated;
use crate::progress::Progress;
use crate::threads::install;
use crate::warning::warn;
use candle_core::Tensor;
use rand::seq::index::sample;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Which text is read, and how much of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calibration {
    /// A text file, a JSONL file, or a folder of texts or of splits.
    pub corpus: PathBuf,
    /// The split, if the folder has splits.
    pub split: Option<String>,
    /// Windows read.
    pub samples: usize,
    /// Tokens of a window.
    pub length: usize,
    /// Seed of the windows' places.
    pub seed: u64,
}

impl Default for Calibration {
    fn default() -> Self {
        let split = Some("train".to_string());
        Self { corpus: PathBuf::from("data/corpus"), split, samples: 128, length: 512, seed: 0 }
    }
}

/// How one scale for all tokens is found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Observer {
    /// From the largest value seen.
    Absmax,
    /// From the value that so many percent of all stay below; what is larger is clipped.
    Percentile(f32),
    /// By least squared error over the values seen.
    Mse,
    /// From the largest value of each channel, folded into the norm before and the matrix.
    Channel,
}

impl Observer {
    /// The observer of this name in a scheme: `static`, `static99.9`, `staticmse`, `perchannel`.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "static" => Some(Self::Absmax),
            "staticmse" => Some(Self::Mse),
            "perchannel" => Some(Self::Channel),
            _ => {
                let percent = name.strip_prefix("static")?.parse().ok()?;
                Some(Self::Percentile(percent)).filter(|_| percent > 0.0 && percent <= 100.0)
            }
        }
    }
}

impl fmt::Display for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absmax => f.write_str("static"),
            Self::Percentile(percent) => write!(f, "static{percent}"),
            Self::Mse => f.write_str("staticmse"),
            Self::Channel => f.write_str("perchannel"),
        }
    }
}

/// Windows of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Place in the text, in tokens, and the tokens.
    pub windows: Vec<(usize, Vec<u32>)>,
    /// Where they are from.
    pub about: Calibrated,
}

impl Sample {
    /// The windows in the order of the text.
    pub fn in_order(&self) -> impl Iterator<Item = &(usize, Vec<u32>)> {
        let mut windows: Vec<_> = self.windows.iter().collect();
        windows.sort();
        windows.into_iter()
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|(_, ids)| ids.len() as u64).sum()
    }
}

impl Calibration {
    /// Calibration on a text or a folder of texts.
    pub fn of(corpus: impl Into<PathBuf>) -> Self {
        Self { corpus: corpus.into(), split: None, ..Self::default() }
    }

    /// Draws the windows, none twice; all of the text if it has fewer.
    ///
    /// # Errors
    /// If the text cannot be read, or is shorter than a window.
    pub fn sample(&self, model: &Model) -> Result<Sample> {
        model.fits("calibration length", self.length)?;
        let corpus = Corpus::open(&self.corpus, self.split.as_deref())?;
        if self.samples == 0 || self.length == 0 {
            return Err(Error::input("calibration needs at least one window of at least one token"));
        }
        let text = model.tokenizer.encoding(&corpus.joined())?;
        text.loss(model.tokenizer.name(), &corpus.title()).iter().for_each(warn);
        let ids = text.ids;
        let places = ids.len() / self.length;
        if places == 0 {
            let (found, length) = (ids.len(), self.length);
            return Err(Error::input(format!(
                "{found} tokens are fewer than one calibration window of {length}"
            ))
            .at(self.corpus.display())
            .hint("name a longer text or a shorter window"));
        }
        let count = self.samples.min(places);
        let drawn = sample(&mut stream(self.seed, "calibration"), places, count);
        let window = |place: usize| {
            let start = place * self.length;
            (start, ids[start..start + self.length].to_vec())
        };
        let windows = drawn.into_iter().map(window).collect();
        let about = Calibrated {
            corpus: corpus.title(),
            sha256: corpus.sha256,
            samples: count,
            length: self.length,
            seed: self.seed,
        };
        Ok(Sample { windows, about })
    }
}

/// What is gathered of an input [tokens, k].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// Largest magnitude of each channel, `[k]`; empty if the input was never seen.
    pub absmax: Vec<f32>,
    /// XᵀX, [k, k], if it was asked for.
    pub gram: Vec<f32>,
    /// How many magnitudes lie in each of 4,096 equal parts from 0 to the largest, if it was asked for.
    pub histogram: Vec<u64>,
}

/// Parts of a histogram.
const BINS: usize = 4096;

impl Inputs {
    /// The largest magnitude of all.
    pub fn top(&self) -> f32 {
        self.absmax.iter().copied().fold(0.0, f32::max)
    }

    /// One scale of integers −top … top for all tokens.
    pub fn scale(&self, observer: Observer, top: f32) -> f32 {
        let (largest, all) = (self.top(), self.histogram.iter().sum::<u64>());
        let part = largest / BINS as f32;
        match observer {
            Observer::Absmax => largest / top,
            Observer::Channel => 1.0,
            Observer::Percentile(percent) => {
                let (wanted, mut seen) = ((all as f64 * f64::from(percent) / 100.0).ceil() as u64, 0);
                let within = self.histogram.iter().position(|count| {
                    seen += count;
                    seen >= wanted
                });
                (within.unwrap_or(BINS - 1) + 1) as f32 * part / top
            }
            Observer::Mse => {
                let error = |scale: f32| -> f64 {
                    let bins = self.histogram.iter().enumerate().map(|(i, count)| {
                        let x = (i as f32 + 0.5) * part;
                        let q = (x / scale).round_ties_even().min(top) * scale;
                        *count as f64 * f64::from(x - q).powi(2)
                    });
                    bins.sum()
                };
                let scales = (1..=100).map(|percent| largest * percent as f32 / 100.0 / top);
                let best = scales.map(|scale| (error(scale), scale)).min_by(|a, b| a.0.total_cmp(&b.0));
                best.map_or(0.0, |(_, scale)| scale)
            }
        }
    }
}

/// What to gather beside the maxima.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// XᵀX.
    pub gram: bool,
    /// Histograms, for which the text is read twice.
    pub histogram: bool,
}

impl Wanted {
    /// How often the text is read.
    pub(super) fn readings(self) -> u64 {
        1 + u64::from(self.histogram)
    }
}

/// The inputs of every linear, in the order of the model's linears. The windows are read one by one, each from a state
/// of zeros, in the order of the text.
///
/// # Errors
/// If the model cannot read the tokens, an input is not finite, or it is interrupted.
pub fn observe(model: &Model, sample: &Sample, wanted: Wanted) -> Result<Vec<Inputs>> {
    let windows: Vec<_> = sample.in_order().collect();
    observe_each(model, &windows, sample.tokens() as usize, wanted, |model, (_, ids)| model.read(ids))
}

/// As [`observe`], of what linears are shown when `read` gets the windows one by one, `tokens` in all.
///
/// # Errors
/// As [`observe`], and those of `read`.
pub(super) fn observe_each<W: Sync>(
    model: &Model,
    windows: &[W],
    tokens: usize,
    wanted: Wanted,
    read: impl Fn(&Model, &W) -> Result<()> + Sync,
) -> Result<Vec<Inputs>> {
    let nothing = vec![Inputs::default(); model.linears().len()];
    let reading = Windows { each: windows, tokens, read };
    let mut all = reading.pass(model, "calibrating", &nothing, move |x, k, into| {
        into.absmax.resize(k, 0.0);
        for row in x.chunks(k) {
            for (top, x) in into.absmax.iter_mut().zip(row) {
                // Once NaN, always NaN.
                if x.abs() > *top || x.is_nan() {
                    *top = x.abs();
                }
            }
        }
        if wanted.gram {
            let mut product = vec![0.0; k * k];
            gram(x.len() / k, k, x, &mut product);
            into.gram.resize(k * k, 0.0);
            into.gram.par_iter_mut().zip(product).with_min_len(1 << 14).for_each(|(sum, part)| *sum += part);
        }
    })?;
    for ((path, _), inputs) in model.linears().into_iter().zip(&all) {
        if !inputs.absmax.iter().all(|top| top.is_finite()) {
            return Err(Error::input("its input on the calibration text is not finite").at(path).hint(
                "the model's activations overflow: no scale can be found for them; measure its perplexity to see where",
            ));
        }
    }
    if wanted.histogram {
        all = reading.pass(model, "observing", &all, |x, _, into| {
            into.histogram.resize(BINS, 0);
            let per_unit = BINS as f32 / into.top().max(f32::MIN_POSITIVE);
            for x in x {
                into.histogram[((x.abs() * per_unit) as usize).min(BINS - 1)] += 1;
            }
        })?;
    }
    Ok(all)
}

/// What is read, and how.
struct Windows<'a, W, R> {
    each: &'a [W],
    /// Of all windows.
    tokens: usize,
    read: R,
}

impl<W: Sync, R: Fn(&Model, &W) -> Result<()> + Sync> Windows<'_, W, R> {
    /// Reads them once, adding every linear's inputs to what is known of them.
    fn pass(
        &self,
        model: &Model,
        name: &str,
        known: &[Inputs],
        gather: impl Fn(&[f32], usize, &mut Inputs) + Send + Sync + Clone + 'static,
    ) -> Result<Vec<Inputs>> {
        let cells: Vec<_> =
            known.iter().map(|inputs| std::sync::Arc::new(Mutex::new(inputs.clone()))).collect();
        let tap = |i: usize| {
            let (cell, gather) = (cells[i].clone(), gather.clone());
            move |x: &Tensor| {
                let k = x.dim(candle_core::D::Minus1)?;
                let mut inputs = cell.lock().unwrap_or_else(PoisonError::into_inner);
                with_floats([&x.contiguous()?], |[x]| gather(x, k, &mut inputs))
            }
        };
        let tapped = model.tapped(tap);
        let progress = Progress::new(name, self.tokens as u64, "tokens");
        for window in self.each {
            install(|| (self.read)(&tapped, window))?;
            progress.tick((self.tokens / self.each.len()) as u64)?;
        }
        drop(tapped);
        let all = cells.into_iter().map(|cell| cell.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Ok(all.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model_and_sample() -> (Model, Sample, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "To be, or not to be, that is the question. ".repeat(60)).unwrap();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let calibration = Calibration { samples: 6, length: 48, ..Calibration::of(&file) };
        let sample = calibration.sample(&model).unwrap();
        (model, sample, folder)
    }

    #[test]
    fn the_order_of_the_windows_does_not_matter() {
        let (model, sample, _folder) = model_and_sample();
        let wanted = Wanted { gram: true, histogram: true };
        let mut shuffled = sample.clone();
        shuffled.windows.rotate_left(2);
        shuffled.windows.swap(0, 3);
        assert_ne!(sample, shuffled);
        let (a, b) = (observe(&model, &sample, wanted).unwrap(), observe(&model, &shuffled, wanted).unwrap());
        assert_eq!(a, b);
        assert_eq!(a.len(), 17);
        // The diagonal of XᵀX is the sum of squares; the histogram counts every value.
        for inputs in &a {
            let k = inputs.absmax.len();
            assert_eq!(inputs.histogram.iter().sum::<u64>(), (6 * 48 * k) as u64);
            assert!((0..k).all(|j| inputs.gram[j * k + j] >= inputs.absmax[j].powi(2) * 0.999));
        }
    }

    #[test]
    fn observers_find_the_scale_they_promise() {
        let mut inputs = Inputs { absmax: vec![4.0, 1.0], ..Inputs::default() };
        inputs.histogram = vec![0; BINS];
        for i in 0..1000 {
            inputs.histogram[i] += 1; // magnitudes from 0 to 1
        }
        inputs.histogram[BINS - 1] += 1; // and a single 4
        assert_eq!(inputs.scale(Observer::Absmax, 127.0), 4.0 / 127.0);
        let percentile = inputs.scale(Observer::Percentile(99.0), 127.0) * 127.0;
        assert!((0.95..1.0).contains(&percentile), "{percentile}");
        let wide = inputs.scale(Observer::Mse, 127.0) * 127.0;
        let narrow = inputs.scale(Observer::Mse, 1.0);
        assert!(wide > 3.0 && narrow < 2.0, "{wide} {narrow}");
        for name in ["static", "static99.9", "staticmse", "perchannel"] {
            assert_eq!(Observer::named(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn a_text_that_is_too_short_is_refused() {
        let (model, _, folder) = model_and_sample();
        let calibration = Calibration { length: 5000, ..Calibration::of(folder.path().join("text.txt")) };
        let error = calibration.sample(&model).unwrap_err().to_string();
        assert!(error.contains("2580 tokens are fewer than one calibration window of 5000"), "{error}");
    }
}
