//! The gradient of the chunked scan, from a zero initial state.
//!
//! Per chunk, with M = (C Bᵀ) ∘ L, E_t = e^{a_t}, W_t = e^{a_Q − a_t}, h the state before the chunk, and dh the gradient of the state after
//! it (walking backwards through the chunks):
//!
//! - du = Mᵀ dY + W ∘ (B dh),  dM = dY uᵀ,
//! - dC += E ∘ (dY hᵀ) + (Σ_heads dM ∘ L) B,  dB += W ∘ (u dhᵀ) + (Σ_heads dM ∘ L)ᵀ C,
//! - da_t = dY_t · y_t − u_t · du_t, and ⟨dh, h after⟩ for the chunk's end, where y excludes the skip D x,
//! - dh ← e^{a_Q} dh + Σ_t E_t C_t ⊗ dY_t.
//!
//! The third line follows from every path through a_t passing once through y_t (forward decay) or u_t (backward).

use super::Scatter;
use super::norm::dot;
use super::scan::chunked::{Chunk, Room, masked, matmul_upper, scale, scale_rows, score_block, scores};
use super::scan::{CHUNK, Shape};
use super::simd::{Lanes, dispatch};
use super::tile::{View, matmul_add, transpose};
use rayon::prelude::*;

/// Where [`scan_grad`] leaves its results.
pub struct Gradients<'a> {
    /// [B, T, row], overwritten.
    pub xbc: &'a mut [f32],
    /// [B, T, H], overwritten.
    pub dt: &'a mut [f32],
    /// `[H]`, added to.
    pub a: &'a mut [f32],
    /// `[H]`, added to.
    pub d: &'a mut [f32],
}

/// Gradients of [`scan`](super::scan::scan) from a zero state; `y` [B, T, H, P] is its output and `dy` the output's gradient.
pub fn scan_grad(
    shape: Shape,
    xbc: &[f32],
    dt: &[f32],
    a: &[f32],
    d: &[f32],
    y: &[f32],
    dy: &[f32],
    grads: Gradients<'_>,
) {
    let scores = scores(shape, None, xbc);
    let inputs = Inputs { shape, xbc, dt, a, d, y, dy, scores: &scores };
    grads.xbc.fill(0.0);
    let (dxbc, ddt) = (Scatter::new(grads.xbc), Scatter::new(grads.dt));
    // A group's heads share dB and dC, so a group of one sequence is one task.
    let parts: Vec<_> = (0..shape.batch * shape.groups)
        .into_par_iter()
        .map(|index| group_grad(&inputs, index / shape.groups, index % shape.groups, dxbc, ddt))
        .collect();
    for (index, part) in parts.into_iter().enumerate() {
        let per_group = shape.heads / shape.groups;
        for (i, (da, dd)) in part.into_iter().enumerate() {
            let head = index % shape.groups * per_group + i;
            grads.a[head] += da;
            grads.d[head] += dd;
        }
    }
}

struct Inputs<'a> {
    shape: Shape,
    xbc: &'a [f32],
    dt: &'a [f32],
    a: &'a [f32],
    d: &'a [f32],
    y: &'a [f32],
    dy: &'a [f32],
    scores: &'a [f32],
}

/// All heads of one group of one sequence; returns (dA, dD) of each head.
fn group_grad(
    inputs: &Inputs<'_>,
    b: usize,
    group: usize,
    dxbc: Scatter<'_>,
    ddt: Scatter<'_>,
) -> Vec<(f32, f32)> {
    let shape = inputs.shape;
    let Shape { time, state, .. } = shape;
    let (row, per_group) = (shape.row(), shape.heads / shape.groups);
    let chunks = time.div_ceil(CHUNK);
    let mut dscores = vec![0.0; chunks * CHUNK * CHUNK];
    let (mut db, mut dc) = (vec![0.0; time * state], vec![0.0; time * state]);
    let mut work = HeadWork::new(shape);
    let sums = (0..per_group)
        .map(|i| work.run(inputs, b, group * per_group + i, &mut dscores, &mut db, &mut dc, dxbc, ddt))
        .collect();
    for (chunk, dscores) in dscores.chunks(CHUNK * CHUNK).enumerate() {
        let first = chunk * CHUNK;
        let len = CHUNK.min(time - first);
        let rows = &inputs.xbc[(b * time + first) * row..];
        let (b_rows, c_rows) = (&rows[shape.b_at(group)..], &rows[shape.c_at(group)..]);
        let (dc, db) = (&mut dc[first * state..], &mut db[first * state..]);
        matmul_add(len, len, state, View::rows(dscores, CHUNK), b_rows, row, dc, state);
        matmul_add(len, len, state, View::transposed(dscores, CHUNK), c_rows, row, db, state);
    }
    for t in 0..time {
        let at = (b * time + t) * row;
        // SAFETY: B and C of a group belong to this task alone.
        unsafe {
            dxbc.slice(at + shape.b_at(group), state).copy_from_slice(&db[t * state..][..state]);
            dxbc.slice(at + shape.c_at(group), state).copy_from_slice(&dc[t * state..][..state]);
        }
    }
    sums
}

