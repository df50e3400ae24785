//! The chunked scan on the matrix unit `amx`, whose operands are split into bf16 terms.
//!
//! What the heads of a group share is made once: C and Bᵀ as left operands, and the scores C Bᵀ. Of a head come, for each
//! chunk, the mixing matrix M = scores ∘ L as left operand, and as right ones u = Δx, its decayed form and the state
//! [N, P]. The order of the summed index is free as long as both operands agree on it: a pair of bf16 holds the
//! values i and 16 + i of a step of 32, so that two vectors of f32 are joined without a shuffle.
//!
//! | file | holds |
//! |---|---|
//! | this one | which task does what |
//! | `shared` | what the heads of a group share |
//! | `room` | a head on its way through the chunks |
//! | `terms` | vectors, and rows of tiles of them |

mod room;
mod shared;
mod terms;

use super::{CHUNK, Shape};
use crate::kernel::amx::{Config, Tiles};
use crate::kernel::blocked::{ROWS, STEP};
use rayon::prelude::*;
use room::Room;
use shared::Shared;

/// Rows of tiles of a chunk of tokens, and its steps.
const BANDS: usize = CHUNK / ROWS;
const STEPS: usize = CHUNK / STEP;
/// Heads of a task: they share its working memory.
const HEADS: usize = 3;

/// [`scan`](super::scan) by tiles of `T` terms: 2 give products to 2⁻¹⁶, 3 to 2⁻²⁴. Other arguments as there.
pub(super) fn tiled<const T: usize>(
    shape: Shape,
    xbc: &[f32],
    dt: &[f32],
    a: &[f32],
    d: &[f32],
    h: &mut [f32],
    y: &mut [f32],
) {
    let Shape { batch, time, heads, head_dim, groups, state, .. } = shape;
    let chunks = time.div_ceil(CHUNK);
    let sizes = Padded::new(shape);
    let shared: Vec<Shared<T>> = (0..batch * chunks * groups)
        .into_par_iter()
        .map(|index| {
            let (rest, group) = (index / groups, index % groups);
            let (b, first) = (rest / chunks, rest % chunks * CHUNK);
            let rows = &xbc[(b * time + first) * shape.row()..];
            // SAFETY: tiles are used only where the processor has them, and what they need.
            unsafe { Shared::new(shape, sizes, rows, CHUNK.min(time - first), group) }
        })
        .collect();
    let out = shape.scatter(y);
    h.par_chunks_mut(HEADS * head_dim * state).enumerate().for_each(|(task, h)| {
        let mut room = Room::<T>::new(sizes);
        for (i, h) in h.chunks_mut(head_dim * state).enumerate() {
            let index = task * HEADS + i;
            let (b, head) = (index / heads, index % heads);
            let tokens = b * time..(b + 1) * time;
            let head = Head {
                shape,
                xbc: &xbc[tokens.start * shape.row()..tokens.end * shape.row()],
                dt: &dt[tokens.start * heads..tokens.end * heads],
                a: a[head],
                d: d[head],
                head,
            };
            let shared = shared[b * chunks * groups + shape.group_of(head.head)..].iter().step_by(groups);
            let tiles = Tiles::load(&Config::FULL);
            // SAFETY: as above.
            unsafe { room.load(h, shape) };
            for (chunk, shared) in shared.take(chunks).enumerate() {
                let first = chunk * CHUNK;
                let len = CHUNK.min(time - first);
                let put = |t: usize, p: usize, count: usize| {
                    let at = shape.y_at(tokens.start + first + t, head.head) + p;
                    // SAFETY: every (b, t, head) has its own P values.
                    unsafe { out.slice(at, count) }
                };
                // SAFETY: as above.
                unsafe { room.chunk(&head, first, len, shared, &tiles, put) };
            }
            drop(tiles);
            // SAFETY: as above.
            unsafe { room.store(h, shape) };
        }
    });
}

/// Sizes filled up to whole tiles.
#[derive(Clone, Copy)]
struct Padded {
    /// Of N, to whole steps.
    state: usize,
    /// Of P, to whole rows of tiles.
    head_dim: usize,
}

impl Padded {
    fn new(shape: Shape) -> Self {
        Self { state: shape.state.next_multiple_of(STEP), head_dim: shape.head_dim.next_multiple_of(ROWS) }
    }

    /// Steps along the state.
    fn steps(self) -> usize {
        self.state / STEP
    }
}

/// One head of one sequence.
struct Head<'a> {
    shape: Shape,
    xbc: &'a [f32],
    dt: &'a [f32],
    a: f32,
    d: f32,
    head: usize,
}
