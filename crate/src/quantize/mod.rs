//! Quantization of a model: the one verb, [`Model::quantized`].
//!
//! ```no_run
//! # fn main() -> lowbit::Result<()> {
//! use lowbit::prelude::*;
//! let model = Model::load("data/models/bard")?;
//! let int4 = model.quantized(&Scheme::w4a8().grouped(64))?;
//! println!("{int4}\n{}", int4.quantization.as_ref().unwrap());
//! # Ok(())
//! # }
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`scheme`] | [`Scheme`]: what, to what, how |
//! | `name` | its name, written and read |
//! | `admits` | what a scheme cannot do to a model |
//! | [`select`] | which rows of which matrices |
//! | `blocks` | matrices that keep the blocks of a GGUF file |
//! | [`calibrate`] | what inputs look like on a sample of text |
//! | [`fold`] | rotation and smoothing |
//! | `round` | matrices to codes, stage by stage |
//! | [`gptq`](mod@gptq) | codes that make up for each other's errors |
//! | `walk` | the calibration text on its way through a model that is rounded meanwhile |
//! | [`mixed`], [`allocate`](mod@allocate) | widths for layers under a budget, by what a short text tells |
//! | [`fitted`] | widths, clips and floors for a budget of the whole file |
//! | [`knapsack`] | widths for whole parts under a budget, exactly |
//! | [`rows`] | widths by row |
//! | `alone` | each row rounded alone, and how far that moves predictions |
//! | `slope` | the gradients of a text |
//! | [`probe`] | one part of a quantized model at a time |
//! | [`straight`] | what training sees of a scheme |

mod admits;
pub mod allocate;
mod alone;
mod blocks;
pub mod calibrate;
pub mod fitted;
pub mod fold;
pub mod gptq;
pub mod knapsack;
pub mod mixed;
mod name;
pub mod probe;
mod round;
pub mod rows;
pub mod scheme;
pub mod select;
mod slope;
pub mod straight;
#[cfg(test)]
mod tests;
mod walk;

use crate::error::{Error, Result};
use crate::family::{Matrices, Site, Tensors, some_of};
use crate::format::{Coding, Granularity};
use crate::layer::attention::Width;
use crate::model::quantization::{Backend, Cached, LayerReport, Made, Quantization};
use crate::model::{Model, cast, parse_dtype};
pub use calibrate::{Calibration, Observer};
use calibrate::{Sample, Wanted, observe};
use fold::Source;
use rows::RowWidths;
pub use scheme::{Budget, Hessians, Rule, Scheme};
use select::Part;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// How a model is quantized, beside the scheme.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quantizing {
    /// The text for schemes that need one.
    pub calibration: Calibration,
    /// How products are computed.
    pub backend: Backend,
    /// What the gradients of rows were while the model was trained (`rows.safetensors`), for schemes whose widths go by their norms;
    /// none: those on the calibration text count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<PathBuf>,
}

/// Version of what schemes make of a model: raised when one of the same name makes another than before. Since 2 a budget of
/// mixed widths is spent to the byte.
pub const VERSION: u64 = 2;

impl Model {
    /// The same model in few bits. What became of each matrix is told by [`quantization`](Self::quantization).
    ///
    /// # Errors
    /// If the scheme does not fit the model, it needs a text that cannot be read, or the model is quantized already.
    pub fn quantized(&self, scheme: &Scheme) -> Result<Self> {
        self.quantized_with(scheme, &Quantizing::default())
    }

    /// As [`quantized`](Self::quantized), with a calibration text or a backend of one's own.
    ///
    /// # Errors
    /// As [`quantized`](Self::quantized).
    pub fn quantized_with(&self, scheme: &Scheme, how: &Quantizing) -> Result<Self> {
        self.quantized_by(scheme, how, None)
    }

    /// As [`quantized_with`](Self::quantized_with), where it is known already what gradients say of rows.
    fn quantized_by(
        &self,
        scheme: &Scheme,
        how: &Quantizing,
        pulls: Option<Arc<rows::Pulls>>,
    ) -> Result<Self> {
        let model = self.stored_for(scheme)?;
        if scheme.is_plain() {
            return Ok(model);
        }
        scheme.admits(&model, model.dtype)?;
        if let Some(rows @ RowWidths { bits: None, .. }) = scheme.rows {
            return model.as_large_as_uniform(scheme, rows, how);
        }
        let clock = Instant::now();
        let mut job = Job { pulls, ..Job::new(&model, scheme, how)? };
        let sample = job.fold()?;
        let mut made = job.round(sample.as_ref())?;
        made.made.get_or_insert_default().whole.seconds = clock.elapsed().as_secs_f64();
        Ok(made)
    }

