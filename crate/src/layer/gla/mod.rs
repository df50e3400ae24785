//! The mixer of gated linear attention (Yang et al. 2023): q, k, v and the gates of the decays → recurrence → norm of each
//! head, then SiLU(g) → o_proj.
//!
//! Between the projections there are two forms of one computation: `definition.rs`, in differentiable tensor operations on
//! any device, and the kernels on a CPU, forward here and back in `fused.rs`. `recurrent.rs` lets measurements look into the
//! recurrence.
//!
//! | letter | meaning |
//! |---|---|
//! | B, T | sequences, tokens |
//! | H, G | heads, and groups of them that share keys, values and decays |
//! | K, V | channels of a head's key, of its value |
//! | R | width between the two matrices of the gates |

mod definition;
mod fused;
mod recurrent;
#[cfg(test)]
mod tests;

use super::branch::{Back, Branch, by_kernels, with_state};
use super::linear::Linear;
use super::meeting::Meeting;
use super::op::{Values, with_floats};
use super::recurrence::{Recurrence, Recurrent};
use super::room::{Buffer, Room};
use super::state::LayerState;
use crate::error::Error;
use crate::kernel::decay::decays;
use crate::kernel::gated::silu_product;
use crate::kernel::norm::rms_norm;
use crate::kernel::round::fake_int;
use crate::kernel::scan::channels::{Inputs, Shape, chunked, recurrent, recurrent_rounded, scan};
use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

/// One mixer.
#[derive(Clone, Debug)]
pub struct Gla {
    sizes: Sizes,
    parts: Parts,
    recurrence: Recurrence,
}

/// The parameters of a mixer.
#[derive(Clone, Debug)]
pub struct Parts {
    /// [H·K, hidden].
    pub q_proj: Linear,
    /// [G·K, hidden].
    pub k_proj: Linear,
    /// [G·V, hidden].
    pub v_proj: Linear,
    /// [H·V, hidden]; none where the output has no gate.
    pub g_proj: Option<Linear>,
    /// [R, hidden], then [G·K, R] with a bias.
    pub gk_proj: [Linear; 2],
    /// [hidden, H·V].
    pub o_proj: Linear,
    /// The weight `[V]` of the norm of a head, f32; all share it.
    pub norm: Tensor,
}

/// The sizes and constants of a mixer.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Heads H.
    pub heads: usize,
    /// Groups G; they divide H.
    pub groups: usize,
    /// Channels K of a head's key.
    pub key: usize,
    /// Channels V of a head's value.
    pub value: usize,
    /// ε of the norm.
    pub eps: f32,
    /// The least logarithm of a decay; −∞ if there is none.
    pub clamp_min: f32,
}

impl Sizes {
    fn scan(&self, batch: usize, time: usize) -> Shape {
        let Self { heads, groups, key, value, .. } = *self;
        Shape { batch, time, heads, groups, key, value }
    }

    /// By which queries are multiplied.
    fn scale(&self) -> f32 {
        (self.key as f32).sqrt().recip()
    }
}

/// What goes into the recurrence, [tokens, ..].
struct Projected<T> {
    /// Divided by √K, [H·K].
    q: T,
    /// [G·K].
    k: T,
    /// [G·V].
    v: T,
    /// Decays [G·K].
    a: T,
}

impl Projected<Buffer> {
    fn inputs(&self) -> Inputs<'_> {
        Inputs { q: &self.q, k: &self.k, v: &self.v, a: &self.a }
    }

    fn give(self, room: &mut Room) {
        let Self { q, k, v, a } = self;
        [q, k, v, a].into_iter().for_each(|buffer| room.give(buffer));
    }
}

impl Gla {
    /// Joins projections and the norm.
    pub fn new(sizes: Sizes, parts: Parts) -> Self {
        Self { sizes, parts, recurrence: Recurrence::default() }
    }

    fn tracked(&self, u: &Tensor) -> bool {
        u.track_op()
            || self.parts.norm.track_op()
            || self.linears().iter().any(|(_, linear)| linear.tracked())
    }

    /// Whether anything in the recurrence is rounded: then there is no definition in tensor operations beside it.
    fn rounds(&self) -> bool {
        self.recurrence != Recurrence::default()
    }

    /// u [tokens, hidden] → what the recurrence reads, before a scheme rounds it.
    fn project(&self, u: &[f32], tokens: usize, room: &mut Room) -> Result<Projected<Buffer>> {
        let (s, p) = (self.sizes, &self.parts);
        let mut apply = |linear: &Linear, x: &[f32], width: usize| {
            let mut to = room.take(tokens * width);
            linear.apply(x, &mut to, room)?;
            Result::Ok(to)
        };
        let mut q = apply(&p.q_proj, u, s.heads * s.key)?;
        let k = apply(&p.k_proj, u, s.groups * s.key)?;
        let v = apply(&p.v_proj, u, s.groups * s.value)?;
        let low = apply(&p.gk_proj[0], u, p.gk_proj[0].weight.shape()?.0)?;
        let mut a = apply(&p.gk_proj[1], &low, s.groups * s.key)?;
        room.give(low);
        q.iter_mut().for_each(|q| *q *= s.scale());
        decays(&mut a, s.clamp_min);
        Ok(Projected { q, k, v, a })
    }

