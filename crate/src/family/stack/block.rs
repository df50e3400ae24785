//! A block: what is mixed into the residual stream before its branches, the branches, and how they join the stream.

use super::back::place;
use crate::family::Gradients;
use crate::kernel::diagonal::{add_scaled, multiply, scale, weight_grad};
use crate::layer::branch::Branch;
use crate::layer::norm::Norm;
use crate::layer::op::with_floats;
use crate::layer::room::Buffer;
use crate::layer::state::LayerState;
use candle_core::{Result, Tensor};

/// A block: its branches join the residual stream one after the other.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// What is mixed in before its first branch.
    pub mixing: Option<Mixing>,
    /// Its branches.
    pub steps: Vec<Step>,
    /// The number of the copy, from 1 on, that the stream which leaves the block becomes; none if no later block asks for it.
    pub keeps: Option<usize>,
    /// How many more times the stream passes it, by the same weights (layer sharing), each time with a state of its own. A skip joins
    /// before the first pass, the copy is taken after the last.
    pub again: usize,
}

/// A pass of the stream through a block.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub block: &'a Block,
    pub first: bool,
    pub last: bool,
}

impl Pass<'_> {
    /// x [.., hidden] and the copies beside it → x after the pass, in tensor operations.
    pub(super) fn definition(
        self,
        mut x: Tensor,
        copies: &[Tensor],
        mut state: Option<&mut LayerState>,
    ) -> Result<Tensor> {
        if let Some(mixing) = &self.block.mixing {
            x = mixing.definition(&x, copies, self.first)?;
        }
        for step in &self.block.steps {
            x = step.definition(&x, |branch, u| branch.forward(u, state.as_deref_mut()))?;
        }
        Ok(x)
    }
}

impl Block {
    /// The passes, in order.
    pub(super) fn passes(&self) -> impl Iterator<Item = Pass<'_>> {
        let last = self.again;
        (0..=last).map(move |pass| Pass { block: self, first: pass == 0, last: pass == last })
    }

    /// The gradients of its own parameters, which a pass overwrites.
    pub(super) fn own(&self, grads: &Gradients) -> Vec<(String, Vec<f32>)> {
        let starts: Vec<String> = self.steps.iter().map(|step| format!("{}.", step.path)).collect();
        let norms = self.steps.iter().filter_map(|step| Some(format!("{}.weight", step.norm_path.as_ref()?)));
        let smalls = self.steps.iter().filter_map(Step::weights);
        let smalls = smalls.chain(self.mixing.as_ref().map(|mixing| &mixing.shares));
        let names: Vec<String> = norms.chain(smalls.map(|small| small.name.clone())).collect();
        let own = |name: &String| names.contains(name) || starts.iter().any(|start| name.starts_with(start));
        grads.iter().filter(|(name, _)| own(name)).map(|(name, grad)| (name.clone(), grad.clone())).collect()
    }
}

impl From<Vec<Step>> for Block {
    fn from(steps: Vec<Step>) -> Self {
        Self { steps, ..Self::default() }
    }
}

/// A branch and the norm by which it reads the stream: x ← x + branch(norm(x)), or x + scale ⊙ branch(norm(x)).
#[derive(Clone, Debug)]
pub struct Step {
    /// What the names of its parameters begin with in a checkpoint, such as `backbone.layers.0.mixer`.
    pub path: String,
    /// What the name of the norm's weight begins with, such as `backbone.layers.0.norm`; none where it has no weight.
    pub norm_path: Option<String>,
    /// The norm.
    pub norm: Norm,
    /// The branch.
    pub branch: Box<dyn Branch>,
    /// What it gives is multiplied by this.
    pub scale: Option<Scale>,
}

/// What the output of a branch is multiplied by.
#[derive(Clone, Debug)]
pub enum Scale {
    /// A weight for each channel, `[hidden]`.
    Channels(Parameter),
    /// A constant.
    Factor(f32),
}

impl Scale {
    /// The weights that training moves.
    fn parameter(&self) -> Option<&Parameter> {
        match self {
            Self::Channels(weights) => Some(weights),
            Self::Factor(_) => None,
        }
    }
}

/// A small parameter of the stack itself.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name in a checkpoint.
    pub name: String,
    /// Its values, in f32.
    pub values: Tensor,
}

/// What is mixed into the stream x before the branches of a block: x ← m₀ ⊙ (x + s ⊙ copy) + m₁ ⊙ x₀, where x₀ is the stream
/// that entered the first block.
#[derive(Clone, Debug)]
pub struct Mixing {
    /// s and what it weighs: the stream as it left an earlier block.
    pub skip: Option<Skip>,
    /// m, [2, hidden].
    pub shares: Parameter,
}

