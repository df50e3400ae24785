//! Studies: models × schemes × measurements, recorded in one resumable run.
//!
//! ```no_run
//! # fn main() -> lowbit::Result<()> {
//! use lowbit::prelude::*;
//! let run = Study::new("recall")
//!     .models(["data/models/bard", "random:mamba2-tiny"])
//!     .schemes(["f32", "w4a8-g64", "w4a8-g64-gptq"])
//!     .measure(Passkey::lengths([256, 512, 1024]))
//!     .run()?;
//! figure::passkey(&Frame::load(run.path())?)?.save("recall.svg")?;
//! # Ok(())
//! # }
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`ablation`] | one training with and without its parts |
//! | `named` | the studies that `lowbit reproduce` knows |
//! | `check` | a recorded run measured again |
//! | `current` | whether a recorded run is of what is there now |
//! | `estimate` | about how long it will take |

pub mod ablation;
mod check;
mod current;
mod estimate;
mod named;

use crate::error::{Error, Result};
pub use crate::measure::Instrument;
use crate::model::{Loading, Model, parse_tokenizer};
use crate::quantize::{Quantizing, Scheme};
use crate::record::{Run, runs_folder};
use crate::warning::warn;
pub use check::{CHECKED_BY, Check};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A grid of measurements: plain data, so that a study is a YAML file as well as a chain of calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Name of its runs.
    pub name: String,
    /// Folders, files, hub ids or `random:SHAPE`.
    pub models: Vec<String>,
    /// How their text is read, if not with the tokenizers beside their weights: `bytes`, or the path of a `tokenizer.json`
    /// or of its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Names of schemes, one after the other; empty: every model as it is.
    #[serde(default)]
    pub schemes: Vec<String>,
    /// How models are quantized, beside the schemes.
    #[serde(default)]
    pub quantizing: Quantizing,
    /// What is measured of every model in every scheme.
    pub measures: Vec<Instrument>,
}

