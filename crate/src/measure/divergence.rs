//! How far a model's predictions are from a reference's: KL(reference ‖ model) and its company, per token.
//!
//! The statistics are those that the perplexity tool of llama.cpp prints for `--kl-divergence`, over the windows of
//! [`super::window`]; but where it takes tokens for independent, the intervals here are from long blocks of the text or its
//! documents ([`Interval`]), with both models' losses of a token kept together. Perplexity moves when a model gets worse at
//! a text; divergence moves when it gets different, which shows with far fewer tokens and cannot be made up for by luck.

use super::instrument::{Listed, Table};
use super::reference::{self, Beside};
use super::window::{Excerpt, Sliding, Window};
use super::{Measure, finite, subject, too_little, work};
use crate::error::{Error, Result};
use crate::kernel::softmax;
use crate::model::Model;
use crate::model::onward::between;
use crate::progress::Progress;
use crate::record::Reading;
use crate::stats::{Interval, Mean, Z95, quantile, wilson};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Instant;

settings! {
    /// How far predictions are from a reference's: KL divergence, agreement on the likeliest token.
    pub struct Divergence(reference, windows) {
        /// How intervals are found.
        #[arg(skip)]
        pub interval: Interval,
    }
}

impl Default for Divergence {
    fn default() -> Self {
        Self {
            reference: None,
            corpus: PathBuf::from("data/corpus"),
            split: Some("test".to_string()),
            seq_len: 1024,
            stride: 512,
            max_tokens: Some(32_768),
            interval: Interval::default(),
        }
    }
}

impl Divergence {
    /// The divergence from this model: a folder, a file, a hub id or `random:SHAPE`.
    pub fn from_reference(source: impl Into<String>) -> Self {
        Self { reference: Some(source.into()), ..Self::default() }
    }

    /// The divergence of `model` from a reference at hand: one summary.
    ///
    /// # Errors
    /// If a setting is wrong, the text cannot be read, or the two do not speak of the same tokens.
    pub fn compare(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        self.sensible(model)?;
        reference::comparable(reference, model)?;
        let text = self.sliding().cut(model)?;
        let clock = Instant::now();
        let tokens = tokens(reference, model, &text)?;
        let runtime = clock.elapsed().as_secs_f64();
        let reading = Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.sliding().conditions())
            .fingerprint(&self.identity(reference, model, &text.corpus)?)
            .value("vocab_size", model.config.vocab_size());
        let reading = summarize(&tokens, &self.interval, &text, reading)?;
        let reading = reference::describe(reference, reading);
        let models = [("in the reference ", reference), ("", model)];
        finite::told(vec![text.describe(reading, runtime)], &models, finite::windows(&text))
    }
}

impl Beside for Divergence {
    const IS: (&'static str, u32) = ("divergence", 3);

    fn reference(&self) -> Option<&str> {
        self.reference.as_deref()
    }

    fn sliding(&self) -> Sliding<'_> {
        self.reads()
    }

    fn settings(&self) -> Value {
        self.sliding().identity()
    }

    fn extra(&self) -> Map<String, Value> {
        [("interval".to_string(), json!(self.interval))].into_iter().collect()
    }

    fn sensible(&self, _model: &Model) -> Result<()> {
        self.interval.check()
    }

    fn against(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        self.compare(reference, model)
    }
}

impl Listed for Divergence {
    const TABLES: &'static [Table] = &[Table::of(
        "divergence",
        &[
            "model",
            "scheme",
            "reference",
            "kl",
            "kl_low",
            "kl_high",
            "kl_q99",
            "same_top",
            "delta_bits_per_byte",
        ],
    )];

    // The reference reads the same.
    fn work(&self, model: &Model) -> f64 {
        2.0 * work::windows(&self.reads(), model)
    }

    fn small(&mut self) {
        self.max_tokens = Some(4096);
    }
}

/// The divergence at every scored token, a window at a time and a piece of logits at a time.
fn tokens(reference: &Model, model: &Model, text: &Excerpt) -> Result<Vec<softmax::Divergence>> {
    let progress = Progress::new("divergence", text.scored(), "tokens");
    let mut all = vec![];
    for Window { scored, start } in &text.windows {
        let ids = &text.ids[*start..scored.end];
        let targets = &text.ids[scored.clone()];
        let [p, q] = [reference, model].map(|model| model.predicting(ids, targets.len()));
        all.extend(between((reference, &p?), (model, &q?), targets)?);
        progress.tick(targets.len() as u64)?;
    }
    Ok(all)
}

