//! Attention in tensor operations: the definition, differentiable on any device.

use super::{Attention, Cache, Heads, LayerState, Sizes};
use crate::layer::meeting::{Made, Meeting, rows};
use candle_core::{D, DType, Device, Result, Tensor, bail};
use candle_nn::ops::softmax;

/// Queries whose scores are made at a time where shares are asked for.
const QUERIES: usize = 256;

impl Attention {
    /// u [B, T, hidden] → [B, T, hidden]. A state that is given is moved on, keys and values as tensors.
    pub fn definition(&self, u: &Tensor, state: Option<&mut LayerState>) -> Result<Tensor> {
        let Sizes { heads, shared, dim, .. } = self.sizes;
        let (batch, time, _) = u.dims3()?;
        let cache = state.map(LayerState::cache).transpose()?;
        let first = cache.as_ref().map_or(0, |cache| cache.len());
        self.admit(first, time)?;
        let (q, mut k) = self.queries_and_keys(u, first)?;
        let mut v = self.v_proj.forward(u)?.reshape((batch, time, shared, dim))?.transpose(1, 2)?;
        if let Some(cache) = cache {
            let Cache::Tensors(held) = cache else {
                bail!("the state of this block is of the kernels: tensor operations need one of their own")
            };
            if let Some([before_k, before_v]) = held {
                (k, v) = (Tensor::cat(&[&*before_k, &k], 2)?, Tensor::cat(&[&*before_v, &v], 2)?);
            }
            *held = Some([k.detach(), v.detach()]);
        }
        let (k, v) = (self.for_queries(&k)?, self.for_queries(&v)?); // [B, H, all, D]
        let y = self.shares(&q, &k, first)?.matmul(&v)?; // [B, H, T, D]
        self.o_proj.forward(&y.transpose(1, 2)?.reshape((batch, time, heads * dim))?)
    }

    /// See [`Branch::first_shares`](super::Branch::first_shares).
    pub(super) fn shares_of_first(&self, u: &Tensor) -> Result<Tensor> {
        let time = u.dim(1)?;
        self.admit(0, time)?;
        let (q, k) = self.queries_and_keys(u, 0)?;
        let k = self.for_queries(&k)?;
        let pieces = (0..time).step_by(QUERIES).map(|start| {
            let count = QUERIES.min(time - start);
            let shares = self.shares(&q.narrow(2, start, count)?, &k.narrow(2, 0, start + count)?, start)?;
            shares.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)
        });
        Tensor::cat(&pieces.collect::<Result<Vec<_>>>()?, 2)
    }

    /// How the tokens meet; see [`Branch::meeting`](super::Branch::meeting).
    pub(super) fn meet(&self, u: &Tensor) -> Result<Meeting> {
        let (Sizes { heads, shared, dim, .. }, time) = (self.sizes, u.dim(1)?);
        self.admit(0, time)?;
        let (q, k) = self.queries_and_keys(u, 0)?;
        let q = (q * self.scale())?;
        let [q, k] = [q, k].map(|x| rows(&x.squeeze(0)?.transpose(0, 1)?));
        Ok(Meeting { time, heads, groups: shared, key: dim, q: q?, k: k?, made: Made::Softmax })
    }

    /// Queries [B, H, T, D] and keys [B, KV, T, D], turned by their positions from `first` on.
    fn queries_and_keys(&self, u: &Tensor, first: usize) -> Result<(Tensor, Tensor)> {
        let Sizes { heads, shared, dim, .. } = self.sizes;
        let (batch, time, _) = u.dims3()?;
        let split = |rows: Tensor, heads: usize| rows.reshape((batch, time, heads, dim))?.transpose(1, 2);
        let q = self.query_linears().iter().try_fold(u.clone(), |x, linear| linear.forward(&x))?;
        let k = match self.key_factor {
            Some(factor) => (self.k_proj.forward(u)? * f64::from(factor))?,
            None => self.k_proj.forward(u)?,
        };
        let [mut q, mut k] = [split(q, heads)?, split(k, shared)?];
        if let Some(Heads { norm, .. }) = &self.heads {
            [q, k] = [norm.definition(&q)?, norm.definition(&k)?];
        }
        [q, k] = [self.turned(&q, first)?, self.turned(&k, first)?];
        if let Some(Heads { gain, .. }) = &self.heads {
            q = q.broadcast_mul(&gain.reshape((heads, 1, 1))?)?;
        }
        Ok((q, k))
    }

    /// q [B, H, T, D] from position `first` on, k [B, H, first + T, D] → [B, H, T, first + T]: the shares of the attention
    /// of each token that those up to it get.
    fn shares(&self, q: &Tensor, k: &Tensor, first: usize) -> Result<Tensor> {
        let scores = (q.contiguous()?.matmul(&k.transpose(2, 3)?.contiguous()?)? * self.scale())?;
        softmax(&scores.broadcast_add(&causal(q.dim(2)?, first, q.device())?)?, D::Minus1)
    }

    /// The factor on scores.
    fn scale(&self) -> f64 {
        self.scale.map_or((self.sizes.dim as f64).sqrt().recip(), f64::from)
    }

    /// Heads [B, H, T, D] turned by their positions, from `first` on: the first r values of each.
    fn turned(&self, x: &Tensor, first: usize) -> Result<Tensor> {
        let Some(rotary) = &self.rotary else { return Ok(x.clone()) };
        let (half, time) = (rotary.dim() / 2, x.dim(2)?);
        let angles: Vec<f32> = (first..first + time).flat_map(|t| rotary.of(t).to_vec()).collect();
        let angles = Tensor::from_vec(angles, (time, 2 * half), x.device())?; // [T, r]
        let (cos, sin) = (angles.narrow(1, 0, half)?, angles.narrow(1, half, half)?);
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let low = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let high = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let rest = self.sizes.dim - 2 * half;
        match rest {
            0 => Tensor::cat(&[low, high], D::Minus1),
            rest => Tensor::cat(&[low, high, x.narrow(D::Minus1, 2 * half, rest)?], D::Minus1),
        }
    }

    /// [B, KV, T, D] → [B, H, T, D]: each key head for all query heads that read it.
    fn for_queries(&self, x: &Tensor) -> Result<Tensor> {
        let Sizes { heads, shared, dim, .. } = self.sizes;
        let (batch, _, time, _) = x.dims4()?;
        let group = heads / shared;
        let all = x.unsqueeze(2)?.broadcast_as((batch, shared, group, time, dim))?;
        all.contiguous()?.reshape((batch, heads, time, dim))
    }
}

/// 0 where a token sees a position, −∞ where that comes after it: [T, first + T].
fn causal(time: usize, first: usize, device: &Device) -> Result<Tensor> {
    let all = first + time;
    let mask = |i: usize| if i % all > first + i / all { f32::NEG_INFINITY } else { 0.0 };
    Tensor::from_vec((0..time * all).map(mask).collect(), (time, all), device)?.to_dtype(DType::F32)
}