/// h [N, P] ← decay · h + Σ_t (e^{a_Q − a_t} B_t) ⊗ u_t.
fn next_state(
    shape: Shape,
    chunk: Chunk,
    b: &[f32],
    to_end: &[f32],
    u: &[f32],
    scaled: &mut [f32],
    h: &mut [f32],
) {
    let Shape { head_dim, state, .. } = shape;
    scale_rows(chunk.len, state, b, shape.row(), to_end, scaled);
    scale(chunk.decay, h);
    matmul_add(state, chunk.len, head_dim, View::transposed(scaled, state), u, head_dim, h, head_dim);
}

/// Working memory of one head's backward walk.
struct HeadWork {
    room: Room,
    /// States before each chunk, [chunks + 1, N, P].
    states: Vec<f32>,
    /// Gradient of the state, [N, P], and its transpose.
    dh: Vec<f32>,
    turned: Vec<f32>,
    /// dY of the chunk, [Q, P]; du, [Q, P]; uᵀ, [P, Q]; dM, [Q, Q]; products with N columns, [Q, N].
    dy: Vec<f32>,
    du: Vec<f32>,
    u_turned: Vec<f32>,
    dmixing: Vec<f32>,
    wide: Vec<f32>,
    /// da; the part of dΔ that comes through u.
    da: Vec<f32>,
    dt: Vec<f32>,
    ones: Vec<f32>,
    decays: Vec<f32>,
}

