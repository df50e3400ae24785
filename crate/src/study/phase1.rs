//! Phase 1, the baseline that every quantized model is compared with: one model at f32 and bf16.

use crate::error::Result;
use crate::measure::Measure;
use crate::measure::cost::Cost;
use crate::measure::passkey::Passkey;
use crate::measure::perplexity::Perplexity;
use crate::model::{Loading, Model, parse_dtype};
use crate::record::Run;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What phase 1 measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Phase1 {
    /// A folder, a file, a hub id or `random:SHAPE`.
    pub model: String,
    /// Storage of the matrices, one after the other.
    pub dtypes: Vec<String>,
    /// Prediction of held-out text.
    pub perplexity: Perplexity,
    /// Recall against context length.
    pub passkey: Passkey,
    /// Speed and memory against length.
    pub cost: Cost,
}

impl Default for Phase1 {
    fn default() -> Self {
        Self {
            model: "data/models/bard".to_string(),
            dtypes: vec!["f32".to_string(), "bf16".to_string()],
            perplexity: Perplexity::default(),
            passkey: Passkey::default(),
            cost: Cost::default(),
        }
    }
}

impl Phase1 {
    /// The same study on few tokens, prompts and lengths: a check that everything works.
    #[must_use]
    pub fn small(mut self) -> Self {
        self.perplexity.max_tokens = Some(4096);
        self.passkey = Passkey { lengths: vec![300, 600], trials: 4, ..self.passkey };
        self.cost = Cost { lengths: vec![128, 256], gen_len: 8, repetitions: 3, ..self.cost };
        self
    }

    /// Measures into a run under `root`, going on with an unfinished run of the same settings if there is one.
    pub fn run(&self, root: &Path) -> Result<Run> {
        // Bad settings end here, before a run folder is made.
        let dtypes = self.dtypes.iter().map(|dtype| parse_dtype(dtype)).collect::<Result<Vec<_>>>()?;
        let model = Model::load_with(&self.model, &Loading::default())?;
        self.perplexity.check(&model)?;
        self.passkey.check(&model)?;
        self.cost.check(&model)?;
        let run = Run::resume_or_create(root, "phase1", self)?;
        run.write_config(self)?;
        for dtype in dtypes {
            let model = model.cast(dtype)?;
            self.perplexity.record(&model, &run)?;
            self.passkey.record(&model, &run)?;
            self.cost.record(&model, &run)?;
        }
        run.finish()?;
        Ok(run)
    }
}
