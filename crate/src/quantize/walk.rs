//! The calibration text on its way through a model whose matrices are rounded meanwhile (Frantar et al. 2022, section
//! 4).
//!
//! Of every window only the residual stream is kept, as it enters one block: it is read on through that block once to
//! see what the block's matrices read, and once they are rounded again, to the next. So a model is never read from
//! its beginning twice, and memory is windows × tokens × width of the stream, whatever the number of layers.
//!
//! What is rounded meanwhile are weights, and what goes through the recurrence; the activations that a scheme rounds
//! are not: as in the paper, whose activations stay as they are, and as in QuaRot (Ashkboos et al. 2024), which
//! chooses codes first and rounds activations then. A tied head is the last matrix to be rounded, so that the stream
//! begins with the embedding as it was.

use super::calibrate::{Inputs, Sample, Wanted, observe_each};
use crate::error::Result;
use crate::model::Model;
use crate::progress::check_interrupt;
use candle_core::Tensor;

/// The windows of a text, somewhere on their way. Places are those of [`Job::place`](super::Job::place): 0 for the
/// embedding, then the blocks, then the head.
pub(super) struct Walk<'a> {
    windows: Vec<&'a [u32]>,
    /// The stream of each window as it enters place `at`, [1, T, hidden]; none before the embedding.
    streams: Vec<Tensor>,
    at: usize,
}

impl<'a> Walk<'a> {
    /// Before the embedding.
    pub fn new(sample: &'a Sample) -> Self {
        Self { windows: sample.in_order().map(|(_, ids)| ids.as_slice()).collect(), streams: vec![], at: 0 }
    }

    /// The first place that the text has not passed.
    pub fn reached(&self) -> usize {
        self.at
    }

