//! The scan as matrix products over chunks, on vectors.

use super::products::{self, Operands, Products, Values, round_scores};
use super::{CHUNK, Shape};
use crate::kernel::simd::{Lanes, dispatch};
use crate::kernel::tile::{View, matmul_add, transpose};
use rayon::prelude::*;

/// The scan as matrix products over chunks of [`CHUNK`] tokens, which may be rounded. Arguments as in [`scan`](super::scan).
pub fn chunked(
    shape: Shape,
    products: Option<Products>,
    xbc: &[f32],
    dt: &[f32],
    a: &[f32],
    d: &[f32],
    h: &mut [f32],
    y: &mut [f32],
) {
    let Shape { time, heads, head_dim, groups, state, .. } = shape;
    let scores = scores(shape, products, xbc);
    let (all_b, all_c) = (gathered(shape, xbc, Shape::b_at), gathered(shape, xbc, Shape::c_at));
    let out = shape.scatter(y);
    let begin = || (Room::new(shape), Values::default(), vec![0.0; state * head_dim]);
    h.par_chunks_mut(head_dim * state).enumerate().for_each_init(
        begin,
        |(room, values, carried), (index, h)| {
            let (b, head) = (index / heads, index % heads);
            let group = shape.group_of(head);
            transpose(head_dim, state, h, state, carried, head_dim);
            for first in (0..time).step_by(CHUNK) {
                let Chunk { len, decay } = Chunk::read(shape, xbc, dt, a[head], b, head, first, room);
                let at = ((b * groups + group) * time + first) * state;
                let y = &mut room.y[..len * head_dim];
                y.fill(0.0);
                matmul_add(
                    len,
                    state,
                    head_dim,
                    View::rows(&all_c[at..], state),
                    carried,
                    head_dim,
                    y,
                    head_dim,
                );
                for (y, by) in y.chunks_mut(head_dim).zip(&room.from_start) {
                    scale(*by, y);
                }
                masked(len, score_block(shape, &scores, b, group, first), &room.cumulative, &mut room.mixing);
                match products.filter(|products| products.fp8_values) {
                    Some(products) => {
                        round_scores(products, len, &mut room.mixing);
                        values.add(products, len, head_dim, &room.mixing, &room.u, y);
                    }
                    None => matmul_lower(len, head_dim, &room.mixing, &room.u, head_dim, y),
                }
                scale(decay, carried);
                for (u, by) in room.u.chunks_mut(head_dim).zip(&room.to_end) {
                    scale(*by, u);
                }
                let b_turned = View::transposed(&all_b[at..], state);
                matmul_add(state, len, head_dim, b_turned, &room.u, head_dim, carried, head_dim);
                let rows = &xbc[(b * time + first) * shape.row()..];
                for (t, y) in y.chunks(head_dim).enumerate() {
                    let x = &rows[t * shape.row() + shape.x_at(head)..][..head_dim];
                    // SAFETY: every (b, t, head) has its own P values.
                    let out = unsafe { out.slice(shape.y_at(b * time + first + t, head), head_dim) };
                    with_skip(y, d[head], x, out);
                }
            }
            transpose(state, head_dim, carried, head_dim, h, state);
        },
    );
}

/// B or C of all tokens, [B, G, T, N]: rows of `xbc` are so far apart that few of them fit a cache together.
fn gathered(shape: Shape, xbc: &[f32], at: impl Fn(&Shape, usize) -> usize + Sync) -> Vec<f32> {
    let Shape { batch, time, groups, state, .. } = shape;
    let mut all = vec![0.0; batch * groups * time * state];
    all.par_chunks_mut(state).with_min_len(CHUNK).enumerate().for_each(|(i, to)| {
        let (sequence, token) = (i / time, i % time);
        let row = (sequence / groups * time + token) * shape.row();
        to.copy_from_slice(&xbc[row + at(&shape, sequence % groups)..][..state]);
    });
    all
}

/// Working memory of one head.
pub(in crate::kernel) struct Room {
    /// u = Δ x, [Q, P].
    pub u: Vec<f32>,
    /// a_t, [Q].
    pub cumulative: Vec<f32>,
    /// e^{a_t}, [Q].
    pub from_start: Vec<f32>,
    /// e^{a_Q − a_t}, [Q].
    pub to_end: Vec<f32>,
    /// (C Bᵀ) ∘ L, [Q, Q].
    pub mixing: Vec<f32>,
    /// Scaled rows of B or C, [Q, N].
    pub scaled: Vec<f32>,
    /// The chunk's output, [Q, P].
    pub y: Vec<f32>,
}

