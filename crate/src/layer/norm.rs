//! RMSNorm over the last dimension.

use super::op::{floats, gradients, with_floats};
use crate::kernel::norm as kernel;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

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

    /// x [.., C] in f32 → [.., C].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            x.contiguous()?.apply_op2(&self.weight, Fused { eps: self.eps as f32 })
        } else {
            self.definition(x)
        }
    }

    /// The same by the kernels on a CPU: `x` and `y` are rows of C values.
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        with_floats([&self.weight], |[w]| kernel::rms_norm(x, w, self.eps as f32, y))
    }

    /// x += y, then [`Self::apply`].
    pub(crate) fn apply_after(&self, x: &mut [f32], y: &mut [f32]) -> Result<()> {
        with_floats([&self.weight], |[w]| kernel::add_rms_norm(x, w, self.eps as f32, y))
    }

    /// Whether gradients are wanted.
    pub(crate) fn tracked(&self) -> bool {
        self.weight.track_op()
    }

    /// The same in tensor operations.
    pub fn definition(&self, x: &Tensor) -> Result<Tensor> {
        rms_normalized(x, self.eps)?.broadcast_mul(&self.weight)
    }
}

/// x / √(mean x² + ε) over the last dimension, in tensor operations.
pub(crate) fn rms_normalized(x: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)
}

struct Fused {
    eps: f32,
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (floats(s1, l1)?, floats(s2, l2)?);
        let mut y = vec![0.0; x.len()];
        kernel::rms_norm(x, w, self.eps, &mut y);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw] = gradients([x, w, &dy.contiguous()?], [x, w], |[x, w, dy], [dx, dw]| {
            kernel::rms_norm_grad(x, w, self.eps, dy, dx, dw);
        })?;
        Ok((dx, dw))
    }
}
