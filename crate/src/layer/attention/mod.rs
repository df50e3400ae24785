//! Causal attention with rotary positions: q, k, v → softmax(q Kᵀ / √D) V → o. Query heads may share key heads (Ainslie et
//! al. 2023).
//!
//! `definition.rs` computes it in differentiable tensor operations on any device; on a CPU the kernels do, over a cache that
//! may have fewer bits.
//!
//! | letter | meaning |
//! |---|---|
//! | B, T | sequences, tokens |
//! | H, KV | query heads, key heads |
//! | D | values per head |

mod definition;
#[cfg(test)]
pub(in crate::layer) mod tests;

use super::branch::{Back, Branch};
use super::linear::Linear;
use super::meeting::Meeting;
use super::op::with_floats;
use super::room::Room;
use super::state::LayerState;
pub use crate::kernel::attention::Width;
use crate::kernel::attention::{self as kernel, Shape, Traced, attend, attend_grad};
use crate::kernel::norm::add;
pub use crate::kernel::rotary::Rotary;
use candle_core::{Device, Result, Tensor, bail};
use std::sync::Arc;

/// One layer of attention.
#[derive(Clone, Debug)]
pub struct Attention {
    /// [H·D, hidden].
    pub q_proj: Linear,
    /// [KV·D, hidden].
    pub k_proj: Linear,
    /// [KV·D, hidden].
    pub v_proj: Linear,
    /// [hidden, H·D].
    pub o_proj: Linear,
    sizes: Sizes,
    rotary: Arc<Rotary>,
    width: Width,
}

/// The sizes of a layer of attention.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Query heads H.
    pub heads: usize,
    /// Key heads KV; they divide H.
    pub shared: usize,
    /// Values per head D.
    pub dim: usize,
    /// Tokens that a sequence has at most.
    pub longest: usize,
}

/// The keys and values of the tokens read so far.
#[derive(Clone, Debug)]
pub enum Cache {
    /// As the kernels read them.
    Kernel(Box<kernel::Cache>),
    /// As tensor operations do: keys after rotation and values, each [B, KV, T, D]; none before the first token.
    Tensors(Option<[Tensor; 2]>),
}

impl Cache {
    /// Tokens in it.
    pub fn len(&self) -> usize {
        match self {
            Self::Kernel(cache) => cache.len(),
            Self::Tensors(None) => 0,
            Self::Tensors(Some([k, _])) => k.dims()[2],
        }
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of what is in it.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Kernel(cache) => cache.bytes(),
            Self::Tensors(tensors) => {
                let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
                tensors.iter().flatten().map(bytes).sum()
            }
        }
    }

    /// Whether it can go back to where `len` tokens were read.
    pub(crate) fn reaches(&self, len: usize) -> bool {
        match self {
            Self::Kernel(cache) => cache.reaches(len),
            Self::Tensors(_) => len <= self.len(),
        }
    }

    /// Forgets all tokens; what was allocated stays where the kernels read.
    pub(crate) fn clear(&mut self) {
        match self {
            Self::Kernel(cache) => cache.truncate(0),
            Self::Tensors(tensors) => *tensors = None,
        }
    }

    /// Forgets the tokens from the `len`-th on.
    ///
    /// # Errors
    /// If there are fewer, or what is left was rounded with them.
    pub(crate) fn truncate(&mut self, len: usize) -> Result<()> {
        if !self.reaches(len) {
            bail!("a cache of {} tokens cannot go back to {len}", self.len())
        }
        match self {
            Self::Kernel(cache) => cache.truncate(len),
            Self::Tensors(None) => {}
            Self::Tensors(Some(tensors)) => {
                for tensor in tensors {
                    *tensor = tensor.narrow(2, 0, len)?;
                }
            }
        }
        Ok(())
    }
}

impl Attention {
    /// Joins projections; `rotary` is of D values and at least as many positions as a sequence has.
    pub fn new(sizes: Sizes, [q_proj, k_proj, v_proj, o_proj]: [Linear; 4], rotary: Arc<Rotary>) -> Self {
        Self { q_proj, k_proj, v_proj, o_proj, sizes, rotary, width: Width::F32 }
    }

    fn tracked(&self, u: &Tensor) -> bool {
        u.track_op() || self.linears().iter().any(|(_, linear)| linear.tracked())
    }

    /// Refuses more tokens than a sequence may have.
    fn admit(&self, first: usize, time: usize) -> Result<()> {
        let longest = self.sizes.longest;
        match first + time <= longest {
            true => Ok(()),
            false => bail!("{} tokens are more than {longest}, the most that this model reads", first + time),
        }
    }
}

impl Branch for Attention {
    fn forward(&self, u: &Tensor, state: Option<&mut LayerState>) -> Result<Tensor> {
        let (batch, time, _) = u.dims3()?;
        if !u.device().is_cpu() || self.tracked(u) {
            if self.width != Width::F32 {
                bail!("a cache in few bits has no gradients and runs on a CPU only")
            }
            return self.definition(u, state);
        }
        let mut rows = with_floats([&u.contiguous()?], |[u]| u.to_vec())?;
        let mut fresh;
        let state = match state {
            Some(state) => state,
            None => {
                fresh = self.zero_state(batch, u.device())?;
                &mut fresh
            }
        };
        self.apply(&mut rows, (batch, time), state, &mut Room::default())?;
        Tensor::from_vec(rows, u.shape(), u.device())
    }

