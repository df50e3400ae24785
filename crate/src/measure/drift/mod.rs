//! State drift: how far the recurrent state of a quantized model is from the reference's after the same tokens,
//! ‖h_q − h‖ / ‖h‖, head by head against time.
//!
//! A head keeps the share d of its state from one token to the next. If rounding adds independent noise of variance σ²
//! to the state at every token, the noise grows to σ² (1 + d² + d⁴ + …): by the **gain** √(1 / (1 − d²)). Where each channel
//! of the keys has a decay of its own, the gain of the head is the root of the mean of the channels' squares. The gain is
//! known before anything is quantized: with d from the weights alone (dt = 0), or as the mean over the tokens of a text.
//! What the noise relative to the state does is another matter where the noise comes in with the updates, because these
//! add up too: the records say how well the gain ranks the heads (Kendall's τ), and for a rounded state how large one
//! rounding is, which times the gain predicts the drift itself. A head whose updates are smaller than half a step of
//! its integers loses them all, always in the same direction: it drifts further than that, unless the error is fed back.

mod heads;

use super::instrument::{Listed, Table};
use super::limit::{MADE, at_most, fits};
use super::reference::{self, Beside};
use super::window::{Excerpt, Sliding};
use super::{Measure, finite, subject};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Conditions, Reading};
use heads::Seen;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

settings! {
    /// How far the recurrent state is from a reference's after the same tokens, head by head against time.
    pub struct Drift(reference, text) {
        /// Pieces of the text, one after the other, each read from a state of zeros.
        #[arg(long)]
        pub samples: usize,
        /// Tokens of a piece.
        #[arg(long)]
        pub length: usize,
    }
}

impl Default for Drift {
    fn default() -> Self {
        let split = Some("test".to_string());
        Self { reference: None, corpus: PathBuf::from("data/corpus"), split, samples: 4, length: 4096 }
    }
}

impl Drift {
    /// The drift from this model: a folder, a file, a hub id or `random:SHAPE`.
    pub fn from_reference(source: impl Into<String>) -> Self {
        Self { reference: Some(source.into()), ..Self::default() }
    }

    /// Sets how many pieces of the text are read, and their length in tokens.
    #[must_use]
    pub fn pieces(mut self, samples: usize, length: usize) -> Self {
        (self.samples, self.length) = (samples, length);
        self
    }

    /// The text in the model's tokens: at least one piece.
    fn text(&self, model: &Model) -> Result<Excerpt> {
        let text = self.sliding().cut(model)?;
        let (found, length) = (text.ids.len(), self.length);
        if found < length {
            return Err(Error::input(format!("{found} tokens are fewer than one piece of {length}"))
                .at(self.corpus.display())
                .hint("name a longer text or a shorter length"));
        }
        Ok(text)
    }

    /// The drift of `model` from a reference at hand: a row for each head, one for each position, and a summary.
    ///
    /// # Errors
    /// If a setting is wrong, the text is too short, or the two have different layers.
    pub fn compare(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        self.sensible(model)?;
        alike(reference, model)?;
        let text = self.text(model)?;
        let pieces: Vec<&[u32]> = text.ids.chunks_exact(self.length).collect();
        let clock = Instant::now();
        let bits = model.quantization.as_ref().and_then(|q| q.recurrence.state).map(|state| state.bits);
        let mut seen = Seen::new(reference, positions(self.length))?;
        let progress = Progress::new("drift", (pieces.len() * self.length) as u64, "tokens");
        for ids in &pieces {
            seen.follow(reference, model, ids, bits, &progress)?;
        }
        seen.forget(reference, pieces[0])?;
        let identity = self.identity(reference, model, &text.corpus)?;
        let conditions = Conditions {
            batch_size: Some(1),
            seq_len: Some(self.length as u64),
            threads: Some(crate::threads::threads() as u64),
            ..Conditions::default()
        };
        let row =
            || Reading::new(Self::NAME, Self::VERSION, &subject(model), &conditions).fingerprint(&identity);
        let mut rows = seen.rows(row);
        if let Some(summary) = rows.pop() {
            let summary = summary.value("samples", pieces.len());
            rows.push(text.describe(reference::describe(reference, summary), clock.elapsed().as_secs_f64()));
        }
        finite::told(rows, &[("in the reference ", reference), ("", model)], pieces)
    }
}

impl Beside for Drift {
    const IS: (&'static str, u32) = ("drift", 1);

    fn reference(&self) -> Option<&str> {
        self.reference.as_deref()
    }

    fn sliding(&self) -> Sliding<'_> {
        Sliding {
            corpus: &self.corpus,
            split: self.split.as_deref(),
            seq_len: self.length,
            stride: self.length,
            max_tokens: Some(self.samples.saturating_mul(self.length)),
        }
    }