impl Room {
    pub fn new(shape: Shape) -> Self {
        Self {
            u: vec![0.0; CHUNK * shape.head_dim],
            cumulative: vec![0.0; CHUNK],
            from_start: vec![0.0; CHUNK],
            to_end: vec![0.0; CHUNK],
            mixing: vec![0.0; CHUNK * CHUNK],
            scaled: vec![0.0; CHUNK * shape.state],
            y: vec![0.0; CHUNK * shape.head_dim],
        }
    }
}

/// The scalars of one chunk of one head.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Chunk {
    /// Tokens, at most [`CHUNK`].
    pub len: usize,
    /// e^{a_Q}: how much of the state survives the chunk.
    pub decay: f32,
}

impl Chunk {
    /// Fills u and the decays of the chunk that starts at token `first`.
    #[allow(clippy::too_many_arguments)]
    pub fn read(
        shape: Shape,
        xbc: &[f32],
        dt: &[f32],
        a: f32,
        b: usize,
        head: usize,
        first: usize,
        room: &mut Room,
    ) -> Self {
        let len = CHUNK.min(shape.time - first);
        let token = b * shape.time + first;
        let (mut sum, mut steps) = (0.0, [0.0; CHUNK]);
        for (t, step) in steps[..len].iter_mut().enumerate() {
            *step = dt[(token + t) * shape.heads + head];
            sum += *step * a;
            room.cumulative[t] = sum;
        }
        let x = &xbc[token * shape.row() + shape.x_at(head)..];
        scale_rows(len, shape.head_dim, x, shape.row(), &steps, &mut room.u);
        decays(sum, &room.cumulative, &mut room.from_start, &mut room.to_end);
        Self { len, decay: sum.exp() }
    }
}

dispatch! {
    /// e^{a_t} and e^{end − a_t} for all Q places of a chunk, also those that a short one leaves unused.
    fn decays(end: f32, cumulative: &[f32], from_start: &mut [f32], to_end: &mut [f32]) = decays_body;
}

#[inline(always)]
fn decays_body<V: Lanes>(end: f32, cumulative: &[f32], from_start: &mut [f32], to_end: &mut [f32]) {
    for t in (0..CHUNK).step_by(V::N) {
        let a = V::load(&cumulative[t..]);
        a.exp().store(&mut from_start[t..]);
        V::splat(end).sub(a).exp().store(&mut to_end[t..]);
    }
}

/// C Bᵀ of every chunk, lower triangle: [B, chunks, G, Q, Q]. All heads of a group share it.
pub(in crate::kernel) fn scores(shape: Shape, products: Option<Products>, xbc: &[f32]) -> Vec<f32> {
    let Shape { batch, time, groups, state, .. } = shape;
    let chunks = time.div_ceil(CHUNK);
    let mut scores = vec![0.0; batch * chunks * groups * CHUNK * CHUNK];
    let begin = || products.map(|products| (products, products::Room::new(state)));
    scores.par_chunks_mut(CHUNK * CHUNK).enumerate().for_each_init(begin, |rounded, (index, scores)| {
        let (rest, group) = (index / groups, index % groups);
        let (b, chunk) = (rest / chunks, rest % chunks);
        let first = chunk * CHUNK;
        let len = CHUNK.min(time - first);
        let rows = &xbc[(b * time + first) * shape.row()..];
        // Rows of length CHUNK whatever `len` is, so that the product runs on whole vectors; the rest stays zero.
        let mut b_turned = vec![0.0; state * CHUNK];
        transpose(len, state, &rows[shape.b_at(group)..], shape.row(), &mut b_turned, CHUNK);
        let c = View::rows(&rows[shape.c_at(group)..], shape.row());
        matmul_add(len, state, CHUNK, c, &b_turned, CHUNK, scores, CHUNK);
        if let Some((products, room)) = rounded {
            let [q, k] = [shape.c_at(group), shape.b_at(group)].map(|at| (&rows[at..], shape.row()));
            room.scores(*products, len, Operands { q, k, a: None }, scores);
        }
    });
    scores
}

/// The scores of one chunk of one group, [Q, Q].
pub(in crate::kernel) fn score_block(
    shape: Shape,
    scores: &[f32],
    b: usize,
    group: usize,
    first: usize,
) -> &[f32] {
    let chunks = shape.time.div_ceil(CHUNK);
    let index = (b * chunks + first / CHUNK) * shape.groups + group;
    &scores[index * CHUNK * CHUNK..][..CHUNK * CHUNK]
}

