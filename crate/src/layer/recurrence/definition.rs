//! What the definitions of several mixers share, in tensor operations, differentiable on any device: the recurrence with a decay
//! for each channel of the keys, the causal convolution before a recurrence, and softplus.

use candle_core::{D, DType, Result, Tensor};

/// Tokens that meet each other one by one: [B, H, Q, Q, K] values at once.
const SUB: usize = 16;

/// q, k and the logarithms of the decays [B, H, T, K], v [B, H, T, V] and the state s [B, H, K, V] before → y [B, H, T, V] and
/// the state after. In pieces, because a graph with a node per token is too deep to walk.
pub(in crate::layer) fn channels(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    log_a: &Tensor,
    s: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (time, mut s, mut pieces) = (q.dim(2)?, s.clone(), vec![]);
    for first in (0..time).step_by(SUB) {
        let len = SUB.min(time - first);
        let cut = |t: &Tensor| t.narrow(2, first, len)?.contiguous();
        let (y, next) = piece(&cut(q)?, &cut(k)?, &cut(v)?, &cut(log_a)?, &s)?;
        pieces.push(y);
        s = next;
    }
    Ok((Tensor::cat(&pieces, 2)?, s))
}

/// Σ_d q_t k_s e^(g_t − g_s) for s ≤ t, with g the cumulative sum of the logarithms: no exponent is positive.
fn piece(q: &Tensor, k: &Tensor, v: &Tensor, log_a: &Tensor, s: &Tensor) -> Result<(Tensor, Tensor)> {
    let (batch, heads, len, _) = q.dims4()?;
    let lower = Tensor::tril2(len, DType::F32, q.device())?; // [Q, Q]
    let g = lower.broadcast_as((batch, heads, len, len))?.contiguous()?.matmul(log_a)?; // [B, H, Q, K]
    let mask = lower.unsqueeze(2)?; // [Q, Q, 1]
    let apart = g.unsqueeze(3)?.broadcast_sub(&g.unsqueeze(2)?)?; // [B, H, Q, Q, K]
    let decays = apart.broadcast_mul(&mask)?.exp()?.broadcast_mul(&mask)?;
    let pairs = q.unsqueeze(3)?.broadcast_mul(&k.unsqueeze(2)?)?;
    let scores = (pairs * decays)?.sum(D::Minus1)?; // [B, H, Q, Q]
    let before = (q * g.exp()?)?.matmul(s)?; // [B, H, Q, V]
    let y = (scores.matmul(v)? + before)?;
    let end = g.narrow(2, len - 1, 1)?; // [B, H, 1, K]
    let kept = (k * end.broadcast_sub(&g)?.exp()?)?.transpose(2, 3)?.contiguous()?; // [B, H, K, Q]
    let next = (s.broadcast_mul(&end.exp()?.transpose(2, 3)?)? + kept.matmul(v)?)?;
    Ok((y, next))
}

/// The causal convolution of each channel, before its SiLU: x [B, T, C], its weight [C, K] and bias `[C]`, and the last inputs
/// [B, C, K] before → [B, T, C] and the last inputs after.
pub(in crate::layer) fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    before: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (time, taps) = (x.dim(1)?, weight.dim(1)?);
    let padded = Tensor::cat(&[&before.transpose(1, 2)?, x], 1)?; // [B, K + T, C]
    let mut sum = bias.broadcast_as(x.dims())?;
    for j in 0..taps {
        let tap = weight.narrow(1, j, 1)?.flatten_all()?; // [C]
        sum = (sum + padded.narrow(1, j + 1, time)?.broadcast_mul(&tap)?)?;
    }
    Ok((sum, padded.narrow(1, time, taps)?.transpose(1, 2)?.contiguous()?))
}

/// ln(1 + e^x) without overflow.
pub(in crate::layer) fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}