impl Study {
    /// A study without models and measurements; its runs are called `name`.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_string(), ..Self::default() }
    }

    /// Adds models: folders, files, hub ids or `random:SHAPE`.
    #[must_use]
    pub fn models<S: Into<String>>(mut self, models: impl IntoIterator<Item = S>) -> Self {
        self.models.extend(models.into_iter().map(Into::into));
        self
    }

    /// Sets how text is read, if not with the tokenizer beside the weights: `bytes`, or a path.
    #[must_use]
    pub fn tokenizer(mut self, tokenizer: &str) -> Self {
        self.tokenizer = Some(tokenizer.to_string());
        self
    }

    /// Adds schemes, or their names.
    #[must_use]
    pub fn schemes<S: ToString>(mut self, schemes: impl IntoIterator<Item = S>) -> Self {
        self.schemes.extend(schemes.into_iter().map(|scheme| scheme.to_string()));
        self
    }

    /// Adds a measurement.
    #[must_use]
    pub fn measure(mut self, measure: impl Into<Instrument>) -> Self {
        self.measures.push(measure.into());
        self
    }

    /// The run of this study in [`runs_folder`] that its readings go to: an unfinished one of the same settings if
    /// there is one, else a new one.
    ///
    /// # Errors
    /// If the folder cannot be made or another process has it open.
    pub fn open(&self, root: impl AsRef<Path>) -> Result<Run> {
        let run = Run::resume_or_create(root, &self.name, self)?;
        run.write_config(self)?;
        Ok(run)
    }

    /// Measures everything that is not recorded yet and returns the finished run.
    ///
    /// # Errors
    /// If a model cannot be loaded, a setting is wrong, or the disk refuses; what was measured stays recorded, and
    /// running the study again goes on from there.
    pub fn run(&self) -> Result<Run> {
        self.run_into(|| self.open(runs_folder()))
    }

    /// The folder of the newest finished run of this study with these settings; where there is none, or it no longer
    /// holds (see [`current_in`](Self::current_in)), it is measured now.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn recorded(&self) -> Result<PathBuf> {
        match self.current_in(runs_folder())? {
            Some(folder) => Ok(folder),
            None => Ok(self.run()?.path().to_path_buf()),
        }
    }

    /// The folder of the newest finished run of this study with these settings in the folder `root`, if its readings are of
    /// the models, references, texts and versions of measurements that there are now. One that is not is told of.
    ///
    /// # Errors
    /// If the run cannot be read, or a model cannot be loaded that is there.
    pub fn current_in(&self, root: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let Some(folder) = Run::finished(root, &self.name, self)? else { return Ok(None) };
        match self.outdated(&folder)? {
            None => Ok(Some(folder)),
            Some(why) => {
                warn(format!("{}: {why}; measured anew", folder.display()));
                Ok(None)
            }
        }
    }

    /// The schemes by their names; where there is none, every model as it is.
    fn parsed_schemes(&self) -> Result<Vec<Scheme>> {
        match self.schemes.as_slice() {
            [] => Ok(vec![Scheme::default()]),
            names => names.iter().map(|name| name.parse()).collect(),
        }
    }

    /// As [`run`](Self::run), into the run that `open` gives; it is asked once the study is known to be sound.
    ///
    /// # Errors
    /// As [`run`](Self::run), and those of `open`.
    pub fn run_into(&self, open: impl FnOnce() -> Result<Run>) -> Result<Run> {
        let run = self.record_into(open)?;
        run.finish()?;
        Ok(run)
    }

    /// As [`run_into`](Self::run_into), for whoever makes more of the run than readings: it is left unfinished, to be
    /// [finished](Run::finish) when the rest is made. Until then the same study goes on with it, and measures nothing
    /// again.
    ///
    /// # Errors
    /// As [`run_into`](Self::run_into).
    pub fn record_into(&self, open: impl FnOnce() -> Result<Run>) -> Result<Run> {
        let (schemes, others) = self.checked()?;
        let first = self.load(&self.models[0])?;
        if !(self.check(&first, &schemes)? || others) {
            return Err(Error::input("none of the study's measurements can be made of its models")
                .at(&self.name)
                .hint("name other measurements or models"));
        }
        let run = open()?;
        let job = estimate::job(self, &schemes, &first)?;
        let work: Vec<f64> = self.measures.iter().map(|measure| measure.work(&first)).collect();
        let mut first = Some(first);
        let alone = self.measures.iter().any(|measure| measure.alone());
        for source in &self.models {
            for scheme in &schemes {
                let whole = first.take().map_or_else(|| self.load(source), Ok)?;
                let named =
                    if self.models.len() > 1 { format!("{source} {scheme}") } else { scheme.to_string() };
                job.part(&named, estimate::quantizing(scheme, &self.quantizing));
                let model = match self.schemes.is_empty() {
                    true => whole.clone(),
                    false => whole.quantized_with(scheme, &self.quantizing)?,
                };
                first = (!alone).then_some(whole);
                for (measure, work) in self.measures.iter().zip(&work) {
                    match measure.applies(&model) {
                        Ok(()) => {
                            job.part(&named, *work);
                            measure.record(&model, &run)?;
                        }
                        Err(why) => leave_out(measure, &model, &why, &run)?,
                    }
                }
            }
            first = None;
        }
        run.set_stale_aside()?;
        Ok(run)
    }

    /// The schemes, once it is known that no setting must fail: bad ones end here, before a run folder is made and time is
    /// spent. The first model is left to the caller, who keeps it; of the others, whether there is anything to measure.
    fn checked(&self) -> Result<(Vec<Scheme>, bool)> {
        if self.models.is_empty() || self.measures.is_empty() {
            return Err(Error::input(
                "the study has nothing to do: it needs at least one model and one measurement",
            )
            .at(&self.name));
        }
        let schemes = self.parsed_schemes()?;
        for measure in &self.measures {
            schemes.iter().try_for_each(|scheme| measure.check_scheme(scheme))?;
        }
        let mut some = false;
        for source in &self.models[1..] {
            some |= self.check(&self.load(source)?, &schemes)?;
        }
        Ok((schemes, some))
    }

    /// Whether some of the measurements can be made of the model: these are checked, the others told.
    fn check(&self, model: &Model, schemes: &[Scheme]) -> Result<bool> {
        let mut some = false;
        for measure in &self.measures {
            match measure.applies(model) {
                Ok(()) => {
                    measure.check(model)?;
                    some = true;
                }
                Err(why) => warn(format!("{} of {} is left out: {why}", measure.name(), model.name)),
            }
        }
        // Without schemes, a model may be of one already.
        let schemes = if self.schemes.is_empty() { &[] } else { schemes };
        schemes.iter().try_for_each(|scheme| scheme.check(model, &self.quantizing))?;
        Ok(some)
    }

    fn load(&self, source: &str) -> Result<Model> {
        let tokenizer = self.tokenizer.as_deref().map(parse_tokenizer).transpose()?;
        Model::load_with(source, &Loading { tokenizer, ..Loading::default() })
    }
}

