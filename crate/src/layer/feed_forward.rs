//! The feed-forward layer of two matrices: second(f(first(u))). f is of each value alone, or a gate whose matrix and that of what it
//! gates are one.

use super::branch::{Back, Branch, by_kernels};
use super::linear::Linear;
use super::room::{Buffer, Room};
use super::state::LayerState;
use crate::kernel::gated::{silu_halves, silu_halves_grad};
use crate::kernel::gelu::{gelu, gelu_grad};
use crate::kernel::squared::{relu_squared, relu_squared_grad};
use candle_core::{D, Result, Tensor};

/// One such layer.
#[derive(Clone, Debug)]
pub struct FeedForward {
    /// [inner, hidden]; of a gated layer [2 · inner, hidden]: the rows of the gate, then the others.
    pub first: Linear,
    /// [hidden, inner].
    pub second: Linear,
    /// f.
    pub curve: Curve,
    /// What the two are called in a checkpoint.
    pub names: [&'static str; 2],
}

/// What is done between the two matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// ReLU(x)² (So et al. 2021).
    ReluSquared,
    /// x · Φ(x) by the error function (Hendrycks & Gimpel 2016).
    Gelu,
    /// SiLU(a) ⊙ b, (a, b) the halves of what the first matrix gives (Shazeer 2020).
    SwiGlu,
}

impl Curve {
    /// f in place; none where it halves its rows.
    fn pointwise(self) -> Option<fn(&mut [f32])> {
        match self {
            Self::ReluSquared => Some(relu_squared),
            Self::Gelu => Some(gelu),
            Self::SwiGlu => None,
        }
    }

    /// f of rows for the second matrix's `inner` columns, in place where that can be.
    fn apply(self, mut raw: Buffer, inner: usize, room: &mut Room) -> Buffer {
        let Some(f) = self.pointwise() else {
            let mut gated = room.take(raw.len() / 2);
            silu_halves(&raw, inner, &mut gated);
            room.give(raw);
            return gated;
        };
        f(&mut raw);
        raw
    }

    /// The same into `curved`: the way back needs `raw`.
    fn trace(self, raw: &[f32], inner: usize, curved: &mut [f32]) {
        let Some(f) = self.pointwise() else { return silu_halves(raw, inner, curved) };
        curved.copy_from_slice(raw);
        f(curved);
    }

    /// raw ← f′(raw) dy; `dy` is of no more use.
    fn grad(self, raw: &mut Buffer, inner: usize, dy: &mut Buffer) {
        match self {
            Self::ReluSquared => relu_squared_grad(raw, dy),
            Self::Gelu => gelu_grad(raw, dy),
            Self::SwiGlu => return silu_halves_grad(raw, inner, dy),
        }
        std::mem::swap(raw, dy);
    }
}

impl FeedForward {
    /// In tensor operations: with gradients, on any device.
    pub fn definition(&self, u: &Tensor) -> Result<Tensor> {
        let raw = self.first.forward(u)?;
        let curved = match self.curve {
            Curve::ReluSquared => raw.relu()?.sqr()?,
            Curve::Gelu => raw.gelu_erf()?,
            Curve::SwiGlu => {
                let inner = raw.dim(D::Minus1)? / 2;
                let [gate, up] = [0, inner].map(|at| raw.narrow(D::Minus1, at, inner));
                (gate?.silu()? * up?)?
            }
        };
        self.second.forward(&curved) // [B, T, hidden]
    }

    /// Values of a token before f, and after it.
    fn widths(&self) -> Result<(usize, usize)> {
        Ok((self.first.weight.shape()?.0, self.second.weight.shape()?.1))
    }
}

impl Branch for FeedForward {
    fn forward(&self, u: &Tensor, _state: Option<&mut LayerState>) -> Result<Tensor> {
        if !u.device().is_cpu() || u.track_op() || self.first.tracked() || self.second.tracked() {
            return self.definition(u);
        }
        by_kernels(self, u, None)
    }

    fn apply(
        &self,
        u: &mut [f32],
        (batch, time): (usize, usize),
        _state: &mut LayerState,
        room: &mut Room,
    ) -> Result<()> {
        let (wide, inner) = self.widths()?;
        let mut raw = room.take(batch * time * wide);
        self.first.apply(u, &mut raw, room)?;
        let curved = self.curve.apply(raw, inner, room);
        self.second.apply(&curved, u, room)?;
        room.give(curved);
        Ok(())
    }

    fn linears(&self) -> Vec<(&str, &Linear)> {
        let [first, second] = self.names;
        vec![(first, &self.first), (second, &self.second)]
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        let [first, second] = self.names;
        vec![(first, &mut self.first), (second, &mut self.second)]
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        let (wide, inner) = self.widths()?;
        let [mut raw, mut curved] = [wide, inner].map(|width| room.take(time * width));
        self.first.trace(u, &mut raw)?;
        self.curve.trace(&raw, inner, &mut curved);
        self.second.trace(&curved, y)?;
        Ok(Back::new(move |u, dy, du, places, room| {
            let [first, second] = self.names;
            let mut dcurved = room.take(time * inner);
            self.second.pull(second, (&curved, dy), &mut dcurved, places)?;
            self.curve.grad(&mut raw, inner, &mut dcurved);
            self.first.pull(first, (u, &raw), du, places)?;
            [raw, curved, dcurved].into_iter().for_each(|buffer| room.give(buffer));
            Ok(())
        }))
    }

    fn copied(&self) -> Box<dyn Branch> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::{hold_gradients, noise};
    use super::*;
    use crate::layer::linear::Weight;

    #[test]
    fn kernels_are_the_definition_forward_and_back() {
        for (hidden, inner, time) in [(16, 24, 5), (12, 33, 70), (7, 5, 1)] {
            for curve in [Curve::ReluSquared, Curve::Gelu, Curve::SwiGlu] {
                let linear =
                    |shape: [usize; 2], seed| Linear::new(Weight::Dense(noise(&shape, seed, 0.6)), None);
                let wide = if curve == Curve::SwiGlu { 2 * inner } else { inner };
                let (first, second) = (linear([wide, hidden], 1), linear([hidden, inner], 2));
                let layer = FeedForward { first, second, curve, names: ["fc", "proj"] };
                let u = noise(&[2, time, hidden], 4, 1.0);
                let (found, expected) = (layer.forward(&u, None).unwrap(), layer.definition(&u).unwrap());
                let far = (found - expected).unwrap().abs().unwrap().max_all().unwrap();
                assert!(far.to_scalar::<f32>().unwrap() < 1e-5);
                hold_gradients(&layer, hidden, time);
            }
        }
    }
}
