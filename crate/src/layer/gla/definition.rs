//! The mixer in tensor operations: the definition, differentiable on any device.

use super::{Gla, LayerState, Sizes};
use crate::layer::recurrence::definition::{channels, softplus};
use candle_core::{Result, Tensor};
use candle_nn::ops::rms_norm_slow;

impl Gla {
    /// u [B, T, hidden] → [B, T, hidden], moving `state` on.
    pub fn definition(&self, u: &Tensor, state: &mut LayerState) -> Result<Tensor> {
        let (Sizes { heads, groups, key, value, .. }, p) = (self.sizes, &self.parts);
        let (batch, time, _) = u.dims3()?;
        let split = |rows: Tensor, heads: usize| rows.reshape((batch, time, heads, ()))?.transpose(1, 2);
        let q = split((p.q_proj.forward(u)? * f64::from(self.sizes.scale()))?, heads)?; // [B, H, T, K]
        let k = self.for_heads(&split(p.k_proj.forward(u)?, groups)?, key)?;
        let v = self.for_heads(&split(p.v_proj.forward(u)?, groups)?, value)?; // [B, H, T, V]
        let gates = p.gk_proj[1].forward(&p.gk_proj[0].forward(u)?)?; // [B, T, G·K]
        let mut log_a = (softplus(&gates.neg()?)?.neg()? / 16.0)?;
        if self.sizes.clamp_min > f32::NEG_INFINITY {
            log_a = log_a.maximum(f64::from(self.sizes.clamp_min))?;
        }
        let log_a = self.for_heads(&split(log_a, groups)?, key)?;
        let (y, s) = channels(&q.contiguous()?, &k, &v, &log_a, state.recurrence()?)?;
        state.recurrent = Some(s);
        let y = rms_norm_slow(&y.transpose(1, 2)?.contiguous()?, &p.norm, self.sizes.eps)?; // [B, T, H, V]
        let mut y = y.reshape((batch, time, heads * value))?;
        if let Some(g_proj) = &p.g_proj {
            y = (y * g_proj.forward(u)?.silu()?)?;
        }
        p.o_proj.forward(&y)
    }

    /// [B, G, T, width] → [B, H, T, width]: what each group has, for all of its heads.
    fn for_heads(&self, x: &Tensor, width: usize) -> Result<Tensor> {
        let Sizes { heads, groups, .. } = self.sizes;
        let (batch, _, time, _) = x.dims4()?;
        let all = x.unsqueeze(2)?.broadcast_as((batch, groups, heads / groups, time, width))?;
        all.contiguous()?.reshape((batch, heads, time, width))
    }
}
