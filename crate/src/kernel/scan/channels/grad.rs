//! The gradient of the recurrence with a decay for every channel of the keys.
//!
//! Per chunk, in the words of `chunk.rs`, with S the state before the chunk, S' after it, dS' the gradient of that, and dA =
//! dY Vᵀ where s ≤ t (Yang et al. 2023, appendix C):
//!
//! - dV = k̄ dS' + scoresᵀ dY,
//! - dq̄ = dY Sᵀ and dk̄ = V dS'ᵀ; through the sub-chunks, dq̂ += dA k̂ and dk̂ += dAᵀ q̂, by the decays that made each,
//! - d ln a_t = Σ_{j ≥ t} (q_j ∘ dq_j − k_j ∘ dk_j) + Σ_v dS' ∘ S', over the tokens of the chunk,
//! - dS = Z dS' + q̄ᵀ dY.
//!
//! The third line: ln a_t moves what query j sees of the past if j ≥ t, and what becomes of key j if j < t.

use super::chunk::{Chunk, Room, SUB, grow, prepare, scale_channels, shrink};
use super::pairs::inside;
use super::{Inputs, Rows, Shape, Strided};
use crate::kernel::Scatter;
use crate::kernel::norm::{add, dot_body};
use crate::kernel::scan::CHUNK;
use crate::kernel::scan::chunked::{matmul_upper, multiply};
use crate::kernel::simd::{Lanes, dispatch};
use crate::kernel::tile::{View, matmul_add, transpose};
use rayon::prelude::*;

/// Where [`scan_grad`] leaves its results, shaped as what they are of; all but `s` are overwritten.
pub struct Gradients<'a> {
    /// Of the queries.
    pub q: &'a mut [f32],
    /// Of the keys.
    pub k: &'a mut [f32],
    /// Of the values.
    pub v: &'a mut [f32],
    /// Of the logarithms of the decays.
    pub log_a: &'a mut [f32],
    /// On call that of the state after the last token, on return that of the state before the first.
    pub s: &'a mut [f32],
}

/// Gradients of [`scan`](super::scan) from the state `s`, zeros if none, where that of its output is `dy`.
pub fn scan_grad(shape: Shape, inputs: Inputs<'_>, s: Option<&[f32]>, dy: &[f32], grads: Gradients<'_>) {
    let Shape { time, heads, groups, key, value, .. } = shape;
    let Gradients { q: dq, k: dk, v: dv, log_a, s: ds } = grads;
    let [dq, dk, dv, log_a] = [dq, dk, dv, log_a].map(Scatter::new);
    // The heads of a group share keys, values and decays, so a group of one sequence is one task.
    let each = heads / groups;
    let states = ds.par_chunks_mut(each * shape.state());
    states.enumerate().for_each_init(
        || Work::new(shape),
        |work, (index, ds)| {
            let (b, group) = (index / groups, index % groups);
            [&mut work.dk, &mut work.dv, &mut work.log_a].into_iter().for_each(|sums| sums.fill(0.0));
            for (i, ds) in ds.chunks_mut(shape.state()).enumerate() {
                let head = group * each + i;
                let before = s.map(|s| &s[(b * heads + head) * shape.state()..][..shape.state()]);
                work.run(shape, inputs, b, head, before, dy, ds);
                for (t, from) in work.dq.chunks(key).enumerate() {
                    let at = ((b * time + t) * heads + head) * key;
                    // SAFETY: the rows of a group and of its heads are of this task alone.
                    unsafe { dq.slice(at, key).copy_from_slice(from) };
                }
            }
            for (to, from, width) in [(dk, &work.dk, key), (dv, &work.dv, value), (log_a, &work.log_a, key)] {
                for (t, from) in from.chunks(width).enumerate() {
                    let at = ((b * time + t) * groups + group) * width;
                    // SAFETY: as above.
                    unsafe { to.slice(at, width).copy_from_slice(from) };
                }
            }
        },
    );
}

/// Working memory of the heads of a group.
struct Work {
    room: Room,
    /// All chunks of a head.
    chunks: Vec<f32>,
    /// The states before each chunk and after the last.
    states: Vec<f32>,
    /// Of the group: [T, K], [T, V], [T, K].
    dk: Vec<f32>,
    dv: Vec<f32>,
    log_a: Vec<f32>,
    /// Of the head, [T, K].
    dq: Vec<f32>,
    part: Part,
}

