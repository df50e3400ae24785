//! RMSNorm over the last dimension.

use super::op::with_floats;
use crate::kernel::norm as kernel;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::rms_norm_slow;

/// y = x / √(mean x² + ε) · w.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// A norm with weight `[C]` in f32.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// A norm of C channels without weights.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn plain(channels: usize, eps: f64, device: &Device) -> Result<Self> {
        Ok(Self::new(Tensor::ones(channels, DType::F32, device)?, eps))
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
        with_floats([&self.weight], |[w]| kernel::rms_norm(x, w, self.eps as f32, y))
    }

    /// x += y, then [`Self::apply`].
    pub(crate) fn apply_after(&self, x: &mut [f32], y: &mut [f32]) -> Result<()> {
        with_floats([&self.weight], |[w]| kernel::add_rms_norm(x, w, self.eps as f32, y))
    }

    /// The gradients where [`Self::apply`] read `x` and that of its output is `dy`: `dx` and `dw` `[C]`, overwritten.
    pub(crate) fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], dw: &mut [f32]) -> Result<()> {
        dw.fill(0.0);
        with_floats([&self.weight], |[w]| kernel::rms_norm_grad(x, w, self.eps as f32, dy, dx, dw))
    }

    /// Whether the graph of a differentiable definition is wanted.
    pub(crate) fn tracked(&self) -> bool {
        self.weight.track_op()
    }

    /// The same in tensor operations.
    pub fn definition(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm_slow(x, &self.weight, self.eps as f32)
    }
}
