//! The mixer of Itera-Lite: a selective state space with one step size a token and one state of N values for all channels.
//!
//! (a, g) = in_proj(u); x = SiLU(conv(a)); Δ_t = mean over channels of softplus(delta_proj(x_t)); h_t = e^(Δ_t A) ⊙ h_{t−1} +
//! Δ_t B x_t; y_t = C h_t + D ⊙ x_t; out_proj(y ⊙ SiLU(g)), where A = −e^A_log and B and C do not depend on the token.
//!
//! | letter | meaning |
//! |---|---|
//! | B, T | sequences, tokens |
//! | I | inner channels: rows of in_proj are a (I), then g (I) |
//! | N, K | values of the state, conv taps |

mod definition;
mod fused;
mod recurrent;

use super::branch::{Back, Branch, Places, by_kernels, with_state};
use super::linear::Linear;
use super::op::with_floats;
use super::recurrence::Recurrent;
use super::room::Room;
use super::state::LayerState;
use candle_core::{Device, Result, Tensor};

/// One mixer.
#[derive(Clone, Debug)]
pub struct Selective {
    /// [2·I, hidden].
    pub in_proj: Linear,
    /// [I, I].
    pub delta_proj: Linear,
    /// [hidden, I].
    pub out_proj: Linear,
    /// The parameters that are in no linear.
    pub small: Parts,
}

/// The small parameters of a mixer, all f32.
#[derive(Clone, Debug)]
pub struct Parts<T = Tensor> {
    /// [I, 1, K].
    pub conv_weight: T,
    /// `[I]`.
    pub conv_bias: T,
    /// `[N]`; A = −e^A_log.
    pub a_log: T,
    /// [N, I].
    pub b: T,
    /// [I, N].
    pub c: T,
    /// `[I]`.
    pub d: T,
}

impl<T> Parts<T> {
    /// Their names within the branch.
    const NAMES: [&'static str; 6] = ["conv1d.weight", "conv1d.bias", "ssm.A_log", "ssm.B", "ssm.C", "ssm.D"];

    fn each(&self) -> [&T; 6] {
        let Self { conv_weight, conv_bias, a_log, b, c, d } = self;
        [conv_weight, conv_bias, a_log, b, c, d]
    }
}

/// The sizes of a mixer.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    inner: usize,
    state: usize,
    taps: usize,
}

impl Selective {
    fn sizes(&self) -> Result<Sizes> {
        let (inner, _, taps) = self.small.conv_weight.dims3()?;
        Ok(Sizes { inner, state: self.small.a_log.elem_count(), taps })
    }

    /// Lets `f` use the values of the small parameters.
    fn with_small<R>(&self, f: impl FnOnce(Parts<&[f32]>) -> R) -> Result<R> {
        with_floats(self.small.each(), |[conv_weight, conv_bias, a_log, b, c, d]| {
            f(Parts { conv_weight, conv_bias, a_log, b, c, d })
        })
    }

    fn tracked(&self) -> bool {
        let linears = [&self.in_proj, &self.delta_proj, &self.out_proj];
        linears.iter().any(|linear| linear.tracked()) || self.small.each().iter().any(|x| x.track_op())
    }
}

