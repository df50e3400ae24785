//! The blocks by the kernels on a CPU: a text in pieces that follow one another through the layers.

use super::Stack;
use super::block::{Block, Pass};
use super::entry::Before;
use super::relay::{Turn, relay};
use crate::kernel::norm::add;
use crate::kernel::scan::CHUNK;
use crate::layer::op::with_floats;
use crate::layer::room::{Buffer, Room};
use crate::layer::state::State;
use candle_core::{Device, Result, Tensor};
use std::ops::Range;

/// Chunks of the scan that go through all layers together, at most: what a layer hands to the next stays in the caches.
const MOST: usize = 4;
/// And at least, where there are more: the last piece too is more than a chunk.
const LEAST: usize = 2;
/// Pieces of a text that is long enough, at least: two for each of two threads. Later ones attend to more tokens, and a thread
/// that has none left waits.
const PIECES: usize = 4;

/// The pieces of a text of `time` tokens: as equal as whole chunks of the scan allow, and the same for any number of
/// threads, since few tokens for an expert are multiplied by another kernel than many.
fn pieces(time: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let chunks = time.div_ceil(CHUNK);
    let count = chunks.div_ceil(MOST).max(PIECES.min(chunks / LEAST));
    let (each, more) = (chunks / count.max(1), chunks % count.max(1));
    let start = move |piece: usize| time.min(CHUNK * (piece * each + piece.min(more)));
    (0..count).map(move |piece| start(piece)..start(piece + 1))
}

impl Stack {
    /// Reads at least one token of one sequence, on a CPU, moving `state` on; `logits` `[vocabulary]`, if given, are
    /// overwritten with those after the last token. The steps of [`stream`](Self::stream) in buffers of the state: once
    /// they are there, a step allocates none.
    ///
    /// # Errors
    /// If a tensor is on another device.
    pub(crate) fn read(&self, tokens: &[u32], state: &mut State, logits: Option<&mut [f32]>) -> Result<()> {
        let hidden = self.head.weight.shape()?.1;
        state.layers.iter_mut().for_each(|layer| layer.reserve(tokens.len()));
        // All tokens, where those before a piece matter.
        let known = state.tokens.first().map_or(0, Vec::len);
        state.tokens.iter_mut().for_each(|all| all.extend_from_slice(tokens));
        let all = state.tokens.first();
        let (position, mut logits) = (state.position, logits);
        let pieces = pieces(tokens.len()).map(|piece| {
            (piece.start, &tokens[piece.clone()], logits.take_if(|_| piece.end == tokens.len()))
        });
        relay(pieces, &mut state.layers, &mut state.rooms, |(first, tokens, logits), turn, room| {
            let mut stream = room.take(tokens.len() * hidden);
            match &self.entry {
                Some(entry) => {
                    let ids = all.map_or(&[][..], |all| &all[..known + first]);
                    let before = Before { ids, count: position + first };
                    entry.apply(self.embedding(), tokens, before, &mut stream, room)?;
                }
                None => self.embedding().weight.rows(tokens, &mut stream)?,
            }
            if let Some(rotation) = &self.rotation {
                rotation.apply(&mut stream);
            }
            let mut copies = self.copies_of(&stream, room);
            self.walk((&mut stream, &mut copies), 1, 0..self.blocks.len(), turn, room)?;
            copies.into_iter().for_each(|copy| room.give(copy));
            if let Some(logits) = logits {
                let mut closed = room.take(hidden);
                let last = &mut stream[(tokens.len() - 1) * hidden..];
                if let Some(rotation) = &self.rotation {
                    rotation.apply_transposed(last);
                }
                self.norm.apply(last, &mut closed)?;
                self.head.apply(&closed, logits, room)?;
                self.exit.apply(logits);
                room.give(closed);
            }
            room.give(stream);
            Ok(())
        })?;
        state.position += tokens.len();
        Ok(())
    }

