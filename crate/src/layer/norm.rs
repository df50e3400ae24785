//! RMSNorm and LayerNorm over the last dimension.

use super::op::with_floats;
use crate::kernel::layer_norm::{add_layer_norm, layer_norm, layer_norm_grad};
use crate::kernel::norm::{add_rms_norm, rms_norm, rms_norm_grad};
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::rms_norm_slow;

/// RMSNorm, y = x / √(mean x² + ε) · w; or LayerNorm, y = (x − mean x) / √(var x + ε) · w + b.
#[derive(Clone, Debug)]
pub struct Norm {
    weight: Tensor,
    /// Of a LayerNorm alone.
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    /// An RMSNorm with weight `[C]` in f32.
    pub fn rms(weight: Tensor, eps: f64) -> Self {
        Self { weight, bias: None, eps }
    }

    /// A LayerNorm with weight and bias `[C]` in f32.
    pub fn layer(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias: Some(bias), eps }
    }

    /// An RMSNorm of C channels without weights.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn plain(channels: usize, eps: f64, device: &Device) -> Result<Self> {
        Ok(Self::rms(Tensor::ones(channels, DType::F32, device)?, eps))
    }

    /// C.
    pub(crate) fn channels(&self) -> usize {
        self.weight.elem_count()
    }

    /// x [.., C] in f32 → [.., C].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() || x.track_op() || self.tracked() {
            return self.definition(x);
        }
        let mut y = vec![0.0; x.elem_count()];
        with_floats([&x.contiguous()?], |[x]| self.apply(x, &mut y))??;
        Tensor::from_vec(y, x.shape(), x.device())
    }

    /// The same by the kernels on a CPU: `x` and `y` are rows of C values.
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        let eps = self.eps as f32;
        match &self.bias {
            None => with_floats([&self.weight], |[w]| rms_norm(x, w, eps, y)),
            Some(bias) => with_floats([&self.weight, bias], |[w, b]| layer_norm(x, (w, b), eps, y)),
        }
    }

    /// x += y, then [`Self::apply`].
    pub(crate) fn apply_after(&self, x: &mut [f32], y: &mut [f32]) -> Result<()> {
        let eps = self.eps as f32;
        match &self.bias {
            None => with_floats([&self.weight], |[w]| add_rms_norm(x, w, eps, y)),
            Some(bias) => with_floats([&self.weight, bias], |[w, b]| add_layer_norm(x, (w, b), eps, y)),
        }
    }

    /// The gradients where [`Self::apply`] read `x` and that of its output is `dy`: `dx`, and `dw` and `db` `[C]`, all overwritten;
    /// an RMSNorm has no `db`.
    pub(crate) fn backward(
        &self,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        (dw, db): (&mut [f32], &mut [f32]),
    ) -> Result<()> {
        dw.fill(0.0);
        db.fill(0.0);
        let eps = self.eps as f32;
        with_floats([&self.weight], |[w]| match &self.bias {
            None => rms_norm_grad(x, w, eps, dy, dx, dw),
            Some(_) => layer_norm_grad(x, w, eps, dy, dx, (dw, db)),
        })
    }

    /// Whether it is a LayerNorm.
    pub(crate) fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// Whether the graph of a differentiable definition is wanted.
    pub(crate) fn tracked(&self) -> bool {
        self.weight.track_op()
    }

    /// The same in tensor operations.
    pub fn definition(&self, x: &Tensor) -> Result<Tensor> {
        let Some(bias) = &self.bias else { return rms_norm_slow(x, &self.weight, self.eps as f32) };
        let far = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (far.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        far.broadcast_div(&deviation)?.broadcast_mul(&self.weight)?.broadcast_add(bias)
    }
}