    fn apply(
        &self,
        u: &mut [f32],
        size: (usize, usize),
        state: &mut LayerState,
        room: &mut Room,
    ) -> Result<()> {
        let (Sizes { heads, shared, dim, .. }, (batch, time)) = (self.sizes, size);
        let Cache::Kernel(cache) = state.cache()? else {
            bail!("the state of this block is of another device")
        };
        self.admit(cache.len(), time)?;
        let tokens = batch * time;
        let mut q = room.take(tokens * heads * dim);
        let [mut k, mut v] = [(); 2].map(|()| room.take(tokens * shared * dim));
        self.q_proj.apply(u, &mut q, room)?;
        self.k_proj.apply(u, &mut k, room)?;
        self.v_proj.apply(u, &mut v, room)?;
        self.rotary.turn(size, cache.len(), &mut q, false);
        self.rotary.turn(size, cache.len(), &mut k, false);
        cache.push(size, &k, &v);
        room.give(k);
        room.give(v);
        attend(Shape { batch, time, heads, shared, dim }, &mut q, cache, None);
        cache.settle();
        self.o_proj.apply(&q, u, room)?;
        room.give(q);
        Ok(())
    }

    fn zero_state(&self, batch: usize, device: &Device) -> Result<LayerState> {
        let cache = match device.is_cpu() {
            true => Cache::Kernel(Box::new(kernel::Cache::new(
                batch * self.sizes.shared,
                self.sizes.dim,
                self.width,
            ))),
            false => Cache::Tensors(None),
        };
        Ok(LayerState { cache: Some(cache), ..LayerState::default() })
    }

    fn state_bytes(&self, batch: usize, tokens: usize) -> usize {
        batch * self.sizes.shared * self.width.bytes(self.sizes.dim, tokens)
    }

    fn linears(&self) -> Vec<(&'static str, &Linear)> {
        let Self { q_proj, k_proj, v_proj, o_proj, .. } = self;
        vec![("q_proj", q_proj), ("k_proj", k_proj), ("v_proj", v_proj), ("o_proj", o_proj)]
    }

    fn linears_mut(&mut self) -> Vec<(&'static str, &mut Linear)> {
        let Self { q_proj, k_proj, v_proj, o_proj, .. } = self;
        vec![("q_proj", q_proj), ("k_proj", k_proj), ("v_proj", v_proj), ("o_proj", o_proj)]
    }

    fn set_cache(&mut self, width: Width) -> bool {
        self.width = width;
        true
    }

    fn attention(&self) -> Option<&Attention> {
        Some(self)
    }

    fn meeting(&self, u: &Tensor) -> Result<Option<Meeting>> {
        self.meet(u).map(Some)
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        if self.width != Width::F32 {
            bail!("a cache in few bits has no gradients")
        }
        self.admit(0, time)?;
        let Sizes { heads, shared, dim, .. } = self.sizes;
        let shape = Shape { batch: 1, time, heads, shared, dim };
        let (mut q, mut out) = (room.take(time * heads * dim), room.take(time * heads * dim));
        let [mut k, mut v] = [(); 2].map(|()| room.take(time * shared * dim));
        let mut logs = room.take(time * heads);
        self.q_proj.trace(u, &mut q)?;
        self.k_proj.trace(u, &mut k)?;
        self.v_proj.trace(u, &mut v)?;
        self.rotary.turn((1, time), 0, &mut q, false);
        self.rotary.turn((1, time), 0, &mut k, false);
        let mut cache = kernel::Cache::new(shared, dim, Width::F32);
        cache.push((1, time), &k, &v);
        out.copy_from_slice(&q);
        attend(shape, &mut out, &cache, Some(&mut logs));
        self.o_proj.trace(&out, y)?;
        Ok(Box::new(move |u, dy, du, places, room| {
            let [mut dout, mut dq] = [(); 2].map(|()| room.take(out.len()));
            let [mut dk, mut dv] = [(); 2].map(|()| room.take(k.len()));
            let bias = places.optional("o_proj.bias");
            self.o_proj.backward(&out, dy, &mut dout, places.take("o_proj.weight")?, bias)?;
            let traced = Traced { q: &q, k: &k, v: &v, y: &out, logs: &logs, dy: &dout };
            attend_grad(shape, traced, &mut dq, &mut dk, &mut dv);
            self.rotary.turn((1, time), 0, &mut dq, true);
            self.rotary.turn((1, time), 0, &mut dk, true);
            let bias = places.optional("q_proj.bias");
            self.q_proj.backward(u, &dq, du, places.take("q_proj.weight")?, bias)?;
            let mut part = room.take(du.len());
            let bias = places.optional("k_proj.bias");
            self.k_proj.backward(u, &dk, &mut part, places.take("k_proj.weight")?, bias)?;
            add(&part, du);
            let bias = places.optional("v_proj.bias");
            self.v_proj.backward(u, &dv, &mut part, places.take("v_proj.weight")?, bias)?;
            add(&part, du);
            for buffer in [q, k, v, out, logs, dout, dq, dk, dv, part] {
                room.give(buffer);
            }
            Ok(())
        }))
    }

    fn copied(&self) -> Box<dyn Branch> {
        Box::new(self.clone())
    }
}
