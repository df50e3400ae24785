//! Causal attention, as a rule with rotary positions: q, k, v → softmax(q Kᵀ / √D) V → o. Query heads may share key heads (Ainslie et
//! al. 2023).
//!
//! `definition.rs` computes it in differentiable tensor operations on any device; on a CPU the kernels do, over a cache that
//! may have fewer bits. `trace.rs` is the way back, `cache.rs` the keys and values of the tokens before.
//!
//! | letter | meaning |
//! |---|---|
//! | B, T | sequences, tokens |
//! | H, KV | query heads, key heads |
//! | D | values per head |

mod cache;
mod definition;
#[cfg(test)]
pub(in crate::layer) mod tests;
mod trace;

use super::branch::{Back, Branch, by_kernels};
use super::linear::Linear;
use super::meeting::Meeting;
use super::norm::Norm;
use super::op::with_floats;
use super::room::Room;
use super::state::LayerState;
pub use crate::kernel::attention::Width;
use crate::kernel::attention::{self as kernel, Shape, attend};
use crate::kernel::diagonal::multiply;
pub use crate::kernel::rotary::Rotary;
pub use cache::Cache;
use candle_core::{Device, Result, Tensor, bail};
use std::sync::Arc;

/// One layer of attention.
#[derive(Clone, Debug)]
pub struct Attention {
    /// [H·D, hidden].
    pub q: Query,
    /// [KV·D, hidden].
    pub k_proj: Linear,
    /// [KV·D, hidden].
    pub v_proj: Linear,
    /// [hidden, H·D].
    pub o_proj: Linear,
    sizes: Sizes,
    rotary: Option<Arc<Rotary>>,
    /// The factor on scores; 1/√D if none.
    scale: Option<f32>,
    /// A factor on keys, before positions.
    key_factor: Option<f32>,
    heads: Option<Heads>,
    names: &'static Names,
    width: Width,
}

/// The projection of queries.
#[derive(Clone, Debug)]
pub enum Query {
    /// One matrix [H·D, hidden].
    Full(Linear),
    /// Two, of low rank: first [rank, hidden], then [H·D, rank], nothing between.
    LowRank([Linear; 2]),
}

/// What is done to each head of queries and keys.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Over the D values of a head, before positions; without weights.
    pub norm: Norm,
    /// A factor on the queries of each head `[H]`, after positions (q_gain).
    pub gain: Tensor,
}

/// What the matrices of a layer of attention are called in a checkpoint.
#[derive(Debug)]
pub struct Names {
    /// Of all queries; or of a projection of low rank.
    pub q: &'static str,
    /// Of a projection of low rank: first, then second.
    pub low_rank: [&'static str; 2],
    /// Of keys.
    pub k: &'static str,
    /// Of values.
    pub v: &'static str,
    /// Of what is written to the stream.
    pub o: &'static str,
    /// Of the factors on heads of queries.
    pub gain: &'static str,
}

/// The names of Hugging Face.
const PROJ: Names = Names {
    q: "q_proj",
    low_rank: ["q_down_proj", "q_up_proj"],
    k: "k_proj",
    v: "v_proj",
    o: "o_proj",
    gain: "q_gain",
};

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

impl Attention {
    /// Joins projections; `rotary` is of heads of D values and at least as many positions as a sequence has, or none: no positions.
    pub fn new(
        sizes: Sizes,
        [q_proj, k_proj, v_proj, o_proj]: [Linear; 4],
        rotary: impl Into<Option<Arc<Rotary>>>,
    ) -> Self {
        Self::of(sizes, Query::Full(q_proj), [k_proj, v_proj, o_proj], rotary.into())
    }

    fn of(
        sizes: Sizes,
        q: Query,
        [k_proj, v_proj, o_proj]: [Linear; 3],
        rotary: Option<Arc<Rotary>>,
    ) -> Self {
        let (scale, key_factor, heads, names, width) = (None, None, None, &PROJ, Width::F32);
        Self { q, k_proj, v_proj, o_proj, sizes, rotary, scale, key_factor, heads, names, width }
    }

    /// The same with queries of low rank, by two matrices.
    pub fn low_rank(sizes: Sizes, queries: [Linear; 2], others: [Linear; 3], rotary: Arc<Rotary>) -> Self {
        Self::of(sizes, Query::LowRank(queries), others, Some(rotary))
    }

    /// The same with scores multiplied by this instead of 1/√D.
    #[must_use]
    pub fn scaled(self, scale: f64) -> Self {
        Self { scale: Some(scale as f32), ..self }
    }

    /// The same with keys multiplied by this before positions.
    #[must_use]
    pub fn with_keys_times(self, factor: f64) -> Self {
        Self { key_factor: Some(factor as f32), ..self }
    }

    /// The same with something done to each head.
    #[must_use]
    pub fn with_heads(self, heads: Heads) -> Self {
        Self { heads: Some(heads), ..self }
    }

    /// The same with other names.
    #[must_use]
    pub fn named(self, names: &'static Names) -> Self {
        Self { names, ..self }
    }

    /// The projection of queries as one matrix, [H·D, hidden] in f32, and the rank that it can have: the product of the two of one
    /// of low rank.
    pub(crate) fn query_matrix(&self) -> Result<(usize, Tensor)> {
        match &self.q {
            Query::Full(q) => {
                let all = q.weight.values()?;
                Ok((all.dim(0)?.min(all.dim(1)?), all))
            }
            Query::LowRank([first, second]) => {
                let first = first.weight.values()?;
                Ok((first.dim(0)?, second.weight.values()?.matmul(&first)?))
            }
        }
    }

