//! What a block can add to the residual stream: the trait that mixers, attention and feed-forward layers share.
//!
//! A branch has one definition, in differentiable tensor operations on any device, and one form in kernels on a CPU. Its
//! way back is autograd over the definition unless a fused one was worth it; either is held to the other by tests.

use super::attention::{Attention, Width};
use super::linear::{Linear, Weight};
use super::meeting::Meeting;
use super::moe::Moe;
use super::op::with_floats;
use super::recurrence::{Recurrence, Recurrent};
use super::room::Room;
use super::state::LayerState;
use candle_core::{Device, Error, Result, Tensor, Var, bail};
use std::collections::BTreeMap;
use std::fmt;

/// A branch of a block, added to the residual stream: x ← x + branch(norm(x)).
pub trait Branch: fmt::Debug + Send + Sync {
    /// u [B, T, hidden] → [B, T, hidden], moving `state` on by T tokens. Without a state the sequences start from nothing
    /// and nothing is kept: the form for training and for scoring whole windows. By the definition where gradients are
    /// tracked or the device is no CPU.
    ///
    /// # Errors
    /// If shapes do not fit, or what is quantized is asked for gradients.
    fn forward(&self, u: &Tensor, state: Option<&mut LayerState>) -> Result<Tensor>;

    /// The same by the kernels on a CPU, in the place of `u`, of `size` = (B, T).
    ///
    /// # Errors
    /// If shapes do not fit, or the state is of another branch.
    fn apply(
        &self,
        u: &mut [f32],
        size: (usize, usize),
        state: &mut LayerState,
        room: &mut Room,
    ) -> Result<()>;

    /// What it carries for `batch` sequences, before the first token.
    ///
    /// # Errors
    /// If the device has no memory left.
    fn zero_state(&self, _batch: usize, _device: &Device) -> Result<LayerState> {
        Ok(LayerState::default())
    }

    /// Bytes of its state for `batch` sequences after `tokens` tokens, in the widths that it is kept in.
    fn state_bytes(&self, _batch: usize, _tokens: usize) -> usize {
        0
    }

    /// Its matrices by their names within it, in the order in which they are used: the first reads what the branch reads.
    fn linears(&self) -> Vec<(&str, &Linear)>;

    /// As [`linears`](Self::linears), to be changed.
    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)>;

    /// Its parameters that are in no linear, by their names within it, where its way back may be autograd.
    fn smalls_mut(&mut self) -> Vec<(&str, &mut Tensor)> {
        vec![]
    }

    /// Its recurrence, for those who look into it; none if it has none.
    fn recurrence(&self) -> Option<&dyn Recurrent> {
        None
    }

    /// Sets the bits of its recurrence; false if it has none.
    ///
    /// # Errors
    /// If there are no such widths, or it is on a GPU.
    fn set_recurrence(&mut self, _recurrence: Recurrence) -> crate::error::Result<bool> {
        Ok(false)
    }

    /// Sets how it keeps keys and values; false if it keeps none. (What is quantized runs on a CPU: a model says so.)
    fn set_cache(&mut self, _width: Width) -> bool {
        false
    }

    /// Itself, or the part of it that is attention: for those who ask for its projections.
    fn attention(&self) -> Option<&Attention> {
        None
    }

    /// u [B, T, hidden] → [B, H, T]: the share of its attention that each token pays to the first; none without attention.
    ///
    /// # Errors
    /// If shapes do not fit, or there are more tokens than the model reads.
    fn first_shares(&self, _u: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// What the names of its parameters begin with, where other branches of the same path have names too; else nothing.
    fn starts(&self) -> Vec<&str> {
        vec![""]
    }

    /// Itself, if it has experts: for those who ask which tokens they see.
    fn experts(&self) -> Option<&Moe> {
        None
    }

    /// How the tokens of a sequence of whole chunks, `u` [1, T, hidden] on the CPU, meet; none where they do not.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn meeting(&self, _u: &Tensor) -> Result<Option<Meeting>> {
        Ok(None)
    }

    /// [`apply`](Self::apply) from nothing read, of one sequence, keeping what the way back needs: `u` and `y` [T, hidden],
    /// `y` overwritten. Autograd over the definition, for a branch whose parameters are all in [`linears`](Self::linears) and
    /// [`smalls_mut`](Self::smalls_mut).
    ///
    /// # Errors
    /// If anything of it is rounded.
    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, _room: &mut Room) -> Result<Back<'a>> {
        by_autograd(self.copied(), u, y, time)
    }

    /// A copy that shares the weights.
    fn copied(&self) -> Box<dyn Branch>;
}

impl Clone for Box<dyn Branch> {
    fn clone(&self) -> Self {
        self.copied()
    }
}

/// The way back through a branch.
pub struct Back<'a> {
    /// A loss of the branch's own, apart from what it gave: that of experts which are used unequally. Else 0.
    pub own: f32,
    /// `u` that it read, the gradient `dy` of what it gave → `du` [T, hidden] and the gradients of its parameters, all overwritten;
    /// those of its own loss by the weight that [`Places`] have for it.
    pub pull: Box<Pull<'a>>,
}