/// Keeps in the run that a measurement was left out, and why.
fn leave_out(measure: &Instrument, model: &Model, why: &str, run: &Run) -> Result<()> {
    let mut readings = measure.left_out(model, why)?;
    readings.retain(|reading| !run.has(&reading.fingerprint));
    run.record(&readings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::every::{Cost, Drift, Passkey};
    use crate::record::read_lines;

    fn tiny() -> Study {
        let cost = Cost { lengths: vec![16], gen_len: 2, repetitions: 1, ..Cost::default() };
        Study::new("grid")
            .models(["random:mamba2-tiny"])
            .schemes(["f32", "w4a8"])
            .measure(Passkey { lengths: vec![260], trials: 2, ..Passkey::default() })
            .measure(cost)
    }

    #[test]
    fn a_study_is_a_yaml_file() {
        let yaml = serde_saphyr::to_string(&tiny()).unwrap();
        assert_eq!(serde_saphyr::from_str::<Study>(&yaml).unwrap(), tiny());
        let short = "name: a\nmodels: [data/models/bard]\nmeasures:\n- passkey: {trials: 3}\n";
        let study: Study = serde_saphyr::from_str(short).unwrap();
        assert_eq!(study.measures, [Passkey::default().trials(3).into()]);
    }

    #[test]
    fn what_does_not_apply_is_left_out_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let study = Study { models: vec!["random:llama-tiny".into()], ..tiny() }.measure(Drift::default());
        let run = study.run_into(|| study.open(folder.path())).unwrap();
        let rows = read_lines(run.path().join("metrics.jsonl")).unwrap().rows;
        let drifts: Vec<_> = rows.iter().filter(|row| row["measure"] == "drift").collect();
        assert_eq!((drifts.len(), rows.iter().filter(|row| row["measure"] == "cost").count()), (2, 4));
        for (row, scheme) in drifts.iter().zip(["f32", "w4a8"]) {
            assert_eq!((&row["scheme"], &row["row"]), (&scheme.into(), &"left_out".into()));
            let why = row["warning"].as_str().unwrap();
            let name = row["model"].as_str().unwrap();
            let told = "is left out: the model has no recurrent state that could drift";
            assert_eq!(why, format!("drift of {name} {told}"));
        }
        // The run is one of this study, and complete.
        assert_eq!(study.outdated(run.path()).unwrap(), None);
        // Where nothing is left there is no run; alone, it is an error.
        let only = Study::new("only").models(["random:llama-tiny"]).measure(Drift::default());
        let open = || -> Result<Run> { panic!("no run may be opened") };
        let error = only.run_into(open).unwrap_err().to_string();
        assert!(error.contains("none of the study's measurements can be made"), "{error}");
        let model = Model::load("random:llama-tiny").unwrap();
        let error = only.measures[0].check(&model).unwrap_err().to_string();
        assert!(error.contains("no recurrent state"), "{error}");
    }

    #[test]
    fn no_sequence_is_longer_than_the_model_reads() {
        let model = Model::that_reads(100);
        for measure in Instrument::all() {
            let refused = measure.check(&model).err().map(|e| e.to_string());
            match measure.name() {
                "making" | "artifact" | "spectrum" => assert_eq!(refused, None),
                "drift" => assert!(refused.unwrap().contains("no recurrent state")),
                "routing" => assert!(refused.unwrap().contains("it has no experts")),
                // What is too long of an item is cut.
                "lambada" | "choice" => assert!(refused.unwrap().contains("no file is named")),
                name => {
                    let told = refused.unwrap_or_default();
                    let part = "tokens is longer than the model can read, which is 100; ask for at most 100";
                    assert!(told.contains(part), "{name}: {told}");
                }
            }
        }
        let calibration = crate::quantize::Calibration::default();
        let error = calibration.sample(&model).unwrap_err().to_string();
        assert!(error.contains("longer than the model can read, which is 100"), "{error}");
    }

    #[test]
    fn a_study_that_cannot_run_leaves_no_folder() {
        let open = || -> Result<Run> { panic!("no run may be opened") };
        for (study, part) in [
            (Study::new("empty"), "nothing to do"),
            (tiny().schemes(["int5"]), "no number format begins like this"),
            (tiny().schemes(["w4a8-g512"]), "groups of 512 are larger than the row of 256"),
            (tiny().measure(Passkey::lengths([300, 20])), "20 tokens is shorter"),
            (Study { models: vec!["random:mamba9".into()], ..tiny() }, "unknown shape"),
        ] {
            let error = study.run_into(open).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
