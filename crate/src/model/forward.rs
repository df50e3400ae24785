//! Tokens through the network, whole and block by block.

use super::{Model, Positions};
use crate::error::Result;
use crate::layer::meeting::Meeting;
use crate::layer::moe::Routed;
use crate::layer::state::State;
use crate::threads::install;
use candle_core::Tensor;
use std::ops::Range;

impl Model {
    /// tokens [B, T] → logits [B, T or 1, vocabulary] in f32, moving `state` on by T tokens. Without a state the
    /// sequences start from nothing and nothing is kept.
    ///
    /// # Errors
    /// If the tokens are not whole numbers of the vocabulary, or not as many sequences as `state` holds.
    pub fn forward(
        &self,
        tokens: &Tensor,
        state: Option<&mut State>,
        positions: Positions,
    ) -> Result<Tensor> {
        self.admit(tokens, state.as_deref())?;
        self.forward_admitted(tokens, state, positions)
    }

    /// As [`forward`](Self::forward), for tokens that were held to the vocabulary.
    pub(super) fn forward_admitted(
        &self,
        tokens: &Tensor,
        state: Option<&mut State>,
        positions: Positions,
    ) -> Result<Tensor> {
        install(|| {
            let stream = self.stack.stream(tokens, state)?; // [B, T, hidden]
            let asked = match positions {
                Positions::All => stream,
                Positions::Last => stream.narrow(1, stream.dim(1)? - 1, 1)?,
            };
            self.head(&self.stack.close(&asked)?)
        })
    }

    /// Hidden states before the head, for those who need logits of some positions only.
    pub(crate) fn hidden(&self, tokens: &Tensor, state: Option<&mut State>) -> Result<Tensor> {
        Ok(install(|| self.stack.hidden(tokens, state))?)
    }

    /// tokens [B, T] → the residual stream that enters the first block; see [`Stack::embed`].
    pub(crate) fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(install(|| self.stack.embed(tokens))?)
    }

    /// The residual stream from the entry of one block to that of another, from a state of zeros; see
    /// [`Stack::through`].
    pub(crate) fn through(&self, stream: Tensor, blocks: Range<usize>) -> Result<Tensor> {
        Ok(install(|| self.stack.through(stream, blocks, None))?)
    }

    /// One pass of the stream through a block; see [`Stack::pass`](crate::family::Stack::pass).
    pub(crate) fn pass(&self, stream: &Tensor, block: usize, first: bool) -> Result<Tensor> {
        Ok(install(|| self.stack.pass(stream, block, first))?)
    }

    /// How many times the stream passes a block.
    pub(crate) fn passes_of(&self, block: usize) -> usize {
        self.stack.passes_of(block)
    }

    /// The residual stream that leaves the last block → hidden states before the head.
    pub(crate) fn close(&self, stream: &Tensor) -> Result<Tensor> {
        Ok(install(|| self.stack.close(stream))?)
    }

    /// The residual stream alone; see [`Stack::residual`].
    pub(crate) fn residual(&self, stream: &Tensor) -> Result<Tensor> {
        Ok(self.stack.residual(stream)?)
    }

    /// The projections of the queries of attention; see [`Stack::queries`](crate::family::Stack::queries).
    pub(crate) fn queries(&self) -> Result<Vec<(usize, usize, Tensor)>> {
        Ok(self.stack.queries()?)
    }

    /// The share of its attention in a block that each token pays to the first; see [`Stack::first_shares`].
    pub(crate) fn first_shares(&self, stream: &Tensor, block: usize) -> Result<Option<Tensor>> {
        Ok(install(|| self.stack.first_shares(stream, block))?)
    }

    /// What the router of a block makes of each token; see [`Stack::routed`](crate::family::Stack::routed).
    pub(crate) fn routed(&self, stream: &Tensor, block: usize) -> Result<Option<Routed>> {
        Ok(install(|| self.stack.routed(stream, block))?)
    }

    /// How the tokens of a sequence meet in a block; see [`Stack::meeting`].
    pub(crate) fn meeting(&self, stream: &Tensor, block: usize) -> Result<Option<Meeting>> {
        Ok(install(|| self.stack.meeting(stream, block))?)
    }

    /// Reads tokens for the sake of the taps on its linears; the head's sees what it would be given.
    pub(crate) fn read(&self, ids: &[u32]) -> Result<()> {
        self.show_head(&self.hidden(&self.tokens(ids)?, None)?)
    }

    /// Shows hidden states before the head to the tap on it, as if it were given them.
    pub(crate) fn show_head(&self, hidden: &Tensor) -> Result<()> {
        match &self.stack.head().tap {
            Some(tap) => Ok((tap.0)(hidden)?),
            None => Ok(()),
        }
    }

    pub(crate) fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(install(|| self.stack.logits(hidden))?)
    }
}
