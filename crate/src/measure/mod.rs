//! The instruments. Each is an owned config, plain data with a default, that turns a model into readings.
//!
//! | file | measures |
//! |---|---|
//! | [`perplexity`] | how well the model predicts a text |
//! | [`divergence`] | how far its predictions are from a reference's |
//! | [`sqnr`] | which of its matrices lose precision |
//! | [`drift`] | how far its recurrent state goes astray, head by head against time |
//! | [`outliers`] | how large its activations get, and whether in the same channels |
//! | [`stability`] | when its greedy words part from a reference's |
//! | [`sensitivity`] | which of its parts break first |
//! | [`context`] | how well it predicts, by what it has read before |
//! | [`passkey`] | whether it recalls a key from far back |
//! | [`cost`] | speed and memory against length |
//! | [`making`] | what quantizing it took, and what its state takes up |
//!
//! [`window`] cuts a text into the sliding windows of the first three; `watch` shows what a model's linears read, `power`
//! sets noise against a signal, `limit` says how large a setting may be, `finite` where values that are not finite begin.

pub mod context;
pub mod cost;
pub mod divergence;
pub mod drift;
mod finite;
mod limit;
pub mod making;
pub mod outliers;
pub mod passkey;
pub mod perplexity;
mod power;
mod reference;
pub mod sensitivity;
pub mod sqnr;
pub mod stability;
mod watch;
pub mod window;

use crate::error::Result;
use crate::model::Model;
use crate::model::quantization::Quantization;
use crate::quantize;
use crate::record::{Reading, Run, Subject, content_hash};
use crate::stats::Estimate;
use crate::warning::warn;
use serde::Serialize;

/// A measurement of a model.
pub trait Measure: Serialize + Sized {
    /// Its name in records.
    const NAME: &'static str;
    /// Raised when readings are no longer comparable with earlier ones.
    const VERSION: u32;

    /// The measurement cut into parts that are recorded one by one, and skipped one by one when a run is resumed.
    fn units(&self) -> Vec<Self>;

    /// Identifies what this measurement of this model will read: equal fingerprints, equal readings.
    fn fingerprint(&self, model: &Model) -> Result<String>;

    /// Ends with the error that bad settings would end the measurement with, before a run is made or time is spent.
    fn check(&self, _model: &Model) -> Result<()> {
        Ok(())
    }

    /// Measures. The rows of a unit share its fingerprint, its summary comes last.
    fn measure(&self, model: &Model) -> Result<Vec<Reading>>;

    /// Measures what the run does not hold yet, recording each unit as it is done.
    fn record(&self, model: &Model, run: &Run) -> Result<()> {
        self.check(model)?;
        for unit in self.units() {
            if !run.has(&unit.fingerprint(model)?) {
                run.record(&unit.measure(model)?)?;
            }
        }
        Ok(())
    }
}

/// A reading with a word on a text that is too little for intervals, where it is.
fn too_little(mut reading: Reading, estimate: Option<Estimate>) -> Reading {
    if estimate.is_some_and(|estimate| estimate.is_alone()) {
        reading.warn("too little text for intervals");
    }
    reading
}

/// The model as records name it. Every measurement comes by here, so it is here that what loading assumed is told.
pub fn subject(model: &Model) -> Subject {
    for assumed in &model.assumed {
        warn(format!("{}: assumed: {assumed}", model.name));
    }
    let dtype = model.dtype.as_str().to_string();
    let quantization = model.quantization.as_ref();
    Subject {
        model: model.name.clone(),
        model_revision: model.revision.clone(),
        model_hash: model.hash.clone(),
        config_hash: content_hash(&model.config).ok(),
        tokenizer: Some(model.tokenizer.name().to_string()),
        tokenizer_hash: Some(model.tokenizer.hash().to_string()),
        assumed: Some(model.assumed.join("; ")).filter(|text| !text.is_empty()),
        family: model.config.family().to_string(),
        parameters: model.parameters() as u64,
        weight_bytes: model.bytes() as u64,
        scheme: quantization.map_or_else(|| dtype.clone(), |q| q.scheme.clone()),
        dtype,
        stored_as: model.stored_as.clone(),
        w_bits: quantization.and_then(|q| q.w_bits),
        a_bits: quantization.and_then(|q| q.a_bits),
        head_format: quantization.and_then(Quantization::head),
        group_size: quantization.and_then(|q| q.group_size).map(|size| size as u64),
        per_channel: quantization.and_then(|q| q.per_channel),
        quant_backend: quantization.map(|q| q.backend.to_string()),
        quantizing_version: quantization.map(|_| quantize::VERSION),
        calib_method: quantization.map(|q| q.method.clone()),
        calibration: quantization.and_then(|q| q.calibration.as_ref()).map(ToString::to_string),
        device: match model.device().location() {
            candle_core::DeviceLocation::Cpu => "cpu".to_string(),
            candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        },
    }
}
