//! The gated feed-forward layer (Shazeer 2020): down(SiLU(f · gate(u)) ⊙ up(u)), f as a rule 1.

use super::branch::{Back, Branch, by_kernels};
use super::linear::Linear;
use super::room::Room;
use super::state::LayerState;
use crate::kernel::diagonal::multiply;
use crate::kernel::gated::{silu_product, silu_product_grad};
use crate::kernel::norm::add;
use candle_core::{Result, Tensor};

/// One gated feed-forward layer.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// [inner, hidden].
    pub gate_proj: Linear,
    /// [inner, hidden].
    pub up_proj: Linear,
    /// [hidden, inner].
    pub down_proj: Linear,
    /// A factor on what gate_proj gives.
    pub gate_factor: Option<f32>,
}

impl Mlp {
    /// In tensor operations: with gradients, on any device.
    pub fn definition(&self, u: &Tensor) -> Result<Tensor> {
        let gate = match self.gate_factor {
            Some(factor) => (self.gate_proj.forward(u)? * f64::from(factor))?,
            None => self.gate_proj.forward(u)?,
        };
        let gated = (gate.silu()? * self.up_proj.forward(u)?)?; // [B, T, inner]
        self.down_proj.forward(&gated)
    }

    /// What gate_proj gave, or its gradient, by the factor, in place.
    fn weigh(&self, gate: &mut [f32]) {
        if let Some(factor) = self.gate_factor {
            multiply(factor, gate);
        }
    }
}

impl Branch for Mlp {
    fn forward(&self, u: &Tensor, _state: Option<&mut LayerState>) -> Result<Tensor> {
        if !u.device().is_cpu() || u.track_op() || self.linears().iter().any(|(_, linear)| linear.tracked()) {
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
        let inner = self.gate_proj.weight.shape()?.0;
        let [mut gate, mut up] = [(); 2].map(|()| room.take(batch * time * inner));
        self.gate_proj.apply(u, &mut gate, room)?;
        self.weigh(&mut gate);
        self.up_proj.apply(u, &mut up, room)?;
        silu_product(&mut gate, &up);
        room.give(up);
        self.down_proj.apply(&gate, u, room)?;
        room.give(gate);
        Ok(())
    }

    fn linears(&self) -> Vec<(&str, &Linear)> {
        let Self { gate_proj, up_proj, down_proj, .. } = self;
        vec![("gate_proj", gate_proj), ("up_proj", up_proj), ("down_proj", down_proj)]
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        let Self { gate_proj, up_proj, down_proj, .. } = self;
        vec![("gate_proj", gate_proj), ("up_proj", up_proj), ("down_proj", down_proj)]
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        let inner = self.gate_proj.weight.shape()?.0;
        let [mut gate, mut up, mut product] = [(); 3].map(|()| room.take(time * inner));
        self.gate_proj.trace(u, &mut gate)?;
        self.weigh(&mut gate);
        self.up_proj.trace(u, &mut up)?;
        product.copy_from_slice(&gate);
        silu_product(&mut product, &up);
        self.down_proj.trace(&product, y)?;
        Ok(Back::new(move |u, dy, du, places, room| {
            let mut dproduct = room.take(time * inner);
            self.down_proj.pull("down_proj", (&product, dy), &mut dproduct, places)?;
            silu_product_grad(&mut gate, &mut up, &dproduct);
            self.weigh(&mut gate);
            self.gate_proj.pull("gate_proj", (u, &gate), du, places)?;
            let mut by_up = room.take(du.len());
            self.up_proj.pull("up_proj", (u, &up), &mut by_up, places)?;
            add(&by_up, du);
            for buffer in [gate, up, product, dproduct, by_up] {
                room.give(buffer);
            }
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

    fn layer(hidden: usize, inner: usize, bias: bool) -> Mlp {
        let linear = |out: usize, of: usize, seed: usize| {
            let bias = bias.then(|| noise(&[out], seed + 10, 0.5));
            Linear::new(Weight::Dense(noise(&[out, of], seed, 0.6)), bias)
        };
        Mlp {
            gate_proj: linear(inner, hidden, 1),
            up_proj: linear(inner, hidden, 2),
            down_proj: linear(hidden, inner, 3),
            gate_factor: bias.then_some(0.7),
        }
    }

    #[test]
    fn kernels_are_the_definition_forward_and_back() {
        for (hidden, inner, time, bias) in [(16, 24, 5, true), (12, 33, 70, false), (7, 5, 1, true)] {
            let mlp = layer(hidden, inner, bias);
            let u = noise(&[2, time, hidden], 4, 1.0);
            let (found, expected) = (mlp.forward(&u, None).unwrap(), mlp.definition(&u).unwrap());
            let far = (found - expected).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-5);
            hold_gradients(&mlp, hidden, time);
        }
    }
}
