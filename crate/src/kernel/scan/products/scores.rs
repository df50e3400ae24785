//! Scores of integer queries and keys.

use super::{Products, Scores, Share, Smooth};
use crate::kernel::integer::Integers;
use crate::kernel::norm::{add, dot};
use crate::kernel::packed::{self, Packed};
use crate::kernel::scan::CHUNK;
use crate::kernel::scan::chunked::{multiply, scale};
use crate::kernel::simd::{Lanes, dispatch};

/// Rows of a matrix, and their distance.
type Rows<'a> = (&'a [f32], usize);

/// What a chunk of one head reads, from its first token on.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// Queries, [len, K].
    pub q: Rows<'a>,
    /// Keys, [len, K].
    pub k: Rows<'a>,
    /// Decays of the channels of the keys, [len, K]; none where a head has one for all.
    pub a: Option<Rows<'a>>,
}

/// Working memory of the scores of chunks.
#[derive(Debug)]
pub struct Room {
    key: usize,
    /// q̂, then γq, [sub, K].
    q: Vec<f32>,
    /// k̂ of all tokens before the sub-chunk, [Q, K].
    k: Vec<f32>,
    /// γk, [Q, K].
    centred: Vec<f32>,
    /// A running product of decays, `[K]`.
    product: Vec<f32>,
    /// Means of q̂ and of k̂, `[K]`.
    means: [Vec<f32>; 2],
    codes: [Integers; 2],
    packed: Packed,
    /// The product of the codes, [sub, Q], and what is added to each column of it.
    out: Vec<f32>,
    columns: Vec<f32>,
}

impl Room {
    /// For keys of so many channels.
    pub fn new(key: usize) -> Self {
        let rows = || vec![0.0; CHUNK * key];
        Self {
            key,
            q: rows(),
            k: rows(),
            centred: rows(),
            product: vec![0.0; key],
            means: [(); 2].map(|()| vec![0.0; key]),
            codes: <[Integers; 2]>::default(),
            packed: Packed::empty(),
            out: vec![0.0; CHUNK * CHUNK],
            columns: vec![0.0; CHUNK],
        }
    }

    /// What every sub-chunk of a chunk of `len` tokens has of those before it, to rows of `to` that are [`CHUNK`] apart.
    /// Nothing else is written; nothing at all if scores are not rounded.
    pub fn scores(&mut self, products: Products, len: usize, from: Operands<'_>, to: &mut [f32]) {
        let (Some(scores), sub) = (products.scores, usize::from(products.sub)) else { return };
        for first in (sub..len).step_by(sub) {
            let count = sub.min(len - first);
            self.keys(first, sub, from);
            self.queries(first, count, from);
            self.product(scores, sub, count, first, &mut to[first * CHUNK..]);
        }
    }

    /// k̂ of all tokens before `first`, where `k` has those of the sub-chunk before.
    fn keys(&mut self, first: usize, sub: usize, Operands { k, a, .. }: Operands<'_>) {
        let (key, before) = (self.key, first - sub);
        let (old, new) = self.k[..first * key].split_at_mut(before * key);
        for (s, to) in (before..).zip(new.chunks_exact_mut(key)) {
            to.copy_from_slice(row(k, s, key));
        }
        let Some(a) = a else { return };
        self.product.copy_from_slice(row(a, first, key));
        for (s, k) in (before..first).zip(new.chunks_exact_mut(key)).rev() {
            multiply(&self.product, k);
            if s > before {
                multiply(row(a, s, key), &mut self.product);
            }
        }
        old.chunks_exact_mut(key).for_each(|k| multiply(&self.product, k));
    }

    /// q̂ of `count` tokens from `first` on.
    fn queries(&mut self, first: usize, count: usize, Operands { q, a, .. }: Operands<'_>) {
        let key = self.key;
        self.product.fill(1.0);
        for (t, to) in (first..).zip(self.q[..count * key].chunks_exact_mut(key)) {
            to.copy_from_slice(row(q, t, key));
            if let Some(a) = a.filter(|_| t > first) {
                multiply(row(a, t, key), &mut self.product);
                multiply(&self.product, to);
            }
        }
    }

    /// The scores of `count` queries with the `first` keys before them.
    fn product(&mut self, scores: Scores, sub: usize, count: usize, first: usize, to: &mut [f32]) {
        let Self {
            key, q, k, centred, means: [q_mean, k_mean], codes: [q_codes, k_codes], packed, out, ..
        } = self;
        let (key, Scores { bits, share, smooth }) = (*key, scores);
        let (q, mut k) = (&mut q[..count * key], &k[..first * key]);
        if smooth.queries() {
            mean(q, q_mean);
            subtract(q_mean, q);
        }
        if smooth.keys() {
            let centred = &mut centred[..first * key];
            mean(k, k_mean);
            centred.copy_from_slice(k);
            subtract(k_mean, centred);
            k = centred;
        }
        for (x, codes) in [(&*q, &mut *q_codes), (k, &mut *k_codes)] {
            codes.round_blocks(x, key, bits, if share == Share::Row { 1 } else { sub });
        }
        packed.refill(k_codes, bits <= 4);
        let out = &mut out[..count * first];
        packed::forward(q_codes, packed, out);

        let columns = &mut self.columns[..first];
        match smooth.queries() {
            true => columns.iter_mut().zip(k.chunks_exact(key)).for_each(|(to, k)| *to = dot(q_mean, k)),
            false => columns.fill(0.0),
        }
        let constant = if smooth == Smooth::Qk { dot(q_mean, k_mean) } else { 0.0 };
        let of_rows = matches!(smooth, Smooth::K | Smooth::Qk);
        for ((to, out), q) in to.chunks_mut(CHUNK).zip(out.chunks_exact_mut(first)).zip(q.chunks_exact(key)) {
            add(columns, out);
            let in_row = if of_rows { dot(q, k_mean) + constant } else { 0.0 };
            to.iter_mut().zip(out).for_each(|(to, out)| *to = *out + in_row);
        }
    }
}

fn row((values, distance): Rows<'_>, at: usize, width: usize) -> &[f32] {
    &values[at * distance..][..width]
}

/// The mean of the rows of `x`.
fn mean(x: &[f32], to: &mut [f32]) {
    let count = x.len() / to.len();
    to.fill(0.0);
    x.chunks_exact(to.len()).for_each(|x| add(x, to));
    scale(1.0 / count as f32, to);
}

/// Takes `mean` from every row of `x`.
fn subtract(mean: &[f32], x: &mut [f32]) {
    x.chunks_exact_mut(mean.len()).for_each(|x| less(mean, x));
}

dispatch! { fn less(by: &[f32], to: &mut [f32]) = less_body; }

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn less_body<V: Lanes>(by: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(by).for_each(|(to, by)| *to -= by);
}
