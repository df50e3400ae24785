//! Adaptation while a text is scored: a bias on the vocabulary that follows the text by gradient descent (stride-OGD,
//! parameter-golf's pull request 316).
//!
//! A window is scored with the bias that the windows before it left; then every `batch` windows it moves by
//! −lr · Σ_windows mean_t(softmax(logits + bias) − onehot(target)), the gradient of the loss in closed form, over tokens that are
//! scored already. No token is seen before it is scored. That a sum is taken over the windows of a batch is the published rule:
//! with more of them the step is as many times larger.
//!
//! Scores with and without the bias come from the same logits, so that their differences are paired. `adaptation_share` is the
//! time of the rule as a share of all other time; `autograd_ratio` what the same gradients take by autograd over logits and bias,
//! as a multiple of that, on the first windows, where both are compared (`autograd_difference`).

use super::instrument::{Listed, Table};
use super::window::{Excerpt, Window};
use super::{Measure, finite, subject, too_little, work};
use crate::error::{Error, Result};
use crate::kernel::softmax;
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Reading, fingerprint};
use crate::stats::Interval;
use crate::threads::install;
use candle_core::{Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

settings! {
    /// Bits per byte with a bias on the vocabulary that follows the text, beside those without.
    pub struct Adaptation(windows) {
        /// Learning rate of the bias.
        #[arg(long)]
        pub lr: f64,
        /// Windows after which the bias moves, by the sum of their gradients.
        #[arg(long)]
        pub batch: usize,
    }
}

impl Default for Adaptation {
    fn default() -> Self {
        Self {
            corpus: PathBuf::from("data/corpus"),
            split: Some("test".to_string()),
            seq_len: 1024,
            stride: 64,
            max_tokens: Some(1 << 16),
            lr: 0.1,
            batch: 1,
        }
    }
}

/// A bias on the vocabulary under adaptation.
#[derive(Clone, Debug)]
pub struct Bias {
    /// Learning rate.
    pub lr: f32,
    /// The bias, one number for each token of the vocabulary.
    pub values: Vec<f32>,
    gradient: Vec<f32>,
}

impl Bias {
    /// Zeros.
    pub fn new(vocab: usize, lr: f64) -> Self {
        Self { lr: lr as f32, values: vec![0.0; vocab], gradient: vec![0.0; vocab] }
    }

    /// −ln p of each target under `logits` [T, vocabulary] and the bias; takes the mean gradient of these T up.
    pub fn score(&mut self, logits: &[f32], targets: &[u32]) -> Vec<f32> {
        softmax::biased_nll(logits, &self.values, targets, &mut self.gradient)
    }

    /// Moves by what was taken up since it last did.
    pub fn step(&mut self) {
        for (value, gradient) in self.values.iter_mut().zip(&mut self.gradient) {
            *value -= self.lr * std::mem::take(gradient);
        }
    }
}

/// Windows whose gradients autograd takes too.
const COMPARED: usize = 8;

/// What one pass gave.
#[derive(Default)]
struct Pass {
    /// Sums of −ln p of the windows: without bias, and with it.
    sums: [Vec<f64>; 2],
    tokens: Vec<u64>,
    /// Seconds of the rule, and of everything else.
    rule: f64,
    other: f64,
    /// Of the windows compared: seconds of the rule and of autograd, and how far their gradients are apart.
    compared: [f64; 2],
    apart: f64,
}

impl Adaptation {
    fn identity(&self, model: &Model, sha256: &str) -> Result<String> {
        let mut settings = self.reads().identity();
        settings["lr"] = json!(self.lr);
        settings["batch"] = json!(self.batch);
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &sha256)
    }

    fn pass(&self, model: &Model, text: &Excerpt) -> Result<Pass> {
        let (mut pass, vocab) = (Pass::default(), model.config.vocab_size());
        let mut bias = Bias::new(vocab, self.lr);
        let progress = Progress::new("adaptation", text.scored(), "tokens");
        let clock = Instant::now();
        for (i, Window { scored, start }) in text.windows.iter().enumerate() {
            let hidden = model.predicting(&text.ids[*start..scored.end], scored.len())?;
            let logits = model.logits(&hidden, &(0..scored.len()))?; // [1, scored, vocabulary]
            let targets = &text.ids[scored.clone()];
            let before = (bias.values.clone(), bias.gradient.clone());
            let [plain, adapted] = with_floats([&logits.contiguous()?], |[logits]| {
                let plain = install(|| softmax::nll(logits, vocab, targets));
                let rule = Instant::now();
                let adapted = install(|| bias.score(logits, targets));
                let taken = rule.elapsed().as_secs_f64();
                pass.rule += taken;
                if i < COMPARED {
                    pass.compared[0] += taken;
                }
                [plain, adapted]
            })?;
            if i < COMPARED {
                let (taken, apart) = autograd(&logits, &before, &bias.gradient, targets)?;
                pass.compared[1] += taken;
                pass.apart = pass.apart.max(apart);
            }
            for (sums, nll) in pass.sums.iter_mut().zip([plain, adapted]) {
                sums.push(nll.iter().map(|nll| f64::from(*nll)).sum());
            }
            pass.tokens.push(scored.len() as u64);
            if (i + 1) % self.batch == 0 {
                let rule = Instant::now();
                bias.step();
                pass.rule += rule.elapsed().as_secs_f64();
            }
            progress.tick(scored.len() as u64)?;
        }
        pass.other = clock.elapsed().as_secs_f64() - pass.rule - pass.compared[1];
        Ok(pass)
    }
}