    /// The model in the dtype that a scheme asks for.
    fn stored_for(&self, scheme: &Scheme) -> Result<Self> {
        scheme.admits_once(self)?;
        match &scheme.dtype {
            Some(dtype) => self.cast(parse_dtype(dtype)?),
            None => Ok(self.clone()),
        }
    }
}

/// A quantization under way: first what leaves the function as it is, then what rounds.
#[derive(Clone)]
struct Job<'a> {
    model: &'a Model,
    scheme: &'a Scheme,
    how: &'a Quantizing,
    sites: Vec<Site>,
    parts: Vec<Vec<Part>>,
    tensors: Tensors,
    report: Quantization,
    made: Made,
    /// What gradients say of rows, where that is known.
    pulls: Option<Arc<rows::Pulls>>,
    /// Paths of matrices that were to be rounded by what they read, and read nothing: experts that no token was sent to.
    unseen: BTreeSet<String>,
}

impl<'a> Job<'a> {
    fn new(model: &'a Model, scheme: &'a Scheme, how: &'a Quantizing) -> Result<Self> {
        let sites = model.config.sites();
        let mut parts = select::parts(scheme, &sites)?;
        if scheme.blocks {
            blocks::keep(scheme, model, &sites, &mut parts)?;
        }
        scheme.budget.map_or(Ok(()), |_| mixed::coding(scheme).map(drop))?;
        let layers = sites.iter().map(|site| LayerReport {
            path: site.path.clone(),
            weight: site.weight.clone(),
            shape: (site.rows, site.cols),
            blocks: vec![],
            activation: None,
        });
        let coding = scheme.weights.or_else(|| {
            let mut codings = parts.iter().flatten().filter_map(|part| part.coding);
            codings.find(|_| scheme.blocks)
        });
        let w_bits = match scheme.blocks {
            true => blocks::bits(&sites, &parts),
            false => coding.map(|coding| coding.format.bits()),
        };
        let widened = blocks::widened(model, &sites, &parts).filter(|_| scheme.blocks);
        let method: Vec<String> = std::iter::once(scheme.method()).chain(widened).collect();
        let report = Quantization {
            scheme: scheme.to_string(),
            w_bits,
            a_bits: scheme.activations.map(f64::from),
            group_size: coding.and_then(|coding| match coding.granularity {
                Granularity::Group(size) | Granularity::Block(size) => Some(size),
                Granularity::Tensor | Granularity::Row => None,
            }),
            per_channel: coding.map(|c| matches!(c.granularity, Granularity::Row | Granularity::Group(_))),
            method: method.join(", "),
            backend: how.backend,
            rotation: scheme.rotation,
            recurrence: scheme.recurrence,
            cache: Some(Cached(scheme.cache)).filter(|cached| cached.0 != Width::F32),
            calibration: None,
            budget: None,
            layers: layers.collect(),
        };
        let (tensors, made) = (model.tensors().clone(), Made::default());
        Ok(Self {
            model,
            scheme,
            how,
            parts,
            tensors,
            sites,
            report,
            made,
            pulls: None,
            unseen: BTreeSet::new(),
        })
    }

    /// Rotates and rescales as the scheme wants; returns the text that it needs.
    fn fold(&mut self) -> Result<Option<Sample>> {
        let sample = match self.scheme.needs_calibration() {
            true => Some(self.how.calibration.sample(self.model)?),
            false => None,
        };
        self.report.calibration = sample.as_ref().map(|sample| sample.about.clone());
        if let Some(seed) = self.scheme.rotation {
            fold::rotate(&mut self.tensors, &self.sites, self.model.config.hidden_size(), seed)?;
        }
        self.rescale(sample.as_ref())?;
        Ok(sample)
    }

    /// The model as it stands, nothing quantized.
    fn current(&self) -> Result<Model> {
        self.model.with_matrices(self.tensors.clone(), Matrices::new(), self.report.clone())
    }

