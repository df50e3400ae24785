//! The gradient of causal attention, tile by tile from the logarithms that the way there kept (Dao et al. 2022, appendix
//! B): weights are computed again, and no matrix [T, T] is stored.

use super::{KEYS, ROWS, Shape};
use crate::kernel::Scatter;
use crate::kernel::simd::{Lanes, dispatch};
use crate::kernel::tile::{View, matmul_add, transpose};
use rayon::prelude::*;

/// What the way there left, and the gradient of what it gave, all of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Traced<'a> {
    /// Queries after rotation [T, H, D].
    pub q: &'a [f32],
    /// Keys after rotation [T, KV, D].
    pub k: &'a [f32],
    /// Values [T, KV, D].
    pub v: &'a [f32],
    /// What came out [T, H, D].
    pub y: &'a [f32],
    /// ln Σ e^score of each token and query head [T, H].
    pub logs: &'a [f32],
    /// The gradient of `y`.
    pub dy: &'a [f32],
}

/// The gradients of queries, keys and values, shaped as those, all overwritten.
///
/// # Panics
/// If it is not one sequence, or anything is of another size.
pub fn attend_grad(shape: Shape, traced: Traced<'_>, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
    let Shape { batch, time, heads, shared, dim, .. } = shape;
    assert!(batch == 1 && dq.len() == time * heads * dim && dk.len() == time * shared * dim);
    assert!(dv.len() == dk.len() && traced.q.len() == dq.len() && traced.logs.len() == time * heads);
    let [dq, dk, dv] = [dq, dk, dv].map(Scatter::new);
    (0..shared).into_par_iter().for_each_init(Work::default, |work, head| {
        work.run(shape, traced, head);
        let group = heads / shared;
        for token in 0..time {
            // SAFETY: the rows of this key head and of its query heads are of this task alone.
            unsafe {
                let at = token * dim;
                dk.slice((token * shared + head) * dim, dim).copy_from_slice(&work.dk[at..][..dim]);
                dv.slice((token * shared + head) * dim, dim).copy_from_slice(&work.dv[at..][..dim]);
                let rows = group * dim;
                let to = dq.slice((token * heads + head * group) * dim, rows);
                to.copy_from_slice(&work.dq[token * rows..][..rows]);
            }
        }
    });
}

/// What the gradients of one key head need: all rows of a token's query heads lie together.
#[derive(Default)]
struct Work {
    /// [T, D] each.
    k: Vec<f32>,
    v: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    /// [T · group, D] each; queries are scaled.
    q: Vec<f32>,
    dy: Vec<f32>,
    dq: Vec<f32>,
    /// Of each row: ln Σ e^score, and dy · y.
    logs: Vec<f32>,
    pulls: Vec<f32>,
    /// All tiles of keys, and of values, turned: [D, KEYS] each.
    turned_k: Vec<f32>,
    turned_v: Vec<f32>,
    /// [rows, KEYS] each.
    weights: Vec<f32>,
    dscores: Vec<f32>,
}

