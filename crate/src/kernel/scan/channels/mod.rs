//! The recurrence with a decay for every channel of the keys, as gated linear attention has it (Yang et al. 2023):
//! S_t = diag(a_t) S_{t−1} + k_t v_tᵀ, y_t = S_tᵀ q_t.
//!
//! [`recurrent`] is the definition, token by token; [`chunked()`] computes the same as matrix products within chunks, with
//! every decay a product of factors up to 1: however fast a channel forgets, nothing is divided by what it kept; it may round
//! those products ([`Products`](super::products::Products)). `grad` is the way back.
//!
//! | letter | meaning |
//! |---|---|
//! | B, T | sequences, tokens |
//! | H, G | heads, and groups of them that share keys, values and decays |
//! | K, V | channels of a key, of a value |

mod chunk;
mod grad;
mod pairs;
mod rounded;
#[cfg(test)]
mod tests;

use super::{FEW_TOKENS, Stepped};
use crate::kernel::Scatter;
use crate::kernel::simd::{Lanes, Level, dispatch, level};
use crate::kernel::stored::Stored;
pub use chunk::chunked;
pub use grad::{Gradients, scan_grad};
use half::bf16;
use rayon::prelude::*;
pub use rounded::recurrent_rounded;

/// The sizes of one scan.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Sequences B.
    pub batch: usize,
    /// Tokens T of each sequence.
    pub time: usize,
    /// Heads H.
    pub heads: usize,
    /// Groups G; head h uses group ⌊h / (H/G)⌋.
    pub groups: usize,
    /// Channels K of a key.
    pub key: usize,
    /// Channels V of a value.
    pub value: usize,
}

impl Shape {
    /// Values of a state S [K, V] of one head.
    pub fn state(&self) -> usize {
        self.key * self.value
    }

    fn group_of(&self, head: usize) -> usize {
        head / (self.heads / self.groups)
    }
}

/// What goes in.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What reads the state, [B, T, H, K].
    pub q: &'a [f32],
    /// What writes it, [B, T, G, K].
    pub k: &'a [f32],
    /// What is written, [B, T, G, V].
    pub v: &'a [f32],
    /// Decays, 0 … 1, [B, T, G, K].
    pub a: &'a [f32],
}

impl<'a> Inputs<'a> {
    /// From a token of a sequence on, what one head reads.
    fn head(self, shape: Shape, b: usize, head: usize, first: usize) -> Rows<'a> {
        let Shape { time, heads, groups, key, value, .. } = shape;
        let (token, group) = (b * time + first, shape.group_of(head));
        let keys = (token * groups + group) * key;
        Rows {
            q: Strided { values: &self.q[(token * heads + head) * key..], row: heads * key },
            k: Strided { values: &self.k[keys..], row: groups * key },
            v: Strided { values: &self.v[(token * groups + group) * value..], row: groups * value },
            a: Strided { values: &self.a[keys..], row: groups * key },
        }
    }
}

/// Rows of one head in a matrix of all.
#[derive(Clone, Copy)]
struct Strided<'a> {
    values: &'a [f32],
    /// Distance between rows.
    row: usize,
}

impl<'a> Strided<'a> {
    #[inline(always)]
    fn get(self, t: usize, width: usize) -> &'a [f32] {
        &self.values[t * self.row..][..width]
    }

    /// The rows from `first` on, and their distance.
    fn from(self, first: usize) -> (&'a [f32], usize) {
        (&self.values[first * self.row..], self.row)
    }

    /// From a column on.
    fn columns(self, first: usize) -> Self {
        Self { values: &self.values[first..], ..self }
    }

    /// As many rows as `to` [.., width] has, from `first` on.
    fn copy(self, first: usize, width: usize, to: &mut [f32]) {
        let rows = to.chunks_exact_mut(width).enumerate();
        rows.for_each(|(t, to)| to.copy_from_slice(self.get(first + t, width)));
    }
}

/// What one head reads, token by token.
#[derive(Clone, Copy)]
struct Rows<'a> {
    q: Strided<'a>,
    k: Strided<'a>,
    v: Strided<'a>,
    a: Strided<'a>,
}

/// y [B, T, H, V], overwritten. `s` [B, H, K, V] is the state before the first token and, on return, after the last. Chooses
/// the fastest form; all agree to rounding.
pub fn scan(shape: Shape, inputs: Inputs<'_>, s: &mut [f32], y: &mut [f32]) {
    match shape.time {
        ..=FEW_TOKENS => recurrent(shape, inputs, s, y),
        // With 16 registers products of chunks gain less than their decays take, unless keys are long.
        _ if level() < Level::Avx512 && shape.key <= LONG => near(shape, inputs, s, y),
        _ => chunked(shape, None, inputs, s, y),
    }
}

/// Channels of a key up to which the recurrence itself is the fastest form on vectors of 256 bits.
const LONG: usize = 64;

/// [`recurrent`], by columns of the values, so that all cores have some and the state of keys that are not [`LONG`] stays in the
/// first-level cache.
fn near(shape: Shape, inputs: Inputs<'_>, s: &mut [f32], y: &mut [f32]) {
    let Shape { time, heads, key, value, .. } = shape;
    let out = Scatter::new(y);
    by_columns(
        shape,
        s,
        || (),
        |(), Columns { b, head, first, width }, s| {
            let rows = inputs.head(shape, b, head, 0);
            let v = rows.v.columns(first);
            for t in 0..time {
                let at = ((b * time + t) * heads + head) * value + first;
                // SAFETY: these columns of this head belong to this task.
                let y = unsafe { out.slice(at, width) };
                let [q, k, a] = [rows.q, rows.k, rows.a].map(|rows| rows.get(t, key));
                step_f32(a, k, v.get(t, width), q, s, y);
            }
        },
    );
}

