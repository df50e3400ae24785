//! The instruments. Each is an owned config, plain data with a default, that turns a model into readings.
//!
//! What there is stands in one list, [`Instrument`]: **a measurement is added by its file and its line there**. Commands, flags and
//! their help, studies and their YAML, checks, estimates of time and tables come from the list.
//!
//! **Beginning of a text.** No measurement puts a special token (BOS) before what it reads, whatever the tokenizer's file asks
//! for (`add_bos_token`): windows are pieces of a longer text, and the two harnesses that people compare by do not agree.
//! llama.cpp's `perplexity` puts it in the place of the first token of each chunk where the file asks for it, and scores the second
//! half of a chunk. lm-evaluation-harness adds none to a context and its continuation, unless `add_bos_token` is set, and begins
//! rolling windows with it (`prefix_token_id`; that for the end, if there is none), so that it scores a text's first token too.
//! Where a file asks for such tokens, each record says how many were left out (`bos_left_out`), and a warning does.
//!
//! | file | holds |
//! |---|---|
//! | `instrument` | the registry, and what it asks of a measurement |
//! | `fields` | the settings that measurements share |
//! | [`window`] | a text in sliding windows |
//! | `reference` | a measurement beside a reference |
//! | `items`, `likelihood` | a measurement by items, and how likely one text goes on after another |
//! | `watch` | what a model's linears read |
//! | `gradient` | what the gradient says of a change of weights |
//! | `power` | noise against a signal |
//! | `limit` | how large a setting may be, and how long a sequence |
//! | `finite` | where values that are not finite begin |
//! | [`work`] | about how many tokens it takes |

#[macro_use]
mod fields;
#[macro_use]
mod instrument;

pub mod adaptation;
pub mod artifact;
pub mod choice;
pub mod context;
pub mod copying;
pub mod cost;
pub mod distortion;
pub mod divergence;
pub mod drift;
mod finite;
mod gradient;
#[macro_use]
mod items;
pub mod lambada;
mod likelihood;
mod limit;
pub mod lyapunov;
pub mod making;
pub mod outliers;
pub mod passkey;
pub mod perplexity;
mod power;
mod reference;
pub mod routing;
pub mod salted;
pub mod sensitivity;
pub mod sinks;
pub mod smoothing;
pub mod spectrum;
pub mod sqnr;
pub mod stability;
mod watch;
pub mod window;
pub mod work;

use crate::error::Result;
use crate::model::Model;
use crate::model::quantization::Quantization;
use crate::quantize;
use crate::record::{Reading, Row, Run, Subject, content_hash, read_lines};
use crate::stats::Estimate;
use crate::warning::warn;
pub use instrument::{Listed, Table, Tool, with_defaults};
use serde::Serialize;

instruments! {
    Perplexity(perplexity::Perplexity),
    Salted(salted::Salted),
    Divergence(divergence::Divergence),
    Sqnr(sqnr::Sqnr),
    Distortion(distortion::Distortion),
    Drift(drift::Drift),
    Outliers(outliers::Outliers),
    Sinks(sinks::Sinks),
    Smoothing(smoothing::Smoothing),
    Routing(routing::Routing),
    Spectrum(spectrum::Spectrum),
    Lyapunov(lyapunov::Lyapunov),
    Stability(stability::Stability),
    Sensitivity(sensitivity::Sensitivity),
    Context(context::LongContext),
    Passkey(passkey::Passkey),
    Copying(copying::Copying),
    Lambada(lambada::Lambada),
    Choice(choice::MultipleChoice),
    Adaptation(adaptation::Adaptation),
    Artifact(artifact::Artifact),
    Cost(cost::Cost),
    Making(making::Making),
}

by_items!(lambada::Lambada, choice::MultipleChoice);

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

    /// Whether it can be made of such a model at all, whatever the settings: a study goes on with those that can, and says
    /// which it left out.
    ///
    /// # Errors
    /// The reason why it cannot, as a clause.
    fn applies(&self, _model: &Model) -> Result<(), String> {
        Ok(())
    }

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

/// The rows of these units of work in a run.
fn recalled(run: &Run, units: &[String]) -> Result<Vec<Row>> {
    if units.is_empty() {
        return Ok(vec![]);
    }
    let of_these = |row: &Row| {
        let unit = row.get("fingerprint").and_then(|unit| unit.as_str()).unwrap_or_default();
        units.iter().any(|known| known == unit)
    };
    let rows = read_lines(run.path().join("metrics.jsonl"))?.rows;
    Ok(rows.into_iter().filter(of_these).collect())
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
    let opening = model.tokenizer.opening().len();
    if opening > 0 {
        let name = &model.name;
        warn(format!(
            "{name}: its tokenizer puts {opening} special tokens before a text (BOS): none is measured"
        ));
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
        bos_left_out: Some(opening as u64).filter(|count| *count > 0),
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
