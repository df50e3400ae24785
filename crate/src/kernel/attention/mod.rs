//! Causal attention over a cache of keys and values, y = softmax(s · q Kᵀ) V, s as a rule 1/√D, in tiles (Dao et al. 2022): a tile of
//! queries meets the keys tile by tile, with the largest score and the sum of each row so far (Milakov & Gimelshein
//! 2018). There is never a matrix [T, T].
//!
//! Query heads that share a key head are rows of one tile: its keys are read, and widened, once for all of them.
//!
//! | file | holds |
//! |---|---|
//! | this one | tiles of queries against all keys before them |
//! | `spans` | few queries against many keys: spans of keys apart |
//! | `cache` | keys and values: `rows` of heads and tokens, keys also by `channels` |
//! | `grad` | the way back |

mod cache;
mod channels;
mod grad;
mod rows;
mod spans;
#[cfg(test)]
mod tests;

use super::Scatter;
use super::simd::{Lanes, dispatch};
use super::tile::{View, matmul_add, transpose};
use cache::Of;
pub use cache::{Cache, Width};
pub use grad::{Traced, attend_grad};
use rayon::prelude::*;
use std::ops::Range;

/// Keys of a tile.
const KEYS: usize = 64;
/// Rows of queries of a tile, about: whole blocks of [`matmul_add`] where 1, 2, 3, 4, 6 or 8 heads share keys.
const ROWS: usize = 72;
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
    /// The factor s on scores.
    pub scale: f32,
}

/// Attention of the last T tokens in `cache`: `q` [B, T, H, D], by its place overwritten with y. `logs` [B, T, H], if given,
/// are overwritten with ln Σ e^score, which the gradient needs.
///
/// # Panics
/// If `q` or `logs` are of another size, or the cache holds fewer tokens or other heads.
pub fn attend(shape: Shape, q: &mut [f32], cache: &Cache, logs: Option<&mut [f32]>) {
    let Shape { batch, time, heads, shared, dim, .. } = shape;
    assert!(q.len() == batch * time * heads * dim && cache.fits(batch * shared, dim) && cache.len() >= time);
    assert!(logs.as_ref().is_none_or(|logs| logs.len() * dim == q.len()));
    let tiles = tiles(shape, cache);
    match &*tiles {
        [tokens] if cache.len() > spans::LENGTH => spans::attend(shape, tokens.clone(), q, cache, logs),
        _ => by_tiles(shape, &tiles, q, cache, logs),
    }
}

/// [`attend`], each tile of each head a task.
fn by_tiles(shape: Shape, tiles: &[Range<usize>], q: &mut [f32], cache: &Cache, logs: Option<&mut [f32]>) {
    let Shape { batch, shared, dim, .. } = shape;
    let (all, logs) = (Scatter::new(q), logs.map(Scatter::new));
    let task = |work: &mut Work, task: usize| {
        // The last tiles take longest: they begin first.
        let tokens = tiles[tiles.len() - 1 - task / (batch * shared)].clone();
        let tile = Tile { shape, head: task % (batch * shared), tokens };
        // SAFETY: this tile's rows are of this task alone.
        work.begin(&tile, |place| unsafe { all.slice(place, dim) });
        work.meet(&tile, cache, 0..tile.end(cache));
        for r in 0..tile.rows() {
            // SAFETY: as above.
            let to = unsafe { all.slice(tile.place(r), dim) };
            let share = work.sums[r].recip();
            to.iter_mut().zip(&work.y[r * dim..]).for_each(|(to, y)| *to = y * share);
            if let Some(logs) = logs {
                // SAFETY: as above.
                unsafe { logs.slice(tile.place(r) / dim, 1)[0] = work.tops[r] + work.sums[r].ln() };
            }
        }
    };
    let count = tiles.len() * batch * shared;
    if count == 1 {
        return task(&mut Work::default(), 0);
    }
    (0..count).into_par_iter().for_each_init(Work::default, task);
}