impl Work {
    fn new(shape: Shape) -> Self {
        let Shape { time, key, value, .. } = shape;
        let chunks = time.div_ceil(CHUNK);
        let zeros = |len: usize| vec![0.0; len];
        Self {
            room: Room::new(key),
            chunks: zeros(chunks * Chunk::size(key)),
            states: zeros((chunks + 1) * shape.state()),
            dk: zeros(time * key),
            dv: zeros(time * value),
            log_a: zeros(time * key),
            dq: zeros(time * key),
            part: Part::new(key, value),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        &mut self,
        shape: Shape,
        inputs: Inputs<'_>,
        b: usize,
        head: usize,
        before: Option<&[f32]>,
        dy: &[f32],
        ds: &mut [f32],
    ) {
        let Shape { time, heads, key, value, .. } = shape;
        let (size, state) = (Chunk::size(key), shape.state());
        let places = || (0..time).step_by(CHUNK).map(|first| (first, CHUNK.min(time - first))).enumerate();
        match before {
            Some(before) => self.states[..state].copy_from_slice(before),
            None => self.states[..state].fill(0.0),
        }
        self.chunks.fill(0.0);
        for (i, (first, len)) in places() {
            let rows = inputs.head(shape, b, head, first);
            let chunk = &mut self.chunks[i * size..][..size];
            prepare(len, key, rows, None, Chunk::cut_mut(chunk, key), &mut self.room);
            let (known, next) = self.states.split_at_mut((i + 1) * state);
            next[..state].copy_from_slice(&known[i * state..]);
            Chunk::cut(chunk, key).advance(len, value, rows.v.values, rows.v.row, &mut next[..state]);
        }
        for (i, (first, len)) in places().collect::<Vec<_>>().into_iter().rev() {
            let rows = inputs.head(shape, b, head, first);
            let dy =
                Strided { values: &dy[((b * time + first) * heads + head) * value..], row: heads * value };
            let chunk = Chunk::cut(&self.chunks[i * size..][..size], key);
            let states = self.states[i * state..][..2 * state].split_at(state);
            let dq = &mut self.dq[first * key..][..len * key];
            self.part.run(len, (key, value), rows, &chunk, states, dy, ds, dq);
            for (sums, part, width) in [
                (&mut self.dk, &self.part.dk, key),
                (&mut self.dv, &self.part.dv, value),
                (&mut self.log_a, &self.part.log_a, key),
            ] {
                add(&part[..len * width], &mut sums[first * width..][..len * width]);
            }
        }
    }
}

/// The rows of a chunk, one after the other.
#[derive(Default)]
struct Gathered {
    q: Vec<f32>,
    k: Vec<f32>,
    a: Vec<f32>,
    v: Vec<f32>,
    dy: Vec<f32>,
}

impl Gathered {
    fn fill(
        &mut self,
        len: usize,
        (key, value): (usize, usize),
        rows: Rows<'_>,
        dy: Strided<'_>,
    ) -> (Rows<'_>, Strided<'_>) {
        let copy = |to: &mut Vec<f32>, from: Strided<'_>, width: usize| {
            to.resize(len * width, 0.0);
            from.copy(0, width, to);
        };
        let Self { q, k, a, v, dy: own } = self;
        copy(q, rows.q, key);
        copy(k, rows.k, key);
        copy(a, rows.a, key);
        copy(v, rows.v, value);
        copy(own, dy, value);
        let [q, k, a] = [q, k, a].map(|values| Strided { values, row: key });
        let [v, dy] = [v, own].map(|values| Strided { values, row: value });
        (Rows { q, k, v, a }, dy)
    }
}

/// Working memory of a chunk, and what comes of it.
struct Part {
    rows: Gathered,
    /// [Q, K], [Q, V], [Q, K].
    dk: Vec<f32>,
    dv: Vec<f32>,
    log_a: Vec<f32>,
    /// Vᵀ [V, Q]; a state turned, [V, K].
    turned: Vec<f32>,
    /// dA, [Q, Q].
    pulls: Vec<f32>,
    /// q̂; keys on their way from sub-chunk to sub-chunk; [Q, K] each.
    q: Vec<f32>,
    k: Vec<f32>,
    /// Z of each sub-chunk, [Q / SUB, K]; their product so far, and one to be overwritten, `[K]`.
    decays: Vec<f32>,
    before: Vec<f32>,
    spare: Vec<f32>,
}

impl Part {
    fn new(key: usize, value: usize) -> Self {
        let zeros = |len: usize| vec![0.0; len];
        let [dk, log_a, q, k] = [(); 4].map(|()| zeros(CHUNK * key));
        Self {
            rows: Gathered::default(),
            dk,
            dv: zeros(CHUNK * value),
            log_a,
            turned: zeros(value * CHUNK.max(key)),
            pulls: zeros(CHUNK * CHUNK),
            q,
            k,
            decays: zeros(CHUNK / SUB * key),
            before: zeros(key),
            spare: zeros(key),
        }
    }