    /// [`Self::through`] by the kernels on a CPU.
    pub(super) fn apply(&self, x: Tensor, blocks: Range<usize>, state: &mut State) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let mut all = with_floats([&x.contiguous()?], |[x]| x.to_vec())?;
        drop(x);
        let mut rest = all.as_mut_slice();
        let mut piece = |tokens: usize| rest.split_off_mut(..batch * tokens * width).unwrap_or_default();
        // The tokens of one sequence follow one another.
        let pieces: Vec<&mut [f32]> = match batch {
            1 => pieces(time).map(|tokens| piece(tokens.len())).collect(),
            _ => vec![piece(time)],
        };
        let layers = &mut state.layers[self.slots(blocks.clone())];
        layers.iter_mut().for_each(|layer| layer.reserve(time));
        relay(pieces.into_iter(), layers, &mut state.rooms, |rows, turn, room| match self.copies {
            0 => self.walk((rows, &mut []), batch, blocks.clone(), turn, room),
            copies => {
                let hidden = width / (1 + copies);
                let mut parts: Vec<Buffer> =
                    (0..=copies).map(|_| room.take(rows.len() / (1 + copies))).collect();
                for (row, all) in rows.chunks(width).enumerate() {
                    for (part, values) in parts.iter_mut().zip(all.chunks(hidden)) {
                        part[row * hidden..][..hidden].copy_from_slice(values);
                    }
                }
                let [stream, copies @ ..] = parts.as_mut_slice() else { return Ok(()) };
                self.walk((stream, copies), batch, blocks.clone(), turn, room)?;
                for (row, all) in rows.chunks_mut(width).enumerate() {
                    for (part, values) in parts.iter().zip(all.chunks_mut(hidden)) {
                        values.copy_from_slice(&part[row * hidden..][..hidden]);
                    }
                }
                parts.into_iter().for_each(|part| room.give(part));
                Ok(())
            }
        })?;
        Tensor::from_vec(all, (batch, time, width), &Device::Cpu)
    }

    /// The steps of [`Self::through`] for a piece of a text, in the place of its stream [B, T, hidden] and of the copies
    /// beside it, each of the same size.
    fn walk(
        &self,
        (stream, copies): (&mut [f32], &mut [Buffer]),
        batch: usize,
        blocks: Range<usize>,
        turn: &mut Turn<'_>,
        room: &mut Room,
    ) -> Result<()> {
        let time = stream.len() / (batch * self.head.weight.shape()?.1);
        // What the last branch gave joins the stream as late as the next norm reads it.
        let (mut u, mut waits) = (room.take(stream.len()), false);
        for Pass { block: Block { mixing, steps, keeps, .. }, first, last } in self.passes(blocks) {
            turn.layer(|layer| {
                if let Some(mixing) = mixing {
                    if std::mem::take(&mut waits) {
                        add(&u, stream);
                    }
                    mixing.apply(stream, copies, first)?;
                }
                for step in steps {
                    match waits {
                        false => step.norm.apply(stream, &mut u)?,
                        true => step.norm.apply_after(stream, &mut u)?,
                    }
                    waits = true;
                    step.branch.apply(&mut u, (batch, time), layer, room)?;
                    step.weigh(&mut u)?;
                }
                if let Some(copy) = keeps.filter(|_| last) {
                    if std::mem::take(&mut waits) {
                        add(&u, stream);
                    }
                    copies[copy].copy_from_slice(stream);
                }
                Ok(())
            })?;
        }
        if waits {
            add(&u, stream);
        }
        room.give(u);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text_and_the_last_has_more_than_a_chunk() {
        for time in (0..1200).chain([2047, 2048, 2049]) {
            let all: Vec<Range<usize>> = pieces(time).collect();
            assert_eq!(pieces(time).len(), all.len());
            assert!(all.windows(2).all(|two| two[0].end == two[1].start && two[1].start % CHUNK == 0));
            assert_eq!(
                all.first().map_or((0, time), |first| (first.start, all[all.len() - 1].end)),
                (0, time)
            );
            assert!(all.iter().all(|piece| !piece.is_empty() && piece.len() <= MOST * CHUNK));
            assert!(
                all.len() < 2 || all.iter().all(|piece| piece.len() > (LEAST - 1) * CHUNK),
                "{time}: {all:?}"
            );
        }
        assert_eq!(pieces(512).collect::<Vec<_>>(), [0..128, 128..256, 256..384, 384..512]);
    }
}
