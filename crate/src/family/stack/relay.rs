//! Pieces of a text on their way through the layers of a model, side by side.
//!
//! A piece may enter a layer as soon as the piece before it has left its state there. So every thread takes a piece of its
//! own and follows the one before it, a layer behind: threads wait for one another once a layer at most, and not at every
//! loop of every kernel. One thread, or one piece, is the same in a line.

use crate::layer::room::Room;
use crate::layer::state::LayerState;
use crate::threads::{side_by_side, threads};
use candle_core::{Result, bail};
use std::slice::IterMut;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

/// The states of the layers as one piece gets them, in order.
pub(super) enum Turn<'a> {
    /// From the piece before, to the piece after.
    Between(Receiver<&'a mut LayerState>, Sender<&'a mut LayerState>),
    /// Of a piece that no other is under way with.
    Alone(IterMut<'a, LayerState>),
}

impl Turn<'_> {
    /// Lets `work` move the state of the next layer on, and hands it to the next piece.
    pub fn layer(&mut self, work: impl FnOnce(&mut LayerState) -> Result<()>) -> Result<()> {
        match self {
            Self::Alone(layers) => layers.next().map_or(Ok(()), work),
            Self::Between(before, after) => {
                let Ok(state) = before.recv() else { bail!("the piece of text before this one failed") };
                work(state)?;
                // Behind the last piece there is none, behind a failure nobody who listens.
                let _ = after.send(state);
                Ok(())
            }
        }
    }
}

/// Does `work` for each of `pieces`, which move the states of `layers` on one after the other. Each of `rooms`, which grow
/// to as many as there are threads, serves one piece at a time.
///
/// # Errors
/// The first of `work`.
pub(super) fn relay<P: Send>(
    mut pieces: impl ExactSizeIterator<Item = P> + Send,
    layers: &mut [LayerState],
    rooms: &mut Vec<Room>,
    work: impl Fn(P, &mut Turn<'_>, &mut Room) -> Result<()> + Sync,
) -> Result<()> {
    let lanes = threads().min(pieces.len()).max(1);
    rooms.resize_with(lanes.max(rooms.len()), Room::default);
    if lanes == 1 {
        return pieces.try_for_each(|piece| work(piece, &mut Turn::Alone(layers.iter_mut()), &mut rooms[0]));
    }
    let (first, before) = channel();
    layers
        .iter_mut()
        .try_for_each(|layer| first.send(layer))
        .unwrap_or_else(|_| unreachable!("it is listened to"));
    let queue = Mutex::new((pieces, before));
    let failure = Mutex::new(None);
    let take = || {
        let (pieces, next) = &mut *queue.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = pieces.next()?;
        let (after, before) = channel();
        Some((piece, Turn::Between(std::mem::replace(next, before), after)))
    };
    side_by_side(&mut rooms[..lanes], |room| {
        while let Some((piece, mut turn)) = take() {
            if let Err(error) = work(piece, &mut turn, room) {
                // Kept before the turn ends and lets the next piece fail.
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                return;
            }
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::op::Values;
    use crate::threads::with_threads;
    use candle_core::Device;

    fn layers(count: usize) -> Vec<LayerState> {
        (0..count).map(|_| LayerState::zeros((1, 1, 1), (1, 1, 1, 1), &Device::Cpu).unwrap()).collect()
    }

    /// Pieces that multiply each state by ten and add their number: the states tell the order.
    fn run(threads: usize, pieces: usize, failing: Option<usize>) -> Result<Vec<f32>> {
        let mut layers = layers(5);
        with_threads(threads, || {
            relay(0..pieces, &mut layers, &mut vec![], |piece, turn, _| {
                for _ in 0..5 {
                    turn.layer(|state| {
                        if failing == Some(piece) {
                            bail!("piece {piece} is bad")
                        }
                        state.update(|_, h, _| {
                            if let Values::F32(h) = h {
                                h[0] = h[0] * 10.0 + piece as f32;
                            }
                        })
                    })?;
                }
                Ok(())
            })
            .map_err(Into::into)
        })
        .map_err(candle_core::Error::wrap)?;
        Ok(layers
            .iter()
            .map(|layer| layer.recurrence().unwrap().flatten_all().unwrap().to_vec1().unwrap()[0])
            .collect())
    }

    #[test]
    fn every_layer_meets_the_pieces_in_order() {
        for threads in [1, 2, 3, 7] {
            for (pieces, expected) in [(0, 0.0), (1, 0.0), (2, 1.0), (6, 12345.0)] {
                assert_eq!(run(threads, pieces, None).unwrap(), [expected; 5], "{threads} threads");
            }
        }
    }

    #[test]
    fn the_first_failure_is_told_and_nobody_waits_for_ever() {
        for threads in [1, 2, 3] {
            for failing in 0..4 {
                let error = run(threads, 4, Some(failing)).unwrap_err().to_string();
                assert!(error.contains(&format!("piece {failing} is bad")), "{error}");
            }
        }
    }

    #[test]
    fn many_relays_at_once_end() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).for_each(|_| assert_eq!(run(3, 6, None).unwrap(), [12345.0; 5])));
            }
        });
    }
}