    fn settings(&self) -> Value {
        json!({"samples": self.samples, "length": self.length})
    }

    fn needs(&self, model: &Model) -> Result<(), String> {
        match model.is_recurrent() {
            true => Ok(()),
            false => Err("the model has no recurrent state that could drift".to_string()),
        }
    }

    fn fits(&self, model: &Model) -> Result<()> {
        fits(model, "length", [self.length])
    }

    fn sensible(&self, _model: &Model) -> Result<()> {
        at_most("samples", [self.samples], MADE)?;
        at_most("length", [self.length], MADE)?;
        match self.samples == 0 || self.length < 2 {
            true => Err(Error::input("drift needs at least one piece of at least two tokens")),
            false => Ok(()),
        }
    }

    fn readable(&self, model: &Model) -> Result<()> {
        self.text(model).map(drop)
    }

    fn alike(&self, reference: &Model, model: &Model) -> Result<()> {
        alike(reference, model)
    }

    fn against(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        self.compare(reference, model)
    }
}

impl Listed for Drift {
    const TABLES: &'static [Table] = &[Table::of(
        "drift",
        &[
            "model",
            "scheme",
            "reference",
            "drift_median",
            "drift_max",
            "worst_layer",
            "worst_head",
            "drift_to_predicted",
            "tau_measured",
            "tau_measured_low",
            "tau_measured_high",
        ],
    )];

    fn work(&self, _model: &Model) -> f64 {
        2.0 * self.samples as f64 * self.length as f64
    }

    fn small(&mut self) {
        (self.samples, self.length) = (2, self.length.min(256));
    }
}

/// Refuses two models whose states are not of the same shape. Their bases are the same in every scheme: rotations and
/// scales are folded in outside of the recurrence.
fn alike(reference: &Model, model: &Model) -> Result<()> {
    reference::comparable(reference, model)?;
    match reference.config == model.config {
        true => Ok(()),
        false => Err(Error::input("the two have different layers")
            .at(format!("{} against {}", model.name, reference.name))
            .hint("compare a model with what it was made of")),
    }
}