impl Work {
    fn run(&mut self, shape: Shape, of: Traced<'_>, head: usize) {
        let Shape { time, heads, shared, dim, scale, .. } = shape;
        let group = heads / shared;
        let gather = |to: &mut Vec<f32>, from: &[f32], width: usize, first: usize, count: usize| {
            to.clear();
            from.chunks_exact(width).for_each(|row| to.extend_from_slice(&row[first..][..count]));
        };
        gather(&mut self.k, of.k, shared * dim, head * dim, dim);
        gather(&mut self.v, of.v, shared * dim, head * dim, dim);
        gather(&mut self.q, of.q, heads * dim, head * group * dim, group * dim);
        gather(&mut self.dy, of.dy, heads * dim, head * group * dim, group * dim);
        gather(&mut self.logs, of.logs, heads, head * group, group);
        // For a moment the place of the queries' gradient holds what came out.
        gather(&mut self.dq, of.y, heads * dim, head * group * dim, group * dim);
        let rows = self.dy.chunks_exact(dim).zip(self.dq.chunks_exact(dim));
        self.pulls.clear();
        self.pulls.extend(rows.map(|(dy, y)| dy.iter().zip(y).map(|(a, b)| a * b).sum::<f32>()));
        self.dq.fill(0.0);
        self.q.iter_mut().for_each(|q| *q *= scale);
        for sum in [&mut self.dk, &mut self.dv] {
            sum.clear();
            sum.resize(time * dim, 0.0);
        }
        // Every tile of queries meets them: they are turned once.
        for (turned, values) in [(&mut self.turned_k, &self.k), (&mut self.turned_v, &self.v)] {
            turned.clear();
            turned.resize(time.div_ceil(KEYS) * dim * KEYS, 0.0);
            for (to, from) in turned.chunks_exact_mut(dim * KEYS).zip(values.chunks(KEYS * dim)) {
                transpose(from.len() / dim, dim, from, dim, to, KEYS);
            }
        }
        let tokens = (ROWS / group).max(1);
        for first in (0..time).step_by(tokens) {
            let end = time.min(first + tokens);
            for key in (0..end).step_by(KEYS) {
                self.tile(first * group..end * group, key, KEYS.min(end - key), group, dim);
            }
        }
        self.dq.iter_mut().for_each(|dq| *dq *= scale);
    }

    /// What the rows of queries and the keys from `key` on give each other.
    fn tile(&mut self, rows: std::ops::Range<usize>, key: usize, keys: usize, group: usize, dim: usize) {
        let (first, count) = (rows.start, rows.len());
        let of_rows = first * dim..rows.end * dim;
        let (q, dy) = (&self.q[of_rows.clone()], &self.dy[of_rows.clone()]);
        let (k, turned) = (&self.k[key * dim..][..keys * dim], key * dim..(key + KEYS) * dim);
        let (turned_k, turned_v) = (&self.turned_k[turned.clone()], &self.turned_v[turned]);
        for (sums, left, right) in [(&mut self.weights, q, turned_k), (&mut self.dscores, dy, turned_v)] {
            sums.clear();
            sums.resize(count * KEYS, 0.0);
            matmul_add(count, dim, keys, View::rows(left, dim), right, KEYS, sums, KEYS);
        }
        for r in 0..count {
            let seen = ((first + r) / group + 1).saturating_sub(key).min(keys);
            let (weights, dscores) =
                (&mut self.weights[r * KEYS..][..keys], &mut self.dscores[r * KEYS..][..keys]);
            weights[seen..].fill(0.0);
            dscores[seen..].fill(0.0);
            row(&mut weights[..seen], &mut dscores[..seen], self.logs[first + r], self.pulls[first + r]);
        }
        let (weights, dscores) = (&self.weights, &self.dscores);
        matmul_add(count, keys, dim, View::rows(dscores, KEYS), k, dim, &mut self.dq[of_rows], dim);
        let of_keys = key * dim..(key + keys) * dim;
        let turned = |values| View::transposed(values, KEYS);
        matmul_add(keys, count, dim, turned(dscores), q, dim, &mut self.dk[of_keys.clone()], dim);
        matmul_add(keys, count, dim, turned(weights), dy, dim, &mut self.dv[of_keys], dim);
    }
}

dispatch! {
    /// Scores → weights e^(score − log), and the gradients of the weights → those of the scores, weight · (gradient − pull).
    fn row(scores: &mut [f32], grads: &mut [f32], log: f32, pull: f32) = row_body;
}

#[inline(always)]
fn row_body<V: Lanes>(scores: &mut [f32], grads: &mut [f32], log: f32, pull: f32) {
    let whole = scores.len() / V::N * V::N;
    for at in (0..whole).step_by(V::N) {
        let weight = V::load(&scores[at..]).sub(V::splat(log)).exp();
        weight.store(&mut scores[at..]);
        V::load(&grads[at..]).sub(V::splat(pull)).mul(weight).store(&mut grads[at..]);
    }
    let (scores, grads) = (&mut scores[whole..], &mut grads[whole..]);
    if !scores.is_empty() {
        let weight = V::load_part(scores).sub(V::splat(log)).exp();
        weight.store_part(scores);
        V::load_part(grads).sub(V::splat(pull)).mul(weight).store_part(grads);
    }
}
