//! Training: a seeded model, a mixture of text and prompts, AdamW or Muon, and checkpoints that resume exactly.
//!
//! | file | holds |
//! |---|---|
//! | [`data`] | batches, a function of seed and step |
//! | [`loss`] | weighted cross-entropy |
//! | [`optimizer`] | AdamW and Muon, means of the weights |
//! | [`schedule`] | the learning rate over a run |
//! | [`qat`] | rounding while it trains |
//! | [`distill`] | learning from another model's predictions |
//! | `run` | the steps of a run |
//! | `rows` | gradients of rows, kept for what is sensitive |
//! | `log` | its log |
//! | `validation` | held-out text and recall, scored on the way |

pub mod data;
pub mod distill;
mod log;
pub mod loss;
pub mod optimizer;
pub mod qat;
mod rows;
mod run;
pub mod schedule;
mod validation;

use crate::error::{Error, Result};
use crate::family::Config;
use crate::threads::install;
use optimizer::{AdamW, Average, Group, Muon};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Everything that a training run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// The model.
    pub model: Config,
    /// A model of this shape whose weights the run starts from; none: seeded random ones.
    pub start: Option<String>,
    /// How text is read: `bytes`, or the path of a `tokenizer.json` or of its folder; none: as the start reads it, and as
    /// bytes where there is no start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Folder with the splits `train` and `valid`.
    pub corpus: PathBuf,
    /// Updates in all.
    pub steps: u64,
    /// Seed of weights and batches.
    pub seed: u64,
    /// What a batch is made of.
    pub mixture: data::Mixture,
    /// The learning rate over the run.
    pub schedule: schedule::Schedule,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Muon for the matrices of products; none: AdamW for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub muon: Option<Muon>,
    /// Parameters with settings of their own.
    pub groups: Vec<Group>,
    /// A mean of the weights over steps, which is what the run leaves; none: the last ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<Average>,
    /// Whether the embedding starts with singular values that fall as S₁ · k^−½ (overtone).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub overtone: bool,
    /// Rounding of weights and activations while it trains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qat: Option<qat::Qat>,
    /// A model to learn from beside the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distillation: Option<distill::Distillation>,
    /// Steps between those of which the gradients of rows are kept; 0: none are. They end in `rows.safetensors`.
    #[serde(skip_serializing_if = "is_zero")]
    pub row_gradients: u64,
    /// How the products of a recurrence's chunks are rounded while it trains, such as qk4-smoothqk-svfp8, as in the names of schemes;
    /// none: not at all. The way back takes them for exact (straight-through).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub products: Option<String>,
    /// Steps between validations.
    pub validate_every: u64,
    /// Windows of `seq_len` that a validation scores.
    pub validate_windows: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            model: Config::Mamba2(crate::family::mamba2::Config::default()),
            start: None,
            tokenizer: None,
            corpus: PathBuf::from("data/corpus"),
            steps: 3600,
            seed: 0,
            mixture: data::Mixture::default(),
            schedule: schedule::Schedule::default(),
            optimizer: AdamW::default(),
            muon: None,
            groups: vec![],
            average: None,
            overtone: false,
            qat: None,
            distillation: None,
            row_gradients: 0,
            products: None,
            validate_every: 250,
            validate_windows: 64,
            checkpoint_every: 100,
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a finished run reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Updates made in all, before and after any resumption.
    pub steps: u64,
    /// Bits per byte on the validation windows.
    pub valid_bits_per_byte: f64,
    /// The same with weights and activations rounded as `qat` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_bits_per_byte_quantized: Option<f64>,
    /// Tokens per second of this process's steps.
    pub tokens_per_s: f64,
    /// The trained weights, f32, as a checkpoint folder.
    pub model: PathBuf,
}

impl Training {
    /// Trains in `folder`, going on from its last checkpoint if there is one.
    ///
    /// The folder gets `training.yaml`, `log.jsonl`, `checkpoint.safetensors` and, at the end, `model/`. A run that
    /// was killed and resumed ends with the same weights as one that was not.
    ///
    /// # Errors
    /// If the settings cannot be followed, the folder is another run's, or a file cannot be read or written.
    pub fn run(&self, folder: &Path) -> Result<Outcome> {
        install(|| self.run_in_pool(folder))
    }

    /// Refuses settings that no run can follow.
    fn check(&self) -> Result<()> {
        self.model.recipe().check().map_err(|error| error.at("model"))?;
        for (name, value) in [
            ("mixture.batch_size", self.mixture.batch_size as u64),
            ("mixture.seq_len", self.mixture.seq_len as u64),
            ("validate_every", self.validate_every),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            if value == 0 {
                return Err(Error::input(format!("{name} must be at least 1, found 0")));
            }
        }
        for (name, value, most) in [
            ("mixture.batch_size", self.mixture.batch_size, 1 << 16),
            ("mixture.seq_len", self.mixture.seq_len, self.model.longest().unwrap_or(usize::MAX)),
            ("mixture.digits", self.mixture.digits, 1000),
        ] {
            if value > most {
                return Err(Error::input(format!("{name} must be at most {most}, found {value}")));
            }
        }
        let (passkey, copying) = (self.mixture.passkey, self.mixture.copying);
        for (name, share) in
            [("mixture.passkey", passkey), ("mixture.copying", copying), ("their sum", passkey + copying)]
        {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::input(format!("{name} is a share from 0 to 1, found {share}")));
            }
        }
        if copying > 0.0 {
            crate::corpus::copying::trial(0, self.mixture.seq_len, self.mixture.keys, 0)
                .map_err(|error| error.at("mixture.keys"))?;
        }
        self.products()?;
        if let Some(average) = self.average {
            average.check()?;
        }
        self.straight()?;
        let peak = self.schedule.peak;
        if !peak.is_finite() || peak < 0.0 {
            return Err(Error::input(format!("schedule.peak must be a learning rate, found {peak}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
