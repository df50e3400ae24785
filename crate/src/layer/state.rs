//! What a recurrent model carries from token to token.

use super::op::{Values, in_place, values_in_place};
use super::room::Room;
use candle_core::{DType, Device, Result, Tensor};
use std::sync::{Mutex, PoisonError};

/// The state of one layer. Cloning copies the values: a clone and its origin go on independently.
#[derive(Debug)]
pub struct LayerState {
    /// The last K inputs of the convolution, oldest first: [batch, channel, K].
    pub conv: Tensor,
    /// The recurrent state h: [batch, head, P, N], in f32 or bf16.
    pub recurrent: Tensor,
    /// The residual: what the last rounding took from a quantized state that is given it back, [batch, head, P, N] in
    /// f32 (or the values of integers with a scale for each head).
    pub feedback: Option<Tensor>,
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
            feedback: None,
        })
    }

    /// From here on the state carries the error of its last rounding; zero where it did not yet.
    pub(crate) fn keep_feedback(&mut self) -> Result<()> {
        if self.feedback.is_none() {
            self.feedback = Some(self.recurrent.zeros_like()?);
        }
        Ok(())
    }

    /// From here on h is stored so.
    pub(crate) fn store_as(&mut self, dtype: DType) -> Result<()> {
        if self.recurrent.dtype() != dtype {
            self.recurrent = self.recurrent.to_dtype(dtype)?;
        }
        Ok(())
    }

    /// Lets `f` change the values of (conv, recurrent, feedback) in place.
    pub(crate) fn update<R>(
        &mut self,
        f: impl FnOnce(&mut [f32], Values<'_>, Option<&mut [f32]>) -> R,
    ) -> Result<R> {
        in_place(&self.conv, |conv| {
            values_in_place(&self.recurrent, |recurrent| match &self.feedback {
                Some(feedback) => in_place(feedback, |feedback| f(conv, recurrent, Some(feedback))),
                None => Ok(f(conv, recurrent, None)),
            })
        })??
    }
}

impl Clone for LayerState {
    fn clone(&self) -> Self {
        // `copy` of a CPU or GPU tensor fails only when memory does; sharing would let the clone change its origin.
        let copy = |tensor: &Tensor| tensor.copy().unwrap_or_else(|error| panic!("copying a state: {error}"));
        Self {
            conv: copy(&self.conv),
            recurrent: copy(&self.recurrent),
            feedback: self.feedback.as_ref().map(copy),
        }
    }
}

/// The state of a whole model.
#[derive(Debug)]
pub struct State {
    /// One entry a layer.
    pub layers: Vec<LayerState>,
    /// Tokens read so far.
    pub position: usize,
    /// Working memory of those who move the state on, each with a room of its own.
    pub(crate) rooms: Vec<Room>,
}

impl Clone for State {
    fn clone(&self) -> Self {
        Self::new(self.layers.clone(), self.position)
    }
}

/// States that nobody uses now: reading one window after the other does not ask the system for memory each time.
#[derive(Debug, Default)]
pub(crate) struct Spare(Mutex<Vec<State>>);

impl Spare {
    /// A state of zeros for `batch` sequences, `fresh` if there is none to be used again.
    pub fn take(&self, batch: usize, fresh: impl FnOnce() -> Result<State>) -> Result<State> {
        let found = {
            let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            spare.iter().position(|state| state.batch() == batch).map(|at| spare.swap_remove(at))
        };
        let Some(mut state) = found else { return fresh() };
        state.clear()?;
        Ok(state)
    }

    /// Takes a state back.
    pub fn give(&self, state: State) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(state);
    }
}

/// Of a network that is copied, to be changed perhaps.
impl Clone for Spare {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl State {
    /// The states of all layers after `position` tokens.
    pub fn new(layers: Vec<LayerState>, position: usize) -> Self {
        Self { layers, position, rooms: vec![] }
    }

    /// Sequences that it is of.
    pub fn batch(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.conv.dims()[0])
    }

    /// Goes back to before the first token; what was allocated stays.
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn clear(&mut self) -> Result<()> {
        for LayerState { conv, recurrent, feedback } in &self.layers {
            [Some(conv), Some(recurrent), feedback.as_ref()]
                .into_iter()
                .flatten()
                .try_for_each(Tensor::zero_set)?;
        }
        self.position = 0;
        Ok(())
    }

    /// Bytes of all values as they are held. Integers are simulated in f32: what they would take packed, the network
    /// says ([`Network::state_bytes`](crate::family::Network::state_bytes)).
    pub fn bytes(&self) -> usize {
        let tensors =
            self.layers.iter().flat_map(|l| [Some(&l.conv), Some(&l.recurrent), l.feedback.as_ref()]);
        tensors.flatten().map(|tensor| tensor.dtype().size_in_bytes() * tensor.elem_count()).sum()
    }

    /// ‖h − h'‖ / ‖h'‖ over the recurrent states of all layers: how far this state is from `reference`.
    pub fn distance(&self, reference: &Self) -> Result<f64> {
        let (mut difference, mut norm) = (0.0, 0.0);
        for (a, b) in self.layers.iter().zip(&reference.layers) {
            let (a, b) = (a.recurrent.to_dtype(DType::F32)?, b.recurrent.to_dtype(DType::F32)?);
            difference += f64::from((a - &b)?.sqr()?.sum_all()?.to_scalar::<f32>()?);
            norm += f64::from(b.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        Ok(if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() })
    }
}
