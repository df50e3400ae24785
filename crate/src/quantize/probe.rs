//! A quantization taken apart: the model as a scheme folds it, with one part at a time as the scheme rounds it.
//!
//! What is folded (a rotation, smoothing) is folded everywhere and changes no prediction, so that a part's harm is that
//! of its rounding alone.

use super::calibrate::{Inputs, Wanted, observe};
use super::scheme::Scheme;
use super::select::{self, Part};
use super::{Job, Quantizing, mixed};
use crate::error::{Error, Result};
use crate::family::{Matrices, Site};
use crate::format::Coding;
use crate::layer::attention::Width;
use crate::layer::linear::Weight;
use crate::layer::op::with_floats;
use crate::layer::quantized::{Block, Quantized};
use crate::model::Model;
use crate::model::quantization::Backend;
use crate::threads::install;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// How finely a model is taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grain {
    /// All matrices of a block together.
    Layer,
    /// Each matrix.
    Matrix,
    /// Each segment of a matrix.
    #[default]
    Segment,
}

impl FromStr for Grain {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "layer" => Ok(Self::Layer),
            "matrix" => Ok(Self::Matrix),
            "segment" => Ok(Self::Segment),
            _ => {
                Err(Error::input(format!("unknown grain {name:?}"))
                    .hint("known are layer, matrix and segment"))
            }
        }
    }
}

/// A part of a model that is quantized alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// The pattern by which a rule of a scheme selects it, and nothing else.
    pub pattern: String,
    /// Its block; none at the ends of the network.
    pub layer: Option<usize>,
    /// What it is within its block: `x`, `in_proj`, `layer`; at the ends `head`, `embedding`, `head|embedding`.
    pub part: String,
    /// The first block that reads something else when the unit changes; none where the residual stream begins with it,
    /// the number of blocks where only the head reads it.
    pub first: Option<usize>,
    /// Its rows, by the number of their site.
    pieces: Vec<(usize, Part)>,
}

/// A model with its quantization, ready to be put together part by part.
#[derive(Clone, Debug)]
pub struct Probe {
    base: Model,
    whole: Model,
    sites: Vec<Site>,
    units: Vec<Unit>,
}

/// What the rounding of one unit does to its matrices, seen from the weights and their inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounding {
    /// Weights.
    pub weights: usize,
    /// Bytes of codes and scales.
    pub bytes: usize,
    /// ‖W‖², and of the rounding ‖ΔW‖².
    pub weight: (f64, f64),
    /// ‖W X‖² on the inputs seen, and of the rounding ‖ΔW X‖² = tr(ΔW XᵀX ΔWᵀ), with H = XᵀX the Hessian of the
    /// outputs' squared error (Frantar et al. 2023). Rounding of the inputs themselves is not in it.
    pub output: (f64, f64),
}

impl Unit {
    /// The format of its rows, if they have one in common.
    pub fn coding(&self) -> Option<Coding> {
        let mut codings = self.pieces.iter().map(|(_, part)| part.coding);
        let first = codings.next()?;
        first.filter(|_| codings.all(|coding| coding == first))
    }
}

impl Probe {
    /// Takes a model and its quantization apart. Products are those of what the codes stand for, in f32.
    ///
    /// # Errors
    /// If the scheme does not fit the model, chooses widths by itself, rounds the recurrence, or rounds no weights.
    pub fn new(model: &Model, scheme: &Scheme, how: &Quantizing, grain: Grain) -> Result<Self> {
        Self::check(scheme)?;
        let model = model.stored_for(scheme)?;
        scheme.admits(&model, model.dtype)?;
        let how = Quantizing { backend: Backend::Fake, ..how.clone() };
        let mut job = Job::new(&model, scheme, &how)?;
        if grain == Grain::Segment {
            job.parts = select::segments(scheme, &job.sites)?;
        }
        let sample = job.fold()?;
        let base = job.clone().finish(Matrices::new())?;
        let (sites, parts) = (job.sites.clone(), job.parts.clone());
        let units = units(&sites, &parts, model.config.layers(), grain);
        Ok(Self { base, whole: job.round(sample.as_ref())?, sites, units })
    }