/// Columns of the values that a task carries the state of.
const BLOCK: usize = 64;

/// Columns of the values of one head.
struct Columns {
    b: usize,
    head: usize,
    first: usize,
    width: usize,
}

/// Lets `work` move on the state [K, width] of up to [`BLOCK`] columns of every head: none depends on the others.
fn by_columns<R>(
    shape: Shape,
    s: &mut [f32],
    begin: impl Fn() -> R + Sync + Send,
    work: impl Fn(&mut R, Columns, &mut [f32]) + Sync + Send,
) {
    let Shape { batch, heads, key, value, .. } = shape;
    let (blocks, states) = (value.div_ceil(BLOCK), Scatter::new(s));
    let begin = || (begin(), vec![0.0; key * BLOCK]);
    (0..batch * heads * blocks).into_par_iter().for_each_init(begin, |(room, s), task| {
        let (of, first) = (task / blocks, task % blocks * BLOCK);
        let width = BLOCK.min(value - first);
        let s = &mut s[..key * width];
        // SAFETY: these columns of this state belong to this task.
        let kept = |d: usize| unsafe { states.slice((of * key + d) * value + first, width) };
        s.chunks_mut(width).enumerate().for_each(|(d, s)| s.copy_from_slice(kept(d)));
        work(room, Columns { b: of / heads, head: of % heads, first, width }, s);
        s.chunks(width).enumerate().for_each(|(d, s)| kept(d).copy_from_slice(s));
    });
}

/// The recurrence, one token after the other. Arguments as in [`scan`]; a state in bf16 is rounded to the nearest after every
/// token, and y_t reads S_t as it is before.
pub fn recurrent<S: Stepped>(shape: Shape, inputs: Inputs<'_>, s: &mut [S], y: &mut [f32]) {
    each_token(shape, inputs, s, y, |_, _| {});
}

/// [`recurrent`], where `after` each token gets the number of (sequence, head) and its state [K, V].
fn each_token<S: Stepped>(
    shape: Shape,
    inputs: Inputs<'_>,
    s: &mut [S],
    y: &mut [f32],
    after: impl Fn(usize, &mut [S]) + Sync,
) {
    let Shape { time, heads, key, value, .. } = shape;
    let out = Scatter::new(y);
    let head_work = |(index, s): (usize, &mut [S])| {
        let (b, head) = (index / heads, index % heads);
        let rows = inputs.head(shape, b, head, 0);
        for t in 0..time {
            // SAFETY: every (b, t, head) has its own V values.
            let y = unsafe { out.slice(((b * time + t) * heads + head) * value, value) };
            let [q, k, a] = [rows.q, rows.k, rows.a].map(|rows| rows.get(t, key));
            S::step_channels(a, k, rows.v.get(t, value), q, s, y);
            after(index, s);
        }
    };
    if s.len() * time < 1 << 16 {
        s.chunks_mut(shape.state()).enumerate().for_each(head_work);
    } else {
        s.par_chunks_mut(shape.state()).enumerate().for_each(head_work);
    }
}

dispatch! { pub(in crate::kernel) fn step_f32(a: &[f32], k: &[f32], v: &[f32], q: &[f32], s: &mut [f32], y: &mut [f32]) = step; }
dispatch! { pub(in crate::kernel) fn step_bf16(a: &[f32], k: &[f32], v: &[f32], q: &[f32], s: &mut [bf16], y: &mut [f32]) = step; }

/// One token of one head: S ← diag(a) S + k vᵀ, y = Sᵀ q.
#[inline(always)]
fn step<V: Lanes>(a: &[f32], k: &[f32], v: &[f32], q: &[f32], s: &mut [impl Stepped], y: &mut [f32]) {
    let width = v.len();
    let mut at = 0;
    while at + 8 * V::N <= width {
        columns::<V, 8>(at, a, k, v, q, s, y);
        at += 8 * V::N;
    }
    while at + V::N <= width {
        columns::<V, 1>(at, a, k, v, q, s, y);
        at += V::N;
    }
    for j in at..width {
        let mut sum = 0.0;
        for (((s, a), k), q) in s.chunks_exact_mut(width).zip(a).zip(k).zip(q) {
            let new = a * s[j].one() + k * v[j];
            s[j] = Stepped::nearest(new);
            sum += q * new;
        }
        y[j] = sum;
    }
}

/// So many vectors of the columns of S, from `at` on.
#[inline(always)]
fn columns<V: Lanes, const NV: usize>(
    at: usize,
    a: &[f32],
    k: &[f32],
    v: &[f32],
    q: &[f32],
    s: &mut [impl Stepped],
    y: &mut [f32],
) {
    let (width, v) = (v.len(), &v[at..][..NV * V::N]);
    let mut sums = [V::splat(0.0); NV];
    for (((s, a), k), q) in s.chunks_exact_mut(width).zip(a).zip(k).zip(q) {
        let s = &mut s[at..][..NV * V::N];
        let (a, k, q) = (V::splat(*a), V::splat(*k), V::splat(*q));
        for (i, sum) in sums.iter_mut().enumerate() {
            let new = a.fma(Stored::vector(&s[i * V::N..]), k.mul(V::load(&v[i * V::N..])));
            Stepped::keep(new, &mut s[i * V::N..]);
            *sum = q.fma(new, *sum);
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        sum.store(&mut y[at + i * V::N..]);
    }
}