impl Branch for Selective {
    fn forward(&self, u: &Tensor, state: Option<&mut LayerState>) -> Result<Tensor> {
        if !u.device().is_cpu() || u.track_op() || self.tracked() {
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
        let there = state.update(|conv, h, _| self.there(u, (batch, time), conv, h.floats()?, room))??;
        self.out_proj.apply(&there.gated, u, room)?;
        there.give(room);
        Ok(())
    }

    fn zero_state(&self, batch: usize, device: &Device) -> Result<LayerState> {
        let Sizes { inner, state, taps } = self.sizes()?;
        LayerState::zeros((batch, inner, taps), (batch, 1, state, 1), device)
    }

    fn state_bytes(&self, batch: usize, _tokens: usize) -> usize {
        self.sizes().map_or(0, |s| batch * (s.inner * s.taps + s.state) * size_of::<f32>())
    }

    fn linears(&self) -> Vec<(&str, &Linear)> {
        let Self { in_proj, delta_proj, out_proj, .. } = self;
        vec![("in_proj", in_proj), ("ssm.delta_proj", delta_proj), ("out_proj", out_proj)]
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        let Self { in_proj, delta_proj, out_proj, .. } = self;
        vec![("in_proj", in_proj), ("ssm.delta_proj", delta_proj), ("out_proj", out_proj)]
    }

    fn smalls_mut(&mut self) -> Vec<(&str, &mut Tensor)> {
        let Parts { conv_weight, conv_bias, a_log, b, c, d } = &mut self.small;
        Parts::<Tensor>::NAMES.into_iter().zip([conv_weight, conv_bias, a_log, b, c, d]).collect()
    }

    fn recurrence(&self) -> Option<&dyn Recurrent> {
        Some(self)
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        let Sizes { inner, state, taps } = self.sizes()?;
        let (mut conv, mut h) = (vec![0.0; inner * taps], vec![0.0; state]);
        let kept = self.traced(u, time, &mut conv, &mut h, room)?;
        self.out_proj.trace(&kept.gated, y)?;
        Ok(Back::new(move |u, dy, du, places: &mut Places<'_>, room| {
            self.backward(u, kept, dy, du, places, room)
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

    fn mixer(hidden: usize, s: Sizes) -> Selective {
        let Sizes { inner, state, taps } = s;
        let linear = |shape: [usize; 2], seed: usize, bias: bool| {
            let bias = bias.then(|| noise(&shape[..1], seed + 10, 0.5));
            Linear::new(Weight::Dense(noise(&shape, seed, 0.4)), bias)
        };
        Selective {
            in_proj: linear([2 * inner, hidden], 1, false),
            delta_proj: linear([inner, inner], 2, true),
            out_proj: linear([hidden, inner], 3, false),
            small: Parts {
                conv_weight: noise(&[inner, 1, taps], 4, 0.6),
                conv_bias: noise(&[inner], 5, 0.3),
                a_log: noise(&[state], 6, 1.0),
                b: noise(&[state, inner], 7, 0.5),
                c: noise(&[inner, state], 8, 0.5),
                d: noise(&[inner], 9, 1.0),
            },
        }
    }

    pub(super) fn cases() -> Vec<(Selective, usize, usize)> {
        let sizes = |inner, state, taps| Sizes { inner, state, taps };
        [
            (8, sizes(16, 4, 4), 5),
            (12, sizes(19, 7, 3), 70),
            (5, sizes(9, 1, 4), 1),
            (24, sizes(48, 6, 4), 150),
        ]
        .into_iter()
        .map(|(hidden, s, time)| (mixer(hidden, s), hidden, time))
        .collect()
    }

    fn far(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// The definition in f64, token by token, written from the formulas alone: one sequence u [T, hidden] → what the branch gives.
    fn plain(mixer: &Selective, u: &Tensor) -> Vec<f64> {
        let wide = |x: &Tensor| -> Vec<f64> {
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
        };
        let matrix = |linear: &Linear| wide(&linear.weight.values().unwrap());
        let times = |w: &[f64], x: &[f64]| -> Vec<f64> {
            w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let Sizes { inner, state, taps } = mixer.sizes().unwrap();
        let [conv, conv_bias, a_log, b, c, d] = mixer.small.each().map(wide);
        let bias = wide(mixer.delta_proj.bias.as_ref().unwrap());
        let (hidden, all) = (u.dim(1).unwrap(), wide(u));
        let projected: Vec<Vec<f64>> =
            all.chunks(hidden).map(|u| times(&matrix(&mixer.in_proj), u)).collect();
        let (mut h, mut out) = (vec![0.0; state], vec![]);
        for t in 0..projected.len() {
            let x: Vec<f64> = (0..inner)
                .map(|i| {
                    let taps =
                        (0..taps.min(t + 1)).map(|j| conv[i * taps + taps - 1 - j] * projected[t - j][i]);
                    silu(conv_bias[i] + taps.sum::<f64>())
                })
                .collect();
            let steps = times(&matrix(&mixer.delta_proj), &x);
            let step =
                steps.iter().zip(&bias).map(|(x, b)| (x + b).exp().ln_1p()).sum::<f64>() / inner as f64;
            let written = times(&b, &x);
            for n in 0..state {
                h[n] = (-step * a_log[n].exp()).exp() * h[n] + step * written[n];
            }
            let read = times(&c, &h);
            let gated: Vec<f64> =
                (0..inner).map(|i| (read[i] + d[i] * x[i]) * silu(projected[t][inner + i])).collect();
            out.extend(times(&matrix(&mixer.out_proj), &gated));
        }
        out
    }

    #[test]
    fn kernels_and_definition_are_the_formulas() {
        for (mixer, hidden, time) in cases() {
            let u = noise(&[2, time, hidden], 21, 1.0);
            let found = mixer.forward(&u, None).unwrap();
            let defined = mixer.definition(&u, &mut mixer.zero_state(2, u.device()).unwrap()).unwrap();
            for batch in 0..2 {
                let exact = plain(&mixer, &u.get(batch).unwrap());
                for given in [&found, &defined] {
                    let given = given.get(batch).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    let far =
                        given.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                    assert!(far < 2e-5, "{far} at {time} tokens");
                }
            }
        }
    }

    #[test]
    fn pieces_and_single_tokens_are_the_whole() {
        for (mixer, hidden, time) in cases() {
            let u = noise(&[2, time, hidden], 22, 1.0);
            let whole = mixer.forward(&u, None).unwrap();
            for piece in [1, 3, 64] {
                let mut states = [(); 2].map(|()| mixer.zero_state(2, u.device()).unwrap());
                for first in (0..time).step_by(piece) {
                    let len = piece.min(time - first);
                    let u = u.narrow(1, first, len).unwrap().contiguous().unwrap();
                    let expected = whole.narrow(1, first, len).unwrap();
                    let found = mixer.forward(&u, Some(&mut states[0])).unwrap();
                    assert!(far(&found, &expected) < 1e-5);
                    let defined = mixer.definition(&u, &mut states[1]).unwrap();
                    assert!(far(&defined, &expected) < 2e-5);
                }
                let [a, b] = states.each_ref().map(|state| state.recurrence().unwrap());
                assert!(far(a, b) < 1e-5);
                let [a, b] = states.each_ref().map(|state| state.convolution().unwrap());
                assert!(far(a, b) < 1e-5);
            }
        }
    }

    #[test]
    fn gradients_are_those_of_the_definition() {
        // Of a single token no gradient goes through a decay.
        for (mixer, hidden, time) in cases().into_iter().filter(|(.., time)| *time > 1) {
            hold_gradients(&mixer, hidden, time);
        }
    }
}
