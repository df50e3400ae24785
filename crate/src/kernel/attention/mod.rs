//! Causal attention over a cache of keys and values, y = softmax(q Kᵀ / √D) V, in tiles (Dao et al. 2022): a tile of
//! queries meets the keys tile by tile, with the largest score and the sum of each row so far (Milakov & Gimelshein
//! 2018). There is never a matrix [T, T].
//!
//! Query heads that share a key head are rows of one tile: its keys are read, and widened, once for all of them.

mod cache;
mod grad;
#[cfg(test)]
mod tests;

use super::Scatter;
use super::simd::{Lanes, dispatch};
use super::tile::{View, matmul_add, transpose};
pub use cache::{Cache, Width};
pub use grad::{Traced, attend_grad};
use rayon::prelude::*;

/// Keys of a tile.
const KEYS: usize = 64;
/// Rows of queries of a tile, about.
const ROWS: usize = 64;
/// Up to so many rows scores are dot products with keys as they lie; a tile of more turns its keys once.
const FEW: usize = 8;

/// Sizes of the queries.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Sequences B.
    pub batch: usize,
    /// Tokens T of each.
    pub time: usize,
    /// Query heads H.
    pub heads: usize,
    /// Key heads, each of which H / `shared` query heads read.
    pub shared: usize,
    /// Values D of a head.
    pub dim: usize,
}

/// Attention of the last T tokens in `cache`: `q` [B, T, H, D], by its place overwritten with y. `logs` [B, T, H], if given,
/// are overwritten with ln Σ e^score, which the gradient needs.
///
/// # Panics
/// If `q` or `logs` are of another size, or the cache holds fewer tokens or other heads.
pub fn attend(shape: Shape, q: &mut [f32], cache: &Cache, logs: Option<&mut [f32]>) {
    let Shape { batch, time, heads, shared, dim } = shape;
    assert!(q.len() == batch * time * heads * dim && cache.fits(batch * shared, dim) && cache.len() >= time);
    let (group, first) = (heads / shared, cache.len() - time);
    let tokens = (ROWS / group).clamp(1, time.max(1));
    let tiles = time.div_ceil(tokens);
    assert!(logs.as_ref().is_none_or(|logs| logs.len() * dim == q.len()));
    let (all, logs) = (Scatter::new(q), logs.map(Scatter::new));
    let task = |work: &mut Work, task: usize| {
        // The last tiles take longest: they begin first.
        let (tile, head) = (tiles - 1 - task / (batch * shared), task % (batch * shared));
        let tokens = tile * tokens..time.min((tile + 1) * tokens);
        let row = |token: usize, of: usize| {
            let (sequence, key_head) = (head / shared, head % shared);
            ((sequence * time + token) * heads + key_head * group + of) * dim
        };
        let rows = tokens.len() * group;
        let place = |r: usize| row(tokens.start + r / group, r % group);
        work.begin(rows, dim);
        let scale = (dim as f32).sqrt().recip();
        for r in 0..rows {
            // SAFETY: this tile's rows are of this task alone.
            let from = unsafe { all.slice(place(r), dim) };
            work.q[r * dim..][..dim].iter_mut().zip(from).for_each(|(to, from)| *to = *from * scale);
        }
        let (end, mut wide) = (first + tokens.end, std::mem::take(&mut work.wide));
        for key in (0..end).step_by(KEYS) {
            let keys = KEYS.min(end - key);
            // How many of these keys a row sees: those up to its own token.
            let seen = |r: usize| (first + tokens.start + r / group + 1).saturating_sub(key).min(keys);
            work.score(cache.keys(head, key, keys, &mut wide), rows, keys, dim);
            (0..rows).for_each(|r| work.weigh(r, seen(r), keys, dim));
            let values = cache.values(head, key, keys, &mut wide);
            matmul_add(rows, keys, dim, View::rows(&work.scores, KEYS), values, dim, &mut work.y, dim);
        }
        work.wide = wide;
        for r in 0..rows {
            // SAFETY: as above.
            let to = unsafe { all.slice(place(r), dim) };
            let share = work.sums[r].recip();
            to.iter_mut().zip(&work.y[r * dim..]).for_each(|(to, y)| *to = y * share);
            if let Some(logs) = logs {
                // SAFETY: as above.
                unsafe { logs.slice(place(r) / dim, 1)[0] = work.tops[r] + work.sums[r].ln() };
            }
        }
    };
    let count = tiles * batch * shared;
    if count == 1 {
        return task(&mut Work::default(), 0);
    }
    (0..count).into_par_iter().for_each_init(Work::default, task);
}

/// What a tile of queries needs.
#[derive(Default)]
struct Work {
    /// Scaled queries [rows, D].
    q: Vec<f32>,
    /// Outputs before division [rows, D].
    y: Vec<f32>,
    /// Scores, then their exponentials, [rows, KEYS].
    scores: Vec<f32>,
    /// Largest score so far of each row.
    tops: Vec<f32>,
    /// Sum of exponentials so far of each row.
    sums: Vec<f32>,
    /// A tile of keys, turned: [D, KEYS].
    turned: Vec<f32>,
    /// A tile of keys or values widened from fewer bits.
    wide: Vec<f32>,
}