    /// Whether anything of a site is quantized.
    fn is_in(&self, i: usize) -> bool {
        self.parts[i].iter().any(|part| part.coding.is_some())
    }

    /// Whether the input of a site is rounded.
    fn is_rounded(&self, i: usize) -> bool {
        select::reads_rounded(self.scheme, &self.sites[i], &self.parts[i])
    }

    /// Smoothing, and scales by channel.
    fn rescale(&mut self, sample: Option<&Sample>) -> Result<()> {
        let by_channel = self.scheme.observer == Some(Observer::Channel);
        let Some(sample) = sample.filter(|_| self.scheme.smooth.is_some() || by_channel) else {
            return Ok(());
        };
        self.check_rescale()?;
        let inputs = observe(&self.current()?, sample, Wanted::default())?;
        self.made.whole.tokens += sample.tokens();
        let (sites, mut done, mut left) = (self.sites.clone(), BTreeSet::new(), vec![]);
        // Readers of one source are rescaled together, by the largest that any of them sees: experts see some tokens each.
        let mut tops: BTreeMap<Source<'_>, Vec<f32>> = BTreeMap::new();
        for (site, inputs) in sites.iter().zip(inputs) {
            let Some(source) = Source::of(site) else { continue };
            let top = tops.entry(source).or_default();
            top.resize(top.len().max(inputs.absmax.len()), 0.0);
            top.iter_mut().zip(inputs.absmax).for_each(|(top, x)| *top = top.max(x));
        }
        for i in 0..sites.len() {
            if !self.is_in(i) && !self.is_rounded(i) {
                continue;
            }
            let Some(source) = Source::of(&sites[i]) else {
                left.push(sites[i].path.as_str());
                continue;
            };
            if !done.insert(source) {
                continue;
            }
            let mut absmax = tops.remove(&source).unwrap_or_default();
            if absmax.is_empty() {
                left.push(sites[i].path.as_str());
                continue;
            }
            source.join(&mut absmax);
            if let Some(exponent) = self.scheme.smooth {
                let by = source.smoothing(&self.tensors, &sites, &absmax, exponent)?;
                source.divide(&mut self.tensors, &sites, &by)?;
                absmax.iter_mut().zip(by).for_each(|(top, by)| *top /= by);
            }
            if let Some(bits) = self.scheme.activations.filter(|_| by_channel) {
                let by = absmax.iter().map(|top| if *top > 0.0 { top / top_of(bits) } else { 1.0 });
                source.divide(&mut self.tensors, &sites, &by.collect::<Vec<_>>())?;
            }
        }
        if !left.is_empty() {
            let told = format!(
                "smoothing (but of {}, whose input comes from no norm of its own and no rows of another matrix)",
                some_of(&left)
            );
            self.report.method = self.report.method.replacen("smoothing", &told, 1);
        }
        Ok(())
    }

    /// Refuses scales by channel for inputs that nothing gives which could be rescaled. Smoothing leaves them out.
    fn check_rescale(&self) -> Result<()> {
        if self.scheme.observer != Some(Observer::Channel) || self.scheme.activations.is_none() {
            return Ok(());
        }
        let rescaled = |i: usize| self.is_in(i) || self.is_rounded(i);
        match (0..self.sites.len()).find(|i| rescaled(*i) && Source::of(&self.sites[*i]).is_none()) {
            None => Ok(()),
            Some(i) => {
                let what = "its input does not come from a norm of its own, nor from rows of another matrix, which could be rescaled";
                let hint = "leave this layer out of scales by channel";
                Err(Error::input(what).at(&self.sites[i].path).hint(hint))
            }
        }
    }

    fn finish(mut self, matrices: Matrices) -> Result<Model> {
        // What was folded and then left as it is goes back to the model's dtype.
        for site in &self.sites {
            if let Some(weight) = self.tensors.get_mut(&site.weight) {
                *weight = cast(weight, self.model.dtype).map_err(|error| error.at(&site.weight))?;
            }
        }
        let mut model = self.model.with_matrices(self.tensors, matrices, self.report)?;
        model.made = Some(self.made);
        Ok(model)
    }
}

/// The largest integer of activations.
fn top_of(bits: u8) -> f32 {
    ((1i32 << (bits - 1)) - 1) as f32
}
