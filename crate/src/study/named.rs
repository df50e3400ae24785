//! The studies that ship with the crate.

use super::Study;
use crate::error::{Error, Result};
use crate::measure::every::*;
use crate::quantize::{Budget, Scheme};
use crate::record::{run_folder_in, runs_folder};
use std::path::Path;

/// The default model.
const MODEL: &str = "data/models/bard";

/// The schemes of phase 1.
const STAGES: [&str; 17] = [
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
    "w4a4-rot-gptqseq",
    "nf4",
    "nf4-rot-gptq",
    "fp8",
    "fp8-rot-gptq",
    "ternary",
    "ternary-rot-gptq",
];

/// The schemes whose state is followed: weights and activations together, either alone, and the state alone: in bf16, and in
/// few bits without error feedback, with it, and with its residual in few bits too.
const DRIFTING: [&str; 12] = [
    "w8a8",
    "w4a16",
    "w16a4",
    "w4a4",
    "w4a4-rot",
    "w16a16-h16-f32",
    "w16a16-h8-f32",
    "w16a16-h8ef-f32",
    "w16a16-h8ef8-f32",
    "w16a16-h4-f32",
    "w16a16-h4ef-f32",
    "w16a16-h4ef4-f32",
];

/// The widths that sensitivity is measured to, head and all.
const WIDTHS: [&str; 5] =
    ["w2a16+head=w2", "w3a16+head=w3", "w4a16+head=w4", "w5a16+head=w5", "w6a16+head=w6"];

impl Study {
    /// The names that [`named`](Self::named) knows.
    pub const NAMES: [&str; 13] = [
        "glance",
        "phase1",
        "first-look",
        "staged",
        "drift",
        "outliers",
        "recall",
        "context",
        "sensitivity",
        "mixed",
        "cost",
        "lowrank-q",
        "phase7",
    ];

    /// The studies that answer the questions of a phase, in the order in which they can be run; a study of that name
    /// alone, where it is no phase.
    pub fn parts(name: &str) -> Vec<&str> {
        match name {
            "phase1" => Self::NAMES
                .into_iter()
                .filter(|part| !["glance", "cost", "lowrank-q", "phase7"].contains(part))
                .collect(),
            name => vec![name],
        }
    }

