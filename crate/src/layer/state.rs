//! What a recurrent model carries from token to token.

use super::op::in_place;
use candle_core::{DType, Device, Result, Tensor};

/// The state of one layer. Cloning copies the values: a clone and its origin go on independently.
#[derive(Debug)]
pub struct LayerState {
    /// The last K inputs of the convolution, oldest first: [batch, channel, K].
    pub conv: Tensor,
    /// The recurrent state h: [batch, head, P, N].
    pub recurrent: Tensor,
}

impl LayerState {
    /// A state of zeros: nothing read yet.
    pub fn zeros(
        conv: (usize, usize, usize),
        recurrent: (usize, usize, usize, usize),
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            conv: Tensor::zeros(conv, DType::F32, device)?,
            recurrent: Tensor::zeros(recurrent, DType::F32, device)?,
        })
    }

    /// Lets `f` change the values of (conv, recurrent) in place.
    pub(crate) fn update<R>(&mut self, f: impl FnOnce(&mut [f32], &mut [f32]) -> R) -> Result<R> {
        let mut out = None;
        let mut f = Some(f);
        in_place(&self.conv, |conv| {
            in_place(&self.recurrent, |recurrent| {
                if let Some(f) = f.take() {
                    out = Some(f(conv, recurrent));
                }
            })
        })??;
        out.ok_or_else(|| candle_core::Error::Msg("the state was not updated".into()))
    }
}

impl Clone for LayerState {
    fn clone(&self) -> Self {
        // `copy` of a CPU or GPU tensor fails only when memory does; sharing would let the clone change its origin.
        let copy = |tensor: &Tensor| tensor.copy().unwrap_or_else(|error| panic!("copying a state: {error}"));
        Self { conv: copy(&self.conv), recurrent: copy(&self.recurrent) }
    }
}

/// The state of a whole model.
#[derive(Clone, Debug)]
pub struct State {
    /// One entry a layer.
    pub layers: Vec<LayerState>,
    /// Tokens read so far.
    pub position: usize,
}

impl State {
    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|l| 4 * (l.conv.elem_count() + l.recurrent.elem_count())).sum()
    }

    /// ‖h − h'‖ / ‖h'‖ over the recurrent states of all layers: how far this state is from `reference`.
    pub fn distance(&self, reference: &Self) -> Result<f64> {
        let (mut difference, mut norm) = (0.0, 0.0);
        for (a, b) in self.layers.iter().zip(&reference.layers) {
            difference += f64::from((&a.recurrent - &b.recurrent)?.sqr()?.sum_all()?.to_scalar::<f32>()?);
            norm += f64::from(b.recurrent.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        Ok(if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() })
    }
}