/// y [len, P] += M u for a lower-triangular M: each band of rows needs only the columns up to its own end. Rows of u start `u_row`
/// apart.
pub(in crate::kernel) fn matmul_lower(
    len: usize,
    width: usize,
    mixing: &[f32],
    u: &[f32],
    u_row: usize,
    y: &mut [f32],
) {
    const BAND: usize = 18;
    for first in (0..len).step_by(BAND) {
        let rows = BAND.min(len - first);
        let m = View::rows(&mixing[first * CHUNK..], CHUNK);
        matmul_add(rows, first + rows, width, m, u, u_row, &mut y[first * width..], width);
    }
}

/// du += Mᵀ dY for a lower-triangular M: each band of rows needs only the tokens from its own start on. Rows of dY start `dy_row`
/// apart.
pub(in crate::kernel) fn matmul_upper(
    len: usize,
    width: usize,
    mixing: &[f32],
    dy: &[f32],
    dy_row: usize,
    du: &mut [f32],
) {
    const BAND: usize = 18;
    for first in (0..len).step_by(BAND) {
        let rows = BAND.min(len - first);
        let m = View::transposed(&mixing[first * CHUNK + first..], CHUNK);
        matmul_add(
            rows,
            len - first,
            width,
            m,
            &dy[first * dy_row..],
            dy_row,
            &mut du[first * width..],
            width,
        );
    }
}

dispatch! {
    /// `to` [len, width] = `from` (rows `row` apart), row t times `factor[t]`.
    pub(in crate::kernel) fn scale_rows(len: usize, width: usize, from: &[f32], row: usize, factor: &[f32], to: &mut [f32]) = scale_rows_body;
}

#[inline(always)]
fn scale_rows_body<V: Lanes>(
    len: usize,
    width: usize,
    from: &[f32],
    row: usize,
    factor: &[f32],
    to: &mut [f32],
) {
    for t in 0..len {
        let (to, from, by) = (&mut to[t * width..][..width], &from[t * row..][..width], factor[t]);
        let whole = width / V::N * V::N;
        for i in (0..whole).step_by(V::N) {
            V::load(&from[i..]).mul(V::splat(by)).store(&mut to[i..]);
        }
        for i in whole..width {
            to[i] = from[i] * by;
        }
    }
}

dispatch! {
    /// to ← to ∘ by.
    pub(in crate::kernel) fn multiply(by: &[f32], to: &mut [f32]) = multiply_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn multiply_body<V: Lanes>(by: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(by).for_each(|(to, by)| *to *= by);
}

dispatch! {
    /// All values times a factor.
    pub(in crate::kernel) fn scale(by: f32, values: &mut [f32]) = scale_body;
}

#[inline(always)]
fn scale_body<V: Lanes>(by: f32, values: &mut [f32]) {
    let (whole, rest) = values.split_at_mut(values.len() / V::N * V::N);
    for values in whole.chunks_exact_mut(V::N) {
        V::load(values).mul(V::splat(by)).store(values);
    }
    for value in rest {
        *value *= by;
    }
}

dispatch! {
    /// out = y + D x.
    fn with_skip(y: &[f32], d: f32, x: &[f32], out: &mut [f32]) = with_skip_body;
}

#[inline(always)]
fn with_skip_body<V: Lanes>(y: &[f32], d: f32, x: &[f32], out: &mut [f32]) {
    let whole = out.len() / V::N * V::N;
    for i in (0..whole).step_by(V::N) {
        V::load(&x[i..]).fma(V::splat(d), V::load(&y[i..])).store(&mut out[i..]);
    }
    for i in whole..out.len() {
        out[i] = V::fma_one(x[i], d, y[i]);
    }
}

dispatch! {
    /// M[t, s] = scores[t, s] · e^{a_t − a_s} for s ≤ t, else 0; rows of all three [Q, Q] are CHUNK apart.
    pub(in crate::kernel) fn masked(len: usize, scores: &[f32], cumulative: &[f32], mixing: &mut [f32]) = masked_body;
}

#[inline(always)]
fn masked_body<V: Lanes>(len: usize, scores: &[f32], cumulative: &[f32], mixing: &mut [f32]) {
    for t in 0..len {
        let (scores, mixing) = (&scores[t * CHUNK..][..CHUNK], &mut mixing[t * CHUNK..][..CHUNK]);
        let end = V::splat(cumulative[t]);
        let reach = (t + 1).next_multiple_of(V::N);
        for s in (0..reach).step_by(V::N) {
            // Beyond the diagonal the exponent may be positive: clamped here, zeroed below.
            let decay = V::splat(0.0).min(end.sub(V::load(&cumulative[s..]))).exp();
            decay.mul(V::load(&scores[s..])).store(&mut mixing[s..]);
        }
        mixing[t + 1..].fill(0.0);
    }
}
