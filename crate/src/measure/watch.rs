//! A model whose linears are watched: what each of them reads.

use crate::error::Result;
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
