//! The gradients of a text, window by window: what says beforehand how much a change of weights matters.

use super::calibrate::Sample;
use crate::error::{Error, Result};
use crate::family::{Gradients, Matrices, Tensors};
use crate::kernel::softmax::cross_entropy;
use crate::layer::room::Room;
use crate::model::Model;
use crate::progress::Progress;
use crate::threads::install;
use candle_core::{DType, Tensor};

impl Model {
    /// Shows `add` the gradients of the mean NLL (nats a token) of each window with respect to every tensor, in the order of the
    /// text, each window read from a state of zeros.
    ///
    /// # Errors
    /// If the model is quantized, cannot read the tokens, or it is interrupted.
    pub(crate) fn slopes(&self, sample: &Sample, mut add: impl FnMut(&Gradients)) -> Result<()> {
        if self.quantization.as_ref().is_some_and(|q| q.rotation.is_some()) {
            return Err(Error::input("a rotated model has no gradient").at(&self.name));
        }
        let wide = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_dtype(DType::F32)?));
        let tensors = self.tensors().iter().map(wide).collect::<Result<Tensors>>()?;
        let network = self.config.stack(&tensors, &Matrices::new())?;
        let (mut grads, mut room) = (self.config.zero_gradients(), Room::default());
        let progress =
            Progress::new("gradients", (sample.windows.len() * sample.about.length) as u64, "tokens");
        for (_, ids) in sample.in_order() {
            let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
            [inputs, targets].into_iter().try_for_each(|ids| self.tokens(ids).map(drop))?; // of the vocabulary
            let weights = vec![1.0 / inputs.len() as f32; inputs.len()];
            let loss = |logits: &[f32], grad: &mut [f32]| cross_entropy(logits, targets, &weights, grad);
            install(|| network.gradients(inputs, loss, 0.0, &mut grads, &mut room))?;
            add(&grads);
            progress.tick(ids.len() as u64)?;
        }
        Ok(())
    }
}
