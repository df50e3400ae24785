//! Rounding while a network trains: of weights and activations (QAT), and of the products of a recurrence's chunks.

use super::Training;
use crate::error::{Error, Result};
use crate::family::{Stack, Tensors};
use crate::layer::recurrence::Recurrence;
use crate::quantize::Scheme;
use crate::quantize::straight::Straight;
use serde::{Deserialize, Serialize};

/// Quantization-aware training: from a share of the run on, each step sees weights, and activations if the scheme has bits for
/// them, as [`Model::quantized`](crate::Model::quantized) would make them; gradients pass the rounding unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qat {
    /// What is rounded, and how: formats of weights and bits of activations.
    pub scheme: Scheme,
    /// The share of the run's steps after which it begins.
    #[serde(default)]
    pub from: f64,
    /// Whether weights get noise of half a step, drawn anew at each step, in the place of rounding.
    #[serde(default)]
    pub noise: bool,
}

impl Training {
    /// What training sees of the scheme of its QAT.
    pub(super) fn straight(&self) -> Result<Option<Straight>> {
        let Some(Qat { scheme, from, .. }) = &self.qat else { return Ok(None) };
        if !(0.0..=1.0).contains(from) {
            return Err(Error::input(format!("qat.from is a share of the run from 0 to 1, found {from}")));
        }
        Straight::new(scheme, &self.model).map(Some).map_err(|error| error.at("qat"))
    }

    /// What of a recurrence is rounded while it trains.
    pub(super) fn products(&self) -> Result<Recurrence> {
        let products = self.products.as_ref().map(|name| name.parse()).transpose();
        let products = products.map_err(|error: Error| error.at("products"))?;
        Ok(Recurrence { products, ..Recurrence::default() })
    }

    /// The network of these weights as they are, but for the products of a recurrence's chunks.
    pub(super) fn network(&self, tensors: &Tensors) -> Result<Stack> {
        let mut network = self.model.stack(tensors, &Default::default())?;
        network.set_recurrence(self.products()?).map_err(|error| error.at("products"))?;
        Ok(network)
    }

    /// The network that update number `step` (from 0) sees.
    pub(super) fn network_at(
        &self,
        step: u64,
        tensors: &Tensors,
        straight: Option<&Straight>,
    ) -> Result<Stack> {
        let begun = |qat: &&Qat| step as f64 >= qat.from * self.steps as f64;
        match (self.qat.as_ref().filter(begun), straight) {
            (Some(Qat { noise: true, .. }), Some(straight)) => {
                let mut network = self.network(&straight.noisy(tensors, self.seed, step)?)?;
                straight.round_inputs(&mut network);
                Ok(network)
            }
            (Some(_), Some(straight)) => self.rounded(tensors, straight),
            _ => self.network(tensors),
        }
    }

    /// The network with everything rounded.
    pub(super) fn rounded(&self, tensors: &Tensors, straight: &Straight) -> Result<Stack> {
        let mut network = self.network(&straight.weights(tensors)?)?;
        straight.round_inputs(&mut network);
        Ok(network)
    }
}
