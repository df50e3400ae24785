//! The feed-forward layer with a squared ReLU (So et al. 2021): proj(ReLU(fc(u))²).

use super::branch::{Back, Branch, by_kernels};
use super::linear::Linear;
use super::room::Room;
use super::state::LayerState;
use crate::kernel::squared::{relu_squared, relu_squared_grad};
use candle_core::{Result, Tensor};

/// One such layer.
#[derive(Clone, Debug)]
pub struct Squared {
    /// [inner, hidden].
    pub fc: Linear,
    /// [hidden, inner].
    pub proj: Linear,
    /// What the two are called in a checkpoint.
    pub names: [&'static str; 2],
}

impl Squared {
    /// In tensor operations: with gradients, on any device.
    pub fn definition(&self, u: &Tensor) -> Result<Tensor> {
        self.proj.forward(&self.fc.forward(u)?.relu()?.sqr()?) // [B, T, hidden]
    }
}

impl Branch for Squared {
    fn forward(&self, u: &Tensor, _state: Option<&mut LayerState>) -> Result<Tensor> {
        if !u.device().is_cpu() || u.track_op() || self.fc.tracked() || self.proj.tracked() {
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
        let mut inner = room.take(batch * time * self.fc.weight.shape()?.0);
        self.fc.apply(u, &mut inner, room)?;
        relu_squared(&mut inner);
        self.proj.apply(&inner, u, room)?;
        room.give(inner);
        Ok(())
    }

    fn linears(&self) -> Vec<(&'static str, &Linear)> {
        let [fc, proj] = self.names;
        vec![(fc, &self.fc), (proj, &self.proj)]
    }

    fn linears_mut(&mut self) -> Vec<(&'static str, &mut Linear)> {
        let [fc, proj] = self.names;
        vec![(fc, &mut self.fc), (proj, &mut self.proj)]
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        let inner = self.fc.weight.shape()?.0;
        let [mut raw, mut squares] = [(); 2].map(|()| room.take(time * inner));
        self.fc.trace(u, &mut raw)?;
        squares.copy_from_slice(&raw);
        relu_squared(&mut squares);
        self.proj.trace(&squares, y)?;
        Ok(Box::new(move |u, dy, du, places, room| {
            let [fc, proj] = self.names;
            let mut draw = room.take(time * inner);
            self.proj.pull(proj, (&squares, dy), &mut draw, places)?;
            relu_squared_grad(&raw, &mut draw);
            self.fc.pull(fc, (u, &draw), du, places)?;
            [raw, squares, draw].into_iter().for_each(|buffer| room.give(buffer));
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
            let linear = |shape: [usize; 2], seed| Linear::new(Weight::Dense(noise(&shape, seed, 0.6)), None);
            let (fc, proj) = (linear([inner, hidden], 1), linear([hidden, inner], 2));
            let layer = Squared { fc, proj, names: ["fc", "proj"] };
            let u = noise(&[2, time, hidden], 4, 1.0);
            let (found, expected) = (layer.forward(&u, None).unwrap(), layer.definition(&u).unwrap());
            let far = (found - expected).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-5);
            hold_gradients(&layer, hidden, time);
        }
    }
}
