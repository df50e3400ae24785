//! How much each part matters.

use super::{Importance, Pruning, cut};
use crate::error::{Error, Result};
use crate::family::group::{Group, Slice};
use crate::family::{Gradients, Tensors};
use crate::layer::linear::Weight;
use crate::model::Model;
use crate::model::onward::Onward;
use crate::progress::Progress;
use crate::quantize::calibrate::{Sample, Wanted, observe};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

/// Windows that are read together where losses are measured.
const BATCH: usize = 16;

/// A number for each part, the larger the more it matters; and the hash of the text that they are judged on.
pub(super) fn scores(model: &Model, groups: &[Group], how: &Pruning) -> Result<(Vec<f64>, Option<String>)> {
    let on_text = match how.by {
        Importance::Magnitude => return Ok((by_magnitude(model, groups)?, None)),
        Importance::Use => by_use,
        Importance::Gradient => by_gradient,
        Importance::Loss => by_loss,
    };
    let sample = how.calibration.sample(model)?;
    Ok((on_text(model, groups, &sample)?, Some(sample.about.sha256)))
}

/// A number for each weight.
type Each = BTreeMap<String, Vec<f64>>;

fn each_weight(tensors: &Tensors, of: impl Fn(f64) -> f64) -> Result<Each> {
    let each = tensors.iter().map(|(name, tensor)| {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let values = values.into_iter().map(|w| of(f64::from(w))).collect();
        Ok((name.clone(), values))
    });
    each.collect()
}

/// The sum of these numbers over the weights of a part; of those where two of its slices meet twice.
fn sum(each: &Each, tensors: &Tensors, group: &Group) -> f64 {
    let of_slice = |Slice { tensor, axis, range }: &Slice| -> f64 {
        let (values, dims) = (&each[tensor], tensors[tensor].dims());
        let inner: usize = dims[axis + 1..].iter().product();
        let block = dims[*axis] * inner;
        let own = range.start * inner..range.end * inner;
        values.chunks(block.max(1)).map(|block| block[own.clone()].iter().sum::<f64>()).sum()
    };
    let whole = cut::whole(tensors, group).map(|(name, _)| each[name].iter().sum::<f64>());
    group.slices.iter().map(of_slice).sum::<f64>() + whole.sum::<f64>()
}

fn by_magnitude(model: &Model, groups: &[Group]) -> Result<Vec<f64>> {
    let squares = each_weight(model.tensors(), |w| w * w)?;
    Ok(groups.iter().map(|group| sum(&squares, model.tensors(), group)).collect())
}

fn by_gradient(model: &Model, groups: &[Group], sample: &Sample) -> Result<Vec<f64>> {
    let weights = each_weight(model.tensors(), |w| w)?;
    let mut scores = vec![0.0; groups.len()];
    model.slopes(sample, |grads: &Gradients| {
        let pulls = weights.iter().map(|(name, w)| {
            let pulls = grads[name].iter().zip(w).map(|(g, w)| f64::from(*g) * w).collect();
            (name.clone(), pulls)
        });
        let pulls: Each = pulls.collect();
        for (score, group) in scores.iter_mut().zip(groups) {
            *score += sum(&pulls, model.tensors(), group).powi(2);
        }
    })?;
    Ok(scores)
}

/// The columns of the matrix at `path`, each with the square of its norm.
fn columns(tensors: &Tensors, path: &str) -> Result<Vec<f64>> {
    let weight =
        tensors.get(&format!("{path}.weight")).ok_or_else(|| Error::internal(format!("no {path}")))?;
    let squares = weight.to_dtype(DType::F32)?.sqr()?.sum(0)?.to_vec1::<f32>()?;
    Ok(squares.into_iter().map(f64::from).collect())
}

fn by_use(model: &Model, groups: &[Group], sample: &Sample) -> Result<Vec<f64>> {
    let inputs = observe(model, sample, Wanted { gram: true, histogram: false })?;
    let power: BTreeMap<String, Vec<f64>> = model
        .linears()
        .into_iter()
        .zip(inputs)
        .map(|((path, _), inputs)| {
            let k = inputs.absmax.len();
            (path, (0..k).map(|c| f64::from(inputs.gram[c * k + c])).collect())
        })
        .collect();
    let mut norms: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (path, _) in groups.iter().flat_map(|group| &group.read) {
        if !norms.contains_key(path.as_str()) {
            norms.insert(path, columns(model.tensors(), path)?);
        }
    }
    let of = |group: &Group| -> f64 {
        let read = group.read.iter().flat_map(|(path, range)| range.clone().map(move |c| (path, c)));
        // An expert that no token was sent to has no power.
        read.map(|(path, c)| power[path].get(c).copied().unwrap_or(0.0) * norms[path.as_str()][c]).sum()
    };
    Ok(groups.iter().map(of).collect())
}

fn by_loss(model: &Model, groups: &[Group], sample: &Sample) -> Result<Vec<f64>> {
    let windows: Vec<&[u32]> = sample.in_order().map(|(_, ids)| ids.as_slice()).collect();
    let read: Vec<&[u32]> = windows.iter().map(|ids| &ids[..ids.len() - 1]).collect();
    let targets: Vec<u32> = windows.iter().flat_map(|ids| &ids[1..]).copied().collect();
    let mut onward = Onward::windows(model, &read, BATCH)?;
    let mut loss = |changed: &Model, from: usize| -> Result<f64> {
        let (mut sum, mut left) = (0.0, targets.as_slice());
        onward.ends(changed, Some(from), |_, end| {
            let (own, rest) = left.split_at(end.dim(0)? * end.dim(1)?);
            left = rest;
            sum += changed.nll_of(&end, own)?.into_iter().map(f64::from).sum::<f64>();
            Ok(())
        })?;
        Ok(sum / targets.len() as f64)
    };
    let whole = loss(model, 0)?;
    let progress = Progress::new("parts", groups.len() as u64, "parts");
    let mut scores = vec![];
    for group in groups {
        scores.push(loss(&without_output(model, group)?, group.layer)? - whole);
        progress.tick(1)?;
    }
    Ok(scores)
}

/// The model in which nothing reads what a part gives.
fn without_output(model: &Model, group: &Group) -> Result<Model> {
    let mut model = model.clone();
    for (path, linear) in model.linears_mut() {
        for (_, range) in group.read.iter().filter(|(read, _)| *read == path) {
            let weight = linear.weight.values()?;
            let kept: Vec<f32> =
                (0..weight.dim(1)?).map(|c| if range.contains(&c) { 0.0 } else { 1.0 }).collect();
            let kept = Tensor::from_vec(kept, weight.dim(1)?, weight.device())?;
            linear.weight = Weight::Dense(weight.broadcast_mul(&kept)?);
        }
    }
    Ok(model)
}
