//! How many bits go through the recurrence: its inputs x, B and C, and its state.
//!
//! The recurrence is where Mamba loses most when it is quantized (Quamba2, Chiang et al. 2025), so each of the three has
//! a switch of its own. All are symmetric integers, simulated: values are rounded and stay f32. A state in bf16 is stored as such.
//!
//! | | what shares a scale | when |
//! |---|---|---|
//! | x | the P values of a head | every token, after conv and SiLU |
//! | B, C | the N values of a group, of B and of C each | every token, after conv and SiLU |
//! | state | the P × N values of a head | after every token |
//! | its residual | the same | after the state, where errors are fed back in few bits |

use super::{Core, Sizes};
use crate::error::{Error, Result};
use crate::kernel::round::fake_int;
use crate::layer::recurrence::Recurrence;
use rayon::prelude::*;

impl Sizes {
    /// Rounds x, B and C in rows of `xbc` [B·T, C], as they come from the convolution.
    pub(super) fn round_inputs(&self, bits: Recurrence, xbc: &mut [f32]) {
        if (bits.x, bits.bc) == (None, None) {
            return;
        }
        xbc.par_chunks_mut(self.channels()).with_min_len(16).for_each(|row| {
            let (x, bc) = row.split_at_mut(self.inner());
            for (values, width, bits) in [(x, self.head_dim, bits.x), (bc, self.state, bits.bc)] {
                if let Some(bits) = bits {
                    values.chunks_mut(width).for_each(|values| fake_int(values, bits));
                }
            }
        });
    }
}

impl Core {
    /// Sets the bits of the recurrence; states made before go on being valid.
    ///
    /// # Errors
    /// As [`Recurrence::check`], or if the mixer is on a GPU.
    pub(super) fn set_recurrence(&mut self, recurrence: Recurrence) -> Result<()> {
        recurrence.check()?;
        if recurrence != Recurrence::default() && !self.packed.device().is_cpu() {
            return Err(Error::input("a quantized recurrence runs on the CPU only")
                .hint("load the model with the device cpu"));
        }
        self.recurrence = recurrence;
        Ok(())
    }

    /// Bytes of the state of `batch` sequences in the widths that it is kept in. Integers are simulated: a
    /// [`LayerState`](crate::layer::state::LayerState) holds them, and their residual, in f32.
    pub(super) fn state_bytes(&self, batch: usize) -> usize {
        let s = self.sizes;
        let values = s.head_dim * s.state;
        let head = self.recurrence.state.map_or(size_of::<f32>() * values, |state| state.bytes(values));
        batch * (s.heads * head + size_of::<f32>() * s.channels() * s.conv_width)
    }