    /// Refuses schemes of which no part can be told from the rest.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn check(scheme: &Scheme) -> Result<()> {
        let refused =
            |what: &str, hint: &str| Err(Error::input(what).at(format!("scheme {scheme}")).hint(hint));
        if scheme.budget.is_some() {
            return refused(
                "it chooses widths by itself",
                "name the width that parts are to be tried at: w3a16",
            );
        }
        if scheme.recurrence != Default::default() {
            return refused("the recurrence is no part of a matrix", "leave x8, bc8 and h8 out");
        }
        if scheme.cache != Width::F32 {
            return refused("the cache is no part of a matrix", "leave kv8 out");
        }
        if scheme.weights.is_none() && scheme.rules.iter().all(|rule| rule.coding.is_none()) {
            return refused("it rounds no weights", "such as w3a16, w4a8-g64 or w3a16+head=w3");
        }
        Ok(())
    }

    /// The model folded, nothing rounded: what a unit's harm is measured against.
    pub fn base(&self) -> &Model {
        &self.base
    }

    /// The parts, in the order in which the network comes to them.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The model with one unit rounded, and the inputs of its matrices where the scheme rounds activations.
    ///
    /// # Errors
    /// If a tensor cannot be cut.
    pub fn with(&self, unit: &Unit) -> Result<Model> {
        let mut model = self.base.clone();
        for (i, (_, linear)) in model.linears_mut().into_iter().enumerate() {
            let pieces = unit.pieces.iter().filter(|(site, _)| *site == i);
            let rounded = pieces.map(|(_, part)| Ok((part.first, self.rows(&self.whole, i, part)?)));
            let rounded = rounded.collect::<Result<Vec<_>>>()?;
            if !rounded.is_empty() {
                linear.weight = spliced(&linear.weight, rounded)?;
                linear.activation = self.whole.linears()[i].1.activation;
            }
        }
        Ok(model)
    }

    /// What matrices read on a sample of text: one entry a site, with XᵀX.
    ///
    /// # Errors
    /// If the model cannot read the tokens, or it is interrupted.
    pub fn inputs(&self, sample: &super::calibrate::Sample) -> Result<Vec<Inputs>> {
        observe(&self.base, sample, Wanted { gram: true, histogram: false })
    }

    /// What rounding a unit does, with the inputs of [`inputs`](Self::inputs).
    ///
    /// # Errors
    /// If a tensor cannot be cut.
    pub fn rounding(&self, unit: &Unit, inputs: &[Inputs]) -> Result<Rounding> {
        let mut all = Rounding::default();
        for (i, part) in &unit.pieces {
            let cols = self.sites[*i].cols;
            let [exact, found] = [&self.base, &self.whole].map(|model| {
                let rows = self.rows(model, *i, part)?;
                Ok::<_, Error>(with_floats([&rows], |[values]| values.to_vec())?)
            });
            let (exact, found) = (exact?, found?);
            let zeros = vec![0.0; exact.len()];
            all.weights += exact.len();
            all.bytes += part.coding.map_or(0, |coding| coding.bytes(part.rows, cols));
            let gram = inputs[*i].gram.as_slice();
            install(|| {
                all.weight.0 += mixed::output_error(&exact, &zeros, cols, &[]);
                all.weight.1 += mixed::output_error(&exact, &found, cols, &[]);
                all.output.0 += mixed::output_error(&exact, &zeros, cols, gram);
                all.output.1 += mixed::output_error(&exact, &found, cols, gram);
            });
        }
        Ok(all)
    }

    /// The rounding itself: for each matrix of the unit the name of its tensor, the first row, and ΔW [rows, in] in f32.
    ///
    /// # Errors
    /// If a tensor cannot be cut.
    pub fn changes(&self, unit: &Unit) -> Result<Vec<(&str, usize, Tensor)>> {
        let change = |(i, part): &(usize, Part)| {
            let change = (self.rows(&self.whole, *i, part)? - self.rows(&self.base, *i, part)?)?;
            Ok((self.sites[*i].weight.as_str(), part.first, change))
        };
        unit.pieces.iter().map(change).collect()
    }

    /// Rows of a matrix of one of the two models, in f32.
    fn rows(&self, model: &Model, site: usize, part: &Part) -> Result<Tensor> {
        let rows = match &model.linears()[site].1.weight {
            Weight::Dense(all) => all.narrow(0, part.first, part.rows)?.to_dtype(DType::F32)?,
            quantized => quantized.values()?.narrow(0, part.first, part.rows)?,
        };
        Ok(rows.contiguous()?)
    }
}

/// The units of the parts that have a format.
fn units(sites: &[Site], parts: &[Vec<Part>], layers: usize, grain: Grain) -> Vec<Unit> {
    let mut all: Vec<Unit> = vec![];
    for (i, site) in sites.iter().enumerate() {
        let in_scope = parts[i].iter().filter(|part| part.coding.is_some());
        let first = site.first_reader(layers);
        for part in in_scope {
            let segment = part.segment.as_deref().filter(|_| grain == Grain::Segment);
            let pattern = segment.map_or(site.path.clone(), |name| format!("{}.{name}", site.path));
            let name = segment.map_or_else(|| site.part(), str::to_string);
            let mut unit = Unit { pattern, layer: site.layer, part: name, first, pieces: vec![] };
            if grain == Grain::Layer && site.layer.is_some() {
                let of_block = |other: &&Site| other.layer == site.layer;
                unit.pattern = common(sites.iter().filter(of_block).map(|other| other.path.as_str()));
                unit.part = "layer".to_string();
            }
            let same = |other: &&mut Unit| other.pattern == unit.pattern;
            match all.iter_mut().find(same) {
                Some(other) => other.pieces.push((i, part.clone())),
                None => all.push(Unit { pieces: vec![(i, part.clone())], ..unit }),
            }
        }
    }
    // `None`, the beginning of the stream, sorts before every block.
    all.sort_by_key(|unit| unit.first);
    all
}

