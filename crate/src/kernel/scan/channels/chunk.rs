//! The recurrence as matrix products over chunks, whose tokens meet in sub-chunks (Yang et al. 2023, section 4.3).
//!
//! With the decays multiplied up from where sub-chunk i begins, q̂_t = q_t ∘ a_begin ∘ … ∘ a_t, and down to where it ends,
//! k̂_s = k_s ∘ a_{s+1} ∘ … ∘ a_end; Z_i is the product of all of its decays:
//!
//! - scores of sub-chunk i against those before it: q̂ (k̂ ∘ Z between the two)ᵀ, a matrix product;
//! - within a sub-chunk: Σ_d q_t k_s a_{s+1} … a_t, the products multiplied up as t goes on;
//! - y = scores V + q̄ S, where q̄ goes back to the beginning of the chunk;
//! - S ← Z S + k̄ᵀ V, where k̄ goes on to its end.

use super::pairs::diagonal;
use super::{BLOCK, Columns, Inputs, Rows, Shape, by_columns};
use crate::kernel::Scatter;
use crate::kernel::scan::CHUNK;
use crate::kernel::scan::chunked::{matmul_lower, multiply, scale};
use crate::kernel::scan::products::{self, Operands, Products, Values, round_scores};
use crate::kernel::simd::{Lanes, dispatch};
use crate::kernel::tile::{View, matmul_add, transpose};
use rayon::prelude::*;

/// Tokens of a sub-chunk.
pub(super) const SUB: usize = 16;
/// Tokens whose chunks are prepared together: what the one half of the work hands to the other stays in the caches.
const SPAN: usize = 4 * CHUNK;

/// The recurrence in chunks of [`CHUNK`] tokens, whose products may be rounded. Arguments as in [`scan`](super::scan).
pub fn chunked(shape: Shape, products: Option<Products>, inputs: Inputs<'_>, s: &mut [f32], y: &mut [f32]) {
    let Shape { batch, time, heads, key, value, .. } = shape;
    let exact_within = products.filter(|products| products.scores.is_some()).map(|p| usize::from(p.sub));
    let (size, out) = (Chunk::size(key), Scatter::new(y));
    let most = SPAN.min(time).div_ceil(CHUNK);
    let mut all = vec![0.0; batch * heads * most * size];
    for start in (0..time).step_by(SPAN) {
        let chunks = SPAN.min(time - start).div_ceil(CHUNK);
        let all = &mut all[..batch * heads * chunks * size];
        let first = |chunk: usize| start + chunk * CHUNK;
        // What does not depend on the state: all chunks at once.
        all.par_chunks_mut(size).enumerate().for_each_init(
            || (Room::new(key), products.map(|products| (products, products::Room::new(key)))),
            |(room, rounded), (index, all)| {
                let (of, first) = (index / chunks, first(index % chunks));
                let rows = inputs.head(shape, of / heads, of % heads, first);
                let (len, scores) = (CHUNK.min(time - first), Chunk::cut_mut(all, key).scores);
                scores.fill(0.0);
                prepare(len, key, rows, exact_within, Chunk::cut_mut(all, key), room);
                if let Some((products, room)) = rounded {
                    let (q, k, a) = (rows.q.from(0), rows.k.from(0), Some(rows.a.from(0)));
                    let scores = Chunk::cut_mut(all, key).scores;
                    room.scores(*products, len, Operands { q, k, a }, scores);
                    round_scores(*products, len, scores);
                }
            },
        );
        // The state: columns of the values do not meet.
        let begin = || ([(); 2].map(|()| vec![0.0; CHUNK * BLOCK]), Values::default());
        by_columns(shape, s, begin, |([v, y], values), Columns { b, head, first: column, width }, s| {
            for chunk in 0..chunks {
                let (first, at) = (first(chunk), (b * heads + head) * chunks + chunk);
                let len = CHUNK.min(time - first);
                let (v, y) = (&mut v[..len * width], &mut y[..len * width]);
                inputs.head(shape, b, head, first).v.columns(column).copy(0, width, v);
                let chunk = Chunk::cut(&all[at * size..][..size], key);
                y.fill(0.0);
                matmul_add(len, key, width, View::rows(chunk.q, key), s, width, y, width);
                match products.filter(|products| products.fp8_values) {
                    Some(products) => values.add(products, len, width, chunk.scores, v, y),
                    None => matmul_lower(len, width, chunk.scores, v, width, y),
                }
                chunk.advance(len, width, v, width, s);
                for (t, y) in y.chunks(width).enumerate() {
                    let at = ((b * time + first + t) * heads + head) * value + column;
                    // SAFETY: these columns of this head belong to this task.
                    unsafe { out.slice(at, width).copy_from_slice(y) };
                }
            }
        });
    }
}

/// What a chunk of one head does to any state.
pub(super) struct Chunk<T> {
    /// q̄: queries of the state before the chunk, [Q, K].
    pub q: T,
    /// k̄ᵀ: keys of the state after it, [K, Q].
    pub k: T,
    /// What each token has of those up to it, [Q, Q]; zero behind the diagonal.
    pub scores: T,
    /// The share of its state that each channel keeps, `[K]`.
    pub decay: T,
}

impl Chunk<&[f32]> {
    /// Values of all of it.
    pub fn size(key: usize) -> usize {
        2 * CHUNK * key + CHUNK * CHUNK + key
    }

