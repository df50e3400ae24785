//! The mixer's core in tensor operations: the definition, differentiable on any device.

use super::{Core, End, LayerState, Parts, Sizes};
use crate::kernel::scan::CHUNK;
use crate::layer::recurrence::definition::{convolution, softplus};
use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::rms_norm_slow;

impl Core {
    /// The definition, in tensor operations. Chunked, because a graph with a node per token is too deep to walk.
    pub fn definition(&self, zxbcdt: &Tensor, state: &LayerState) -> Result<(Tensor, LayerState)> {
        let s = self.sizes;
        let (batch, time, _) = zxbcdt.dims3()?;
        let (inner, channels, taps, heads) = (s.inner(), s.channels(), s.conv_width, s.heads);
        let mut at = 0;
        let p = Parts::cut(s, |len| {
            at += len;
            self.packed.narrow(0, at - len, len)
        });
        let conv_weight = p.conv_weight?.reshape((channels, taps))?;

        let z = zxbcdt.narrow(D::Minus1, 0, inner)?; // [B, T, I]
        let xbc = zxbcdt.narrow(D::Minus1, inner, channels)?; // [B, T, C]
        let dt = zxbcdt.narrow(D::Minus1, inner + channels, heads)?; // [B, T, H]

        let (xbc, conv) = convolution(&xbc, &conv_weight, &p.conv_bias?, state.convolution()?)?;
        let xbc = xbc.silu()?; // [B, T, C]

        let dt = softplus(&dt.broadcast_add(&p.dt_bias?)?)?; // [B, T, H]
        let dt = dt.clamp(s.dt_limit.0, s.dt_limit.1)?;
        let log_decay = dt.broadcast_mul(&p.a_log?.exp()?.neg()?)?; // [B, T, H]
        let x = xbc.narrow(D::Minus1, 0, inner)?.reshape((batch, time, heads, s.head_dim))?;
        let group = s.groups * s.state;
        let b = per_head(s, &xbc.narrow(D::Minus1, inner, group)?)?; // [B, H, T, N]
        let c = per_head(s, &xbc.narrow(D::Minus1, inner + group, group)?)?; // [B, H, T, N]
        let u = x.broadcast_mul(&dt.unsqueeze(D::Minus1)?)?.transpose(1, 2)?.contiguous()?; // [B, H, T, P]
        let log_decay = log_decay.transpose(1, 2)?.contiguous()?; // [B, H, T]

        let mut h = state.recurrence()?.clone(); // [B, H, P, N]
        let mut chunks = vec![];
        for first in (0..time).step_by(CHUNK) {
            let len = CHUNK.min(time - first);
            let cut = |t: &Tensor| t.narrow(2, first, len)?.contiguous();
            let (y, next) = chunk(&cut(&u)?, &cut(&log_decay)?, &cut(&b)?, &cut(&c)?, &h)?;
            chunks.push(y);
            h = next;
        }
        let y = Tensor::cat(&chunks, 2)?.transpose(1, 2)?; // [B, T, H, P]
        let y = (y + x.broadcast_mul(&p.d?.unsqueeze(1)?)?)?.reshape((batch, time, inner))?;

        let norm = p.norm?.reshape((s.groups, inner / s.groups))?;
        let normed = |y: Tensor| {
            let groups = y.reshape((batch, time, s.groups, inner / s.groups))?;
            rms_norm_slow(&groups, &norm, s.eps)?.reshape((batch, time, inner))
        };
        let y = match s.end {
            End::GateThenNorm => normed((y * z.silu()?)?)?,
            End::NormThenGate => (normed(y)? * z.silu()?)?,
            End::Gate => (y * z.silu()?)?,
        };
        Ok((y, LayerState { conv: Some(conv), recurrent: Some(h), ..LayerState::default() }))
    }
}

/// One chunk of the recurrence: u [B, H, Q, P], log decays [B, H, Q], b and c [B, H, Q, N], h [B, H, P, N].
fn chunk(u: &Tensor, log_decay: &Tensor, b: &Tensor, c: &Tensor, h: &Tensor) -> Result<(Tensor, Tensor)> {
    let (len, device) = (log_decay.dim(2)?, u.device());
    let lower = Tensor::tril2(len, DType::F32, device)?; // [Q, Q]
    let a = log_decay.unsqueeze(D::Minus1)?; // [B, H, Q, 1]
    let a = lower.broadcast_as((a.dim(0)?, a.dim(1)?, len, len))?.contiguous()?.matmul(&a)?; // cumulative sum
    let difference = a.broadcast_sub(&a.transpose(2, 3)?)?; // [B, H, Q, Q]
    let decay = difference.minimum(0.0)?.exp()?.broadcast_mul(&lower)?;
    let mixing = (c.matmul(&b.transpose(2, 3)?)? * decay)?; // (C Bᵀ) ∘ L
    let inside = mixing.matmul(u)?; // [B, H, Q, P]
    let before = c.matmul(&h.transpose(2, 3)?)?.broadcast_mul(&a.exp()?)?;
    let end = a.narrow(2, len - 1, 1)?; // [B, H, 1, 1]
    let to_end = end.broadcast_sub(&a)?.exp()?;
    let added = u.transpose(2, 3)?.matmul(&b.broadcast_mul(&to_end)?)?; // [B, H, P, N]
    let next = (h.broadcast_mul(&end.exp()?)? + added)?;
    Ok(((inside + before)?, next))
}

/// [B, T, G·N] → [B, H, T, N]: each group's values for all of its heads, one group after the other.
fn per_head(s: Sizes, values: &Tensor) -> Result<Tensor> {
    let (batch, time, _) = values.dims3()?;
    let each = s.heads / s.groups;
    values
        .reshape((batch, time, s.groups, 1, s.state))?
        .broadcast_as((batch, time, s.groups, each, s.state))?
        .reshape((batch, time, s.heads, s.state))?
        .transpose(1, 2)?
        .contiguous()
}