    /// `len` tokens, with the states before and after them; `ds` goes from that after to that before, `dq` [len, K] is
    /// overwritten. Rows of several heads are so far apart that few fit a cache together.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &mut self,
        len: usize,
        (key, value): (usize, usize),
        rows: Rows<'_>,
        chunk: &Chunk<&[f32]>,
        (s, after): (&[f32], &[f32]),
        dy: Strided<'_>,
        ds: &mut [f32],
        dq: &mut [f32],
    ) {
        let mut gathered = std::mem::take(&mut self.rows);
        let (rows, dy) = gathered.fill(len, (key, value), rows, dy);
        let Rows { v, .. } = rows;
        transpose(len, value, v.values, v.row, &mut self.turned, CHUNK);
        self.pulls.fill(0.0);
        let of_dy = View::rows(dy.values, dy.row);
        matmul_add(len, value, len, of_dy, &self.turned, CHUNK, &mut self.pulls, CHUNK);
        (0..len).for_each(|t| self.pulls[t * CHUNK + t + 1..(t + 1) * CHUNK].fill(0.0));

        let dv = &mut self.dv[..len * value];
        dv.fill(0.0);
        matmul_add(len, key, value, View::transposed(chunk.k, CHUNK), ds, value, dv, value);
        matmul_upper(len, value, chunk.scores, dy.values, dy.row, dv);

        for (state, left, to) in [(s, dy, &mut *dq), (ds, v, &mut self.dk[..len * key])] {
            transpose(key, value, state, value, &mut self.turned, key);
            to.fill(0.0);
            matmul_add(len, value, key, View::rows(left.values, left.row), &self.turned, key, to, key);
        }
        self.between(len, key, rows, dq);
        inside(len, key, rows, &self.pulls, dq, &mut self.dk);
        last(after, ds, &mut self.spare);
        let (q, k) = (rows.q.from(0), rows.k.from(0));
        log_decays(len, q, k, dq, &self.dk, &mut self.spare, &mut self.log_a);
        scale_channels(chunk.decay, ds);
        matmul_add(key, len, value, View::transposed(chunk.q, key), dy.values, dy.row, ds, value);
        self.rows = gathered;
    }

    /// From dq̄ and dk̄ to dq and dk, with what sub-chunks have of those before them.
    fn between(&mut self, len: usize, key: usize, Rows { q, k, a, .. }: Rows<'_>, dq: &mut [f32]) {
        self.before.fill(1.0);
        for (i, first) in (0..len).step_by(SUB).enumerate() {
            let count = SUB.min(len - first);
            let of = first * key..(first + count) * key;
            let (decays, of_q, dq) =
                (&mut self.decays[i * key..][..key], &mut self.q[of.clone()], &mut dq[of.clone()]);
            q.copy(first, key, of_q);
            grow(count, key, a.from(first), decays, of_q);
            dq.chunks_exact_mut(key).for_each(|dq| multiply(&self.before, dq));
            let pulls = View::rows(&self.pulls[first * CHUNK..], CHUNK);
            matmul_add(count, first, key, pulls, &self.k, key, dq, key);
            grow(count, key, a.from(first), &mut self.spare, dq);
            self.k[..first * key].chunks_exact_mut(key).for_each(|k| multiply(decays, k));
            k.copy(first, key, &mut self.k[of.clone()]);
            shrink(count, key, a.from(first), &mut self.spare, &mut self.k[of]);
            multiply(decays, &mut self.before);
        }
        for (i, first) in (0..len).step_by(SUB).enumerate().collect::<Vec<_>>().into_iter().rev() {
            let count = SUB.min(len - first);
            let (earlier, own) = self.dk.split_at_mut(first * key);
            let decays = &self.decays[i * key..][..key];
            earlier.chunks_exact_mut(key).for_each(|dk| multiply(decays, dk));
            let pulls = View::transposed(&self.pulls[first * CHUNK..], CHUNK);
            matmul_add(first, count, key, pulls, &self.q[first * key..], key, earlier, key);
            shrink(count, key, a.from(first), &mut self.spare, own);
        }
    }
}

dispatch! {
    /// Σ_v dS' ∘ S' of each channel of the keys.
    fn last(after: &[f32], ds: &[f32], sums: &mut [f32]) = last_body;
}

#[inline(always)]
fn last_body<V: Lanes>(after: &[f32], ds: &[f32], sums: &mut [f32]) {
    let width = after.len() / sums.len();
    for ((sum, after), ds) in sums.iter_mut().zip(after.chunks_exact(width)).zip(ds.chunks_exact(width)) {
        *sum = dot_body::<V>(after, ds);
    }
}

dispatch! {
    /// d ln a_t, from the last token to the first; `later` [K] begins with what comes of the state after the chunk.
    fn log_decays(
        len: usize, q: (&[f32], usize), k: (&[f32], usize), dq: &[f32], dk: &[f32], later: &mut [f32], to: &mut [f32],
    ) = log_decays_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn log_decays_body<V: Lanes>(
    len: usize,
    (q, q_row): (&[f32], usize),
    (k, k_row): (&[f32], usize),
    dq: &[f32],
    dk: &[f32],
    later: &mut [f32],
    to: &mut [f32],
) {
    let key = later.len();
    for t in (0..len).rev() {
        let (q, dq) = (&q[t * q_row..][..key], &dq[t * key..][..key]);
        let (k, dk) = (&k[t * k_row..][..key], &dk[t * key..][..key]);
        let to = &mut to[t * key..][..key];
        for d in 0..key {
            later[d] += q[d] * dq[d] - k[d] * dk[d];
        }
        to[..key].copy_from_slice(&later[..key]);
    }
}
