//! How much each part matters.

use super::{Importance, Pruning, cut};
use crate::error::{Error, Result};
use crate::family::group::{Group, Slice};
use crate::family::{Gradients, Matrices, Stack, Tensors};
use crate::kernel::softmax;
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::progress::Progress;
use crate::quantize::calibrate::{Sample, Wanted, observe};
use crate::threads::install;
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

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
    let windows: Vec<&Vec<u32>> = sample.in_order().map(|(_, ids)| ids).collect();
    let layers = model.config.layers();
    // The streams that enter each block, window by window.
    let mut entering: Vec<Vec<Tensor>> = vec![];
    for ids in &windows {
        let mut streams = vec![model.embed(&model.tokens(&ids[..ids.len() - 1])?)?];
        for block in 0..layers {
            streams.push(model.through(streams[block].clone(), block..block + 1)?);
        }
        entering.push(streams);
    }
    let loss = |stack: &Stack, from: usize| -> Result<f64> {
        let mut sum = 0.0;
        for (ids, streams) in windows.iter().zip(&entering) {
            let logits = install(|| {
                let stream = stack.through(streams[from].clone(), from..layers, None)?;
                stack.logits(&stack.close(&stream)?)
            })?;
            let nll = with_floats([&logits.contiguous()?], |[logits]| {
                softmax::nll(logits, model.config.vocab_size(), &ids[1..])
            })?;
            sum += nll.iter().map(|x| f64::from(*x)).sum::<f64>() / nll.len() as f64;
        }
        Ok(sum / windows.len() as f64)
    };
    let stack = model.config.stack(model.tensors(), &Matrices::new())?;
    let whole = loss(&stack, layers)?;
    let progress = Progress::new("parts", groups.len() as u64, "parts");
    let mut scores = vec![];
    for group in groups {
        let mut tensors = model.tensors().clone();
        for (path, range) in &group.read {
            let name = format!("{path}.weight");
            let weight = tensors[&name].to_dtype(DType::F32)?;
            let kept: Vec<f32> =
                (0..weight.dim(1)?).map(|c| if range.contains(&c) { 0.0 } else { 1.0 }).collect();
            let kept = Tensor::from_vec(kept, weight.dim(1)?, weight.device())?;
            tensors.insert(name, weight.broadcast_mul(&kept)?);
        }
        scores.push(loss(&model.config.stack(&tensors, &Matrices::new())?, group.layer)? - whole);
        progress.tick(1)?;
    }
    Ok(scores)
}
