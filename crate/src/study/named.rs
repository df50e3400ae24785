//! The studies that ship with the crate.

use super::{Instrument, Study};
use crate::error::{Error, Result};
use crate::measure::{
    cost::Cost, divergence::Divergence, drift::Drift, outliers::Outliers, passkey::Passkey,
    perplexity::Perplexity, stability::Stability,
};

/// The schemes of phase 1.
const STAGES: [&str; 16] = [
    "f32",
    "bf16",
    "w8a8",
    "w8a8-rot-gptq",
    "w4a16",
    "w4a16-rot-gptq",
    "w4a8",
    "w4a8-rot-gptq",
    "w4a4",
    "w4a4-rot-gptq",
    "nf4",
    "nf4-rot-gptq",
    "fp8",
    "fp8-rot-gptq",
    "ternary",
    "ternary-rot-gptq",
];

/// The schemes whose state is followed: weights, activations, the state itself with and without error feedback.
const DRIFTING: [&str; 8] =
    ["w8a8", "w4a16", "w4a4", "w4a4-rot", "w16a16-h8", "w16a16-h8ef", "w16a16-h4", "w16a16-h4ef"];

impl Study {
    /// The names that [`named`](Self::named) knows.
    pub const NAMES: [&str; 5] = ["phase1", "staged", "drift", "outliers", "cost"];

    /// A study by its name.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "phase1" => Ok(Self::phase1()),
            "staged" => Ok(Self::staged()),
            "outliers" => Ok(Self::outliers()),
            "drift" => Ok(Self::drift()),
            "cost" => Ok(Self::cost()),
            _ => Err(Error::input(format!("unknown study {name:?}"))
                .hint(format!("known are: {}", Self::NAMES.join(", ")))),
        }
    }

    /// Phase 1: the default model from full precision down to 4 bits and below, each format with the nearest codes and
    /// with the best method.
    pub fn phase1() -> Self {
        Self::new("phase1")
            .models(["data/models/bard"])
            .schemes(STAGES)
            .measure(Perplexity::default())
            .measure(Divergence::default())
            .measure(Passkey::default())
    }

    /// Where errors go: the default model's recurrent state against time, and its greedy words against full precision's.
    pub fn drift() -> Self {
        Self::new("drift")
            .models(["data/models/bard"])
            .schemes(DRIFTING)
            .measure(Drift::default())
            .measure(Stability::default())
    }

    /// The stages from full precision to four bits everywhere, with nearest codes and with the best method.
    pub fn staged() -> Self {
        Self::new("staged")
            .models(["data/models/bard"])
            .schemes(["f32", "w8a8", "w4a8", "w4a8-rot-gptq", "w4a4", "w4a4-rot-gptq"])
            .measure(Perplexity::default())
            .measure(Divergence::default())
    }

    /// Activations of the default model as they are, and as a rotation leaves them.
    pub fn outliers() -> Self {
        Self::new("outliers")
            .models(["data/models/bard"])
            .schemes(["f32", "w4a4-rot"])
            .measure(Outliers::default())
    }

    /// Speed and memory of the default model in the schemes that are meant to run fast. Wants an idle machine.
    pub fn cost() -> Self {
        Self::new("cost")
            .models(["data/models/bard"])
            .schemes(["f32", "bf16", "w8a8", "w4a8", "w4a16"])
            .measure(Cost::default())
    }

    /// The same study on few tokens, prompts and lengths: a check that everything works.
    #[must_use]
    pub fn small(mut self) -> Self {
        self.quantizing.calibration.samples = 8;
        for measure in &mut self.measures {
            match measure {
                Instrument::Perplexity(perplexity) => perplexity.max_tokens = Some(4096),
                Instrument::Divergence(divergence) => divergence.max_tokens = Some(4096),
                Instrument::Sqnr(sqnr) => sqnr.max_tokens = Some(1024),
                Instrument::Drift(drift) => (drift.samples, drift.length) = (2, 256),
                Instrument::Outliers(outliers) => outliers.max_tokens = Some(1024),
                Instrument::Stability(stability) => {
                    (stability.lengths, stability.prompts, stability.gen_len) = (vec![32, 128], 4, 24);
                }
                Instrument::Passkey(passkey) => (passkey.lengths, passkey.trials) = (vec![300, 600], 4),
                Instrument::Cost(cost) => {
                    (cost.lengths, cost.gen_len, cost.repetitions) = (vec![128, 256], 8, 3);
                }
            }
        }
        self
    }
}
