//! The commands that make a model smaller.

use super::{goes_on, load, load_for, quantizing};
use crate::args::Source;
use crate::out::say;
use lowbit::error::{Error, Result};
use lowbit::model::artifact::{self, Artifact};
use lowbit::prune::{Pruned, Pruning};
use std::path::Path;

/// Quantizes a model and saves it.
pub fn quantize(source: &Source, out: &Path) -> Result<()> {
    if source.scheme.is_none() {
        return Err(Error::input("no scheme is named").hint("add one, such as --scheme w4a8-g64-gptq"));
    }
    let nothing = || "nothing was saved: the same command begins again".to_string();
    let model = load_for(source, Some(out)).map_err(|error| goes_on(error, nothing))?;
    model.save(out)?;
    if let Some(report) = &model.quantization {
        say!("{report}")?;
    }
    say!("{:.2} MB in {}", model.bytes() as f64 / 1e6, out.display())
}

/// Writes a model as one compressed file.
pub fn pack(source: &Source, out: &Path, budget: Option<u64>, beside: u64) -> Result<()> {
    if !out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(artifact::ENDING)) {
        return Err(Error::input("a packed model is loaded by the ending of its name")
            .at(out.display())
            .hint(format!("name it {}", out.with_extension(artifact::ENDING).display())));
    }
    let packed = match (budget, &source.scheme) {
        (None, _) => load(source)?.artifact()?,
        (Some(_), None) => {
            return Err(
                Error::input("no scheme is named").hint("add one to begin with, such as --scheme w6a16-sf16")
            );
        }
        (Some(budget), Some(scheme)) => {
            let within = budget.checked_sub(beside).ok_or_else(|| {
                Error::input(format!("{beside} bytes beside the file are more than the budget of {budget}"))
            })?;
            let plain = load(&Source { scheme: None, ..source.clone() })?;
            let found = plain.fitted(&scheme.parse()?, within, &quantizing(source))?;
            say!("{found}")?;
            if let Some(report) = &found.model.quantization {
                say!("taken: {}", report.scheme)?;
            }
            found.artifact
        }
    };
    packed.write(out)?;
    let Artifact { bytes, raw, plain, ranged, codes, entropy } = &packed;
    let bytes = bytes.len() as u64;
    say!("{}: {bytes} bytes, {raw} before compression", out.display())?;
    if *codes > 0 {
        say!("{codes} codes, {:.0} bytes by their entropy", entropy)?;
        let ranged = ranged.map_or_else(String::new, |bytes| format!(", {bytes} with its codes range-coded"));
        say!("the whole file {plain} bytes by zstd alone{ranged}: the smaller is kept")?;
    }
    match beside {
        0 => Ok(()),
        beside => say!("{} bytes with the {beside} beside it", bytes + beside),
    }
}

/// Leaves parts of a model out and saves what is left, with a report beside it.
pub fn prune(source: &Source, out: &Path, how: Pruning) -> Result<()> {
    if source.scheme.is_some() {
        return Err(
            Error::input("a quantized model is not pruned").hint("prune first, then quantize what is left")
        );
    }
    let nothing = || "nothing was saved: the same command begins again".to_string();
    let mut calibration = how.calibration.clone();
    if let Some(text) = &source.calibration {
        (calibration.corpus, calibration.split) = (text.clone(), None);
    }
    calibration.samples = source.calibration_samples.unwrap_or(calibration.samples);
    calibration.length = source.calibration_length.unwrap_or(calibration.length);
    let model = load_for(source, Some(out))?;
    let pruned = model.pruned(&Pruning { calibration, ..how }).map_err(|error| goes_on(error, nothing))?;
    let Pruned { model, report } = &pruned;
    model.save(out)?;
    report.save(out)?;
    say!("{report}")?;
    say!("{:.2} MB in {}", model.bytes() as f64 / 1e6, out.display())
}
