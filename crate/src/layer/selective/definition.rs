//! The mixer in tensor operations: the definition, differentiable on any device.

use super::{LayerState, Selective, Sizes};
use crate::layer::recurrence::definition::{channels, convolution, softplus};
use candle_core::{D, Result, Tensor};

impl Selective {
    /// u [B, T, hidden] → [B, T, hidden], moving `state` on.
    pub fn definition(&self, u: &Tensor, state: &mut LayerState) -> Result<Tensor> {
        let (Sizes { inner, state: n, .. }, p) = (self.sizes()?, &self.small);
        let (batch, time, _) = u.dims3()?;
        let ag = self.in_proj.forward(u)?; // [B, T, 2·I]
        let (a, g) = (ag.narrow(D::Minus1, 0, inner)?, ag.narrow(D::Minus1, inner, inner)?);

        let (x, conv) = convolution(&a, &p.conv_weight.squeeze(1)?, &p.conv_bias, state.convolution()?)?;
        state.conv = Some(conv);
        let x = x.silu()?; // [B, T, I]

        let step = softplus(&self.delta_proj.forward(&x)?)?.mean_keepdim(D::Minus1)?; // [B, T, 1]
        let rates = p.a_log.exp()?.neg()?; // [N]
        // Each value of the state is a head with one channel.
        let heads = |x: Tensor| x.transpose(1, 2)?.unsqueeze(3)?.contiguous(); // [B, T, N] → [B, N, T, 1]
        let rows = x.contiguous()?.reshape((batch * time, inner))?;
        let written = rows.matmul(&p.b.t()?)?.reshape((batch, time, n))?;
        let written = heads(written.broadcast_mul(&step)?)?;
        let log_a = heads(step.broadcast_mul(&rates)?)?;
        let ones = written.ones_like()?;
        let before = state.recurrence()?.reshape((batch, n, 1, 1))?;
        let (h, after) = channels(&ones, &ones, &written, &log_a, &before)?; // [B, N, T, 1]
        state.recurrent = Some(after.reshape((batch, 1, n, 1))?);
        let h = h.squeeze(3)?.transpose(1, 2)?.contiguous()?.reshape((batch * time, n))?;
        let y = h.matmul(&p.c.t()?)?.reshape((batch, time, inner))?;
        let y = ((y + x.broadcast_mul(&p.d)?)? * g.silu()?)?; // [B, T, I]
        self.out_proj.forward(&y)
    }
}
