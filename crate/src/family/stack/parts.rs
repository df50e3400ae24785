//! The tensors and matrices of a checkpoint, as a family's recipe asks for them.

use super::{Parameter, Step};
use crate::family::{Matrices, Tensors};
use crate::layer::branch::Branch;
use crate::layer::linear::{Linear, Weight};
use crate::layer::mlp::Mlp;
use crate::layer::norm::Norm;
use candle_core::{DType, Device, Result, Tensor, bail};

/// Tensors, and the matrices that are in few bits, by their names in a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    tensors: &'a Tensors,
    matrices: &'a Matrices,
}

impl<'a> Parts<'a> {
    /// Of tensors that [`check`](crate::family::check) has passed.
    pub fn new(tensors: &'a Tensors, matrices: &'a Matrices) -> Self {
        Self { tensors, matrices }
    }

    /// Where the tensors are.
    pub(crate) fn device(&self) -> &Device {
        self.tensors.values().next().map_or(&Device::Cpu, Tensor::device)
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => bail!("missing tensor {name}"),
        }
    }

    /// A small parameter, in f32.
    ///
    /// # Errors
    /// If it is not there.
    pub fn small(&self, name: &str) -> Result<Tensor> {
        self.get(name)?.to_dtype(DType::F32)
    }

    /// A small parameter of the stack itself.
    ///
    /// # Errors
    /// If it is not there.
    pub fn parameter(&self, name: String) -> Result<Parameter> {
        Ok(Parameter { values: self.small(&name)?, name })
    }

    /// The matrix `path`.weight as it is stored, and `path`.bias if there is to be one.
    ///
    /// # Errors
    /// If one is not there.
    pub fn linear(&self, path: &str, bias: bool) -> Result<Linear> {
        let name = format!("{path}.weight");
        let bias = bias.then(|| self.small(&format!("{path}.bias"))).transpose()?;
        let weight = match self.matrices.get(&name) {
            Some(matrix) => Weight::Quantized(matrix.clone()),
            None => Weight::Dense(self.get(&name)?),
        };
        Ok(Linear::new(weight, bias))
    }

    /// The RMSNorm whose weight is `path`.weight.
    ///
    /// # Errors
    /// If it is not there.
    pub fn norm(&self, path: &str, eps: f64) -> Result<Norm> {
        Ok(Norm::rms(self.small(&format!("{path}.weight"))?, eps))
    }

    /// The LayerNorm whose weight and bias are `path`.weight and `path`.bias.
    ///
    /// # Errors
    /// If one is not there.
    pub fn layer_norm(&self, path: &str, eps: f64) -> Result<Norm> {
        let [weight, bias] = ["weight", "bias"].map(|part| self.small(&format!("{path}.{part}")));
        Ok(Norm::layer(weight?, bias?, eps))
    }

    /// The gated feed-forward layer at `path`, with a factor on its gate if one is given.
    ///
    /// # Errors
    /// If a matrix or a bias is not there.
    pub fn gated(&self, path: &str, bias: bool, gate_factor: Option<f32>) -> Result<Mlp> {
        let [gate_proj, up_proj, down_proj] =
            ["gate_proj", "up_proj", "down_proj"].map(|name| self.linear(&format!("{path}.{name}"), bias));
        Ok(Mlp { gate_proj: gate_proj?, up_proj: up_proj?, down_proj: down_proj?, gate_factor })
    }

    /// A branch behind the norm `norm_path`.
    ///
    /// # Errors
    /// If the norm's weight is not there.
    pub fn step(
        &self,
        norm_path: String,
        eps: f64,
        path: String,
        branch: impl Branch + 'static,
    ) -> Result<Step> {
        self.boxed(norm_path, eps, path, Box::new(branch))
    }

    /// The same of a branch of any kind.
    ///
    /// # Errors
    /// If the norm's weight is not there.
    pub fn boxed(&self, norm_path: String, eps: f64, path: String, branch: Box<dyn Branch>) -> Result<Step> {
        let norm = self.norm(&norm_path, eps)?;
        Ok(Step { path, norm_path: Some(norm_path), norm, branch, scale: None })
    }
}
