//! A measurement of any kind, as a study holds it.

use crate::error::{Error, Result};
use crate::measure::{
    Measure, context::LongContext, cost::Cost, divergence::Divergence, drift::Drift, making::Making,
    outliers::Outliers, passkey::Passkey, perplexity::Perplexity, sensitivity::Sensitivity,
    sensitivity::ranking, sqnr::Sqnr, stability::Stability,
};
use crate::model::Model;
use crate::quantize::Scheme;
use crate::record::Run;
use serde::{Deserialize, Serialize};

/// A measurement of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Instrument {
    /// Prediction of a text.
    Perplexity(Perplexity),
    /// How far predictions are from a reference's.
    Divergence(Divergence),
    /// Which matrices lose precision.
    Sqnr(Sqnr),
    /// How far the recurrent state goes astray.
    Drift(Drift),
    /// How large activations get, and in which channels.
    Outliers(Outliers),
    /// When greedy words part from a reference's.
    Stability(Stability),
    /// Which parts break first.
    Sensitivity(Sensitivity),
    /// Prediction against what was read before.
    Context(LongContext),
    /// Recall against context length.
    Passkey(Passkey),
    /// Speed and memory against length.
    Cost(Cost),
    /// What quantizing took.
    Making(Making),
}

impl Instrument {
    /// Ends with the error that bad settings would end the measurement with.
    ///
    /// # Errors
    /// Those of the measurement.
    pub fn check(&self, model: &Model) -> Result<()> {
        match self {
            Self::Perplexity(measure) => measure.check(model),
            Self::Divergence(measure) => measure.check(model),
            Self::Sqnr(measure) => measure.check(model),
            Self::Drift(measure) => measure.check(model),
            Self::Outliers(measure) => measure.check(model),
            Self::Stability(measure) => measure.check(model),
            Self::Sensitivity(measure) => measure.check(model),
            Self::Context(measure) => measure.check(model),
            Self::Passkey(measure) => measure.check(model),
            Self::Cost(measure) => measure.check(model),
            Self::Making(measure) => measure.check(model),
        }
    }

    /// Ends with the error that measuring a model in this scheme would end with, before it is quantized.
    ///
    /// # Errors
    /// If the measurement cannot be made of such a model.
    pub fn check_scheme(&self, scheme: &Scheme) -> Result<()> {
        let refused =
            |what: &str, hint: &str| Err(Error::input(what).at(format!("scheme {scheme}")).hint(hint));
        match self {
            Self::Sensitivity(_) if !scheme.is_plain() => refused(
                "the parts of a quantized model cannot be quantized alone",
                "measure the sensitivity of f32 or bf16, and name this scheme among those that it is measured to",
            ),
            Self::Sqnr(_) if scheme.moves_inputs() => refused(
                "its matrices read inputs of other bases or scales than the reference's",
                "measure the divergence of a model that is rotated, smoothed or scaled by channel",
            ),
            _ => Ok(()),
        }
    }

    /// The name and version of each kind of reading that it gives.
    pub fn gives(&self) -> Vec<(&'static str, u32)> {
        fn of<M: Measure>(_: &M) -> (&'static str, u32) {
            (M::NAME, M::VERSION)
        }
        match self {
            Self::Perplexity(measure) => vec![of(measure)],
            Self::Divergence(measure) => vec![of(measure)],
            Self::Sqnr(measure) => vec![of(measure)],
            Self::Drift(measure) => vec![of(measure)],
            Self::Outliers(measure) => vec![of(measure)],
            Self::Stability(measure) => vec![of(measure)],
            Self::Sensitivity(measure) => vec![of(measure), (ranking::NAME, of(measure).1)],
            Self::Context(measure) => vec![of(measure)],
            Self::Passkey(measure) => vec![of(measure)],
            Self::Cost(measure) => vec![of(measure)],
            Self::Making(measure) => vec![of(measure)],
        }
    }

    /// Measures what the run does not hold yet, recording each unit as it is done.
    ///
    /// # Errors
    /// Those of the measurement and of the run.
    pub fn record(&self, model: &Model, run: &Run) -> Result<()> {
        match self {
            Self::Perplexity(measure) => measure.record(model, run),
            Self::Divergence(measure) => measure.record(model, run),
            Self::Sqnr(measure) => measure.record(model, run),
            Self::Drift(measure) => measure.record(model, run),
            Self::Outliers(measure) => measure.record(model, run),
            Self::Stability(measure) => measure.record(model, run),
            Self::Sensitivity(measure) => measure.record(model, run),
            Self::Context(measure) => measure.record(model, run),
            Self::Passkey(measure) => measure.record(model, run),
            Self::Cost(measure) => measure.record(model, run),
            Self::Making(measure) => measure.record(model, run),
        }
    }
}

impl From<Perplexity> for Instrument {
    fn from(measure: Perplexity) -> Self {
        Self::Perplexity(measure)
    }
}

impl From<Divergence> for Instrument {
    fn from(measure: Divergence) -> Self {
        Self::Divergence(measure)
    }
}

impl From<Sqnr> for Instrument {
    fn from(measure: Sqnr) -> Self {
        Self::Sqnr(measure)
    }
}

impl From<Drift> for Instrument {
    fn from(measure: Drift) -> Self {
        Self::Drift(measure)
    }
}

impl From<Outliers> for Instrument {
    fn from(measure: Outliers) -> Self {
        Self::Outliers(measure)
    }
}

impl From<Stability> for Instrument {
    fn from(measure: Stability) -> Self {
        Self::Stability(measure)
    }
}

impl From<Sensitivity> for Instrument {
    fn from(measure: Sensitivity) -> Self {
        Self::Sensitivity(measure)
    }
}

impl From<LongContext> for Instrument {
    fn from(measure: LongContext) -> Self {
        Self::Context(measure)
    }
}

impl From<Passkey> for Instrument {
    fn from(measure: Passkey) -> Self {
        Self::Passkey(measure)
    }
}

impl From<Making> for Instrument {
    fn from(measure: Making) -> Self {
        Self::Making(measure)
    }
}

impl From<Cost> for Instrument {
    fn from(measure: Cost) -> Self {
        Self::Cost(measure)
    }
}
