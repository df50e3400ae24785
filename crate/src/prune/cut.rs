//! Tensors without the parts that are left out.

use crate::error::{Error, Result};
use crate::family::Tensors;
use crate::family::group::{Group, Slice};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// The number behind `parent` in a name, and what follows it.
fn numbered<'a>(name: &'a str, parent: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(parent)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// Parameters of a part.
pub(super) fn size(tensors: &Tensors, group: &Group) -> usize {
    let of_slice = |slice: &Slice| {
        let tensor = tensors.get(&slice.tensor)?;
        let along = tensor.dims().get(slice.axis).copied().filter(|along| *along > 0)?;
        Some(tensor.elem_count() / along * slice.range.len())
    };
    let slices: usize = group.slices.iter().filter_map(of_slice).sum();
    slices + whole(tensors, group).map(|(_, tensor)| tensor.elem_count()).sum::<usize>()
}

/// The tensors that a part is all of.
pub(super) fn whole<'a>(
    tensors: &'a Tensors,
    group: &'a Group,
) -> impl Iterator<Item = (&'a String, &'a Tensor)> {
    let own = move |parent: &'a String| {
        let of_group = move |name: &str| numbered(name, parent).is_some_and(|(at, _)| at == group.at);
        tensors.iter().filter(move |(name, _)| of_group(name))
    };
    group.whole.iter().flat_map(own)
}

/// What is left of the tensors without these parts.
///
/// # Errors
/// If a slice is of no tensor.
pub(super) fn cut(tensors: &Tensors, left_out: &[&Group]) -> Result<Tensors> {
    let mut gone: BTreeMap<&str, BTreeMap<usize, BTreeSet<usize>>> = BTreeMap::new();
    let mut dropped: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for group in left_out {
        for Slice { tensor, axis, range } in &group.slices {
            gone.entry(tensor).or_default().entry(*axis).or_default().extend(range.clone());
        }
        if let Some(parent) = &group.whole {
            dropped.entry(parent).or_default().insert(group.at);
        }
    }
    if let Some(name) = gone.keys().find(|name| !tensors.contains_key(**name)) {
        return Err(Error::internal(format!("no tensor {name} to be cut")));
    }
    let mut all = Tensors::new();
    for (name, tensor) in tensors {
        let place = dropped.iter().find_map(|(parent, gone)| Some((parent, gone, numbered(name, parent)?)));
        let name_left = match place {
            Some((_, gone, (at, _))) if gone.contains(&at) => continue,
            Some((parent, gone, (at, rest))) => format!("{parent}{}.{rest}", at - gone.range(..at).count()),
            None => name.clone(),
        };
        let mut tensor = tensor.clone();
        for (axis, gone) in gone.get(name.as_str()).into_iter().flatten() {
            let along = tensor.dim(*axis)? as u32;
            let kept: Vec<u32> = (0..along).filter(|at| !gone.contains(&(*at as usize))).collect();
            tensor = tensor.index_select(&Tensor::new(kept, &Device::Cpu)?, *axis)?.contiguous()?;
        }
        all.insert(name_left, tensor);
    }
    Ok(all)
}