    /// What the study of that name asks.
    pub fn question(name: &str) -> Option<&'static str> {
        Some(match name {
            "glance" => "Does the model still predict, and find passkeys, in four bits?",
            "phase1" => {
                "What does the model lose from full precision down to four bits and below, each format with the nearest codes \
                 and with the best method?"
            }
            "first-look" => "Does the model predict, and find passkeys, in four bits as it does in bf16?",
            "staged" => {
                "What does each stage from full precision to four bits cost, and what do rotation and GPTQ win back?"
            }
            "drift" => {
                "How far does the recurrent state drift from that at full precision, and when do the words part?"
            }
            "outliers" => "How large do activations get, and do large values stay in their channels?",
            "recall" => "How far back are passkeys found in few bits?",
            "context" => "Does what few bits cost grow with the length of the context?",
            "sensitivity" => "Which parts break first, and what would have told it beforehand?",
            "mixed" => "Do widths chosen part by part beat uniform widths in the same bytes?",
            "lowrank-q" => {
                "How many bytes does the low-rank-Q transformer take, what does it predict with them, how many directions do its \
                 queries use, and do its blocks contract?"
            }
            "phase7" => {
                "What does NF4 with double quantization make of a small hybrid with experts, by the right protocol and by that of \
                 Itera-Lite's benchmark, and is it slower?"
            }
            "cost" => "How fast, and in how much memory, does the model run in each scheme?",
            _ => return None,
        })
    }

    /// A study by its name.
    ///
    /// # Errors
    /// If there is none of that name; for `mixed`, if no run of `sensitivity` is there to choose from.
    pub fn named(name: &str) -> Result<Self> {
        Self::named_in(name, runs_folder())
    }

    /// As [`named`](Self::named), where a study builds on another on the runs in the folder `root`.
    ///
    /// # Errors
    /// As [`named`](Self::named).
    pub fn named_in(name: &str, root: impl AsRef<Path>) -> Result<Self> {
        match name {
            "glance" => Ok(Self::glance()),
            "phase1" => Ok(Self::phase1()),
            "first-look" => Ok(Self::first_look()),
            "staged" => Ok(Self::staged()),
            "outliers" => Ok(Self::outliers()),
            "drift" => Ok(Self::drift()),
            "recall" => Ok(Self::recall()),
            "context" => Ok(Self::context()),
            "sensitivity" => Ok(Self::sensitivity()),
            "mixed" => Self::mixed(root),
            "cost" => Ok(Self::cost()),
            "lowrank-q" => Ok(Self::lowrank_q()),
            "phase7" => Ok(Self::phase7()),
            _ => Err(Error::input(format!("unknown study {name:?}"))
                .hint(format!("known are: {}", Self::NAMES.join(", ")))),
        }
    }

    /// The first that a newcomer sees: the default model at full precision and in four bits, within a minute or two on any
    /// machine.
    pub fn glance() -> Self {
        Self::new("glance")
            .models([MODEL])
            .schemes(["f32", "w4a8", "w4a4"])
            .measure(Perplexity { max_tokens: Some(16384), ..Perplexity::default() })
            .measure(Passkey::lengths([256, 512, 1024, 2048]).trials(20))
    }

    /// Phase 1: the default model from full precision down to 4 bits and below, each format with the nearest codes and
    /// with the best method.
    pub fn phase1() -> Self {
        Self::new("phase1")
            .models([MODEL])
            .schemes(STAGES)
            .measure(Perplexity::default())
            .measure(Divergence::default())
            .measure(Passkey::default())
    }

    /// The first notebook's: full precision and four bits, prediction and passkeys.
    pub fn first_look() -> Self {
        Self::new("first-look")
            .models([MODEL])
            .schemes(["bf16", "w4a4-g64-rot-gptq"])
            .measure(Perplexity { max_tokens: Some(65536), ..Perplexity::default() })
            .measure(Passkey::lengths([256, 512, 1024, 1536, 2048, 3072, 4096]).trials(50).seed(7))
    }

    /// Where errors go: the default model's recurrent state against time, and its greedy words against full precision's.
    pub fn drift() -> Self {
        Self::new("drift")
            .models([MODEL])
            .schemes(DRIFTING)
            .measure(Drift::default())
            .measure(Stability::default())
    }

    /// The stages from full precision to four bits everywhere, with nearest codes and with the best method; at four bits also
    /// what GPTQ does alone, in one pass and block by block.
    pub fn staged() -> Self {
        Self::new("staged")
            .models([MODEL])
            .schemes(["f32", "w8a8", "w4a8", "w4a8-rot-gptq", "w4a4"])
            .schemes(["w4a4-gptq", "w4a4-gptqseq", "w4a4-rot-gptq", "w4a4-rot-gptqseq"])
            .measure(Perplexity::default())
            .measure(Divergence::default())
    }

    /// Activations of the default model as they are, and as a rotation leaves them.
    pub fn outliers() -> Self {
        Self::new("outliers").models([MODEL]).schemes(["f32", "w4a4-rot"]).measure(Outliers::default())
    }

    /// Passkeys of the default model, so many that schemes can be told apart.
    pub fn recall() -> Self {
        Self::new("recall")
            .models([MODEL])
            .schemes(["f32", "w8a8", "w4a8", "w4a4", "w4a4-rot-gptq", "ternary"])
            .measure(Passkey::lengths([256, 512, 1024, 1536, 2048, 4096]).trials(100))
    }

    /// Prediction of the default model by length of context: weights, activations, and the state that carries it all.
    pub fn context() -> Self {
        Self::new("context")
            .models([MODEL])
            .schemes(["w8a8", "w4a8", "w4a4", "w4a4-rot-gptq", "w16a16-h8", "w16a16-h4"])
            .measure(LongContext::default().max_tokens(1 << 17))
    }

    /// Which segments of the default model break first, at five widths.
    pub fn sensitivity() -> Self {
        Self::new("sensitivity")
            .models([MODEL])
            .schemes(["f32"])
            .measure(Sensitivity::to(WIDTHS).max_tokens(1 << 14))
    }

    /// Uniform widths against widths chosen from the newest run of [`sensitivity`](Self::sensitivity) in the folder
    /// `root`, and against those that `mix` chooses by itself, in equal bytes: what whole parts leave of the uniform
    /// budget is less than a part's step, and `mix` gets the bytes that were used. What quantizing took stands beside
    /// it; what the choice from the run took is the run's.
    ///
    /// # Errors
    /// If there is no such run, or nothing can be chosen from it.
    pub fn mixed(root: impl AsRef<Path>) -> Result<Self> {
        let run = run_folder_in(root.as_ref(), Path::new("sensitivity"))
            .map_err(|error| error.hint("run `lowbit reproduce sensitivity` first"))?;
        let mut schemes = vec!["f32".to_string()];
        for uniform in &WIDTHS[1..3] {
            let bytes = Scheme::bytes_in_sensitivity(&run, uniform)?;
            let choice = Scheme::choose(&run, Budget::Bytes(bytes))?;
            let scheme: Scheme = uniform.parse()?;
            schemes.push(uniform.to_string());
            schemes.push(scheme.budget(Budget::Bytes(choice.spent.used)).to_string());
            schemes.push(choice.scheme.to_string());
        }
        Ok(Self::new("mixed")
            .models([MODEL])
            .schemes(schemes)
            .measure(Making::default())
            .measure(Perplexity::default())
            .measure(Divergence { max_tokens: None, ..Divergence::default() }))
    }

    /// Speed and memory of the default model in the schemes that are meant to run fast. Wants an idle machine.
    pub fn cost() -> Self {
        Self::new("cost")
            .models([MODEL])
            .schemes(["f32", "bf16", "w8a8", "w4a8", "w4a16"])
            .measure(Cost { repetitions: 3, ..Cost::lengths([512, 2048, 8192, 32768]) })
    }

    /// The default low-rank-Q transformer as it is packed: its bytes, what it predicts, with adaptation and without, its spectrum
    /// and its exponents. What its training and its widths are worth, the settings beside it measure on models that they train.
    pub fn lowrank_q() -> Self {
        let text = |seq_len, stride| Perplexity { seq_len, stride, ..Perplexity::default() };
        Self::new("lowrank-q")
            .models(["data/models/griot"])
            .measure(Artifact::default())
            .measure(Perplexity { max_tokens: Some(32_768), ..text(512, 64) })
            .measure(Spectrum::default())
            .measure(Lyapunov::default())
            .measure(Adaptation { seq_len: 512, lr: 1.0, max_tokens: Some(32_768), ..Adaptation::default() })
    }

    /// Phase 7 of Itera-Lite, task 1 and the mixture of task 3, on the default hybrid: its matrices in NF4 with double quantization, as
    /// its authors took them (router and head too) and as is usual (without them), beside integers, and embeddings in 8 bits with the
    /// state space in f16. Quality by the right protocol and by theirs, exact bytes, time.
    pub fn phase7() -> Self {
        let text = Perplexity { seq_len: 256, stride: 128, ..Perplexity::default() };
        Self::new("phase7")
            .models(["data/models/scop"])
            .schemes([
                "f32",
                "nf4dq+router=nf4dq+head=nf4dq",
                "nf4dq",
                "w8a8",
                "w4a8-g32",
                "nf4dq-f16+embedding=w8+ssm=keep",
            ])
            .measure(text)
            .measure(Divergence { seq_len: 256, stride: 128, ..Divergence::default() })
            .measure(Salted::default())
            .measure(Routing { seq_len: 256, ..Routing::default() })
            .measure(Passkey { trials: 50, ..Passkey::lengths([160, 240]) })
            .measure(Artifact::default())
            .measure(Cost { gen_len: 128, repetitions: 7, ..Cost::lengths([64]) })
    }

    /// The same study on few tokens, prompts and lengths: a check that everything works.
    #[must_use]
    pub fn small(mut self) -> Self {
        self.quantizing.calibration.samples = 8;
        self.measures.iter_mut().for_each(|measure| measure.small());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    #[test]
    fn no_study_reads_further_than_its_models() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // Another builds on a recorded run.
        for name in Study::NAMES.into_iter().filter(|name| *name != "mixed") {
            let study = Study::named(name).unwrap();
            for study in [study.clone(), study.small()] {
                for path in &study.models {
                    let model = Model::load(&root.join(path).to_string_lossy()).unwrap();
                    for measure in &study.measures {
                        // Texts lie elsewhere where tests run: that they are missed is no matter here.
                        let told =
                            measure.check(&model).map_or_else(|error| error.to_string(), |()| String::new());
                        assert!(!told.contains("longer than the model can read"), "{name}: {told}");
                    }
                }
            }
        }
    }
}