    pub fn cut(all: &[f32], key: usize) -> Chunk<&[f32]> {
        let (q, all) = all.split_at(CHUNK * key);
        let (k, all) = all.split_at(CHUNK * key);
        let (scores, decay) = all.split_at(CHUNK * CHUNK);
        Chunk { q, k, scores, decay }
    }

    pub fn cut_mut(all: &mut [f32], key: usize) -> Chunk<&mut [f32]> {
        let (q, all) = all.split_at_mut(CHUNK * key);
        let (k, all) = all.split_at_mut(CHUNK * key);
        let (scores, decay) = all.split_at_mut(CHUNK * CHUNK);
        Chunk { q, k, scores, decay }
    }

    /// S [K, width] ← Z S + k̄ᵀ V of `len` tokens.
    pub fn advance(&self, len: usize, width: usize, v: &[f32], v_row: usize, s: &mut [f32]) {
        let key = self.decay.len();
        scale_channels(self.decay, s);
        matmul_add(key, len, width, View::rows(self.k, CHUNK), v, v_row, s, width);
    }
}

/// Working memory of [`prepare`].
pub(super) struct Room {
    /// Of a sub-chunk, [SUB, K] each: rows of several heads are so far apart that few fit a cache together.
    q: Vec<f32>,
    k: Vec<f32>,
    a: Vec<f32>,
    /// q̂ or k̂.
    grown: Vec<f32>,
    /// A running product of decays, `[K]`.
    product: Vec<f32>,
}

impl Room {
    pub fn new(key: usize) -> Self {
        let [q, k, a, grown] = [(); 4].map(|()| vec![0.0; SUB * key]);
        Self { q, k, a, grown, product: vec![0.0; key] }
    }
}

/// Fills a chunk of `len` tokens; its scores are zeros before. With `exact_within`, scores with tokens before sub-chunks of so many
/// are left to others.
pub(super) fn prepare(
    len: usize,
    key: usize,
    rows: Rows<'_>,
    exact_within: Option<usize>,
    to: Chunk<&mut [f32]>,
    room: &mut Room,
) {
    let Room { q, k, a, grown, product } = room;
    to.decay.fill(1.0); // so far
    for first in (0..len).step_by(SUB) {
        let count = SUB.min(len - first);
        let [q, k, a, grown] = [&mut *q, k, a, grown].map(|rows| &mut rows[..count * key]);
        rows.q.copy(first, key, q);
        rows.k.copy(first, key, k);
        rows.a.copy(first, key, a);
        let scores = &mut to.scores[first * CHUNK..];
        diagonal(count, key, q, k, a, &mut scores[first..]);
        grown.copy_from_slice(q);
        grow(count, key, (a, key), product, grown);
        let from = exact_within.map_or(0, |sub| first / sub * sub);
        if from < first {
            let (left, right) = (View::rows(grown, key), &to.k[from..]);
            matmul_add(count, key, first - from, left, right, CHUNK, &mut scores[from..], CHUNK);
        }
        for (to_q, q) in to.q[first * key..].chunks_exact_mut(key).zip(grown.chunks_exact(key)) {
            to_q.copy_from_slice(q);
            multiply(to.decay, to_q);
        }
        if first > 0 {
            for (k, by) in to.k.chunks_exact_mut(CHUNK).zip(&*product) {
                scale(*by, &mut k[..first]);
            }
        }
        multiply(product, to.decay);
        grown.copy_from_slice(k);
        shrink(count, key, (a, key), product, grown);
        transpose(count, key, grown, key, &mut to.k[first..], CHUNK);
    }
}

dispatch! {
    /// Row t of `x` [len, K] ← x_t ∘ a_0 ∘ … ∘ a_t, and the product of all a to `product`.
    pub(super) fn grow(len: usize, key: usize, a: (&[f32], usize), product: &mut [f32], x: &mut [f32]) = grow_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn grow_body<V: Lanes>(
    len: usize,
    key: usize,
    (a, row): (&[f32], usize),
    product: &mut [f32],
    x: &mut [f32],
) {
    product.fill(1.0);
    for (t, x) in x.chunks_exact_mut(key).take(len).enumerate() {
        for ((x, a), product) in x.iter_mut().zip(&a[t * row..][..key]).zip(&mut *product) {
            *product *= a;
            *x *= *product;
        }
    }
}

dispatch! {
    /// Row t of `x` [len, K] ← x_t ∘ a_{t+1} ∘ … ∘ a_{len−1}; `product` is overwritten.
    pub(super) fn shrink(len: usize, key: usize, a: (&[f32], usize), product: &mut [f32], x: &mut [f32]) = shrink_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn shrink_body<V: Lanes>(
    len: usize,
    key: usize,
    (a, row): (&[f32], usize),
    product: &mut [f32],
    x: &mut [f32],
) {
    product.fill(1.0);
    for (t, x) in x[..len * key].chunks_exact_mut(key).enumerate().rev() {
        for ((x, a), product) in x.iter_mut().zip(&a[t * row..][..key]).zip(&mut *product) {
            *x *= *product;
            *product *= a;
        }
    }
}

dispatch! {
    /// S ← diag(by) S.
    pub(super) fn scale_channels(by: &[f32], s: &mut [f32]) = scale_channels_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn scale_channels_body<V: Lanes>(by: &[f32], s: &mut [f32]) {
    let width = s.len() / by.len();
    for (s, by) in s.chunks_exact_mut(width).zip(by) {
        s.iter_mut().for_each(|s| *s *= by);
    }
}