    /// Whether anything in the recurrence is rounded: then there is no definition in tensor operations beside it.
    pub(super) fn rounds(&self) -> bool {
        self.recurrence != Recurrence::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Mamba2;
    use super::super::tests::{cases, far, in_pieces, noise, parts};
    use super::*;
    use crate::layer::branch::Branch;
    use crate::layer::linear::{Linear, Weight};
    use crate::layer::recurrence::StateBits;
    use crate::layer::state::{LayerState, State};
    use candle_core::{Device, Tensor, Var};

    const CPU: &Device = &Device::Cpu;

    fn state(bits: u8, feedback: bool) -> Recurrence {
        Recurrence { state: Some(StateBits { bits, feedback, residual: None }), ..Recurrence::default() }
    }

    /// A state with error feedback whose residual has few bits too.
    fn fed(bits: u8, residual: u8) -> Recurrence {
        let state = StateBits { bits, feedback: true, residual: Some(residual) };
        Recurrence { state: Some(state), ..Recurrence::default() }
    }

    /// Each switch alone, and all at once.
    fn switches(bits: u8) -> [Recurrence; 6] {
        let (x, bc) = (Some(bits), Some(bits));
        [
            Recurrence { x, ..Recurrence::default() },
            Recurrence { bc, ..Recurrence::default() },
            state(bits, false),
            state(bits, true),
            Recurrence { x, bc, ..state(bits, true) },
            fed(bits, bits),
        ]
    }

    fn core(s: Sizes, recurrence: Recurrence) -> Core {
        Core { recurrence, ..Core::new(s, &parts(s)).unwrap() }
    }

    fn size(t: &Tensor) -> f32 {
        t.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn eight_bits_are_close_and_two_are_far() {
        for (s, batch, time) in cases() {
            let x = noise(&[batch, time, s.rows()], 21, 1.0);
            let exact = core(s, Recurrence::default()).forward(&x, None, true).unwrap();
            let error = |recurrence| {
                let y = core(s, recurrence).forward(&x, None, true).unwrap();
                size(&(y - &exact).unwrap()) / size(&exact)
            };
            for (eight, two) in switches(8).into_iter().zip(switches(2)) {
                let (near, far) = (error(eight), error(two));
                assert!(0.0 < near && near < 0.05, "{s:?} {eight:?}: {near}");
                assert!(far > 0.02 && far > 5.0 * near, "{s:?} {two:?}: {far} beside {near}");
            }
        }
    }

    #[test]
    fn a_state_in_bf16_is_between_f32_and_eight_bits() {
        for (s, batch, time) in cases() {
            let x = noise(&[batch, time, s.rows()], 28, 1.0);
            let exact = core(s, Recurrence::default()).forward(&x, None, true).unwrap();
            let error = |bits| {
                let y = core(s, state(bits, false)).forward(&x, None, true).unwrap();
                size(&(y - &exact).unwrap()) / size(&exact)
            };
            // y reads the state before it is rounded: one token alone is exact.
            let (sixteen, eight) = (error(16), error(8));
            assert!(sixteen < 4e-3 && (sixteen < eight || time == 1), "{s:?}: {sixteen} beside {eight}");
        }
        assert!(state(16, true).check().unwrap_err().to_string().contains("cannot have 16 bits"));
    }

    #[test]
    fn any_split_and_single_steps_give_the_same_bits() {
        // With a quantized state the scan runs token by token however many there are; otherwise in chunks.
        let stored = &switches(8)[2..];
        for ((s, batch, time), recurrence) in cases().into_iter().zip(stored.iter().copied().cycle()) {
            let core = core(s, recurrence);
            let x = noise(&[batch, time, s.rows()], 22, 1.0);
            let mut end = core.zero_state(batch, CPU).unwrap();
            let whole = core.forward(&x, Some(&mut end), true).unwrap();
            assert_eq!(far(&core.forward(&x, None, true).unwrap(), &whole), 0.0);
            for (joined, state) in in_pieces(&core, &x) {
                assert_eq!(far(&joined, &whole), 0.0, "{s:?} {recurrence:?}");
                assert_eq!(far(state.recurrence().unwrap(), end.recurrence().unwrap()), 0.0);
            }
        }
    }

    #[test]
    fn a_mixer_is_itself_again_when_nothing_is_rounded() {
        let (s, batch, time) = cases()[2];
        let [in_proj, out_proj] = [[s.rows(), 12], [12, s.inner()]]
            .map(|shape| Linear::new(Weight::Dense(noise(&shape, 26, 0.5)), None));
        let mut mixer = Mamba2::new(s, in_proj, &parts(s), out_proj).unwrap();
        let u = noise(&[batch, time, 12], 27, 1.0);
        let before = mixer.forward(&u, None).unwrap();
        mixer.set_recurrence(switches(8)[4]).unwrap();
        assert!(far(&mixer.forward(&u, None).unwrap(), &before) > 0.0);
        assert!(mixer.zero_state(batch, CPU).unwrap().feedback.is_some());
        assert!(mixer.set_recurrence(Recurrence { x: Some(9), ..Recurrence::default() }).is_err());
        mixer.set_recurrence(Recurrence::default()).unwrap();
        assert_eq!(far(&mixer.forward(&u, None).unwrap(), &before), 0.0);
    }

    #[test]
    fn a_state_of_zeros_stays_zero() {
        let (s, batch, time) = cases()[2];
        let silent = Tensor::zeros((batch, time, s.rows()), candle_core::DType::F32, CPU).unwrap();
        // A bias of the convolution would be an input.
        let quiet = super::super::Parts { conv_bias: noise(&[s.channels()], 2, 0.0), ..parts(s) };
        let core = Core { recurrence: switches(8)[4], ..Core::new(s, &quiet).unwrap() };
        let mut state = core.zero_state(batch, CPU).unwrap();
        assert_eq!(size(&core.forward(&silent, Some(&mut state), true).unwrap()), 0.0);
        assert_eq!(size(state.recurrence().unwrap()) + size(state.feedback.as_ref().unwrap()), 0.0);
    }

    #[test]
    fn feedback_is_a_tensor_of_the_state_where_it_is_on() {
        let (s, batch, time) = cases()[0];
        let x = noise(&[batch, time, s.rows()], 24, 1.0);
        let bytes = |layer: &LayerState| State::new(vec![layer.clone()], 1).bytes();
        let (with, without) = (core(s, state(8, true)), core(s, state(8, false)));
        let (mut fed, mut plain) =
            (with.zero_state(batch, CPU).unwrap(), without.zero_state(batch, CPU).unwrap());
        assert_eq!(bytes(&fed) - bytes(&plain), 4 * plain.recurrence().unwrap().elem_count());
        let copy = fed.clone();
        with.forward(&x, Some(&mut fed), true).unwrap();
        assert!(size(fed.feedback.as_ref().unwrap()) > 0.0 && size(copy.feedback.as_ref().unwrap()) == 0.0);
        // A state that was made without serves too, from no error on.
        let y = with.forward(&x, Some(&mut plain), true).unwrap();
        assert_eq!(far(&y, &with.forward(&x, None, true).unwrap()), 0.0);
        assert!(plain.feedback.is_some());
    }

    #[test]
    fn a_residual_in_few_bits_follows_one_in_f32() {
        let (s, batch, time) = cases()[2];
        let x = noise(&[batch, time, s.rows()], 29, 1.0);
        let exact = core(s, Recurrence::default()).forward(&x, None, true).unwrap();
        let error = |recurrence| {
            let y = core(s, recurrence).forward(&x, None, true).unwrap();
            size(&(y - &exact).unwrap()) / size(&exact)
        };
        for bits in [4, 8] {
            let (none, whole) = (error(state(bits, false)), error(state(bits, true)));
            let [two, eight] = [2, 8].map(|residual| error(fed(bits, residual)));
            assert!((eight / whole - 1.0).abs() < 0.05, "{bits}: {eight} for {whole}");
            assert!(eight < two && two < none, "{bits}: {eight}, {two}, {none} without");
        }
    }

    #[test]
    fn a_state_is_counted_in_its_widths() {
        let (s, _, _) = cases()[0]; // 2 heads of 16 × 16 values, 64 channels of 4 taps
        let linear = |shape: [usize; 2]| Linear::new(Weight::Dense(noise(&shape, 26, 0.5)), None);
        let mixer = Mamba2::new(s, linear([s.rows(), 12]), &parts(s), linear([12, s.inner()])).unwrap();
        let conv = 4 * s.channels() * s.conv_width;
        for (name, head) in [
            ("8", 256 + 4),
            ("4", 128 + 4),
            ("3", 96 + 4),
            ("16", 512),
            ("8ef", 256 + 4 + 1024),
            ("8ef8", 2 * (256 + 4)),
            ("4ef4", 2 * (128 + 4)),
            ("4ef8", 128 + 4 + 256 + 4),
        ] {
            let recurrence = Recurrence { state: StateBits::named(name), ..Recurrence::default() };
            assert_eq!(recurrence.state.unwrap().to_string(), name);
            let mut mixer = mixer.clone();
            mixer.set_recurrence(recurrence).unwrap();
            assert_eq!(mixer.state_bytes(3, 0), 3 * (2 * head + conv), "{name}");
        }
        // What is not simulated is held as it is counted.
        for recurrence in [Recurrence::default(), state(16, false)] {
            let mut mixer = mixer.clone();
            mixer.set_recurrence(recurrence).unwrap();
            let held = State::new(vec![mixer.zero_state(3, CPU).unwrap()], 3).bytes();
            assert_eq!(mixer.state_bytes(3, 0), held);
        }
        for name in ["16ef", "16ef8", "9", "8ef9", "8ef1", "ef8", "8e", "8ef8ef"] {
            assert_eq!(StateBits::named(name), None, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let alone = StateBits { bits: 8, feedback: false, residual: Some(8) };
        for (recurrence, part) in [
            (Recurrence { state: Some(alone), ..Recurrence::default() }, "without error feedback"),
            (fed(8, 9), "the residual of the state of the recurrence cannot have 9 bits"),
            (Recurrence { x: Some(1), ..Recurrence::default() }, "x of the recurrence cannot have 1 bits"),
            (Recurrence { bc: Some(9), ..Recurrence::default() }, "B and C of the recurrence cannot have 9"),
            (state(0, true), "the state of the recurrence cannot have 0 bits; choose from 2 to 8"),
        ] {
            let error = recurrence.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let (s, batch, time) = cases()[0];
        let x = Var::from_tensor(&noise(&[batch, time, s.rows()], 25, 1.0)).unwrap();
        let error = core(s, state(8, false)).forward(&x, None, true).unwrap_err().to_string();
        assert!(error.contains("no gradients"), "{error}");
    }
}
