//! What measurements ask of single blocks: their recurrences, and which tokens look at which.

use super::block::Pass;
use super::{Block, Stack, Step};
use crate::kernel::scan::CHUNK;
use crate::layer::branch::Branch;
use crate::layer::meeting::Meeting;
use crate::layer::moe::Routed;
use crate::layer::recurrence::Recurrent;
use candle_core::{D, Result, Tensor};

/// A recurrence of a stack, and where it is.
#[derive(Clone, Copy)]
pub struct Recurring<'a> {
    /// Number of its block.
    pub layer: usize,
    /// Number in [`Stack::linears`] of a matrix that reads what its branch reads.
    pub entry: usize,
    /// The recurrence.
    pub recurrence: &'a dyn Recurrent,
}

impl Stack {
    /// The residual stream that enters a block, of [B, T] tokens → [B, H, T]: the share of its attention there that each token
    /// pays to the first; none where the block has no attention.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn first_shares(&self, x: &Tensor, block: usize) -> Result<Option<Tensor>> {
        self.at_branch(x, block, |branch, u| branch.first_shares(u))
    }

    /// The residual stream that enters a block, of one sequence → how the tokens of its whole chunks meet there; none where they
    /// do not, or no chunk is whole.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn meeting(&self, x: &Tensor, block: usize) -> Result<Option<Meeting>> {
        match x.dim(1)? / CHUNK * CHUNK {
            0 => Ok(None),
            whole => {
                self.at_branch(&x.narrow(1, 0, whole)?.contiguous()?, block, |branch, u| branch.meeting(u))
            }
        }
    }

    /// The residual stream that enters a block, of one sequence → what its router makes of each token there; none where the block
    /// has no experts.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn routed(&self, x: &Tensor, block: usize) -> Result<Option<Routed>> {
        self.at_branch(x, block, |branch, u| branch.experts().map(|moe| moe.routed(u)).transpose())
    }

    /// How many times the stream passes a block.
    pub fn passes_of(&self, block: usize) -> usize {
        1 + self.blocks[block].again
    }

    /// One pass of the stream through a block, from a state of zeros: [B, T, (1 + copies) · hidden] → [B, T, hidden], without the
    /// copies. A skip joins before the `first`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn pass(&self, x: &Tensor, block: usize, first: bool) -> Result<Tensor> {
        let mut copies = x.chunk(1 + self.copies, D::Minus1)?;
        let x = copies.remove(0).contiguous()?;
        Pass { block: &self.blocks[block], first, last: false }.definition(x, &copies, None)
    }

    /// What the first branch of a block that has anything to say says of what it reads.
    fn at_branch<T>(
        &self,
        x: &Tensor,
        block: usize,
        ask: impl Fn(&dyn Branch, &Tensor) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let Block { mixing, steps, .. } = &self.blocks[block];
        let mut copies = x.chunk(1 + self.copies, D::Minus1)?;
        let mut x = copies.remove(0).contiguous()?;
        if let Some(mixing) = mixing {
            x = mixing.definition(&x, &copies, true)?;
        }
        for (i, step) in steps.iter().enumerate() {
            let said = ask(&*step.branch, &step.norm.forward(&x)?)?;
            if said.is_some() || i + 1 == steps.len() {
                return Ok(said);
            }
            x = step.definition(&x, |branch, u| branch.forward(u, None))?;
        }
        Ok(None)
    }

    /// The projections of the queries of attention: number of the block, the rank that it can have, and the matrix, [H·D, hidden] in
    /// f32; the product of the two of one of low rank.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn queries(&self) -> Result<Vec<(usize, usize, Tensor)>> {
        let steps = self.blocks.iter().enumerate();
        let steps = steps.flat_map(|(layer, block)| block.steps.iter().map(move |step| (layer, step)));
        let all = steps.filter_map(|(layer, step)| {
            let matrix = step.branch.attention()?.query_matrix();
            Some(matrix.map(|(rank, queries)| (layer, rank, queries)))
        });
        all.collect()
    }

    /// The recurrences of its blocks, for those who look into them.
    pub fn recurrences(&self) -> Vec<Recurring<'_>> {
        let (mut all, mut entry) = (vec![], 0);
        for (layer, block) in self.blocks.iter().enumerate() {
            for Step { branch, .. } in &block.steps {
                all.extend(branch.recurrence().map(|recurrence| Recurring { layer, entry, recurrence }));
                entry += branch.linears().len();
            }
        }
        all
    }
}
