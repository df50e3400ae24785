//! A block: what is mixed into the residual stream before its branches, the branches, and how they join the stream.

use super::back::place;
use crate::family::Gradients;
use crate::kernel::diagonal::{add_scaled, scale, weight_grad};
use crate::layer::branch::Branch;
use crate::layer::norm::RmsNorm;
use crate::layer::op::with_floats;
use crate::layer::room::Buffer;
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
    pub norm: RmsNorm,
    /// The branch.
    pub branch: Box<dyn Branch>,
    /// A weight for each channel of what it gives, `[hidden]`.
    pub scale: Option<Parameter>,
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
    /// x [.., hidden] and the copies beside it → x after mixing, in tensor operations.
    pub(super) fn definition(&self, x: &Tensor, copies: &[Tensor]) -> Result<Tensor> {
        let skipped = match &self.skip {
            Some(Skip { copy, weights, row }) => {
                (x + copies[*copy].broadcast_mul(&weights.values.get(*row)?)?)?
            }
            None => x.clone(),
        };
        let [kept, first] = [0, 1].map(|row| self.shares.values.get(row));
        skipped.broadcast_mul(&kept?)? + copies[0].broadcast_mul(&first?)?
    }

    /// The same on a CPU, in the place of rows `x`.
    pub(super) fn apply(&self, x: &mut [f32], copies: &[Buffer]) -> Result<()> {
        self.skip(x, copies)?;
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
        let Some(Skip { copy, weights, row }) = &self.skip else { return Ok(()) };
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
    pub(super) fn skip(&self, x: &mut [f32], copies: &[Buffer]) -> Result<()> {
        let Some(Skip { copy, weights, row }) = &self.skip else { return Ok(()) };
        with_floats([&weights.values.get(*row)?], |[weights]| add_scaled(weights, &copies[*copy], x))
    }
}

impl Step {
    /// What its branch gave, weighed: rows `y`, in their place.
    pub(super) fn weigh(&self, y: &mut [f32]) -> Result<()> {
        match &self.scale {
            Some(weights) => with_floats([&weights.values], |[weights]| scale(weights, y)),
            None => Ok(()),
        }
    }

    /// x [.., hidden] → x + scale ⊙ branch(norm(x)) by `read` of the branch, in tensor operations.
    pub(super) fn definition(
        &self,
        x: &Tensor,
        read: impl FnOnce(&dyn Branch, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let given = read(&*self.branch, &self.norm.forward(x)?)?;
        match &self.scale {
            Some(weights) => given.broadcast_mul(&weights.values)? + x,
            None => given + x,
        }
    }
}