impl Work {
    fn begin(&mut self, rows: usize, dim: usize) {
        let size = |values: &mut Vec<f32>, len: usize, with: f32| {
            values.clear();
            values.resize(len, with);
        };
        size(&mut self.q, rows * dim, 0.0);
        size(&mut self.y, rows * dim, 0.0);
        size(&mut self.scores, rows * KEYS, 0.0);
        size(&mut self.tops, rows, f32::NEG_INFINITY);
        size(&mut self.sums, rows, 0.0);
        self.turned.resize(dim * KEYS, 0.0);
    }

    /// The scores of all rows against keys [keys, D].
    fn score(&mut self, k: &[f32], rows: usize, keys: usize, dim: usize) {
        let Self { q, scores, turned, .. } = self;
        if rows <= FEW {
            return dots(rows, keys, dim, q, k, scores);
        }
        transpose(keys, dim, k, dim, turned, KEYS);
        scores.fill(0.0);
        matmul_add(rows, dim, keys, View::rows(q, dim), turned, KEYS, scores, KEYS);
    }

    /// Turns the scores of a row into weights relative to the largest so far, zero beyond those `seen`.
    fn weigh(&mut self, r: usize, seen: usize, keys: usize, dim: usize) {
        let scores = &mut self.scores[r * KEYS..][..keys];
        scores[seen..].fill(0.0);
        if seen > 0 {
            let y = &mut self.y[r * dim..][..dim];
            weights(&mut scores[..seen], &mut self.tops[r], &mut self.sums[r], y);
        }
    }
}

dispatch! {
    /// out[r, j] = q[r] · k[j], rows of `out` KEYS apart.
    fn dots(rows: usize, keys: usize, dim: usize, q: &[f32], k: &[f32], out: &mut [f32]) = dots_body;
}

#[inline(always)]
fn dots_body<V: Lanes>(rows: usize, keys: usize, dim: usize, q: &[f32], k: &[f32], out: &mut [f32]) {
    let mut r = 0;
    while r < rows {
        match rows - r {
            1 => dots_of::<V, 1>(r, keys, dim, q, k, out),
            2 => dots_of::<V, 2>(r, keys, dim, q, k, out),
            3 => dots_of::<V, 3>(r, keys, dim, q, k, out),
            _ => dots_of::<V, 4>(r, keys, dim, q, k, out),
        }
        r += 4.min(rows - r);
    }
}

/// Of R rows, which share each vector of a key.
#[inline(always)]
fn dots_of<V: Lanes, const R: usize>(
    first: usize,
    keys: usize,
    dim: usize,
    q: &[f32],
    k: &[f32],
    out: &mut [f32],
) {
    let q = &q[first * dim..][..R * dim];
    let whole = dim / V::N * V::N;
    for (j, k) in k.chunks_exact(dim).take(keys).enumerate() {
        let mut sums = [V::splat(0.0); R];
        for at in (0..whole).step_by(V::N) {
            let key = V::load(&k[at..]);
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(&q[r * dim + at..]).fma(key, *sum);
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            let rest: f32 = (whole..dim).map(|at| q[r * dim + at] * k[at]).sum();
            out[(first + r) * KEYS + j] = sum.sum() + rest;
        }
    }
}

dispatch! {
    /// Scores → e^(score − top), where `top` is their largest and that of the tiles before; what those left in `sum` and `y`
    /// is brought to the new one.
    fn weights(scores: &mut [f32], top: &mut f32, sum: &mut f32, y: &mut [f32]) = weights_body;
}

#[inline(always)]
fn weights_body<V: Lanes>(scores: &mut [f32], top: &mut f32, sum: &mut f32, y: &mut [f32]) {
    let mut largest = *top;
    for score in scores.iter() {
        // Of a number and NaN, NaN: it is told where logits are looked at, not hidden here.
        largest = if *score <= largest { largest } else { *score };
    }
    if largest != *top {
        let less = if *top == f32::NEG_INFINITY { 0.0 } else { (*top - largest).exp() };
        *sum *= less;
        y.iter_mut().for_each(|y| *y *= less);
        *top = largest;
    }
    let mut sums = V::splat(0.0);
    let mut chunks = scores.chunks_exact_mut(V::N);
    for scores in &mut chunks {
        let weight = V::load(scores).sub(V::splat(largest)).exp();
        weight.store(scores);
        sums = sums.add(weight);
    }
    let rest = chunks.into_remainder();
    if !rest.is_empty() {
        let len = rest.len();
        V::load_part(rest).sub(V::splat(largest)).exp().store_part(rest);
        *sum += rest[..len].iter().sum::<f32>();
    }
    *sum += sums.sum();
}
