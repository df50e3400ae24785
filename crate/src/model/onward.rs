//! A text read once for many models that are the model but for one matrix: its residual stream waits at the entry of the block from
//! which on they differ.

use super::Model;
use crate::error::{Error, Result};
use crate::kernel::softmax::{self, Divergence};
use crate::layer::op::with_floats;
use crate::progress::check_interrupt;
use candle_core::Tensor;

/// Batches of a text on their way through a model.
pub(crate) struct Onward<'a> {
    model: &'a Model,
    /// [B, T] each.
    tokens: Vec<Tensor>,
    /// The stream of each batch as it enters block `at`, [B, T, (1 + copies) · hidden].
    streams: Vec<Tensor>,
    at: usize,
}

impl<'a> Onward<'a> {
    /// Batches of tokens [B, T] at the entry of the first block.
    ///
    /// # Errors
    /// If the model cannot read the tokens.
    pub fn new(model: &'a Model, tokens: Vec<Tensor>) -> Result<Self> {
        let streams = tokens.iter().map(|tokens| model.embed(tokens)).collect::<Result<_>>()?;
        Ok(Self { model, tokens, streams, at: 0 })
    }

    /// The same for windows of one length, `batch` at a time.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn windows(model: &'a Model, windows: &[&[u32]], batch: usize) -> Result<Self> {
        let together = |some: &[&[u32]]| -> Result<Tensor> {
            let rows = some.iter().map(|ids| model.tokens(ids)).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::cat(&rows, 0)?)
        };
        Self::new(model, windows.chunks(batch.max(1)).map(together).collect::<Result<_>>()?)
    }

    /// Shows `each` the number of a batch and its hidden states before the head, [B, T, hidden], in a model that is the one before up
    /// to the entry of block `from`; none: from the embedding on it is another.
    ///
    /// # Errors
    /// If `from` falls from one call to the next, shapes do not fit, it is interrupted, or as `each`.
    pub fn ends(
        &mut self,
        changed: &Model,
        from: Option<usize>,
        mut each: impl FnMut(usize, Tensor) -> Result<()>,
    ) -> Result<()> {
        let to = from.unwrap_or(self.at);
        if to < self.at {
            return Err(Error::internal(format!("block {to} was passed: the text is at block {}", self.at)));
        }
        for stream in &mut self.streams {
            *stream = self.model.through(stream.clone(), self.at..to)?;
            check_interrupt()?;
        }
        self.at = to;
        for (i, stream) in self.streams.iter().enumerate() {
            let layers = changed.config.layers();
            let left = match from {
                Some(_) => changed.through(stream.clone(), to..layers)?,
                None => changed.through(changed.embed(&self.tokens[i])?, 0..layers)?,
            };
            each(i, changed.close(&left)?)?;
            check_interrupt()?;
        }
        Ok(())
    }
}

/// The divergence at each target, from the hidden states [B, T, hidden] that predict it in the reference and in the model, B · T
/// targets; a piece of logits at a time.
///
/// # Errors
/// If shapes do not fit, or it is interrupted.
pub(crate) fn between(
    (reference, p): (&Model, &Tensor),
    (model, q): (&Model, &Tensor),
    targets: &[u32],
) -> Result<Vec<Divergence>> {
    let (vocab, mut all) = (model.config.vocab_size(), Vec::with_capacity(targets.len()));
    let (p, q) = (in_line(p)?, in_line(q)?);
    for piece in model.pieces(targets.len()) {
        let (p, q) = (reference.logits(&p, &piece)?, model.logits(&q, &piece)?);
        let targets = &targets[piece];
        all.extend(with_floats([&p, &q], |[p, q]| softmax::divergence(p, q, vocab, targets))?);
        check_interrupt()?;
    }
    Ok(all)
}

impl Model {
    /// −ln p of each target, from the hidden states [B, T, hidden] that predict it, B · T targets; a piece of logits at a time.
    ///
    /// # Errors
    /// If shapes do not fit, or it is interrupted.
    pub(crate) fn nll_of(&self, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let (vocab, mut all) = (self.config.vocab_size(), Vec::with_capacity(targets.len()));
        let hidden = in_line(hidden)?;
        for piece in self.pieces(targets.len()) {
            let logits = self.logits(&hidden, &piece)?;
            let targets = &targets[piece];
            all.extend(with_floats([&logits], |[logits]| softmax::nll(logits, vocab, targets))?);
            check_interrupt()?;
        }
        Ok(all)
    }
}

/// [B, T, hidden] → [1, B · T, hidden].
fn in_line(hidden: &Tensor) -> Result<Tensor> {
    let (batch, time, width) = hidden.dims3()?;
    Ok(if batch == 1 { hidden.clone() } else { hidden.reshape((1, batch * time, width))? })
}
