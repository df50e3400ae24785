//! A scheme for a budget of bytes: widths, clips and floors tried, each by the exact size of the file that it makes.
//!
//! What a file takes after entropy coding no number of bits a weight tells: a wide clip or a high floor leaves codes near zero,
//! which compress. So each candidate is made and packed, and of those within the budget the largest are read on a short text.

use super::calibrate::Sample;
use super::rows::{Pulls, Question, RowWidths, Score};
use super::scheme::Scheme;
use super::{Coding, Quantizing, select};
use crate::error::{Error, Result};
use crate::format::{Clip, Exact, Format};
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::model::artifact::Artifact;
use crate::model::quantization::Backend;
use crate::progress::Progress;
use crate::threads::{install, threads};
use candle_core::DType;
use rayon::prelude::*;
use std::fmt;
use std::sync::Arc;

/// Candidates of which the loss is measured: the largest within the budget.
const MEASURED: usize = 8;

/// Means of the widths of rows that are told apart, by bit.
const STEPS: f64 = 128.0;

/// What was found.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The quantized model.
    pub model: Model,
    /// Its file.
    pub artifact: Artifact,
    /// All that was tried, from the largest file down.
    pub tried: Vec<Tried>,
}

/// A candidate.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The scheme.
    pub scheme: Scheme,
    /// Bytes of its file.
    pub bytes: usize,
    /// Nats a token on the calibration text, where that was measured.
    pub loss: Option<f64>,
}