    /// The matrices of queries in the order in which they are used.
    fn query_linears(&self) -> &[Linear] {
        match &self.q {
            Query::Full(q) => std::slice::from_ref(q),
            Query::LowRank(both) => both,
        }
    }

    /// Their names.
    fn query_names(&self) -> &'static [&'static str] {
        match &self.q {
            Query::Full(_) => std::slice::from_ref(&self.names.q),
            Query::LowRank(_) => &self.names.low_rank,
        }
    }

    /// The queries of rows `u`, as the projection gives them: `q`, overwritten.
    fn queries(&self, u: &[f32], q: &mut [f32], room: &mut Room) -> Result<()> {
        match &self.q {
            Query::Full(full) => full.apply(u, q, room),
            Query::LowRank([first, second]) => {
                let (rank, hidden) = first.weight.shape()?;
                let mut between = room.take(u.len() / hidden * rank);
                first.apply(u, &mut between, room)?;
                second.apply(&between, q, room)?;
                room.give(between);
                Ok(())
            }
        }
    }

    /// Heads of queries or keys, normed and turned by their positions from `first` on, in place.
    fn place_heads(&self, size: (usize, usize), first: usize, x: &mut [f32], room: &mut Room) -> Result<()> {
        if let Some(Heads { norm, .. }) = &self.heads {
            let mut raw = room.take(x.len());
            raw.copy_from_slice(x);
            norm.apply(&raw, x)?;
            room.give(raw);
        }
        if let Some(rotary) = &self.rotary {
            rotary.turn(size, first, x, false);
        }
        Ok(())
    }

    /// Queries by the factors of their heads, in place.
    fn gain(&self, q: &mut [f32]) -> Result<()> {
        let (dim, Some(Heads { gain, .. })) = (self.sizes.dim, &self.heads) else { return Ok(()) };
        with_floats([gain], |[gain]| {
            for token in q.chunks_mut(dim * gain.len()) {
                token.chunks_mut(dim).zip(gain).for_each(|(q, gain)| q.iter_mut().for_each(|q| *q *= gain));
            }
        })
    }

    /// Keys as the projection gives them, by their factor, in place.
    fn weigh_keys(&self, k: &mut [f32]) {
        if let Some(factor) = self.key_factor {
            multiply(factor, k);
        }
    }

    /// The queries of so many tokens, for the kernels.
    fn shape(&self, (batch, time): (usize, usize)) -> Shape {
        let Sizes { heads, shared, dim, .. } = self.sizes;
        let scale = self.scale.unwrap_or_else(|| (dim as f32).sqrt().recip());
        Shape { batch, time, heads, shared, dim, scale }
    }

    fn tracked(&self, u: &Tensor) -> bool {
        let gained = self.heads.as_ref().is_some_and(|heads| heads.gain.track_op());
        u.track_op() || gained || self.linears().iter().any(|(_, linear)| linear.tracked())
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
        if !u.device().is_cpu() || self.tracked(u) {
            if self.width != Width::F32 {
                bail!("a cache in few bits has no gradients and runs on a CPU only")
            }
            return self.definition(u, state);
        }
        by_kernels(self, u, state)
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
        self.queries(u, &mut q, room)?;
        self.k_proj.apply(u, &mut k, room)?;
        self.weigh_keys(&mut k);
        self.v_proj.apply(u, &mut v, room)?;
        self.place_heads(size, cache.len(), &mut q, room)?;
        self.place_heads(size, cache.len(), &mut k, room)?;
        self.gain(&mut q)?;
        cache.push(size, &k, &v);
        room.give(k);
        room.give(v);
        attend(self.shape(size), &mut q, cache, None);
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

    fn linears(&self) -> Vec<(&str, &Linear)> {
        let Names { k, v, o, .. } = *self.names;
        let queries = self.query_names().iter().copied().zip(self.query_linears());
        queries.chain([(k, &self.k_proj), (v, &self.v_proj), (o, &self.o_proj)]).collect()
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        let (names, &Names { k, v, o, .. }) = (self.query_names(), self.names);
        let Self { q, k_proj, v_proj, o_proj, .. } = self;
        let queries = match q {
            Query::Full(q) => std::slice::from_mut(q),
            Query::LowRank(both) => both,
        };
        let queries = names.iter().copied().zip(queries);
        queries.chain([(k, k_proj), (v, v_proj), (o, o_proj)]).collect()
    }

    fn smalls_mut(&mut self) -> Vec<(&str, &mut Tensor)> {
        let name = self.names.gain;
        self.heads.iter_mut().map(|heads| (name, &mut heads.gain)).collect()
    }

    fn set_cache(&mut self, width: Width) -> bool {
        self.width = width;
        true
    }

    fn attention(&self) -> Option<&Attention> {
        Some(self)
    }

    fn first_shares(&self, u: &Tensor) -> Result<Option<Tensor>> {
        self.shares_of_first(u).map(Some)
    }

    fn meeting(&self, u: &Tensor) -> Result<Option<Meeting>> {
        self.meet(u).map(Some)
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        trace::trace(self, u, y, time, room)
    }

    fn copied(&self) -> Box<dyn Branch> {
        Box::new(self.clone())
    }
}