/// The pattern of what all paths begin with: `backbone.layers.0.mixer.*`.
fn common<'a>(mut paths: impl Iterator<Item = &'a str>) -> String {
    let first: Vec<&str> = paths.next().unwrap_or_default().split('.').collect();
    let shared = |length: usize, path: &str| {
        first.iter().zip(path.split('.')).take(length).take_while(|(a, b)| *a == b).count()
    };
    let length = paths.fold(first.len().saturating_sub(1), shared);
    format!("{}.*", first[..length].join("."))
}

/// A weight of which some rows are replaced: the first row and the values [rows, in] in f32 of each piece, which are
/// multiplied as what codes stand for. Everything else stays as it is stored.
///
/// # Errors
/// If a piece does not fit.
pub(super) fn spliced(weight: &Weight, pieces: impl IntoIterator<Item = (usize, Tensor)>) -> Result<Weight> {
    let whole = match weight {
        Weight::Dense(whole) => whole.clone(),
        Weight::Quantized(quantized) => quantized.values()?,
    };
    let (rows, cols) = whole.dims2()?;
    let (mut blocks, mut done) = (vec![], 0);
    for (first, values) in pieces {
        if first > done {
            blocks.push(Block::Dense(whole.narrow(0, done, first - done)?.contiguous()?));
        }
        done = first + values.dim(0)?;
        blocks.push(Block::Fake(values));
    }
    if done < rows {
        blocks.push(Block::Dense(whole.narrow(0, done, rows - done)?.contiguous()?));
    }
    Ok(Weight::Quantized(Quantized::new(blocks, cols)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(scheme: &str, grain: Grain) -> Vec<String> {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let probe = Probe::new(&model, &scheme.parse().unwrap(), &Quantizing::default(), grain).unwrap();
        probe.units().iter().map(|unit| unit.pattern.clone()).collect()
    }

    #[test]
    fn units_are_what_rules_select() {
        let segments = patterns("w3a16+head=w4", Grain::Segment);
        assert_eq!(segments.len(), 1 + 8 * 6);
        assert_eq!(
            segments[..3],
            ["lm_head", "backbone.layers.0.mixer.in_proj.z", "backbone.layers.0.mixer.in_proj.x"]
        );
        let matrices = patterns("w3a16+dt=keep", Grain::Matrix);
        assert_eq!(matrices.len(), 16);
        assert_eq!(matrices[3], "backbone.layers.1.mixer.out_proj");
        let layers = patterns("w3a16", Grain::Layer);
        assert_eq!(layers.len(), 8);
        assert_eq!(layers[7], "backbone.layers.7.mixer.*");
    }

    /// The model with one unit rounded is the model that the scheme with this unit alone in scope makes.
    #[test]
    fn a_unit_alone_is_a_scheme_with_rules() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let ids: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % 256).collect();
        let how = Quantizing { backend: Backend::Fake, ..Quantizing::default() };
        for (base, coding, grain) in [
            ("w3a16", "w3", Grain::Segment),
            ("w4a4-g64", "w4-g64", Grain::Segment),
            ("w2a8", "w2", Grain::Matrix),
            ("nf4dq-rot", "nf4dq", Grain::Segment),
            ("w3a16-rot", "w3", Grain::Layer),
        ] {
            let probe = Probe::new(&model, &base.parse().unwrap(), &Quantizing::default(), grain).unwrap();
            let unit = probe.units().iter().find(|unit| unit.layer == Some(3)).unwrap();
            let only: Scheme = format!("{base}+*=keep+{}={coding}", unit.pattern).parse().unwrap();
            let expected = model.quantized_with(&only, &how).unwrap().nll(&ids, 50).unwrap();
            assert_eq!(probe.with(unit).unwrap().nll(&ids, 50).unwrap(), expected, "{only}");
            let folded = probe.base().nll(&ids, 50).unwrap();
            assert_ne!(folded, expected);
            let near = folded.iter().zip(model.nll(&ids, 50).unwrap()).all(|(a, b)| (a - b).abs() < 1e-3);
            assert!(near, "folding changes no prediction");
        }
    }

    #[test]
    fn schemes_without_parts_are_refused() {
        for (scheme, part) in [
            ("w4a16-mix4.5", "chooses widths by itself"),
            ("w4a16-h8", "the recurrence is no part"),
            ("w4a16-kv8", "the cache is no part"),
            ("w16a8", "rounds no weights"),
        ] {
            let error = Probe::check(&scheme.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