impl Model {
    /// The scheme near `scheme` whose file is within `budget` bytes and whose loss on the calibration text is least: its own widths and
    /// all others of 2 to 8 bits, clipped and not, with and without a floor. Where widths are chosen by row, the largest mean of them
    /// whose file is within the budget is looked for, to 1/128 of a bit, and nothing else is changed.
    ///
    /// # Errors
    /// If no candidate is within the budget: the smallest file that one makes is told; or as
    /// [`quantized_with`](Self::quantized_with).
    pub fn fitted(&self, scheme: &Scheme, budget: u64, how: &Quantizing) -> Result<Fitted> {
        let sample = how.calibration.sample(self)?;
        let pulls = self.pulls(scheme, how)?;
        let made = |scheme: &Scheme| self.quantized_by(scheme, how, pulls.clone());
        let (mut tried, measured) = match scheme.rows {
            // What is within the budget and narrower loses more: it need not be read.
            Some(rows) => (by_mean(scheme, rows, budget, &made)?, 1),
            None => (by_candidates(&candidates(self, scheme)?, &made)?, MEASURED),
        };
        tried.sort_by(|a, b| {
            b.bytes.cmp(&a.bytes).then_with(|| a.scheme.to_string().cmp(&b.scheme.to_string()))
        });
        let within: Vec<usize> = (0..tried.len()).filter(|i| tried[*i].bytes as u64 <= budget).collect();
        if within.is_empty() {
            let smallest = tried.last().map_or_else(String::new, |least| {
                format!("the smallest file is {} bytes, of scheme {}", least.bytes, least.scheme)
            });
            return Err(Error::input(format!("no scheme near {scheme} makes a file of {budget} bytes"))
                .at(&self.name)
                .hint(smallest));
        }
        let progress = Progress::new("measuring", within.len().min(measured) as u64, "schemes");
        for i in within.into_iter().take(measured) {
            let model = made(&tried[i].scheme)?;
            tried[i].loss = Some(loss(&model, &sample)?);
            progress.tick(1)?;
        }
        let losses = tried.iter().filter_map(|tried| Some((tried.loss?, &tried.scheme)));
        let best = losses.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, scheme)| scheme.clone());
        let best = best.ok_or_else(|| Error::internal("nothing was measured"))?;
        let model = made(&best)?;
        Ok(Fitted { artifact: model.artifact()?, model, tried })
    }

    /// The widths of rows whose file is as large as that of the scheme's format alone, or as little smaller as 1/128 of a bit allows.
    pub(super) fn as_large_as_uniform(
        &self,
        scheme: &Scheme,
        rows: RowWidths,
        how: &Quantizing,
    ) -> Result<Model> {
        // Files are those of codes, whatever computes with them in the end.
        let packed = Quantizing { backend: Backend::Packed, ..how.clone() };
        let uniform = self.quantized_with(&Scheme { rows: None, ..scheme.clone() }, &packed)?;
        let (budget, pulls) = (uniform.artifact()?.bytes.len() as u64, self.pulls(scheme, how)?);
        // Under the name that was asked for, which is part of the file.
        let named = |found: &Scheme, how: &Quantizing| -> Result<Model> {
            let mut model = self.quantized_by(found, how, pulls.clone())?;
            if let Some(report) = &mut model.quantization {
                report.scheme = scheme.to_string();
            }
            Ok(model)
        };
        let tried = by_mean(scheme, rows, budget, &|found: &Scheme| named(found, &packed))?;
        let within = tried.iter().filter(|tried| tried.bytes as u64 <= budget);
        let best = within.max_by_key(|tried| tried.bytes).ok_or_else(|| {
            let least = tried.iter().map(|tried| tried.bytes).min().unwrap_or(0);
            Error::input(format!(
                "no widths of rows make a file of {budget} bytes, which the format alone takes"
            ))
            .at(format!("scheme {scheme}"))
            .hint(format!("the smallest that they make is {least} bytes"))
        })?;
        named(&best.scheme, how)
    }

    /// What gradients say of rows, where a scheme asks the calibration text for it.
    fn pulls(&self, scheme: &Scheme, how: &Quantizing) -> Result<Option<Arc<Pulls>>> {
        let trained = |by: Score| by.is_of_norms() && how.rows.is_some();
        match (scheme.rows, scheme.weights) {
            (Some(rows), Some(coding)) if rows.needs_text() && !trained(rows.by) => {
                let (sample, sites) = (how.calibration.sample(self)?, self.config.sites());
                let parts = select::parts(scheme, &sites)?;
                let asked = Question { sites: &sites, parts: &parts, coding, by: rows.by };
                Pulls::of(self, &sample, &asked).map(Arc::new).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Packs a model made by a scheme.
fn pack(scheme: Scheme, made: impl Fn(&Scheme) -> Result<Model>) -> Result<Tried> {
    let bytes = made(&scheme)?.artifact()?.bytes.len();
    Ok(Tried { scheme, bytes, loss: None })
}

/// Each of these.
fn by_candidates(
    candidates: &[Scheme],
    made: &(impl Fn(&Scheme) -> Result<Model> + Sync),
) -> Result<Vec<Tried>> {
    let progress = Progress::new("packing", candidates.len() as u64, "schemes");
    let mut tried = vec![];
    // Compression runs on one thread: as many candidates at a time as there are.
    for some in candidates.chunks(threads()) {
        let packed = install(|| {
            some.par_iter().map(|scheme| pack(scheme.clone(), made)).collect::<Vec<Result<Tried>>>()
        });
        tried.extend(packed.into_iter().collect::<Result<Vec<_>>>()?);
        progress.tick(some.len() as u64)?;
    }
    Ok(tried)
}

/// One mean of the widths of rows after the other: those that are left are halved each time.
fn by_mean(
    scheme: &Scheme,
    rows: RowWidths,
    budget: u64,
    made: &impl Fn(&Scheme) -> Result<Model>,
) -> Result<Vec<Tried>> {
    let packed = |steps: u32| {
        let rows = Some(RowWidths { bits: Some(f64::from(steps) / STEPS), ..rows });
        pack(Scheme { rows, ..scheme.clone() }, made)
    };
    let (mut low, mut high) = (2 * STEPS as u32, 8 * STEPS as u32);
    let mut tried = vec![packed(low)?, packed(high)?];
    if tried[0].bytes as u64 > budget || tried[1].bytes as u64 <= budget {
        return Ok(tried);
    }
    let progress = Progress::new("packing", u64::from((high - low).ilog2() + 1), "schemes");
    while high - low > 1 {
        let middle = low.midpoint(high);
        let one = packed(middle)?;
        match one.bytes as u64 <= budget {
            true => low = middle,
            false => high = middle,
        }
        tried.push(one);
        progress.tick(1)?;
    }
    Ok(tried)
}

/// Mean −ln p of the tokens of a text.
fn loss(model: &Model, sample: &Sample) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for (_, ids) in sample.in_order() {
        let nll = model.nll(ids, ids.len() - 1)?;
        sum += nll.iter().map(|nll| f64::from(*nll)).sum::<f64>();
        count += nll.len();
    }
    Ok(sum / count.max(1) as f64)
}

/// What is tried.
fn candidates(model: &Model, scheme: &Scheme) -> Result<Vec<Scheme>> {
    let coding = match scheme.weights {
        Some(coding @ Coding { format: Format::Int(_), .. }) => coding,
        _ => {
            return Err(Error::input("a budget is kept by the widths of integers, and the scheme has none")
                .at(format!("scheme {scheme}"))
                .hint("begin with a scheme such as w6a16-sf16"));
        }
    };
    let floor = median_row(model)?;
    let mut all = vec![scheme.clone()];
    for bits in (2..=8).rev() {
        let plain = Coding { format: Format::Int(bits), ..coding };
        let clipped = Coding { clip: Clip::Quantile(Exact(99.5)), ..plain };
        let floored =
            [1.0, 2.0, 4.0].map(|by| Coding { floor: Some(Exact(two_digits(by * floor))), ..plain });
        for coding in [plain, clipped].into_iter().chain(floored) {
            let candidate = Scheme { weights: Some(coding), ..scheme.clone() };
            if !all.contains(&candidate) {
                all.push(candidate);
            }
        }
    }
    Ok(all)
}

/// The median of the largest magnitudes of rows, over all matrices that schemes round by default.
fn median_row(model: &Model) -> Result<f32> {
    let mut tops = vec![];
    for site in model.config.sites().into_iter().filter(|site| site.by_default) {
        let Some(weight) = model.tensors().get(&site.weight) else { continue };
        let weight = weight.to_dtype(DType::F32)?.contiguous()?;
        with_floats([&weight], |[w]| {
            tops.extend(w.chunks(site.cols).map(|row| row.iter().fold(0.0f32, |top, x| top.max(x.abs()))));
        })?;
    }
    tops.sort_by(f32::total_cmp);
    tops.get(tops.len() / 2)
        .copied()
        .ok_or_else(|| Error::input("no matrix is rounded by default").at(&model.name))
}

/// A number with two significant digits, as the name of a scheme can hold it.
fn two_digits(x: f32) -> f32 {
    format!("{x:.1e}").parse().unwrap_or(x)
}

/// From the largest file down.
impl fmt::Display for Fitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.tried.iter().map(|tried| tried.scheme.to_string().len()).max().unwrap_or(0);
        for Tried { scheme, bytes, loss } in &self.tried {
            let loss = loss.map_or_else(String::new, |loss| format!("  {loss:.4} nats a token"));
            writeln!(f, "{:width$}  {bytes:>10} bytes{loss}", scheme.to_string())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{calibration, model};
    use super::*;

    #[test]
    fn a_budget_is_kept_and_one_that_cannot_be_says_what_can() {
        let folder = tempfile::tempdir().unwrap();
        let (model, how) = (model(), calibration(&folder));
        let scheme: Scheme = "w6a16-sf16+head=w6".parse().unwrap();
        let six = model.quantized_with(&scheme, &how).unwrap().artifact().unwrap().bytes.len() as u64;
        let found = model.fitted(&scheme, six * 3 / 4, &how).unwrap();
        assert!(found.artifact.bytes.len() as u64 <= six * 3 / 4);
        let best = found.tried.iter().filter_map(|tried| tried.loss).fold(f64::INFINITY, f64::min);
        let name = &found.model.quantization.as_ref().unwrap().scheme;
        let of_best = found.tried.iter().find(|tried| tried.loss == Some(best)).unwrap();
        assert_eq!((&of_best.scheme.to_string(), of_best.bytes), (name, found.artifact.bytes.len()));
        assert!(found.tried.iter().filter(|tried| tried.loss.is_some()).count() <= MEASURED);
        let error = model.fitted(&scheme, 1000, &how).unwrap_err().to_string();
        let least = found.tried.last().unwrap().bytes;
        assert!(error.contains(&format!("the smallest file is {least} bytes")), "{error}");
        let rows = model.fitted(&"w6a16-sf16-rowsmag+head=w6".parse().unwrap(), six * 3 / 4, &how).unwrap();
        let used = rows.artifact.bytes.len() as u64;
        assert!(used <= six * 3 / 4 && used as f64 > 0.99 * (six * 3 / 4) as f64, "{used} of {six}");
        let error = model.fitted(&Scheme::nf4(), 1000, &how).unwrap_err().to_string();
        assert!(error.contains("widths of integers"), "{error}");
    }
}
