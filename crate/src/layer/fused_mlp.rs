//! The gated feed-forward layer whose first two matrices are one: output(SiLU(a) ⊙ b), (a, b) the halves of input(u).

use super::branch::{Back, Branch, by_kernels};
use super::linear::Linear;
use super::room::Room;
use super::state::LayerState;
use crate::kernel::gated::{silu_halves, silu_halves_grad};
use candle_core::{D, Result, Tensor};

/// One such layer.
#[derive(Clone, Debug)]
pub struct FusedMlp {
    /// [2 · inner, hidden]: the rows of the gate, then the others.
    pub input: Linear,
    /// [hidden, inner].
    pub output: Linear,
    /// What the two are called in a checkpoint.
    pub names: [&'static str; 2],
}

impl FusedMlp {
    /// In tensor operations: with gradients, on any device.
    pub fn definition(&self, u: &Tensor) -> Result<Tensor> {
        let both = self.input.forward(u)?; // [B, T, 2 · inner]
        let inner = both.dim(D::Minus1)? / 2;
        let [gate, up] = [0, inner].map(|first| both.narrow(D::Minus1, first, inner));
        self.output.forward(&(gate?.silu()? * up?)?)
    }
}

impl Branch for FusedMlp {
    fn forward(&self, u: &Tensor, _state: Option<&mut LayerState>) -> Result<Tensor> {
        if !u.device().is_cpu() || u.track_op() || self.input.tracked() || self.output.tracked() {
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
        let inner = self.output.weight.shape()?.1;
        let (mut both, mut gated) = (room.take(batch * time * 2 * inner), room.take(batch * time * inner));
        self.input.apply(u, &mut both, room)?;
        silu_halves(&both, inner, &mut gated);
        self.output.apply(&gated, u, room)?;
        room.give(both);
        room.give(gated);
        Ok(())
    }

    fn linears(&self) -> Vec<(&str, &Linear)> {
        let [input, output] = self.names;
        vec![(input, &self.input), (output, &self.output)]
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        let [input, output] = self.names;
        vec![(input, &mut self.input), (output, &mut self.output)]
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        let inner = self.output.weight.shape()?.1;
        let (mut both, mut gated) = (room.take(time * 2 * inner), room.take(time * inner));
        self.input.trace(u, &mut both)?;
        silu_halves(&both, inner, &mut gated);
        self.output.trace(&gated, y)?;
        Ok(Back::new(move |u, dy, du, places, room| {
            let [input, output] = self.names;
            let mut dgated = room.take(gated.len());
            self.output.pull(output, (&gated, dy), &mut dgated, places)?;
            silu_halves_grad(&mut both, inner, &dgated);
            self.input.pull(input, (u, &both), du, places)?;
            [both, gated, dgated].into_iter().for_each(|buffer| room.give(buffer));
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
            let (input, output) = (linear([2 * inner, hidden], 1), linear([hidden, inner], 2));
            let layer = FusedMlp { input, output, names: ["in", "out"] };
            let u = noise(&[2, time, hidden], 4, 1.0);
            let (found, expected) = (layer.forward(&u, None).unwrap(), layer.definition(&u).unwrap());
            let far = (found - expected).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-5);
            hold_gradients(&layer, hidden, time);
        }
    }
}