/// Half octaves: 1, 2, 3, 4, 6, 8, 11, 16, … and the length itself.
fn positions(length: usize) -> Vec<usize> {
    let steps = (0..).map(|k| 2_f64.powf(f64::from(k) / 2.0).round() as usize);
    let mut all: Vec<usize> = steps.take_while(|position| *position < length).chain([length]).collect();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Config, mamba2};
    use crate::model::{Loading, init::initialize};
    use candle_core::{Device, Tensor};

    fn text() -> (tempfile::TempDir, Drift) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        let text: String =
            (0..400).map(|i| format!("{} bottles of beer on the wall. ", i * i % 977)).collect();
        std::fs::write(&file, text).unwrap();
        (folder, Drift::from_reference("random:mamba2-tiny").on(file))
    }

    fn rows(rows: &[Reading], kind: &str) -> Vec<Reading> {
        rows.iter().filter(|reading| reading.row == kind).cloned().collect()
    }

    #[test]
    fn positions_are_half_octaves() {
        assert_eq!(positions(12), [1, 2, 3, 4, 6, 8, 11, 12]);
        assert_eq!(positions(2), [1, 2]);
    }

    #[test]
    fn a_model_does_not_drift_from_itself() {
        let (_folder, drift) = text();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let readings = drift.pieces(2, 64).measure(&model).unwrap();
        assert_eq!((rows(&readings, "head").len(), rows(&readings, "position").len()), (64, 12));
        for reading in rows(&readings, "head") {
            assert_eq!((reading.number("drift"), reading.number("growth")), (Some(0.0), None));
            assert!(reading.number("gain").unwrap() >= 1.0);
        }
        let summary = readings.last().unwrap();
        assert_eq!((summary.number("drift_max"), summary.number("samples")), (Some(0.0), Some(2.0)));
        assert_eq!(summary.number("tau"), None, "what never differs has no ranking");
    }

    #[test]
    fn drift_is_the_distance_of_the_states() {
        let (_folder, drift) = text();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let int4 = model.quantized(&"w4a16".parse().unwrap()).unwrap();
        let readings = drift.clone().pieces(1, 40).measure(&int4).unwrap();
        let ids = &drift.pieces(1, 40).sliding().cut(&model).unwrap().ids;
        let (mut exact, mut found) = (model.state(1).unwrap(), int4.state(1).unwrap());
        model.prefill(ids, &mut exact).unwrap();
        int4.prefill(ids, &mut found).unwrap();
        let last = rows(&readings, "position").pop().unwrap();
        let expected = found.distance(&exact).unwrap();
        assert!((last.number("drift_all").unwrap() / expected - 1.0).abs() < 1e-3, "{expected} {last:?}");
        assert!(
            last.number("drift_q25") < last.number("drift_q75") && last.number("drift_median") > Some(0.0)
        );
    }

    /// A model of one layer with eight heads whose decays lie between .5 and .998 whatever they read.
    fn forgetful() -> Model {
        let config = mamba2::Config { num_hidden_layers: 1, ..mamba2::Config::default() };
        let config = Config::Mamba2(config);
        let mut tensors = initialize(&config, 3).unwrap();
        let decays = [0.5_f32, 0.7, 0.85, 0.93, 0.97, 0.985, 0.993, 0.998];
        let a_log: Vec<f32> = decays.iter().map(|d| (-d.ln()).ln()).collect();
        let mixer = "backbone.layers.0.mixer";
        let set = |values: Vec<f32>| Tensor::new(values, &Device::Cpu).unwrap();
        tensors.insert(format!("{mixer}.A_log"), set(a_log));
        tensors.insert(format!("{mixer}.dt_bias"), set(vec![1.0_f32.exp_m1().ln(); 8])); // Δ = 1
        // No input moves dt.
        let name = format!("{mixer}.in_proj.weight");
        let (kept, all) = (&tensors[&name], tensors[&name].dims2().unwrap());
        let kept = kept.narrow(0, 0, all.0 - 8).unwrap();
        let still = Tensor::zeros((8, all.1), kept.dtype(), &Device::Cpu).unwrap();
        tensors.insert(name, Tensor::cat(&[&kept, &still], 0).unwrap());
        let how = Loading::default();
        Model::from_tensors("forgetful", config, tensors, &how).unwrap()
    }

    #[test]
    fn a_rounded_state_drifts_by_its_gain() {
        let (_folder, drift) = text();
        let model = forgetful();
        let drift = drift.pieces(2, 2048);
        let with = |scheme: &str| {
            let rounded = model.quantized(&scheme.parse().unwrap()).unwrap();
            drift.compare(&model, &rounded).unwrap()
        };
        let plain = with("w16a16-h8");
        let heads = rows(&plain, "head");
        for head in &heads {
            let [decay, measured] = ["decay", "decay_measured"].map(|name| head.number(name).unwrap());
            assert!((decay - measured).abs() < 1e-5, "{decay} {measured}");
            // The prediction takes the noise for independent, and is the right size where it nearly is. What a slow
            // head is given is less than half a step of its integers: it is rounded away at every token, and such
            // errors add up.
            let ratio = head.number("drift").unwrap() / head.number("predicted").unwrap();
            let most = if decay < 0.9 { 2.0 } else { 8.0 };
            assert!((0.5..most).contains(&ratio), "{decay}: {ratio}");
        }
        let [first, last] = [0, 7].map(|i| heads[i].number("drift").unwrap());
        assert!(last > 4.0 * first, "{first} {last}");
        let summary = plain.last().unwrap();
        assert!(summary.number("tau").unwrap() > 0.8, "{summary:?}");
        assert!(summary.number("gain_max").unwrap() > 15.0);
        // What rounding took is given back: the drift of the slow heads stays that of one rounding.
        let fed = with("w16a16-h8ef");
        assert!(rows(&fed, "head")[7].number("drift").unwrap() < 0.5 * last);
    }

    #[test]
    fn what_cannot_drift_is_refused() {
        let (folder, drift) = text();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let error = |d: Drift| d.measure(&model).unwrap_err().to_string();
        let short = folder.path().join("short.txt");
        std::fs::write(&short, "to be or not").unwrap();
        let sentence = drift.clone().on(&short).check(&model).unwrap_err().to_string();
        assert!(sentence.contains("12 tokens are fewer than one piece of 4096"), "{sentence}");
        assert_eq!(error(drift.clone().on(short)), sentence, "as before anything is measured");
        let sentence = drift.pieces(0, 64).check(&model).unwrap_err().to_string();
        assert!(sentence.contains("at least one piece of at least two tokens"), "{sentence}");
        let sentence = Drift::default().compare(&forgetful(), &model).unwrap_err().to_string();
        assert!(sentence.contains("the two have different layers"), "{sentence}");
    }
}
