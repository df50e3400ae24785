//! A text read once for all units: the residual stream waits at the entry of one block for the models that differ from
//! there on.

use super::super::divergence::between;
use super::super::window::{Excerpt, Window};
use crate::error::Result;
use crate::kernel::softmax::Divergence;
use crate::model::Model;
use crate::progress::check_interrupt;
use crate::quantize::probe::Unit;
use candle_core::Tensor;

/// The windows of a text on their way through the base model.
pub(super) struct Sweep<'a> {
    base: &'a Model,
    text: &'a Excerpt,
    /// The stream of each window as it enters block `at`, [1, T, hidden].
    streams: Vec<Tensor>,
    at: usize,
    /// The hidden states of each window that predict its scored tokens.
    ends: Vec<Tensor>,
}

impl<'a> Sweep<'a> {
    /// Reads the text to its end and returns to the first block.
    pub fn new(base: &'a Model, text: &'a Excerpt) -> Result<Self> {
        let mut sweep = Self { base, text, streams: vec![], at: 0, ends: vec![] };
        for window in &text.windows {
            let stream = base.embed(&base.tokens(sweep.read(window))?)?;
            let left = base.through(stream.clone(), 0..base.config.layers())?;
            sweep.ends.push(end(base, &left, window)?);
            sweep.streams.push(stream);
            check_interrupt()?;
        }
        Ok(sweep)
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
        self.advance(unit.first.unwrap_or(0))?;
        let mut all = vec![];
        for (i, window) in self.text.windows.iter().enumerate() {
            let stream = match unit.first {
                None => model.embed(&model.tokens(self.read(window))?)?,
                Some(_) => self.streams[i].clone(),
            };
            let left = model.through(stream, self.at..model.config.layers())?;
            let targets = &self.text.ids[window.scored.clone()];
            all.extend(between((self.base, &self.ends[i]), (model, &end(model, &left, window)?), targets)?);
        }
        Ok(all)
    }

    /// Moves the streams on to the entry of a block.
    fn advance(&mut self, to: usize) -> Result<()> {
        for stream in &mut self.streams {
            *stream = self.base.through(stream.clone(), self.at..to.max(self.at))?;
            check_interrupt()?;
        }
        self.at = to.max(self.at);
        Ok(())
    }

    fn read(&self, window: &Window) -> &'a [u32] {
        &self.text.ids[window.start..window.scored.end - 1]
    }
}

/// The hidden states that predict a window's scored tokens, from the stream that leaves the last block.
fn end(model: &Model, stream: &Tensor, window: &Window) -> Result<Tensor> {
    let (_, time, _) = stream.dims3()?;
    model.close(&stream.narrow(1, time - window.scored.len(), window.scored.len())?.contiguous()?)
}
