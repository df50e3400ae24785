//! The feed-forward layer of two matrices: second(f(first(u))).

use super::branch::{Back, Branch, by_kernels};
use super::linear::Linear;
use super::room::Room;
use super::state::LayerState;
use crate::kernel::gelu::{gelu, gelu_grad};
use crate::kernel::squared::{relu_squared, relu_squared_grad};
use candle_core::{Result, Tensor};

/// One such layer.
#[derive(Clone, Debug)]
pub struct FeedForward {
    /// [inner, hidden].
    pub first: Linear,
    /// [hidden, inner].
    pub second: Linear,
    /// f.
    pub curve: Curve,
    /// What the two are called in a checkpoint.
    pub names: [&'static str; 2],
}

/// What is done to each value between the two matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// ReLU(x)² (So et al. 2021).
    ReluSquared,
    /// x · Φ(x) by the error function (Hendrycks & Gimpel 2016).
    Gelu,
}

impl Curve {
    /// f, in place.
    fn apply(self, x: &mut [f32]) {
        match self {
            Self::ReluSquared => relu_squared(x),
            Self::Gelu => gelu(x),
        }
    }

    /// dy ← f′(x) dy.
    fn grad(self, x: &[f32], dy: &mut [f32]) {
        match self {
            Self::ReluSquared => relu_squared_grad(x, dy),
            Self::Gelu => gelu_grad(x, dy),
        }
    }
}

impl FeedForward {
    /// In tensor operations: with gradients, on any device.
    pub fn definition(&self, u: &Tensor) -> Result<Tensor> {
        let raw = self.first.forward(u)?;
        let curved = match self.curve {
            Curve::ReluSquared => raw.relu()?.sqr()?,
            Curve::Gelu => raw.gelu_erf()?,
        };
        self.second.forward(&curved) // [B, T, hidden]
    }
}

impl Branch for FeedForward {
    fn forward(&self, u: &Tensor, _state: Option<&mut LayerState>) -> Result<Tensor> {
        if !u.device().is_cpu() || u.track_op() || self.first.tracked() || self.second.tracked() {
            return self.definition(u);
        }
        by_kernels(self, u)
    }

    fn apply(
        &self,
        u: &mut [f32],
        (batch, time): (usize, usize),
        _state: &mut LayerState,
        room: &mut Room,
    ) -> Result<()> {
        let mut inner = room.take(batch * time * self.first.weight.shape()?.0);
        self.first.apply(u, &mut inner, room)?;
        self.curve.apply(&mut inner);
        self.second.apply(&inner, u, room)?;
        room.give(inner);
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
        let inner = self.first.weight.shape()?.0;
        let [mut raw, mut curved] = [(); 2].map(|()| room.take(time * inner));
        self.first.trace(u, &mut raw)?;
        curved.copy_from_slice(&raw);
        self.curve.apply(&mut curved);
        self.second.trace(&curved, y)?;
        Ok(Back::new(move |u, dy, du, places, room| {
            let [first, second] = self.names;
            let mut draw = room.take(time * inner);
            self.second.pull(second, (&curved, dy), &mut draw, places)?;
            self.curve.grad(&raw, &mut draw);
            self.first.pull(first, (u, &draw), du, places)?;
            [raw, curved, draw].into_iter().for_each(|buffer| room.give(buffer));
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
            for curve in [Curve::ReluSquared, Curve::Gelu] {
                let linear =
                    |shape: [usize; 2], seed| Linear::new(Weight::Dense(noise(&shape, seed, 0.6)), None);
                let (first, second) = (linear([inner, hidden], 1), linear([hidden, inner], 2));
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
