//! What measurements see of the mixer's recurrence: how fast its heads forget, and what goes in.
//!
//! The decay of a head is d = e^(ΔA), A = −e^A_log, Δ = softplus(dt + dt_bias).

use super::super::meeting::{Made, Meeting, rows};
use super::super::op::with_floats;
use super::super::recurrence::Recurrent;
use super::Mamba2;
use super::fused::{rates, slices};
use crate::kernel::conv::conv_silu;
use crate::kernel::softplus::step_sizes;
use candle_core::{Device, Result, Tensor};

impl Mamba2 {
    /// The decays [T, H] for rows [T, `row`] that in_proj gave, of which the last H values are dt.
    fn forgetting(&self, rows: &[f32], row: usize) -> Result<Tensor> {
        let heads = self.core.sizes.heads;
        let (mut steps, rates) = self.steps(rows, row)?;
        for steps in steps.chunks_mut(heads) {
            steps.iter_mut().zip(&rates).for_each(|(step, rate)| *step = (*step * rate).exp());
        }
        Tensor::from_vec(steps, (rows.len() / row, heads, 1), &Device::Cpu)
    }

    /// Δ [T, H] for such rows, and A of each head.
    fn steps(&self, rows: &[f32], row: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let s = self.core.sizes;
        let mut steps = vec![0.0; rows.len() / row * s.heads];
        let rates = with_floats([&self.core.packed.to_device(&Device::Cpu)?], |[packed]| {
            let parts = slices(s, packed);
            step_sizes(rows, row, parts.dt_bias, s.dt_limit, &mut steps);
            rates(parts.a_log).to_vec()
        })?;
        Ok((steps, rates))
    }

    /// How the tokens meet; see [`Branch::meeting`](super::Branch::meeting).
    pub(super) fn meet(&self, u: &Tensor) -> Result<Meeting> {
        let (s, time) = (self.core.sizes, u.dim(1)?);
        let inputs = self.inputs(u)?.into_iter().map(|(_, x)| rows(&x)).collect::<Result<Vec<_>>>()?;
        let [x, b, c] = <[Vec<f32>; 3]>::try_from(inputs).expect("x, B and C");
        let (inner, shared) = (s.inner(), s.groups * s.state);
        let mut xbc = Vec::with_capacity(time * s.channels());
        for t in 0..time {
            xbc.extend_from_slice(&x[t * inner..][..inner]);
            xbc.extend_from_slice(&b[t * shared..][..shared]);
            xbc.extend_from_slice(&c[t * shared..][..shared]);
        }
        let projected = self.projected(u)?;
        let (dt, rates) = with_floats([&projected.contiguous()?], |[rows]| self.steps(rows, s.rows()))??;
        let made = Made::Heads { shape: s.scan(1, time, inner), xbc, dt, rates };
        Ok(Meeting { time, heads: s.groups, groups: s.groups, key: s.state, q: c, k: b, made })
    }
}

impl Recurrent for Mamba2 {
    fn at_rest(&self) -> Result<Tensor> {
        let heads = self.core.sizes.heads;
        self.forgetting(&vec![0.0; heads], heads)?.squeeze(0)
    }

    fn decays(&self, u: &Tensor) -> Result<Tensor> {
        let rows = self.projected(u)?.to_device(&Device::Cpu)?; // [1, T, R]
        with_floats([&rows], |[rows]| self.forgetting(rows, self.core.sizes.rows()))?
    }

    /// x [T, I], B [T, G·N] and C [T, G·N]: after convolution and SiLU.
    fn inputs(&self, u: &Tensor) -> Result<Vec<(&'static str, Tensor)>> {
        let s = self.core.sizes;
        let rows = self.projected(u)?; // [1, T, R]
        let (_, time, _) = rows.dims3()?;
        let mut out = vec![0.0; time * s.channels()];
        let mut past = vec![0.0; s.channels() * s.conv_width];
        with_floats([&rows.contiguous()?, &self.core.packed], |[rows, packed]| {
            let parts = slices(s, packed);
            // z comes first.
            conv_silu(
                s.conv(1, time),
                &rows[s.inner()..],
                parts.conv_weight,
                parts.conv_bias,
                &mut past,
                &mut out,
            );
        })?;
        let all = Tensor::from_vec(out, (time, s.channels()), rows.device())?;
        let shared = s.groups * s.state;
        let parts = [("x", 0, s.inner()), ("B", s.inner(), shared), ("C", s.inner() + shared, shared)];
        parts
            .into_iter()
            .map(|(name, first, len)| Ok((name, all.narrow(1, first, len)?.contiguous()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cases, noise, parts};
    use super::*;
    use crate::layer::linear::{Linear, Weight};

    #[test]
    fn decays_are_those_of_the_definition() {
        let (s, _, _) = cases()[2];
        let linear = |shape: [usize; 2]| Linear::new(Weight::Dense(noise(&shape, 26, 0.5)), None);
        let small = parts(s);
        let mixer = Mamba2::new(s, linear([s.rows(), 12]), &small, linear([12, s.inner()])).unwrap();
        let u = noise(&[1, 3, 12], 31, 1.0);
        let rows: Vec<Vec<f32>> = mixer.in_proj.forward(&u).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        let found: Vec<f32> = mixer.decays(&u).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let [bias, a_log]: [Vec<f32>; 2] =
            [&small.dt_bias, &small.a_log].map(|values| values.to_vec1().unwrap());
        for (token, row) in rows.iter().enumerate() {
            for head in 0..s.heads {
                let dt = f64::from(row[s.rows() - s.heads + head]) + f64::from(bias[head]);
                let step = dt.exp().ln_1p().clamp(f64::from(s.dt_limit.0), f64::from(s.dt_limit.1));
                let expected = (-step * f64::from(a_log[head]).exp()).exp();
                assert!((f64::from(found[token * s.heads + head]) - expected).abs() < 1e-6);
            }
        }
        let rest = mixer.at_rest().unwrap();
        assert_eq!(rest.dims(), [s.heads, 1]);
        assert!(rest.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|d| (0.0..1.0).contains(d)));
    }

    #[test]
    fn inputs_are_what_the_convolution_gives() {
        let (s, _, _) = cases()[2];
        let linear = |shape: [usize; 2]| Linear::new(Weight::Dense(noise(&shape, 26, 0.5)), None);
        let mixer = Mamba2::new(s, linear([s.rows(), 12]), &parts(s), linear([12, s.inner()])).unwrap();
        let inputs = mixer.inputs(&noise(&[1, 5, 12], 31, 1.0)).unwrap();
        let shapes: Vec<_> = inputs.iter().map(|(name, values)| (*name, values.dims().to_vec())).collect();
        let shared = s.groups * s.state;
        assert_eq!(shapes, [("x", vec![5, s.inner()]), ("B", vec![5, shared]), ("C", vec![5, shared])]);
        // SiLU gives nothing below −.2785.
        let all =
            inputs.iter().flat_map(|(_, values)| values.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert!(all.fold(0.0, f32::min) > -0.2785);
    }
}