impl HeadWork {
    fn new(shape: Shape) -> Self {
        let (p, n) = (shape.head_dim, shape.state);
        let chunks = shape.time.div_ceil(CHUNK);
        Self {
            room: Room::new(shape),
            states: vec![0.0; (chunks + 1) * n * p],
            dh: vec![0.0; n * p],
            turned: vec![0.0; n * p],
            dy: vec![0.0; CHUNK * p],
            du: vec![0.0; CHUNK * p],
            u_turned: vec![0.0; CHUNK * p],
            dmixing: vec![0.0; CHUNK * CHUNK],
            wide: vec![0.0; CHUNK * n],
            da: vec![0.0; CHUNK],
            dt: vec![0.0; CHUNK],
            ones: vec![1.0; CHUNK * CHUNK],
            decays: vec![0.0; CHUNK * CHUNK],
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        &mut self,
        inputs: &Inputs<'_>,
        b: usize,
        head: usize,
        dscores: &mut [f32],
        db: &mut [f32],
        dc: &mut [f32],
        dxbc: Scatter<'_>,
        ddt: Scatter<'_>,
    ) -> (f32, f32) {
        let Inputs { shape, xbc, dt, a, d, .. } = *inputs;
        let Shape { time, heads, head_dim: p, state: n, .. } = shape;
        let (row, group, rate) = (shape.row(), shape.group_of(head), a[head]);
        let chunks = time.div_ceil(CHUNK);
        self.states[..n * p].fill(0.0);
        for chunk in 0..chunks {
            let first = chunk * CHUNK;
            let sizes = Chunk::read(shape, xbc, dt, rate, b, head, first, &mut self.room);
            let (before, after) = self.states.split_at_mut((chunk + 1) * n * p);
            after[..n * p].copy_from_slice(&before[chunk * n * p..]);
            let b_rows = &xbc[(b * time + first) * row + shape.b_at(group)..];
            let Room { to_end, u, scaled, .. } = &mut self.room;
            next_state(shape, sizes, b_rows, to_end, u, scaled, &mut after[..n * p]);
        }
        self.dh.fill(0.0);
        let (mut d_rate, mut d_skip) = (0.0, 0.0);
        for chunk in (0..chunks).rev() {
            let first = chunk * CHUNK;
            let Chunk { len, decay } = Chunk::read(shape, xbc, dt, rate, b, head, first, &mut self.room);
            let rows = &xbc[(b * time + first) * row..];
            let (b_rows, c_rows) = (&rows[shape.b_at(group)..], &rows[shape.c_at(group)..]);
            let room = &mut self.room;
            for t in 0..len {
                let at = ((b * time + first + t) * heads + head) * p;
                self.dy[t * p..][..p].copy_from_slice(&inputs.dy[at..][..p]);
            }
            let (before, after) =
                (&self.states[chunk * n * p..][..n * p], &self.states[(chunk + 1) * n * p..][..n * p]);

            // du
            let du = &mut self.du[..len * p];
            du.fill(0.0);
            scale_rows(len, n, b_rows, row, &room.to_end, &mut room.scaled);
            matmul_add(len, n, p, View::rows(&room.scaled, n), &self.dh, p, du, p);
            masked(
                len,
                score_block(shape, inputs.scores, b, group, first),
                &room.cumulative,
                &mut room.mixing,
            );
            matmul_upper(len, p, &room.mixing, &self.dy, p, du);

            // Σ_heads dM ∘ L
            transpose(len, p, &room.u, p, &mut self.u_turned, len);
            self.dmixing.fill(0.0);
            matmul_add(len, p, len, View::rows(&self.dy, p), &self.u_turned, len, &mut self.dmixing, CHUNK);
            masked(len, &self.ones, &room.cumulative, &mut self.decays);
            let dscores = &mut dscores[chunk * CHUNK * CHUNK..][..len * CHUNK];
            add_products(&self.dmixing, &self.decays, dscores);

            // dC += E ∘ (dY hᵀ), dB += W ∘ (u dhᵀ)
            transpose(n, p, before, p, &mut self.turned, n);
            self.wide.fill(0.0);
            matmul_add(len, p, n, View::rows(&self.dy, p), &self.turned, n, &mut self.wide, n);
            add_scaled_rows(len, n, &self.wide, &room.from_start, &mut dc[first * n..]);
            transpose(n, p, &self.dh, p, &mut self.turned, n);
            self.wide.fill(0.0);
            matmul_add(len, p, n, View::rows(&room.u, p), &self.turned, n, &mut self.wide, n);
            add_scaled_rows(len, n, &self.wide, &room.to_end, &mut db[first * n..]);

            // da, and through it and u the gradients of Δ, A, x and D
            let mut later = dot(&self.dh, after);
            for t in 0..len {
                let at = ((b * time + first + t) * heads + head) * p;
                let x = &rows[t * row + shape.x_at(head)..][..p];
                let [skip, through, input] =
                    dots(&self.dy[t * p..][..p], x, &inputs.y[at..][..p], &du[t * p..][..p]);
                d_skip += skip;
                let step = dt[(b * time + first + t) * heads + head];
                self.da[t] = through - d[head] * skip - step * input; // u = Δ x
                self.dt[t] = input;
            }
            for t in (0..len).rev() {
                later += self.da[t];
                let token = b * time + first + t;
                let step = dt[token * heads + head];
                d_rate += later * step;
                let du = &du[t * p..][..p];
                // SAFETY: Δ and x of (b, t, head) belong to this head alone.
                unsafe {
                    ddt.slice(token * heads + head, 1)[0] = self.dt[t] + rate * later;
                    let dx = dxbc.slice(token * row + shape.x_at(head), p);
                    input_grad(step, du, d[head], &self.dy[t * p..][..p], dx);
                }
            }

            // dh before the chunk
            for dh in &mut self.dh {
                *dh *= decay;
            }
            scale_rows(len, n, c_rows, row, &room.from_start, &mut room.scaled);
            matmul_add(n, len, p, View::transposed(&room.scaled, n), &self.dy, p, &mut self.dh, p);
        }
        (d_rate, d_skip)
    }
}

dispatch! {
    /// `to` += `from`, row t times `factor[t]`; both [len, width].
    fn add_scaled_rows(len: usize, width: usize, from: &[f32], factor: &[f32], to: &mut [f32]) = add_scaled_rows_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn add_scaled_rows_body<V: Lanes>(len: usize, width: usize, from: &[f32], factor: &[f32], to: &mut [f32]) {
    for t in 0..len {
        for (to, from) in to[t * width..][..width].iter_mut().zip(&from[t * width..]) {
            *to += from * factor[t];
        }
    }
}

dispatch! {
    /// dy · x, dy · y and x · du.
    fn dots(dy: &[f32], x: &[f32], y: &[f32], du: &[f32]) -> [f32; 3] = dots_body;
}

#[inline(always)]
fn dots_body<V: Lanes>(dy: &[f32], x: &[f32], y: &[f32], du: &[f32]) -> [f32; 3] {
    let len = dy.len();
    let (x, y, du, whole) = (&x[..len], &y[..len], &du[..len], len / V::N * V::N);
    let mut sums = [V::splat(0.0); 3];
    for i in (0..whole).step_by(V::N) {
        let (dy, x) = (V::load(&dy[i..]), V::load(&x[i..]));
        sums[0] = dy.fma(x, sums[0]);
        sums[1] = dy.fma(V::load(&y[i..]), sums[1]);
        sums[2] = x.fma(V::load(&du[i..]), sums[2]);
    }
    let mut all = [sums[0].sum(), sums[1].sum(), sums[2].sum()];
    for i in whole..len {
        all[0] += dy[i] * x[i];
        all[1] += dy[i] * y[i];
        all[2] += x[i] * du[i];
    }
    all
}

dispatch! {
    /// sum += a ∘ b.
    fn add_products(a: &[f32], b: &[f32], sum: &mut [f32]) = add_products_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn add_products_body<V: Lanes>(a: &[f32], b: &[f32], sum: &mut [f32]) {
    for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
        *sum += a * b;
    }
}

dispatch! {
    /// dx = step · du + d · dy.
    fn input_grad(step: f32, du: &[f32], d: f32, dy: &[f32], dx: &mut [f32]) = input_grad_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn input_grad_body<V: Lanes>(step: f32, du: &[f32], d: f32, dy: &[f32], dx: &mut [f32]) {
    for ((dx, du), dy) in dx.iter_mut().zip(du).zip(dy) {
        *dx = step * du + d * dy;
    }
}
