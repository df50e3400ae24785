//! What measurements see of the recurrence: how fast its values forget, and what goes in.

use super::{Selective, Sizes};
use crate::kernel::conv::conv_silu;
use crate::kernel::softplus::mean_steps;
use crate::layer::op::with_floats;
use crate::layer::recurrence::Recurrent;
use candle_core::{Device, Result, Tensor};

impl Selective {
    /// x [T, I] after the convolution from nothing, for a sequence `u` [1, T, hidden].
    fn convolved(&self, u: &Tensor) -> Result<Tensor> {
        let Sizes { inner, taps, .. } = self.sizes()?;
        let ag = self.in_proj.forward(u)?; // [1, T, 2·I]
        let time = u.dim(1)?;
        let (mut x, mut past) = (vec![0.0; time * inner], vec![0.0; inner * taps]);
        let shape =
            crate::kernel::conv::Shape { batch: 1, time, channels: inner, width: taps, row: 2 * inner };
        with_floats([&ag.contiguous()?], |[ag]| {
            self.with_small(|p| conv_silu(shape, ag, p.conv_weight, p.conv_bias, &mut past, &mut x))
        })??;
        Tensor::from_vec(x, (time, inner), &Device::Cpu)
    }

    /// Δ of each of rows `x` [T, I].
    fn steps(&self, x: &Tensor) -> Result<Vec<f32>> {
        let mut steps = vec![0.0; x.dim(0)?];
        with_floats([&self.delta_proj.forward(x)?], |[raw]| mean_steps(raw, &mut steps))?;
        Ok(steps)
    }

    /// e^(Δ A) [T, 1, N].
    fn forgetting(&self, x: &Tensor) -> Result<Tensor> {
        let steps = self.steps(x)?;
        let decays = self.with_small(|p| {
            let of = |step: &f32| p.a_log.iter().map(|a| (-step * a.exp()).exp()).collect::<Vec<f32>>();
            steps.iter().flat_map(of).collect::<Vec<f32>>()
        })?;
        Tensor::from_vec(decays, (steps.len(), 1, self.sizes()?.state), &Device::Cpu)
    }
}

/// One head, whose decays differ by value of the state.
impl Recurrent for Selective {
    fn at_rest(&self) -> Result<Tensor> {
        // What the branch reads is 0: the convolution gives SiLU of its bias.
        let x = self.small.conv_bias.silu()?.unsqueeze(0)?; // [1, I]
        self.forgetting(&x)?.squeeze(0)
    }

    fn decays(&self, u: &Tensor) -> Result<Tensor> {
        self.forgetting(&self.convolved(u)?)
    }

    /// x [T, I] after convolution and SiLU, and what of it is written, Δ B x [T, N].
    fn inputs(&self, u: &Tensor) -> Result<Vec<(&'static str, Tensor)>> {
        let x = self.convolved(u)?;
        let steps = Tensor::from_vec(self.steps(&x)?, (x.dim(0)?, 1), &Device::Cpu)?;
        let written = x.matmul(&self.small.b.t()?)?.broadcast_mul(&steps)?;
        Ok(vec![("x", x), ("Bx", written)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::attention::tests::noise;
    use super::super::super::branch::Branch;
    use super::super::tests::cases;
    use super::*;

    #[test]
    fn states_follow_from_decays_and_inputs() {
        for (mixer, hidden, time) in cases() {
            let u = noise(&[1, time, hidden], 3, 1.0);
            let mut state = mixer.zero_state(1, u.device()).unwrap();
            mixer.forward(&u, Some(&mut state)).unwrap();
            let decays = mixer.decays(&u).unwrap().squeeze(1).unwrap().to_vec2::<f32>().unwrap();
            let inputs = mixer.inputs(&u).unwrap();
            let written = inputs[1].1.to_vec2::<f32>().unwrap();
            let mut h = vec![0.0; decays[0].len()];
            for (decays, written) in decays.iter().zip(written) {
                h.iter_mut().zip(decays).zip(written).for_each(|((h, d), w)| *h = *h * d + w);
            }
            let found = state.recurrence().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(h.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-5), "{h:?} {found:?}");
            assert_eq!(mixer.at_rest().unwrap().dims(), [1, h.len()]);
        }
    }
}
