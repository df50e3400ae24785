//! Mamba2's mixer (Dao & Gu 2024): in_proj → causal conv + SiLU → recurrence → gated norm → out_proj. Between in_proj and the
//! convolution there may be constant factors, and at the end the gate may come after the norm, or alone.
//!
//! Between the projections there are two forms of one computation: `definition.rs`, in differentiable tensor
//! operations on any device, and `fused.rs`, the kernels on a CPU, forward and back. `precision.rs` rounds
//! what goes through the recurrence to few bits, in the fused form alone; `recurrent.rs` lets measurements look into it.
//!
//! | letter | meaning |
//! |---|---|
//! | B, T | sequences, tokens |
//! | H, P | heads, values per head; I = H·P |
//! | G, N | groups that share B and C, state size |
//! | C, K | conv channels I + 2·G·N, conv taps |
//! | R | rows of in_proj: z (I), x (I), B (G·N), C (G·N), dt (H) |

mod definition;
mod fused;
mod precision;
mod recurrent;
#[cfg(test)]
mod tests;

use super::branch::{Back, Branch};
use super::linear::{Linear, Weight};
use super::meeting::Meeting;
use super::op::with_floats;
use super::recurrence::{Recurrence, Recurrent};
use super::room::{Buffer, Room};
use super::state::LayerState;
use crate::kernel::diagonal::scale;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::Arc;

/// One mixer.
#[derive(Clone, Debug)]
pub struct Mamba2 {
    /// [R, hidden].
    pub in_proj: Linear,
    /// [hidden, I].
    pub out_proj: Linear,
    core: Core,
    /// Factors on what in_proj gives, [R].
    factors: Option<Arc<[f32]>>,
}

impl Mamba2 {
    /// Joins projections and parameters.
    pub fn new(sizes: Sizes, in_proj: Linear, parts: &Parts, out_proj: Linear) -> Result<Self> {
        Ok(Self { in_proj, out_proj, core: Core::new(sizes, parts)?, factors: None })
    }

    /// With what in_proj gives multiplied by constants: those of z, x, B, C and dt.
    #[must_use]
    pub fn with_factors(self, factors: [f64; 5]) -> Self {
        let s = self.core.sizes;
        let rows = [s.inner(), s.inner(), s.groups * s.state, s.groups * s.state, s.heads];
        let all = rows.into_iter().zip(factors).flat_map(|(rows, by)| std::iter::repeat_n(by as f32, rows));
        Self { factors: Some(all.collect()), ..self }
    }

    /// What goes into the core: u [B, T, hidden] → z|x|B|C|dt [B, T, R].
    fn projected(&self, u: &Tensor) -> Result<Tensor> {
        let rows = self.in_proj.forward(u)?;
        match &self.factors {
            Some(factors) => rows.broadcast_mul(&Tensor::from_slice(factors, factors.len(), u.device())?),
            None => Ok(rows),
        }
    }

    /// Rows that in_proj gave, or their gradients, by the constant factors, in place.
    fn weigh(&self, rows: &mut [f32]) {
        if let Some(factors) = &self.factors {
            scale(factors, rows);
        }
    }

    /// Products of the scan are as exact as those with the weights.
    fn fine(&self) -> bool {
        matches!(&self.in_proj.weight, Weight::Dense(weight) if weight.dtype() == DType::F32)
    }

    /// The way back: the gradients where the [`Branch::trace`] that kept `kept` read `u` and that of its output is `dy`: `du`
    /// [T, hidden] and all of `grads` are overwritten.
    fn backward(
        &self,
        u: &[f32],
        Kept { zxbcdt, core, out, time }: Kept,
        dy: &[f32],
        du: &mut [f32],
        grads: Gradients<'_>,
        room: &mut Room,
    ) -> Result<()> {
        let [mut dout, mut dzxbcdt] = [&out, &zxbcdt].map(|like| room.take(like.len()));
        self.out_proj.backward(&out, dy, &mut dout, grads.out_proj, grads.out_bias)?;
        self.core.backward(&zxbcdt, core, (1, time), &dout, &mut dzxbcdt, grads.parts, room)?;
        self.weigh(&mut dzxbcdt);
        self.in_proj.backward(u, &dzxbcdt, du, grads.in_proj, grads.in_bias)?;
        for buffer in [zxbcdt, out, dout, dzxbcdt] {
            room.give(buffer);
        }
        Ok(())
    }
}