/// See [`Back::pull`].
pub type Pull<'a> = dyn FnOnce(&[f32], &[f32], &mut [f32], &mut Places<'_>, &mut Room) -> Result<()> + 'a;

impl<'a> Back<'a> {
    /// That of a branch without a loss of its own.
    pub fn new(
        pull: impl FnOnce(&[f32], &[f32], &mut [f32], &mut Places<'_>, &mut Room) -> Result<()> + 'a,
    ) -> Self {
        Self { own: 0.0, pull: Box::new(pull) }
    }
}

/// Where the gradients of a branch's parameters go, by their names within it, each as long as its parameter.
pub struct Places<'a> {
    /// The weight of the branch's own loss in the gradients.
    pub own: f32,
    /// What the names begin with in a checkpoint, for messages.
    pub path: String,
    /// The places that nobody took yet.
    pub all: BTreeMap<&'a str, &'a mut [f32]>,
}

impl<'a> Places<'a> {
    /// The place of a parameter.
    ///
    /// # Errors
    /// If there is none.
    pub fn take(&mut self, name: &str) -> Result<&'a mut [f32]> {
        let missing = || Error::Msg(format!("no place for the gradient of {}.{name}", self.path));
        self.all.remove(name).ok_or_else(missing)
    }

    /// The places of a part of the branch, whose names begin with `start`.
    pub fn within(&mut self, start: &str) -> Self {
        let names: Vec<&'a str> = self.all.keys().copied().filter(|name| name.starts_with(start)).collect();
        let all = names.into_iter().filter_map(|name| Some((&name[start.len()..], self.all.remove(name)?)));
        Self {
            path: [self.path.as_str(), start.trim_end_matches('.')].join(if start.is_empty() {
                ""
            } else {
                "."
            }),
            all: all.collect(),
            own: self.own,
        }
    }

    /// Refuses places that are left when all gradients are written.
    ///
    /// # Errors
    /// If there is one.
    pub fn all_taken(&self) -> Result<()> {
        match self.all.keys().next() {
            Some(name) => bail!("the gradient of {}.{name} was not written", self.path),
            None => Ok(()),
        }
    }

    /// The place of a parameter that may not be there.
    pub fn optional(&mut self, name: &str) -> Option<&'a mut [f32]> {
        self.all.remove(name)
    }
}

/// [`Branch::forward`] by the kernels; of a branch that keeps nothing from token to token, without a state.
pub(super) fn by_kernels(branch: &impl Branch, u: &Tensor, state: Option<&mut LayerState>) -> Result<Tensor> {
    let (batch, time, _) = u.dims3()?;
    let mut rows = with_floats([&u.contiguous()?], |[u]| u.to_vec())?;
    with_state(branch, u, state, |state| {
        branch.apply(&mut rows, (batch, time), state, &mut Room::default())
    })?;
    Tensor::from_vec(rows, u.shape(), u.device())
}

/// Lets `f` move on the state that is given, or one from nothing read.
pub(super) fn with_state<R>(
    branch: &impl Branch,
    u: &Tensor,
    state: Option<&mut LayerState>,
    f: impl FnOnce(&mut LayerState) -> Result<R>,
) -> Result<R> {
    match state {
        Some(state) => f(state),
        None => f(&mut branch.zero_state(u.dim(0)?, u.device())?),
    }
}

/// The definition forward and back by candle's autograd, whatever the branch: the oracle of every fused way back.
pub(crate) fn by_autograd<'a>(
    mut branch: Box<dyn Branch>,
    u: &[f32],
    y: &mut [f32],
    time: usize,
) -> Result<Back<'a>> {
    let mut vars = vec![];
    let mut track = |name: String, tensor: &mut Tensor| -> Result<()> {
        let var = Var::from_tensor(tensor)?;
        *tensor = var.as_tensor().clone();
        vars.push((name, var));
        Ok(())
    };
    for (name, linear) in branch.linears_mut() {
        let Linear { weight: Weight::Dense(weight), bias, rotation: None, activation: None, .. } = linear
        else {
            bail!("a quantized layer has no gradient")
        };
        track(format!("{name}.weight"), weight)?;
        if let Some(bias) = bias {
            track(format!("{name}.bias"), bias)?;
        }
    }
    for (name, small) in branch.smalls_mut() {
        track(name.to_string(), small)?;
    }
    let shape = (1, time, u.len() / time.max(1));
    let input = Var::from_slice(u, shape, &Device::Cpu)?;
    let out = branch.forward(input.as_tensor(), None)?; // [1, T, hidden]
    with_floats([&out.contiguous()?], |[out]| y.copy_from_slice(out))?;
    Ok(Back::new(move |_, dy, du, places, _| {
        let pulled = (out * Tensor::from_slice(dy, shape, &Device::Cpu)?)?.sum_all()?;
        let grads = pulled.backward()?;
        let copy = |var: &Var, to: &mut [f32]| match grads.get(var.as_tensor()) {
            Some(grad) => with_floats([&grad.contiguous()?], |[grad]| to.copy_from_slice(grad)),
            None => {
                to.fill(0.0);
                Ok(())
            }
        };
        copy(&input, du)?;
        vars.iter().try_for_each(|(name, var)| copy(var, places.take(name)?))
    }))
}
