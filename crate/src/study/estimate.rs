//! How long a study will take: the tokens that it reads, by the speed at which this machine reads a few.
//!
//! It is told before hours are spent, so it need only be right to within a factor of two; once the first part is done,
//! time left follows from what that took.

use super::{Instrument, Study};
use crate::error::Result;
use crate::measure::subject;
use crate::measure::work::CALIBRATED;
use crate::model::Model;
use crate::progress::Job;
use crate::quantize::{Hessians, Quantizing, Scheme};
use std::time::{Duration, Instant};

/// A measurement of fewer tokens is over before it could be said how long it takes.
const SHORT: f64 = 32768.0;
/// Tokens that are read to learn the speed, where the model reads as many.
const TRIED: usize = 256;

impl Study {
    /// About how long the study takes on this machine, if nothing of it is recorded yet.
    ///
    /// # Errors
    /// If a scheme has no such name, or its first model cannot be loaded or read a prompt.
    pub fn expected(&self) -> Result<Duration> {
        let Some(source) = self.models.first() else { return Ok(Duration::ZERO) };
        let model = self.load(source)?;
        time(work(self, &self.parsed_schemes()?, &model), &model)
    }
}

impl Instrument {
    /// The job that this measurement of one model is: says about how long it takes on this machine. None if it is over before
    /// that could be known.
    ///
    /// # Errors
    /// If the model cannot read a prompt.
    pub fn job(&self, name: &str, model: &Model) -> Result<Option<Job>> {
        let work = self.work(model);
        if work < SHORT {
            return Ok(None);
        }
        let job = Job::begin(name, &format!("one measurement of {}", model.name), work, time(work, model)?);
        job.part(&subject(model).scheme, work);
        Ok(Some(job))
    }
}

/// The job that a study is: says what there is to do, and about how long it takes on this machine.
pub(super) fn job(study: &Study, schemes: &[Scheme], model: &Model) -> Result<Job> {
    let of = match study.models.as_slice() {
        [one] => one.clone(),
        several => format!("{} models", several.len()),
    };
    let counted = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let (grid, columns) = (counted(schemes.len(), "scheme"), counted(study.measures.len(), "measurement"));
    let work = work(study, schemes, model);
    Ok(Job::begin(&study.name, &format!("{grid} × {columns} of {of}"), work, time(work, model)?))
}

/// Tokens that a study costs, about.
fn work(study: &Study, schemes: &[Scheme], model: &Model) -> f64 {
    let applicable = study.measures.iter().filter(|measure| measure.applies(model).is_ok());
    let measures: f64 = applicable.map(|measure| measure.work(model)).sum();
    let rounding: f64 = schemes.iter().map(|scheme| quantizing(scheme, &study.quantizing)).sum();
    study.models.len() as f64 * (schemes.len() as f64 * measures + rounding)
}

/// The time that so many tokens take.
fn time(tokens: f64, model: &Model) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(tokens / speed(model)?).unwrap_or(Duration::MAX))
}

/// Tokens a second that a prompt is read at.
fn speed(model: &Model) -> Result<f64> {
    let vocabulary = model.config.vocab_size() as u32;
    let tried = model.max_length().map_or(TRIED, |most| most.min(TRIED));
    let ids: Vec<u32> = (0..tried as u32).map(|i| i % vocabulary).collect();
    let mut taken = Duration::MAX;
    // The first call also lays buffers out.
    for _ in 0..2 {
        let clock = Instant::now();
        model.prefill(&ids, &mut model.state(1)?)?;
        taken = taken.min(clock.elapsed());
    }
    Ok(tried as f64 / taken.as_secs_f64().max(1e-6))
}

/// Tokens that quantizing a model by this scheme costs, about.
pub(super) fn quantizing(scheme: &Scheme, how: &Quantizing) -> f64 {
    let calibration = &how.calibration;
    let read =
        if scheme.needs_calibration() { calibration.samples.saturating_mul(calibration.length) } else { 0 };
    // A block's inputs, and what it leaves once it is rounded; between them its other matrices' inputs.
    let times = match scheme.gptq {
        None | Some(Hessians::Once) => 1,
        Some(Hessians::Blocks) => 2,
        Some(Hessians::Matrices) => 3,
    };
    (read as f64) * (CALIBRATED * times) as f64
}