impl Branch for Mamba2 {
    fn forward(&self, u: &Tensor, state: Option<&mut LayerState>) -> Result<Tensor> {
        let zxbcdt = self.projected(u)?; // [B, T, R]
        let y = self.core.forward(&zxbcdt, state, self.fine())?; // [B, T, I]
        self.out_proj.forward(&y)
    }

    fn apply(
        &self,
        u: &mut [f32],
        (batch, time): (usize, usize),
        state: &mut LayerState,
        room: &mut Room,
    ) -> Result<()> {
        let sizes = self.core.sizes;
        let mut zxbcdt = room.take(batch * time * sizes.rows());
        self.in_proj.apply(u, &mut zxbcdt, room)?;
        self.weigh(&mut zxbcdt);
        let y = self.core.apply(&mut zxbcdt, (batch, time), state, self.fine(), room)?;
        self.out_proj.apply(&y, u, room)?;
        room.give(zxbcdt);
        room.give(y);
        Ok(())
    }

    fn zero_state(&self, batch: usize, device: &Device) -> Result<LayerState> {
        self.core.zero_state(batch, device)
    }

    fn state_bytes(&self, batch: usize, _tokens: usize) -> usize {
        self.core.state_bytes(batch)
    }

    fn linears(&self) -> Vec<(&str, &Linear)> {
        vec![("in_proj", &self.in_proj), ("out_proj", &self.out_proj)]
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        vec![("in_proj", &mut self.in_proj), ("out_proj", &mut self.out_proj)]
    }

    fn recurrence(&self) -> Option<&dyn Recurrent> {
        Some(self)
    }

    fn meeting(&self, u: &Tensor) -> Result<Option<Meeting>> {
        self.meet(u).map(Some)
    }

    fn set_recurrence(&mut self, recurrence: Recurrence) -> crate::error::Result<bool> {
        self.core.set_recurrence(recurrence)?;
        Ok(true)
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        let sizes = self.core.sizes;
        let mut zxbcdt = room.take(time * sizes.rows());
        self.in_proj.trace(u, &mut zxbcdt)?;
        self.weigh(&mut zxbcdt);
        let mut out = room.take(time * sizes.inner());
        let core = self.core.trace(&zxbcdt, (1, time), &mut out, room)?;
        self.out_proj.trace(&out, y)?;
        let kept = Kept { zxbcdt, core, out, time };
        Ok(Back::new(move |u, dy, du, places, room| {
            let (in_bias, out_bias) = (places.optional("in_proj.bias"), places.optional("out_proj.bias"));
            let (mut unused, mut no_norm) = (vec![], vec![]);
            let grads = Gradients {
                in_proj: places.take("in_proj.weight")?,
                in_bias,
                out_proj: places.take("out_proj.weight")?,
                out_bias,
                parts: Parts {
                    conv_weight: places.take("conv1d.weight")?,
                    conv_bias: places.optional("conv1d.bias").unwrap_or(&mut unused),
                    dt_bias: places.take("dt_bias")?,
                    a_log: places.take("A_log")?,
                    d: places.take("D")?,
                    norm: match self.core.sizes.end {
                        End::Gate => &mut no_norm,
                        _ => places.take("norm.weight")?,
                    },
                },
            };
            self.backward(u, kept, dy, du, grads, room)
        }))
    }

    fn copied(&self) -> Box<dyn Branch> {
        Box::new(self.clone())
    }
}

/// What the way back through a mixer needs of the way there.
struct Kept {
    /// [T, R].
    zxbcdt: Buffer,
    core: fused::Trace,
    /// [T, I].
    out: Buffer,
    time: usize,
}

/// Where [`Mamba2::backward`] leaves the gradients of the parameters, each as long as its parameter.
struct Gradients<'a> {
    in_proj: &'a mut [f32],
    in_bias: Option<&'a mut [f32]>,
    parts: Parts<&'a mut [f32]>,
    out_proj: &'a mut [f32],
    out_bias: Option<&'a mut [f32]>,
}

/// Everything between the projections: z|x|B|C|dt [B, T, R] → y [B, T, I].
#[derive(Clone, Debug)]
pub(crate) struct Core {
    sizes: Sizes,
    /// All parts in one vector, because an operation takes at most three tensors.
    packed: Tensor,
    recurrence: Recurrence,
}

impl Core {
    pub fn new(sizes: Sizes, parts: &Parts) -> Result<Self> {
        let Parts { conv_weight, conv_bias, dt_bias, a_log, d, norm } = parts;
        let packed = Tensor::cat(&[&conv_weight.flatten_all()?, conv_bias, dt_bias, a_log, d, norm], 0)?;
        Ok(Self { sizes, packed, recurrence: Recurrence::default() })
    }

