//! What the tokens of a sub-chunk have of each other: every pair, with the decays between the two multiplied up.

use super::Rows;
use super::chunk::SUB;
use crate::kernel::scan::CHUNK;
use crate::kernel::simd::{Lanes, dispatch};

/// Keys that meet a query at once, or the reverse.
const TILE: usize = 4;

/// A vector from `at` on, with zeros where the row ends.
#[inline(always)]
fn vector<V: Lanes>(row: &[f32], at: usize) -> V {
    match row.len() - at >= V::N {
        true => V::load(&row[at..]),
        false => V::load_part(&row[at..]),
    }
}

dispatch! {
    /// Σ_d q_t k_s a_{s+1} … a_t for s ≤ t of a sub-chunk, [len, K] each, to rows of `scores` that are CHUNK apart.
    pub(super) fn diagonal(len: usize, key: usize, q: &[f32], k: &[f32], a: &[f32], scores: &mut [f32]) = diagonal_body;
}

#[inline(always)]
fn diagonal_body<V: Lanes>(len: usize, key: usize, q: &[f32], k: &[f32], a: &[f32], scores: &mut [f32]) {
    for first in (0..len).step_by(TILE) {
        let mut sums = [[V::splat(0.0); TILE]; SUB];
        for d in (0..key).step_by(V::N) {
            // k_s with the decays since, one s a place.
            let mut decayed = [V::splat(0.0); TILE];
            for t in first..len {
                let q: V = vector(&q[t * key..][..key], d);
                let a: V = vector(&a[t * key..][..key], d);
                for (j, (decayed, sum)) in decayed.iter_mut().zip(&mut sums[t]).enumerate() {
                    *decayed = decayed.mul(a);
                    if t == first + j {
                        *decayed = vector(&k[t * key..][..key], d);
                    }
                    *sum = q.fma(*decayed, *sum);
                }
            }
        }
        for t in first..len {
            let seen = TILE.min(t - first + 1);
            let to = &mut scores[t * CHUNK + first..][..seen];
            to.iter_mut().zip(&sums[t]).for_each(|(to, sum)| *to = sum.sum());
        }
    }
}

/// What the tokens of a sub-chunk give each other: dq_t += Σ_s dA[t, s] k_s a_{s+1} … a_t, and dk_s likewise.
pub(super) fn inside(len: usize, key: usize, rows: Rows<'_>, pulls: &[f32], dq: &mut [f32], dk: &mut [f32]) {
    let Rows { q, k, a, .. } = rows;
    for first in (0..len).step_by(SUB) {
        let (count, at) = (SUB.min(len - first), first * key);
        let pulls = &pulls[first * CHUNK + first..];
        for_queries(count, key, k.from(first), a.from(first), pulls, &mut dq[at..]);
        for_keys(count, key, q.from(first), a.from(first), pulls, &mut dk[at..]);
    }
}

dispatch! { fn for_queries(len: usize, key: usize, k: (&[f32], usize), a: (&[f32], usize), pulls: &[f32], dq: &mut [f32]) = for_queries_body; }

#[inline(always)]
fn for_queries_body<V: Lanes>(
    len: usize,
    key: usize,
    (k, k_row): (&[f32], usize),
    (a, a_row): (&[f32], usize),
    pulls: &[f32],
    dq: &mut [f32],
) {
    for d in (0..key).step_by(V::N) {
        for first in (0..len).step_by(TILE) {
            // k_s with the decays since, one s a place.
            let mut decayed = [V::splat(0.0); TILE];
            for t in first..len {
                let a: V = vector(&a[t * a_row..][..key], d);
                let (pulls, dq) = (&pulls[t * CHUNK + first..][..TILE], &mut dq[t * key..][..key]);
                let mut sum: V = vector(dq, d);
                for (j, (decayed, pull)) in decayed.iter_mut().zip(pulls).enumerate() {
                    *decayed = decayed.mul(a);
                    if t == first + j {
                        *decayed = vector(&k[t * k_row..][..key], d);
                    }
                    sum = V::splat(*pull).fma(*decayed, sum);
                }
                put(sum, dq, d);
            }
        }
    }
}

dispatch! { fn for_keys(len: usize, key: usize, q: (&[f32], usize), a: (&[f32], usize), pulls: &[f32], dk: &mut [f32]) = for_keys_body; }

#[inline(always)]
fn for_keys_body<V: Lanes>(
    len: usize,
    key: usize,
    (q, q_row): (&[f32], usize),
    (a, a_row): (&[f32], usize),
    pulls: &[f32],
    dk: &mut [f32],
) {
    for d in (0..key).step_by(V::N) {
        for first in (0..len).step_by(TILE) {
            // q_t with the decays back to here, one t a place.
            let (end, mut decayed) = (len.min(first + TILE), [V::splat(0.0); TILE]);
            for s in (0..end).rev() {
                let dk = &mut dk[s * key..][..key];
                let (mut sum, next): (V, V) =
                    (vector(dk, d), vector(&a[(end - 1).min(s + 1) * a_row..][..key], d));
                for (j, decayed) in decayed.iter_mut().enumerate() {
                    *decayed = decayed.mul(next);
                    if s == first + j {
                        *decayed = vector(&q[s * q_row..][..key], d);
                    }
                    sum = V::splat(pulls[(first + j) * CHUNK + s]).fma(*decayed, sum);
                }
                put(sum, dk, d);
            }
        }
    }
}

/// A vector to a row from `at` on, up to where the row ends.
#[inline(always)]
fn put<V: Lanes>(x: V, row: &mut [f32], at: usize) {
    match row.len() - at >= V::N {
        true => x.store(&mut row[at..]),
        false => x.store_part(&mut row[at..]),
    }
}
