//! What a model carries from token to token.

use super::attention::Cache;
use super::op::{Values, in_place, values_in_place};
use super::room::Room;
use candle_core::{DType, Device, Error, Result, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// The state of one block: of what its branches can carry, what they do. Cloning copies the values: a clone and its
/// origin go on independently.
#[derive(Debug, Default)]
pub struct LayerState {
    /// The last K inputs of the convolution, oldest first: [batch, channel, K].
    pub conv: Option<Tensor>,
    /// The recurrent state: [batch, head, ..], a head's values as its branch lays them out; in f32 or bf16.
    pub recurrent: Option<Tensor>,
    /// The residual: what the last rounding took from a quantized state that is given it back, of the same shape in
    /// f32 (or the values of integers with a scale for each head).
    pub feedback: Option<Tensor>,
    /// The keys and values of the tokens read so far.
    pub cache: Option<Cache>,
}

impl LayerState {
    /// The state of a recurrence and the convolution before it, of zeros: nothing read yet.
    pub fn zeros(
        conv: (usize, usize, usize),
        recurrent: (usize, usize, usize, usize),
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            conv: Some(Tensor::zeros(conv, DType::F32, device)?),
            recurrent: Some(Tensor::zeros(recurrent, DType::F32, device)?),
            ..Self::default()
        })
    }

    /// Takes what another branch of the same block carries.
    ///
    /// # Errors
    /// If both carry the same.
    pub(crate) fn join(&mut self, other: Self) -> Result<()> {
        let Self { conv, recurrent, feedback, cache } = other;
        fn take<T>(to: &mut Option<T>, from: Option<T>) -> Result<()> {
            match from {
                Some(_) if to.is_some() => bail!("two branches of a block carry the same kind of state"),
                Some(from) => *to = Some(from),
                None => {}
            }
            Ok(())
        }
        take(&mut self.conv, conv)?;
        take(&mut self.recurrent, recurrent)?;
        take(&mut self.feedback, feedback)?;
        take(&mut self.cache, cache)
    }

    /// The recurrent state.
    ///
    /// # Errors
    /// If the block has no recurrence.
    pub(crate) fn recurrence(&self) -> Result<&Tensor> {
        self.recurrent.as_ref().ok_or_else(|| missing("recurrence"))
    }

    /// The last inputs of the convolution.
    ///
    /// # Errors
    /// If the block has none.
    pub(crate) fn convolution(&self) -> Result<&Tensor> {
        self.conv.as_ref().ok_or_else(|| missing("convolution"))
    }

    /// Makes room for `more` tokens of each sequence in a cache of keys and values.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.cache.iter_mut().for_each(|cache| cache.reserve(more));
    }

    /// The cache of keys and values.
    ///
    /// # Errors
    /// If the block has none.
    pub(crate) fn cache(&mut self) -> Result<&mut Cache> {
        self.cache.as_mut().ok_or_else(|| missing("cache"))
    }

    /// From here on the state carries the error of its last rounding; zero where it did not yet.
    pub(crate) fn keep_feedback(&mut self) -> Result<()> {
        if self.feedback.is_none() {
            self.feedback = Some(self.recurrence()?.zeros_like()?);
        }
        Ok(())
    }

    /// From here on h is stored so.
    pub(crate) fn store_as(&mut self, dtype: DType) -> Result<()> {
        if self.recurrence()?.dtype() != dtype {
            self.recurrent = Some(self.recurrence()?.to_dtype(dtype)?);
        }
        Ok(())
    }

    /// Lets `f` change the values of (conv, recurrent, feedback) in place.
    pub(crate) fn update<R>(
        &mut self,
        f: impl FnOnce(&mut [f32], Values<'_>, Option<&mut [f32]>) -> R,
    ) -> Result<R> {
        in_place(self.convolution()?, |conv| {
            self.update_recurrence(|recurrent, feedback| f(conv, recurrent, feedback))
        })?
    }

    /// Lets `f` change the values of (recurrent, feedback) in place.
    pub(crate) fn update_recurrence<R>(
        &self,
        f: impl FnOnce(Values<'_>, Option<&mut [f32]>) -> R,
    ) -> Result<R> {
        values_in_place(self.recurrence()?, |recurrent| match &self.feedback {
            Some(feedback) => in_place(feedback, |feedback| f(recurrent, Some(feedback))),
            None => Ok(f(recurrent, None)),
        })?
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.conv, &self.recurrent, &self.feedback].into_iter().flatten()
    }

    /// Bytes of all values as they are held.
    fn bytes(&self) -> usize {
        let tensors = self.tensors().map(|tensor| tensor.dtype().size_in_bytes() * tensor.elem_count());
        tensors.sum::<usize>() + self.cache.as_ref().map_or(0, Cache::bytes)
    }
}

