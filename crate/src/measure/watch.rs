//! A model whose linears are watched: what each of them reads.

use crate::error::{Error, Result};
use crate::family::Site;
use crate::layer::linear::Linear;
use crate::model::Model;
use candle_core::Tensor;
use std::sync::{Arc, Mutex, PoisonError};

/// A model that keeps what its linears read.
pub(super) struct Watched {
    model: Model,
    /// By linear: the pieces of the text, which come in their order.
    seen: Arc<Mutex<Vec<Vec<Tensor>>>>,
}

impl Watched {
    pub fn new(model: &Model) -> Self {
        let seen = Arc::new(Mutex::new(vec![vec![]; model.linears().len()]));
        let model = model.tapped(|i| {
            let seen = seen.clone();
            move |x: &Tensor| {
                seen.lock().unwrap_or_else(PoisonError::into_inner)[i].push(x.clone());
                Ok(())
            }
        });
        Self { model, seen }
    }

    /// The input [1, T, in] of each linear when these tokens are read from a state of zeros, in the order of the
    /// linears; none for one that reads no activations.
    pub fn inputs(&self, ids: &[u32]) -> Result<Vec<Option<Tensor>>> {
        self.seen_when(|| self.model.read(ids)).map(|((), inputs)| inputs)
    }

    /// The residual stream [1, T, hidden] that enters each block, and that which leaves the last; with the inputs of the
    /// linears, as [`inputs`](Self::inputs).
    pub fn blocks(&self, ids: &[u32]) -> Result<(Vec<Tensor>, Vec<Option<Tensor>>)> {
        self.seen_when(|| {
            let mut streams = vec![self.model.embed(&self.model.tokens(ids)?)?];
            for block in 0..self.model.config.layers() {
                streams.push(self.model.through(streams[block].clone(), block..block + 1)?);
            }
            self.model.show_head(&self.model.close(&streams[streams.len() - 1])?)?;
            Ok(streams)
        })
    }

    /// What `read` gives, and what the linears were shown meanwhile.
    fn seen_when<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Option<Tensor>>)> {
        let read = read();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.iter_mut().map(std::mem::take).collect::<Vec<_>>();
        let whole = |pieces: Vec<Tensor>| (!pieces.is_empty()).then(|| Tensor::cat(&pieces, 1)).transpose();
        Ok((read?, seen.into_iter().map(whole).collect::<candle_core::Result<_>>()?))
    }
}

/// Which tokens of a text each linear read, by what `inputs` they were seen to read: those that a router chose its expert for; none
/// where it read all, or nothing.
pub(super) fn tokens_read(sites: &[Site], inputs: &[Option<Tensor>]) -> Result<Vec<Option<Vec<u32>>>> {
    let rows = |at: usize| -> Result<Option<Vec<Vec<f32>>>> {
        let input = inputs[at].as_ref().map(|input| input.squeeze(0)?.to_vec2::<f32>());
        Ok(input.transpose()?)
    };
    let mut all: Vec<Option<Vec<u32>>> = vec![None; sites.len()];
    for (at, site) in sites.iter().enumerate().filter(|(_, site)| site.expert.is_some()) {
        // What an expert reads first are rows of what the router reads, in their order; what else it reads follows from them.
        let of_expert = |other: &Site| other.layer == site.layer && other.expert == site.expert;
        let of_router = |other: &Site| other.layer == site.layer && other.roles.contains(&"router");
        let first = sites.iter().position(of_expert).unwrap_or(at);
        if first < at {
            all[at] = all[first].clone();
            continue;
        }
        let router = sites.iter().position(of_router).map(&rows).transpose()?.flatten();
        let (Some(router), Some(own)) = (router, rows(at)?) else { continue };
        let mut tokens = (0..).zip(&router);
        let read: Vec<u32> = own
            .iter()
            .filter_map(|row| tokens.find(|(_, of_router)| *of_router == row).map(|(t, _)| t))
            .collect();
        if read.len() != own.len() {
            return Err(Error::internal(format!("{} reads what its router does not", site.path)));
        }
        all[at] = Some(read);
    }
    Ok(all)
}

/// What a linear was given that was seen to read `input`: a tap sees it rotated, where the linear rotates it.
pub(super) fn given(linear: &Linear, input: &Tensor) -> Result<Tensor> {
    match &linear.rotation {
        Some(rotation) => Ok(rotation.backward(input)?),
        None => Ok(input.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::moe::choose;

    #[test]
    fn experts_are_seen_to_read_the_tokens_that_were_sent_to_them() {
        let model = Model::load("random:itera-lite-tiny").unwrap();
        let ids: Vec<u32> = (0..100).map(|i| i * 7 % 256).collect();
        let (sites, inputs) = (model.config.sites(), Watched::new(&model).inputs(&ids).unwrap());
        let read = tokens_read(&sites, &inputs).unwrap();
        let linears = model.linears();
        for (router, site) in sites.iter().enumerate().filter(|(_, site)| site.roles == ["router"]) {
            let logits = linears[router].1.forward(inputs[router].as_ref().unwrap()).unwrap();
            let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let picks = choose(&logits, 4, 2);
            let of_layer = sites.iter().enumerate().filter(|(_, other)| other.layer == site.layer);
            for (at, other) in of_layer {
                let Some(expert) = other.expert else {
                    assert_eq!(read[at], None);
                    continue;
                };
                let mine = picks.iter().filter(|pick| pick.expert as usize == expert).map(|pick| pick.row);
                assert_eq!(read[at].clone().unwrap_or_default(), mine.collect::<Vec<_>>());
            }
        }
        assert_eq!(read.iter().flatten().map(Vec::len).sum::<usize>(), 2 * 2 * 2 * 100);
    }

    #[test]
    fn a_long_text_is_seen_from_its_first_token_to_its_last() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let ids: Vec<u32> = (0..700).map(|i| i * 7 % 256).collect();
        let watched = Watched::new(&model);
        let (long, short) = (watched.inputs(&ids).unwrap(), watched.inputs(&ids[..100]).unwrap());
        for (long, short) in long.iter().zip(&short) {
            let (long, short) = (long.as_ref().unwrap(), short.as_ref().unwrap());
            assert_eq!(long.dim(1).unwrap(), 700);
            // What comes later changes nothing before it, but for the order of sums.
            let apart = (long.narrow(1, 0, 100).unwrap() - short).unwrap().abs().unwrap();
            assert!(apart.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-3);
        }
        // Block by block the linears are shown the same.
        let (streams, inputs) = watched.blocks(&ids[..100]).unwrap();
        assert_eq!(streams.len(), model.config.layers() + 1);
        for (blockwise, short) in inputs.iter().zip(&short) {
            let [blockwise, short] = [blockwise, short].map(|x| x.as_ref().unwrap().flatten_all().unwrap());
            assert_eq!(blockwise.to_vec1::<f32>().unwrap(), short.to_vec1::<f32>().unwrap());
        }
    }
}