    /// Moves the text on to a place and shows what the matrices there read: one entry for each linear of the model,
    /// empty where others are. `model` is the one to go by, rounded as far as that place. Adds the tokens that were
    /// read, for each block a share of the model, to `read`.
    ///
    /// # Errors
    /// If the model cannot read the tokens, an input is not finite, or it is interrupted.
    pub fn inputs(
        &mut self,
        model: &Model,
        place: usize,
        wanted: Wanted,
        read: &mut u64,
    ) -> Result<Vec<Inputs>> {
        let layers = model.config.layers();
        let tokens: usize = self.windows.iter().map(|ids| ids.len()).sum();
        let mut blocks = 0;
        if self.at == 0 && place > 0 {
            for ids in &self.windows {
                self.streams.push(model.embed(&model.tokens(ids)?)?);
            }
            self.at = 1;
        }
        if place > self.at {
            for stream in &mut self.streams {
                *stream = model.through(stream.clone(), self.at - 1..place - 1)?;
                check_interrupt()?;
            }
            blocks += place - self.at;
            self.at = place;
        }
        let inputs = observe_each(model, &self.streams, tokens, wanted, |model, stream| {
            if place > layers {
                return model.show_head(&model.close(stream)?);
            }
            // The embedding looks up rows and reads nothing.
            if place > 0 {
                model.through(stream.clone(), place - 1..place)?;
            }
            Ok(())
        })?;
        if (1..=layers).contains(&place) {
            blocks += wanted.readings() as usize;
        }
        *read += (tokens * blocks / layers.max(1)) as u64;
        Ok(inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{calibration, error_after, model, on_sonnets, quantized, seen_and_unseen};
    use super::super::{Hessians, Quantizing};
    use super::*;
    use crate::family::{Config, mamba2};
    use crate::model::Loading;
    use crate::model::quantization::Backend;

    /// What each matrix stands for, in forward order.
    fn values(model: &Model) -> Vec<Vec<f32>> {
        let of = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
        model.linears().into_iter().map(|(_, linear)| of(linear.weight.values().unwrap())).collect()
    }

    /// Which matrices two models have in common.
    fn same(a: &Model, b: &Model) -> Vec<bool> {
        values(a).iter().zip(values(b)).map(|(a, b)| *a == b).collect()
    }

    #[test]
    fn the_first_matrices_are_those_of_one_pass_and_later_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let how = calibration(&folder);
        for scheme in ["w3a16", "w4a4", "w4a8-rot", "w3a8-static99.5"] {
            let [once, blocks, matrices] =
                Hessians::NAMES.map(|(name, _)| quantized(&format!("{scheme}-{name}"), &how));
            // in_proj and out_proj of two blocks, the head.
            assert_eq!(same(&once, &blocks)[..4], [true, true, false, false], "{scheme}");
            assert_eq!(same(&once, &matrices)[..4], [true, false, false, false], "{scheme}");
            let method = |model: &Model| model.quantization.as_ref().unwrap().method.clone();
            assert!(method(&once).ends_with("gptq"));
            assert!(method(&blocks).ends_with("gptq block by block"));
            assert!(method(&matrices).ends_with("gptq matrix by matrix"));
        }
    }

    #[test]
    fn codes_depend_neither_on_the_backend_nor_on_chance() {
        let folder = tempfile::tempdir().unwrap();
        let how = calibration(&folder);
        let fake = Quantizing { backend: Backend::Fake, ..how.clone() };
        for scheme in ["w4a4-rot-gptqseq", "w3a16-g32-gptqtrueseq+dt=keep"] {
            let first = quantized(scheme, &how);
            assert!(same(&first, &quantized(scheme, &how)).iter().all(|same| *same), "{scheme}");
            assert!(same(&first, &quantized(scheme, &fake)).iter().all(|same| *same), "{scheme}");
        }
    }

    #[test]
    fn outputs_keep_more_on_texts_that_were_seen_and_on_others() {
        let (how, exact) = (on_sonnets(), model());
        let texts = seen_and_unseen(&exact, &how);
        let all = ["w3a16", "w3a16-gptq", "w3a16-gptqseq", "w3a16-gptqtrueseq"]
            .map(|scheme| quantized(scheme, &how));
        for (text, ids) in ["seen", "unseen"].into_iter().zip(&texts) {
            let [nearest, once, blocks, matrices] =
                all.each_ref().map(|model| error_after(model, &exact, ids));
            assert!(blocks < 0.5 * nearest, "{text}: {blocks} against {nearest}");
            assert!(matrices < 0.5 * nearest, "{text}: {matrices} against {nearest}");
            // Two blocks of random weights hand little on.
            assert!(blocks < 1.05 * once, "{text}: {blocks} against {once} of one pass");
        }
    }

    #[test]
    fn an_embedding_of_its_own_is_rounded_first() {
        let config = mamba2::Config {
            num_hidden_layers: 2,
            hidden_size: 96,
            num_heads: 3,
            tie_word_embeddings: false,
            ..mamba2::Config::default()
        };
        let model = Model::random("untied", Config::Mamba2(config), 3, &Loading::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let made =
            |scheme: &str| model.quantized_with(&scheme.parse().unwrap(), &calibration(&folder)).unwrap();
        let (with, without) = (made("w3a16-gptqseq+embedding=w2"), made("w3a16-gptqseq"));
        assert_eq!(same(&with, &without)[..4], [false; 4], "its codes decide what the first block reads");
        let nearest = made("w16a16+embedding=w2");
        assert!(same(&with, &nearest)[4], "it reads nothing that GPTQ could go by");
        let (with, without) = (made("w3a16-gptq+embedding=w2"), made("w3a16-gptq"));
        assert_eq!(same(&with, &without)[..4], [true; 4]);
    }

    #[test]
    fn streams_are_all_that_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (model, how) = (model(), calibration(&folder));
        let sample = how.calibration.sample(&model).unwrap();
        let (mut walk, mut read) = (Walk::new(&sample), 0);
        let wanted = Wanted { gram: true, histogram: false };
        for place in 0..=3 {
            let inputs = walk.inputs(&model, place, wanted, &mut read).unwrap();
            let seen: Vec<usize> = (0..5).filter(|i| !inputs[*i].gram.is_empty()).collect();
            assert_eq!(seen, [&[][..], &[0, 1], &[2, 3], &[4]][place]);
            let kept: usize = walk.streams.iter().map(Tensor::elem_count).sum();
            assert_eq!(kept, if place == 0 { 0 } else { 8 * 64 * 96 }, "tokens × width of the stream");
        }
        assert_eq!(read, 2 * 8 * 64);
        // With nothing rounded they are the inputs of the whole.
        let whole = super::super::calibrate::observe(&model, &sample, wanted).unwrap();
        let mut walk = Walk::new(&sample);
        for (place, range) in [(1, 0..2), (2, 2..4), (3, 4..5)] {
            let inputs = walk.inputs(&model, place, wanted, &mut read).unwrap();
            for i in range {
                assert_eq!(inputs[i].absmax, whole[i].absmax, "matrix {i}");
            }
        }
    }
}
