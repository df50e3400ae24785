//! A model whose linears are watched: what each of them reads.

use crate::error::Result;
use crate::model::Model;
use candle_core::Tensor;
use std::sync::{Arc, Mutex, PoisonError};

/// A model that keeps what its linears read.
pub(super) struct Watched {
    model: Model,
    seen: Arc<Mutex<Vec<Option<Tensor>>>>,
}

impl Watched {
    pub fn new(model: &Model) -> Self {
        let seen = Arc::new(Mutex::new(vec![None; model.linears().len()]));
        let model = model.tapped(|i| {
            let seen = seen.clone();
            move |x: &Tensor| {
                seen.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(x.clone());
                Ok(())
            }
        });
        Self { model, seen }
    }

    /// The input [1, T, in] of each linear when these tokens are read from a state of zeros, in the order of the
    /// linears; none for one that reads no activations.
    pub fn inputs(&self, ids: &[u32]) -> Result<Vec<Option<Tensor>>> {
        self.model.read(ids)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(seen.iter_mut().map(Option::take).collect())
    }
}