    /// `fine`: see [`scan`](crate::kernel::scan::scan).
    pub fn forward(&self, zxbcdt: &Tensor, state: Option<&mut LayerState>, fine: bool) -> Result<Tensor> {
        let cpu = zxbcdt.device().is_cpu();
        let tracked = zxbcdt.track_op() || self.packed.track_op();
        if self.rounds() && (!cpu || tracked) {
            bail!("a quantized recurrence has no gradients and runs on a CPU only")
        }
        match state {
            Some(state) if cpu && !tracked => self.advance(zxbcdt, state, fine),
            None if cpu && !tracked => {
                self.advance(zxbcdt, &mut self.zero_state(zxbcdt.dim(0)?, zxbcdt.device())?, fine)
            }
            Some(state) => {
                let (y, next) = self.definition(zxbcdt, state)?;
                (state.conv, state.recurrent) = (next.conv, next.recurrent);
                Ok(y)
            }
            None => {
                let zero = self.sizes.zero_state(zxbcdt.dim(0)?, zxbcdt.device())?;
                Ok(self.definition(zxbcdt, &zero)?.0)
            }
        }
    }

    fn advance(&self, zxbcdt: &Tensor, state: &mut LayerState, fine: bool) -> Result<Tensor> {
        let (batch, time, _) = zxbcdt.dims3()?;
        let mut rows = with_floats([zxbcdt], |[zxbcdt]| zxbcdt.to_vec())?;
        let y = self.apply(&mut rows, (batch, time), state, fine, &mut Room::default())?;
        Tensor::from_slice(&y, (batch, time, self.sizes.inner()), zxbcdt.device())
    }

    fn zero_state(&self, batch: usize, device: &Device) -> Result<LayerState> {
        let mut state = self.sizes.zero_state(batch, device)?;
        self.recurrence.shape(&mut state)?;
        Ok(state)
    }
}

/// The sizes and constants of a mixer.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Heads H.
    pub heads: usize,
    /// Values per head P.
    pub head_dim: usize,
    /// Groups G.
    pub groups: usize,
    /// State size N.
    pub state: usize,
    /// Conv taps K.
    pub conv_width: usize,
    /// ε of the gated norm.
    pub eps: f32,
    /// Δ is clamped to this range.
    pub dt_limit: (f32, f32),
    /// What is done to y before out_proj.
    pub end: End,
}

/// The end of a mixer: the gate z, and an RMSNorm over each group of channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// RMSNorm(y ⊙ SiLU(z)): Mamba2's own.
    #[default]
    GateThenNorm,
    /// RMSNorm(y) ⊙ SiLU(z).
    NormThenGate,
    /// y ⊙ SiLU(z), without a norm.
    Gate,
}

impl Sizes {
    /// I = H·P.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// C = I + 2·G·N.
    pub fn channels(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }

    /// R, the rows of in_proj.
    pub fn rows(&self) -> usize {
        self.inner() + self.channels() + self.heads
    }

    fn zero_state(&self, batch: usize, device: &Device) -> Result<LayerState> {
        let recurrent = (batch, self.heads, self.head_dim, self.state);
        LayerState::zeros((batch, self.channels(), self.conv_width), recurrent, device)
    }
}

/// The small parameters of a mixer, all f32.
#[derive(Clone, Debug)]
pub struct Parts<T = Tensor> {
    /// [C, K].
    pub conv_weight: T,
    /// `[C]`.
    pub conv_bias: T,
    /// `[H]`.
    pub dt_bias: T,
    /// `[H]`; A = −e^A_log.
    pub a_log: T,
    /// `[H]`.
    pub d: T,
    /// `[I]`; of no meaning where there is no norm.
    pub norm: T,
}

impl<T> Parts<T> {
    /// All of them, in the order in which `Core` packs them.
    pub(crate) fn each_mut(&mut self) -> [&mut T; 6] {
        let Self { conv_weight, conv_bias, dt_bias, a_log, d, norm } = self;
        [conv_weight, conv_bias, dt_bias, a_log, d, norm]
    }

    /// Cuts the parts, in the order in which `Core` packs them, from something that gives the next so many values.
    fn cut(s: Sizes, mut next: impl FnMut(usize) -> T) -> Self {
        Self {
            conv_weight: next(s.channels() * s.conv_width),
            conv_bias: next(s.channels()),
            dt_bias: next(s.heads),
            a_log: next(s.heads),
            d: next(s.heads),
            norm: next(s.inner()),
        }
    }
}
