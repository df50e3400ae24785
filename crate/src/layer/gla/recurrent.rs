//! What measurements see of the mixer's recurrence: how fast its channels forget, and what goes in.

use super::super::meeting::{Made, Meeting};
use super::super::op::with_floats;
use super::super::recurrence::Recurrent;
use super::super::room::{Buffer, Room};
use super::{Gla, Projected, Sizes};
use crate::kernel::decay::decays;
use candle_core::{Device, Result, Tensor};

impl Gla {
    /// Decays [T, H, K] of gates [T, G·K].
    fn forgetting(&self, gates: &Tensor) -> Result<Tensor> {
        let Sizes { heads, groups, key, clamp_min, .. } = self.sizes;
        let mut all = with_floats([&gates.contiguous()?.to_device(&Device::Cpu)?], |[gates]| gates.to_vec())?;
        decays(&mut all, clamp_min);
        let time = all.len() / (groups * key);
        Tensor::from_vec(all, (time, groups, 1, key), &Device::Cpu)?
            .broadcast_as((time, groups, heads / groups, key))?
            .contiguous()?
            .reshape((time, heads, key))
    }

    /// What goes into the recurrence for a sequence `u` [1, T, hidden], before a scheme rounds it.
    fn projected(&self, u: &Tensor) -> Result<Projected<Buffer>> {
        let time = u.dim(1)?;
        with_floats([&u.contiguous()?], |[u]| self.project(u, time, &mut Room::default()))?
    }

    /// How the tokens meet; see [`Branch::meeting`](super::Branch::meeting).
    pub(super) fn meet(&self, u: &Tensor) -> Result<Meeting> {
        let (Sizes { heads, groups, key, .. }, time) = (self.sizes, u.dim(1)?);
        let Projected { q, k, v, a } = self.projected(u)?;
        let made = Made::Channels { a: a.to_vec(), v: v.to_vec() };
        Ok(Meeting { time, heads, groups, key, q: q.to_vec(), k: k.to_vec(), made })
    }
}

impl Recurrent for Gla {
    fn at_rest(&self) -> Result<Tensor> {
        let [_, second] = &self.parts.gk_proj;
        let gates = match &second.bias {
            Some(bias) => bias.unsqueeze(0)?,
            None => Tensor::zeros((1, second.weight.shape()?.0), self.parts.norm.dtype(), &Device::Cpu)?,
        };
        self.forgetting(&gates)?.squeeze(0)
    }

    fn decays(&self, u: &Tensor) -> Result<Tensor> {
        let [first, second] = &self.parts.gk_proj;
        self.forgetting(&second.forward(&first.forward(u)?)?)
    }

    /// q [T, H·K], k [T, G·K] and v [T, G·V].
    fn inputs(&self, u: &Tensor) -> Result<Vec<(&'static str, Tensor)>> {
        let (_, time, _) = u.dims3()?;
        let (Projected { q, k, v, .. }, Sizes { heads, groups, key, value, .. }) =
            (self.projected(u)?, self.sizes);
        let tensor = |values: &[f32], width: usize| Tensor::from_slice(values, (time, width), &Device::Cpu);
        Ok(vec![
            ("q", tensor(&q, heads * key)?),
            ("k", tensor(&k, groups * key)?),
            ("v", tensor(&v, groups * value)?),
        ])
    }
}