/// Adds the statistics to a reading.
fn summarize(
    tokens: &[softmax::Divergence],
    interval: &Interval,
    text: &Excerpt,
    reading: Reading,
) -> Result<Reading> {
    let (bytes, documents) = (text.bytes, text.documents());
    let each = |f: fn(&softmax::Divergence) -> f64| tokens.iter().map(f).collect::<Vec<_>>();
    let mean = |values: &[f64]| Mean::of(values).ok_or_else(|| Error::internal("no token was compared"));
    let mut kl = each(|token| token.kl);
    let (nll, reference_nll) = (each(|token| token.nll), each(|token| token.reference_nll));
    let kl_in = interval.mean(&kl, &documents);
    let pair = [nll.as_slice(), reference_nll.as_slice()];
    let ln_ratio_in = interval.of(pair, &documents, |[own, reference]| own - reference);
    let delta_ppl_in = interval.of(pair, &documents, |[own, reference]| own.exp() - reference.exp());
    let bits = tokens.len() as f64 / bytes as f64 / std::f64::consts::LN_2; // nats per token → bits per byte
    let (kl_mean, nll, reference_nll) = (mean(&kl)?.mean, mean(&nll)?.mean, mean(&reference_nll)?.mean);
    kl.sort_by(f64::total_cmp);
    let ln_ratio = mean(&each(|token| token.nll - token.reference_nll))?.mean;
    let delta_p = each(|token| (-token.nll).exp() - (-token.reference_nll).exp());
    let square_p = mean(&delta_p.iter().map(|p| p * p).collect::<Vec<_>>())?;
    let same = tokens.iter().filter(|token| token.same_top).count() as u64;
    let (low, high) = wilson(same, tokens.len() as u64, Z95);
    // Where there are no numbers, none is the largest.
    let known = |share: f64| if kl_mean.is_nan() { f64::NAN } else { share };
    let reading = too_little(reading, kl_in);
    Ok(reading
        .value("kl", kl_mean)
        // No divergence is below 0.
        .value("kl_low", kl_in.map(|kl| if kl.low < 0.0 { 0.0 } else { kl.low }))
        .value("kl_high", kl_in.map(|kl| kl.high))
        .value("kl_blocks", kl_in.map(|kl| kl.blocks))
        .value("kl_median", quantile(&kl, 0.5))
        .value("kl_q90", quantile(&kl, 0.9))
        .value("kl_q99", quantile(&kl, 0.99))
        .value("kl_q999", quantile(&kl, 0.999))
        .value("kl_max", quantile(&kl, 1.0))
        .value("same_top", known(same as f64 / tokens.len() as f64))
        .value("same_top_low", known(low))
        .value("same_top_high", known(high))
        .value("delta_logprob", -ln_ratio)
        .value("delta_p", mean(&delta_p)?.mean)
        .value("delta_p_rms", square_p.mean.sqrt())
        .value("n_bytes", bytes)
        .value("ppl", nll.exp())
        .value("reference_ppl", reference_nll.exp())
        .value("delta_ppl", nll.exp() - reference_nll.exp())
        .value("delta_ppl_low", delta_ppl_in.map(|delta| delta.low))
        .value("delta_ppl_high", delta_ppl_in.map(|delta| delta.high))
        .value("ppl_ratio", ln_ratio.exp())
        .value("ppl_ratio_low", ln_ratio_in.map(|ratio| ratio.low.exp()))
        .value("ppl_ratio_high", ln_ratio_in.map(|ratio| ratio.high.exp()))
        .value("ln_ppl_ratio", ln_ratio)
        .value("ln_ppl_ratio_low", ln_ratio_in.map(|ratio| ratio.low))
        .value("ln_ppl_ratio_high", ln_ratio_in.map(|ratio| ratio.high))
        .value("ln_ppl_ratio_p", ln_ratio_in.map(|ratio| ratio.p))
        .value("ln_ppl_ratio_error", ln_ratio_in.map(|ratio| ratio.error))
        .value("ln_ppl_ratio_blocks", ln_ratio_in.map(|ratio| ratio.blocks))
        .value("delta_bits_per_byte", bits * ln_ratio)
        .value("delta_bits_per_byte_low", ln_ratio_in.map(|ratio| bits * ratio.low))
        .value("delta_bits_per_byte_high", ln_ratio_in.map(|ratio| bits * ratio.high)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Config, mamba2};
    use crate::model::Loading;
    use candle_core::DType;

    fn text() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(
            &file,
            "All happy models are alike; each quantized model errs in its own way. ".repeat(5),
        )
        .unwrap();
        (folder, file)
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let (_folder, file) = text();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let reading = &Divergence::from_reference("random:mamba2-tiny").on(file).measure(&model).unwrap()[0];
        for (name, expected) in [
            ("kl", 0.0),
            ("kl_high", 0.0),
            ("kl_max", 0.0),
            ("ln_ppl_ratio_high", 0.0),
            ("ln_ppl_ratio_p", 1.0),
            ("delta_ppl_low", 0.0),
            ("delta_bits_per_byte", 0.0),
            ("same_top", 1.0),
            ("same_top_high", 1.0),
            ("delta_p_rms", 0.0),
            ("ln_ppl_ratio", 0.0),
            ("ppl_ratio", 1.0),
            ("n_tokens", 5.0 * 70.0 - 1.0),
        ] {
            assert_eq!(reading.number(name), Some(expected), "{name}");
        }
        assert_eq!(reading.number("ppl"), reading.number("reference_ppl"));
        assert_eq!(reading.values["reference_hash"], "random-0");
        assert_eq!(reading.values["reference_dtype"], "f32");
    }

    #[test]
    fn narrow_weights_diverge_a_little() {
        let (_folder, file) = text();
        let reference = Model::load("random:mamba2-tiny").unwrap();
        let divergence = Divergence::default().on(file).windows(64, 16);
        let kl = |dtype| {
            let reading = &divergence.compare(&reference, &reference.cast(dtype).unwrap()).unwrap()[0];
            let kl = ["kl_median", "kl", "kl_q90", "kl_q99", "kl_q999", "kl_max"]
                .map(|n| reading.number(n).unwrap());
            assert!(kl[0] > 0.0 && kl[0] <= kl[2] && kl[2..].is_sorted() && kl[1] <= kl[5], "{kl:?}");
            let ln = reading.number("ln_ppl_ratio").unwrap();
            let ppl = reading.number("ppl").unwrap() / reading.number("reference_ppl").unwrap();
            assert!((ln.exp() - ppl).abs() < 1e-12 && ln.abs() < 0.01);
            for name in ["kl", "ppl_ratio", "delta_ppl", "ln_ppl_ratio", "delta_bits_per_byte"] {
                let [low, value, high] =
                    ["_low", "", "_high"].map(|end| reading.number(&format!("{name}{end}")));
                assert!(low < value && value < high, "{name}: {low:?} {value:?} {high:?}");
            }
            // A token is a byte.
            let bits = reading.number("delta_bits_per_byte").unwrap();
            assert!((bits - ln / std::f64::consts::LN_2).abs() < 1e-12);
            assert!(reading.number("same_top").unwrap() > 0.9);
            kl[1]
        };
        let (coarse, fine) = (kl(DType::BF16), kl(DType::F16));
        assert!(0.0 < fine && 4.0 * fine < coarse && coarse < 1e-3, "{fine} {coarse}");
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let (_folder, file) = text();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let error = |d: Divergence| d.on(&file).measure(&model).unwrap_err().to_string();
        assert!(error(Divergence::from_reference("no/such/model.pt")).contains("no such file"));
        let sentence = error(Divergence::from_reference("random:mamba2-tiny").windows(8, 9));
        assert!(sentence.contains("stride 9 is larger than seq_len 8"), "{sentence}");
        let never = Interval::default().blocks(0);
        let never = Divergence { interval: never, ..Divergence::from_reference("random:mamba2-tiny") };
        let sentence = never.on(&file).check(&model).unwrap_err().to_string();
        assert!(sentence.contains("interval: blocks must be at least 2"), "{sentence}");
        let larger = mamba2::Config { vocab_size: 300, ..mamba2::Config::default() };
        let larger = Model::random("larger", Config::Mamba2(larger), 0, &Loading::default()).unwrap();
        let sentence = Divergence::default().on(&file).compare(&larger, &model).unwrap_err().to_string();
        assert!(sentence.contains("the reference knows 300 tokens, the model 256; compare"), "{sentence}");
        // A model that was not loaded from anywhere has nothing to be compared with.
        let sentence = Divergence::default().on(&file).measure(&larger).unwrap_err().to_string();
        assert!(sentence.contains("no reference") && sentence.contains("name one"), "{sentence}");
    }

    #[test]
    fn a_quantized_model_is_compared_with_what_it_was_made_of() {
        let (_folder, file) = text();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let divergence = Divergence::default().on(file).max_tokens(100);
        let kl = |scheme: &str| {
            let reading =
                &divergence.measure(&model.quantized(&scheme.parse().unwrap()).unwrap()).unwrap()[0];
            assert_eq!(reading.values["reference"], "random:mamba2-tiny");
            reading.number("kl").unwrap()
        };
        let (wide, narrow, state) = (kl("w8a16"), kl("w3a16"), kl("w16a16-h4"));
        assert!(0.0 < wide && 10.0 * wide < narrow && state > 0.0, "{wide} {narrow} {state}");
    }
}