/// The tokens of each tile. All queries of one find the same keys settled.
fn tiles(shape: Shape, cache: &Cache) -> Vec<Range<usize>> {
    let Shape { time, heads, shared, .. } = shape;
    let (most, first) = ((ROWS * shared / heads).clamp(1, time.max(1)), cache.len() - time);
    let (mut tiles, mut start) = (vec![], 0);
    while start < time {
        let settled = cache.settled(first + start);
        let alike =
            (start..time.min(start + most)).take_while(|token| cache.settled(first + token) == settled);
        let end = start + alike.count();
        tiles.push(start..end);
        start = end;
    }
    tiles
}

/// Rows of queries that meet the keys together: those of some tokens, of all query heads that share a key head.
struct Tile {
    shape: Shape,
    /// Sequence and key head.
    head: usize,
    tokens: Range<usize>,
}

impl Tile {
    fn group(&self) -> usize {
        self.shape.heads / self.shape.shared
    }

    fn rows(&self) -> usize {
        self.tokens.len() * self.group()
    }

    /// Where row `r` begins in [B, T, H, D].
    fn place(&self, r: usize) -> usize {
        let Shape { time, heads, shared, dim, .. } = self.shape;
        let (sequence, key_head) = (self.head / shared, self.head % shared);
        let (token, of) = (self.tokens.start + r / self.group(), r % self.group());
        ((sequence * time + token) * heads + key_head * self.group() + of) * dim
    }

    /// The position of the first of its tokens.
    fn first(&self, cache: &Cache) -> usize {
        cache.len() - self.shape.time + self.tokens.start
    }

    /// One past the position of its last token.
    fn end(&self, cache: &Cache) -> usize {
        self.first(cache) + self.tokens.len()
    }
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
    /// Takes the queries of a tile's rows from their places; no keys met them yet.
    fn begin<'a>(&mut self, tile: &Tile, query: impl Fn(usize) -> &'a [f32]) {
        let (rows, dim) = (tile.rows(), tile.shape.dim);
        let size = |values: &mut Vec<f32>, len: usize, with: f32| {
            values.clear();
            values.resize(len, with);
        };
        size(&mut self.q, rows * dim, 0.0);
        size(&mut self.y, rows * dim, 0.0);
        size(&mut self.scores, rows * KEYS, 0.0);
        size(&mut self.tops, rows, f32::NEG_INFINITY);
        size(&mut self.sums, rows, 0.0);
        let scale = tile.shape.scale;
        for (r, to) in self.q.chunks_exact_mut(dim).enumerate() {
            to.iter_mut().zip(query(tile.place(r))).for_each(|(to, from)| *to = *from * scale);
        }
    }

    /// The rows meet these keys, those behind their own tokens left out.
    fn meet(&mut self, tile: &Tile, cache: &Cache, range: Range<usize>) {
        let (rows, dim, group, first) = (tile.rows(), tile.shape.dim, tile.group(), tile.first(cache));
        let (settled, mut wide) = (cache.settled(first), std::mem::take(&mut self.wide));
        for key in range.clone().step_by(KEYS) {
            let keys = KEYS.min(range.end - key);
            // How many of these keys a row sees: those up to its own token.
            let seen = |r: usize| (first + r / group + 1).saturating_sub(key).min(keys);
            self.score(cache.read(Of::Keys, tile.head, (key, keys), settled, &mut wide), rows, keys, dim);
            (0..rows).for_each(|r| self.weigh(r, seen(r), keys, dim));
            let values = cache.read(Of::Values, tile.head, (key, keys), settled, &mut wide);
            matmul_add(rows, keys, dim, View::rows(&self.scores, KEYS), values, dim, &mut self.y, dim);
        }
        self.wide = wide;
    }

    /// The scores of all rows against keys [keys, D].
    fn score(&mut self, k: &[f32], rows: usize, keys: usize, dim: usize) {
        let Self { q, scores, turned, .. } = self;
        if rows <= FEW {
            return dots(rows, keys, dim, q, k, scores);
        }
        turned.resize(dim * KEYS, 0.0);
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
    // A NaN among the scores may be passed over here: its weight is NaN, and so is the sum. It is told where logits are looked at.
    let mut tops = V::splat(*top);
    let mut chunks = scores.chunks_exact(V::N);
    for scores in &mut chunks {
        tops = tops.max(V::load(scores));
    }
    let largest = chunks.remainder().iter().fold(tops.top(), |top, score| top.max(*score));
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