fn missing(what: &str) -> Error {
    Error::Msg(format!("the state of this block has no {what}: it is of another model"))
}

impl Clone for LayerState {
    fn clone(&self) -> Self {
        // `copy` of a CPU or GPU tensor fails only when memory does; sharing would let the clone change its origin.
        let copy = |tensor: &Option<Tensor>| {
            let copy =
                |tensor: &Tensor| tensor.copy().unwrap_or_else(|error| panic!("copying a state: {error}"));
            tensor.as_ref().map(copy)
        };
        Self {
            conv: copy(&self.conv),
            recurrent: copy(&self.recurrent),
            feedback: copy(&self.feedback),
            cache: self.cache.clone(),
        }
    }
}

/// The state of a whole model.
#[derive(Debug)]
pub struct State {
    /// One entry a block.
    pub layers: Vec<LayerState>,
    /// Sequences that it is of.
    pub batch: usize,
    /// Tokens read so far, of each sequence.
    pub position: usize,
    /// Which they were, of each sequence, where what enters the first block depends on the tokens before; else nothing.
    pub tokens: Vec<Vec<u32>>,
    /// Working memory of those who move the state on, each with a room of its own.
    pub(crate) rooms: Vec<Room>,
}

impl Clone for State {
    fn clone(&self) -> Self {
        let (position, tokens) = (self.position, self.tokens.clone());
        Self { position, tokens, ..Self::new(self.layers.clone(), self.batch) }
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
            spare.iter().position(|state| state.batch == batch).map(|at| spare.swap_remove(at))
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
    /// The states of all blocks before the first token.
    pub fn new(layers: Vec<LayerState>, batch: usize) -> Self {
        Self { layers, batch, position: 0, tokens: vec![], rooms: vec![] }
    }

    /// Goes back to before the first token; what was allocated stays.
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn clear(&mut self) -> Result<()> {
        for layer in &mut self.layers {
            layer.tensors().try_for_each(Tensor::zero_set)?;
            layer.cache.iter_mut().for_each(Cache::clear);
        }
        self.position = 0;
        self.tokens.iter_mut().for_each(Vec::clear);
        Ok(())
    }

    /// Goes back to where `position` tokens were read, if everything that it carries is a cache of them that knows more and has
    /// not rounded what came later with them; false and unchanged if not.
    ///
    /// # Errors
    /// If a tensor cannot be cut.
    pub fn rewind(&mut self, position: usize) -> Result<bool> {
        let only_cache = |layer: &LayerState| {
            layer.tensors().next().is_none()
                && layer.cache.as_ref().is_some_and(|cache| cache.reaches(position))
        };
        let can = self.layers.iter().all(only_cache);
        if can {
            let mut caches = self.layers.iter_mut().flat_map(|layer| &mut layer.cache);
            caches.try_for_each(|cache| cache.truncate(position))?;
            self.position = position;
            self.tokens.iter_mut().for_each(|tokens| tokens.truncate(position));
        }
        Ok(can)
    }

    /// Bytes of all values as they are held. Integers of a recurrence are simulated in f32: what they would take packed,
    /// the stack says ([`Stack::state_bytes`](crate::family::Stack::state_bytes)).
    pub fn bytes(&self) -> usize {
        let ids: usize = self.tokens.iter().map(|tokens| size_of_val(tokens.as_slice())).sum();
        self.layers.iter().map(LayerState::bytes).sum::<usize>() + ids
    }

    /// ‖h − h'‖ / ‖h'‖ over the recurrent states of all layers that have one: how far this state is from `reference`.
    ///
    /// # Errors
    /// If only one of the two has a recurrence in a layer, or neither in any.
    pub fn distance(&self, reference: &Self) -> Result<f64> {
        let (mut difference, mut norm) = (0.0, 0.0);
        let layers = || self.layers.iter().zip(&reference.layers);
        if layers().all(|(a, b)| a.recurrent.is_none() && b.recurrent.is_none()) {
            return Err(missing("recurrence"));
        }
        for (a, b) in layers().filter(|(a, b)| a.recurrent.is_some() || b.recurrent.is_some()) {
            let (a, b) = (a.recurrence()?.to_dtype(DType::F32)?, b.recurrence()?.to_dtype(DType::F32)?);
            difference += f64::from((a - &b)?.sqr()?.sum_all()?.to_scalar::<f32>()?);
            norm += f64::from(b.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        Ok(if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() })
    }
}