    /// Rounds q, k and v head by head.
    fn round_inputs(&self, Projected { q, k, v, .. }: &mut Projected<Buffer>) {
        let Recurrence { x, bc, .. } = self.recurrence;
        for (values, width, bits) in
            [(q, self.sizes.key, bc), (k, self.sizes.key, bc), (v, self.sizes.value, x)]
        {
            if let Some(bits) = bits {
                values.par_chunks_mut(width).with_min_len(64).for_each(|values| fake_int(values, bits));
            }
        }
    }

    /// The recurrence with a state in f32.
    fn scan_f32(&self, shape: Shape, inputs: Inputs<'_>, s: &mut [f32], y: &mut [f32]) {
        match self.recurrence.products.filter(|products| products.round(shape.time)) {
            Some(products) => chunked(shape, Some(products), inputs, s, y),
            None => scan(shape, inputs, s, y),
        }
    }

    /// The recurrence, in the precision of its state.
    fn scan(&self, shape: Shape, inputs: Inputs<'_>, state: &LayerState, y: &mut [f32]) -> Result<()> {
        state.update_recurrence(|s, error| match (s, self.recurrence.state) {
            (Values::Bf16(s), _) => recurrent(shape, inputs, s, y),
            (Values::F32(s), None) => self.scan_f32(shape, inputs, s, y),
            (Values::F32(s), Some(bits)) => {
                let feedback = error.filter(|_| bits.feedback).map(|error| (error, bits.residual));
                recurrent_rounded(shape, inputs, s, y, bits.bits, feedback);
            }
        })
    }
}

impl Branch for Gla {
    fn forward(&self, u: &Tensor, state: Option<&mut LayerState>) -> Result<Tensor> {
        if !u.device().is_cpu() || self.tracked(u) {
            if self.rounds() {
                bail!("a quantized recurrence has no gradients and runs on a CPU only")
            }
            return with_state(self, u, state, |state| self.definition(u, state));
        }
        by_kernels(self, u, state)
    }

    fn apply(
        &self,
        u: &mut [f32],
        (batch, time): (usize, usize),
        state: &mut LayerState,
        room: &mut Room,
    ) -> Result<()> {
        let (s, p, tokens) = (self.sizes, &self.parts, batch * time);
        self.recurrence.shape(state)?;
        let mut projected = self.project(u, tokens, room)?;
        self.round_inputs(&mut projected);
        let [mut y, mut out] = [(); 2].map(|()| room.take(tokens * s.heads * s.value));
        self.scan(s.scan(batch, time), projected.inputs(), state, &mut y)?;
        projected.give(room);
        with_floats([&p.norm], |[norm]| rms_norm(&y, norm, s.eps, &mut out))?;
        if let Some(g_proj) = &p.g_proj {
            g_proj.apply(u, &mut y, room)?;
            silu_product(&mut y, &out);
            std::mem::swap(&mut y, &mut out);
        }
        p.o_proj.apply(&out, u, room)?;
        room.give(y);
        room.give(out);
        Ok(())
    }

    fn zero_state(&self, batch: usize, device: &Device) -> Result<LayerState> {
        let Sizes { heads, key, value, .. } = self.sizes;
        let s = Tensor::zeros((batch, heads, key, value), DType::F32, device)?;
        let mut state = LayerState { recurrent: Some(s), ..LayerState::default() };
        self.recurrence.shape(&mut state)?;
        Ok(state)
    }

    fn state_bytes(&self, batch: usize, _tokens: usize) -> usize {
        let values = self.sizes.key * self.sizes.value;
        let head = self.recurrence.state.map_or(size_of::<f32>() * values, |state| state.bytes(values));
        batch * self.sizes.heads * head
    }

    fn linears(&self) -> Vec<(&str, &Linear)> {
        let Parts { q_proj, k_proj, v_proj, g_proj, gk_proj: [first, second], o_proj, .. } = &self.parts;
        let mut all = vec![("q_proj", q_proj), ("k_proj", k_proj), ("v_proj", v_proj)];
        all.extend(g_proj.as_ref().map(|g_proj| ("g_proj", g_proj)));
        all.extend([("gk_proj.0", first), ("gk_proj.1", second), ("o_proj", o_proj)]);
        all
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        let Parts { q_proj, k_proj, v_proj, g_proj, gk_proj: [first, second], o_proj, .. } = &mut self.parts;
        let mut all = vec![("q_proj", q_proj), ("k_proj", k_proj), ("v_proj", v_proj)];
        all.extend(g_proj.as_mut().map(|g_proj| ("g_proj", g_proj)));
        all.extend([("gk_proj.0", first), ("gk_proj.1", second), ("o_proj", o_proj)]);
        all
    }

    fn recurrence(&self) -> Option<&dyn Recurrent> {
        Some(self)
    }

    fn meeting(&self, u: &Tensor) -> Result<Option<Meeting>> {
        self.meet(u).map(Some)
    }

    fn set_recurrence(&mut self, recurrence: Recurrence) -> crate::error::Result<bool> {
        recurrence.check()?;
        if recurrence != Recurrence::default() && !self.parts.norm.device().is_cpu() {
            return Err(Error::input("a quantized recurrence runs on the CPU only")
                .hint("load the model with the device cpu"));
        }
        self.recurrence = recurrence;
        Ok(true)
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        let kept = self.trace_kept(u, y, time, room)?;
        Ok(Back::new(move |u, dy, du, places, room| self.backward(u, kept, dy, du, places, room)))
    }

    fn copied(&self) -> Box<dyn Branch> {
        Box::new(self.clone())
    }
}
