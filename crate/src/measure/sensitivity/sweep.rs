//! A text read for many units, each from the block on that it is in.

use super::super::window::{Excerpt, Window};
use crate::error::Result;
use crate::kernel::softmax::Divergence;
use crate::model::Model;
use crate::model::onward::{Onward, between};
use crate::quantize::probe::Unit;
use candle_core::Tensor;

/// The windows of a text on their way through the base model.
pub(super) struct Sweep<'a> {
    base: &'a Model,
    text: &'a Excerpt,
    onward: Onward<'a>,
    /// The hidden states of each window that predict its scored tokens.
    ends: Vec<Tensor>,
}

impl<'a> Sweep<'a> {
    /// Reads the text to its end and returns to the first block.
    pub fn new(base: &'a Model, text: &'a Excerpt) -> Result<Self> {
        let read = |window: &Window| base.tokens(&text.ids[window.start..window.scored.end - 1]);
        let tokens = text.windows.iter().map(read).collect::<Result<_>>()?;
        let (mut onward, mut ends) = (Onward::new(base, tokens)?, vec![]);
        onward.ends(base, Some(0), |i, end| {
            ends.push(predicting(&end, &text.windows[i])?);
            Ok(())
        })?;
        Ok(Self { base, text, onward, ends })
    }

    /// Blocks that the base model's own readings pass through for each window: once to the end, once block by block.
    pub fn own_blocks(&self) -> usize {
        2 * self.base.config.layers()
    }

    /// Blocks that reading with a changed unit passes through for each window.
    pub fn blocks(&self, unit: &Unit) -> usize {
        self.base.config.layers() - unit.first.unwrap_or(0)
    }

    /// The divergence from the base at every scored token, of a model that is the base but for one unit. Units come in
    /// the order of their first blocks.
    pub fn divergence(&mut self, model: &Model, unit: &Unit) -> Result<Vec<Divergence>> {
        let Self { base, text, onward, ends } = self;
        let mut all = vec![];
        onward.ends(model, unit.first, |i, end| {
            let window = &text.windows[i];
            let (p, q) = ((*base, &ends[i]), (model, &predicting(&end, window)?));
            all.extend(between(p, q, &text.ids[window.scored.clone()])?);
            Ok(())
        })?;
        Ok(all)
    }
}

/// The hidden states that predict a window's scored tokens.
fn predicting(end: &Tensor, window: &Window) -> Result<Tensor> {
    let scored = window.scored.len();
    Ok(end.narrow(1, end.dim(1)? - scored, scored)?.contiguous()?)
}