/// A skip connection from an earlier block.
#[derive(Clone, Debug)]
pub struct Skip {
    /// The number of the copy: 0 is x₀.
    pub copy: usize,
    /// Weights [n, hidden] of all skips.
    pub weights: Parameter,
    /// The row of this one.
    pub row: usize,
}

impl Mixing {
    /// x [.., hidden] and the copies beside it → x after mixing, in tensor operations; the skip joins before the `first` pass.
    pub(super) fn definition(&self, x: &Tensor, copies: &[Tensor], first: bool) -> Result<Tensor> {
        let skipped = match &self.skip {
            Some(Skip { copy, weights, row }) if first => {
                (x + copies[*copy].broadcast_mul(&weights.values.get(*row)?)?)?
            }
            _ => x.clone(),
        };
        let [kept, first] = [0, 1].map(|row| self.shares.values.get(row));
        skipped.broadcast_mul(&kept?)? + copies[0].broadcast_mul(&first?)?
    }

    /// The same on a CPU, in the place of rows `x`.
    pub(super) fn apply(&self, x: &mut [f32], copies: &[Buffer], first: bool) -> Result<()> {
        self.skip(x, copies, first)?;
        self.share(x, copies)
    }

    /// The way back through [`Self::apply`], which had `mixed` after the skip: the gradient of x, in its place; those of the
    /// copies, added to; those of the parameters: of the shares overwritten, of the row of skip weights added to.
    pub(super) fn back(
        &self,
        mixed: &[f32],
        copies: &[Buffer],
        dx: &mut [f32],
        dcopies: &mut [Buffer],
        grads: &mut Gradients,
        first: bool,
    ) -> Result<()> {
        let dshares = place(grads, &self.shares.name)?;
        dshares.fill(0.0);
        let (dkept, dfirst) = dshares.split_at_mut(dshares.len() / 2);
        weight_grad(mixed, dx, dkept);
        weight_grad(&copies[0], dx, dfirst);
        with_floats([&self.shares.values], |[shares]| {
            let (kept, first) = shares.split_at(shares.len() / 2);
            add_scaled(first, dx, &mut dcopies[0]);
            scale(kept, dx);
        })?;
        let Some(Skip { copy, weights, row }) = self.skip.as_ref().filter(|_| first) else { return Ok(()) };
        let hidden = weights.values.dim(1)?;
        weight_grad(&copies[*copy], dx, &mut place(grads, &weights.name)?[row * hidden..][..hidden]);
        let weights = weights.values.get(*row)?;
        with_floats([&weights], |[weights]| add_scaled(weights, dx, &mut dcopies[*copy]))
    }

    /// The last part of [`Self::apply`]: x ← m₀ ⊙ x + m₁ ⊙ x₀.
    pub(super) fn share(&self, x: &mut [f32], copies: &[Buffer]) -> Result<()> {
        with_floats([&self.shares.values], |[shares]| {
            let (kept, first) = shares.split_at(shares.len() / 2);
            scale(kept, x);
            add_scaled(first, &copies[0], x);
        })
    }

    /// The first part of [`Self::apply`]: x ← x + s ⊙ copy.
    pub(super) fn skip(&self, x: &mut [f32], copies: &[Buffer], first: bool) -> Result<()> {
        let Some(Skip { copy, weights, row }) = self.skip.as_ref().filter(|_| first) else { return Ok(()) };
        with_floats([&weights.values.get(*row)?], |[weights]| add_scaled(weights, &copies[*copy], x))
    }
}

impl Step {
    /// What its branch gave, weighed: rows `y`, in their place.
    pub(super) fn weigh(&self, y: &mut [f32]) -> Result<()> {
        match &self.scale {
            Some(Scale::Channels(weights)) => with_floats([&weights.values], |[weights]| scale(weights, y)),
            Some(Scale::Factor(factor)) => {
                multiply(*factor, y);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The weights of the channels of what its branch gives, which training moves; none where there are none.
    pub(super) fn weights(&self) -> Option<&Parameter> {
        self.scale.as_ref().and_then(Scale::parameter)
    }

    /// The same step with what its branch gives multiplied by a constant.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        let scale = (factor != 1.0).then_some(Scale::Factor(factor as f32));
        Self { scale, ..self }
    }

    /// x [.., hidden] → x + scale ⊙ branch(norm(x)) by `read` of the branch, in tensor operations.
    pub(super) fn definition(
        &self,
        x: &Tensor,
        read: impl FnOnce(&dyn Branch, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let given = read(&*self.branch, &self.norm.forward(x)?)?;
        match &self.scale {
            Some(Scale::Channels(weights)) => given.broadcast_mul(&weights.values)? + x,
            Some(Scale::Factor(factor)) => (given * f64::from(*factor))? + x,
            None => given + x,
        }
    }
}