/// Seconds of the gradient by autograd, and how far it is from what the rule took up.
fn autograd(
    logits: &Tensor,
    (values, before): &(Vec<f32>, Vec<f32>),
    after: &[f32],
    targets: &[u32],
) -> Result<(f64, f64)> {
    let clock = Instant::now();
    let bias = Var::from_slice(values, values.len(), &Device::Cpu)?;
    let targets = Tensor::new(targets, &Device::Cpu)?;
    let loss = cross_entropy(&logits.squeeze(0)?.broadcast_add(&bias)?, &targets)?;
    let grads = loss.backward()?;
    let grad =
        grads.get(&bias).ok_or_else(|| Error::internal("no gradient of the bias"))?.to_vec1::<f32>()?;
    let taken = clock.elapsed().as_secs_f64();
    let far = |((grad, before), after): ((&f32, &f32), &f32)| f64::from((grad - (after - before)).abs());
    Ok((taken, grad.iter().zip(before).zip(after).map(far).fold(0.0, f64::max)))
}

impl Measure for Adaptation {
    const NAME: &'static str = "adaptation";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        self.identity(model, &self.reads().text()?.sha256)
    }

    fn check(&self, model: &Model) -> Result<()> {
        if !(self.lr.is_finite() && self.lr >= 0.0) {
            return Err(Error::input(format!("lr must be a learning rate, found {}", self.lr)));
        }
        if self.batch == 0 {
            return Err(Error::input("batch must be at least 1, found 0"));
        }
        self.reads().cut(model).map(drop)
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let text = self.reads().cut(model)?;
        let pass = self.pass(model, &text)?;
        let [plain, adapted] = &pass.sums;
        let bits = |sums: &[f64]| sums.iter().sum::<f64>() / std::f64::consts::LN_2 / text.bytes as f64;
        // Differences of bits per byte, of windows of equal weight but for the first and last.
        let each = |((plain, adapted), tokens): ((&f64, &f64), &u64)| (adapted - plain) / *tokens as f64;
        let differences: Vec<f64> = plain.iter().zip(adapted).zip(&pass.tokens).map(each).collect();
        let estimate = Interval::default().mean(&differences, &text.windows_by_document());
        let per_byte = text.scored() as f64 / std::f64::consts::LN_2 / text.bytes as f64;
        let reading = Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.reads().conditions())
            .fingerprint(&self.identity(model, &text.corpus.sha256)?)
            .value("lr", self.lr)
            .value("batch", self.batch)
            .value("bits_per_byte_plain", bits(plain))
            .value("bits_per_byte", bits(adapted))
            .value("gain", bits(plain) - bits(adapted))
            .value("gain_low", estimate.map(|estimate| -estimate.high * per_byte))
            .value("gain_high", estimate.map(|estimate| -estimate.low * per_byte))
            .value("n_bytes", text.bytes)
            .value("adaptation_s", pass.rule)
            .value("adaptation_share", pass.rule / pass.other)
            .value("autograd_ratio", pass.compared[1] / pass.compared[0])
            .value("autograd_difference", pass.apart)
            .value("window_nll", adapted.clone())
            .value("window_nll_plain", plain.clone())
            .value("window_tokens", pass.tokens.clone())
            .value("document_windows", text.windows_by_document());
        let reading = too_little(text.describe(reading, pass.rule + pass.other), estimate);
        finite::told(vec![reading], &[("", model)], finite::windows(&text))
    }
}

impl Listed for Adaptation {
    const TABLES: &'static [Table] = &[Table::of(
        "adaptation",
        &[
            "model",
            "scheme",
            "lr",
            "batch",
            "bits_per_byte_plain",
            "bits_per_byte",
            "gain",
            "gain_low",
            "gain_high",
            "adaptation_share",
            "autograd_ratio",
        ],
    )];

    fn work(&self, model: &Model) -> f64 {
        work::windows(&self.reads(), model)
    }

    fn small(&mut self) {
        self.max_tokens = Some(2048);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_its_own_words_is_followed_and_tokens_are_scored_before_they_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "zzzz qqqq zzzz qqqq ".repeat(60)).unwrap();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let adaptation = Adaptation { lr: 2.0, batch: 2, ..Adaptation::default() }.on(&file).windows(64, 16);
        let found = adaptation.measure(&model).unwrap().remove(0);
        let value = |name: &str| found.number(name).unwrap();
        assert!(value("gain") > 0.2 && value("gain_low") > 0.0, "{}", value("gain"));
        assert!(value("autograd_difference") < 1e-5, "{}", value("autograd_difference"));
        // Without a bias the two are one; the first windows know nothing yet.
        let still = Adaptation { lr: 0.0, ..adaptation.clone() }.measure(&model).unwrap().remove(0);
        assert_eq!(still.number("bits_per_byte"), still.number("bits_per_byte_plain"));
        assert_eq!(still.number("bits_per_byte_plain"), found.number("bits_per_byte_plain"));
        let error = Adaptation { batch: 0, ..adaptation }.check(&model).unwrap_err().to_string();
        assert!(error.contains("batch must be at least 1"), "{error}");
    }
}
