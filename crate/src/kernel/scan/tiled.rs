//! The chunked scan on the matrix unit `amx`, whose operands are split into bf16 terms.
//!
//! What the heads of a group share is made once: C and Bᵀ as left operands, and the scores C Bᵀ. Of a head come, for each
//! chunk, the mixing matrix M = scores ∘ L as left operand, and as right ones u = Δx, its decayed form and the state
//! [N, P]. The order of the summed index is free as long as both operands agree on it: a pair of bf16 holds the
//! values i and 16 + i of a step of 32, so that two vectors of f32 are joined without a shuffle.

use super::{CHUNK, Shape};
use crate::kernel::amx::product::{keep, multiply};
use crate::kernel::amx::terms::Tile;
use crate::kernel::amx::{Config, Tiles};
use crate::kernel::blocked::{Left, ROWS, STEP, Sums};
use crate::kernel::simd::Lanes;
use crate::kernel::tile::transpose;
use rayon::prelude::*;
use std::arch::x86_64::*;

/// Rows of tiles of a chunk of tokens, and its steps.
const BANDS: usize = CHUNK / ROWS;
const STEPS: usize = CHUNK / STEP;
/// Heads of a task: they share its working memory.
const HEADS: usize = 3;

/// [`scan`](super::scan) by tiles of `T` terms: 2 give products to 2⁻¹⁶, 3 to 2⁻²⁴. Other arguments as there.
pub(super) fn tiled<const T: usize>(
    shape: Shape,
    xbc: &[f32],
    dt: &[f32],
    a: &[f32],
    d: &[f32],
    h: &mut [f32],
    y: &mut [f32],
) {
    let Shape { batch, time, heads, head_dim, groups, state, .. } = shape;
    let chunks = time.div_ceil(CHUNK);
    let sizes = Padded::new(shape);
    let shared: Vec<Shared<T>> = (0..batch * chunks * groups)
        .into_par_iter()
        .map(|index| {
            let (rest, group) = (index / groups, index % groups);
            let (b, first) = (rest / chunks, rest % chunks * CHUNK);
            let rows = &xbc[(b * time + first) * shape.row()..];
            // SAFETY: tiles are used only where the processor has them, and what they need.
            unsafe { Shared::new(shape, sizes, rows, CHUNK.min(time - first), group) }
        })
        .collect();
    let out = shape.scatter(y);
    h.par_chunks_mut(HEADS * head_dim * state).enumerate().for_each(|(task, h)| {
        let mut room = Room::<T>::new(sizes);
        for (i, h) in h.chunks_mut(head_dim * state).enumerate() {
            let index = task * HEADS + i;
            let (b, head) = (index / heads, index % heads);
            let tokens = b * time..(b + 1) * time;
            let head = Head {
                shape,
                xbc: &xbc[tokens.start * shape.row()..tokens.end * shape.row()],
                dt: &dt[tokens.start * heads..tokens.end * heads],
                a: a[head],
                d: d[head],
                head,
            };
            let shared = shared[b * chunks * groups + shape.group_of(head.head)..].iter().step_by(groups);
            let tiles = Tiles::load(&Config::FULL);
            // SAFETY: as above.
            unsafe { room.load(h, shape) };
            for (chunk, shared) in shared.take(chunks).enumerate() {
                let first = chunk * CHUNK;
                let len = CHUNK.min(time - first);
                let put = |t: usize, p: usize, count: usize| {
                    let at = shape.y_at(tokens.start + first + t, head.head) + p;
                    // SAFETY: every (b, t, head) has its own P values.
                    unsafe { out.slice(at, count) }
                };
                // SAFETY: as above.
                unsafe { room.chunk(&head, first, len, shared, &tiles, put) };
            }
            drop(tiles);
            // SAFETY: as above.
            unsafe { room.store(h, shape) };
        }
    });
}

/// Sizes filled up to whole tiles.
#[derive(Clone, Copy)]
struct Padded {
    /// Of N, to whole steps.
    state: usize,
    /// Of P, to whole rows of tiles.
    head_dim: usize,
}

impl Padded {
    fn new(shape: Shape) -> Self {
        Self { state: shape.state.next_multiple_of(STEP), head_dim: shape.head_dim.next_multiple_of(ROWS) }
    }

    /// Steps along the state.
    fn steps(self) -> usize {
        self.state / STEP
    }
}

/// What the heads of a group share in a chunk.
struct Shared<const T: usize> {
    /// C as left operand: [Q / 16, N / 32].
    c: Vec<[Tile; T]>,
    /// Bᵀ as left operand: [N / 16, Q / 32].
    b: Vec<[Tile; T]>,
    /// C Bᵀ, [Q, Q].
    scores: Vec<f32>,
}

impl<const T: usize> Shared<T> {
    /// Of `len` tokens, from the first of `rows` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn new(shape: Shape, sizes: Padded, rows: &[f32], len: usize, group: usize) -> Self {
        let (n, steps) = (sizes.state, sizes.steps());
        let mut of_b = vec![0.0; CHUNK * n];
        let mut turned = vec![0.0; n * CHUNK];
        let mut c = vec![[Tile::ZERO; T]; BANDS * steps];
        for t in 0..len {
            let row = &rows[t * shape.row()..][..shape.row()];
            of_b[t * n..][..shape.state].copy_from_slice(&row[shape.b_at(group)..][..shape.state]);
            let from = &row[shape.c_at(group)..][..shape.state];
            for (step, from) in from.chunks(STEP).enumerate() {
                let (low, high) = from.split_at(from.len().min(ROWS));
                join([part(low), part(high)], &mut c[t / ROWS * steps + step], t % ROWS);
            }
        }
        transpose(CHUNK, n, &of_b, n, &mut turned, CHUNK);
        let mut b = vec![[Tile::ZERO; T]; n / ROWS * STEPS];
        for (row, from) in turned.chunks_exact(CHUNK).enumerate() {
            for step in 0..STEPS {
                let from = &from[step * STEP..];
                join([load(from), load(&from[ROWS..])], &mut b[row / ROWS * STEPS + step], row % ROWS);
            }
        }
        // The same as right operand, for the scores: [Q / 16, N / 32].
        let mut right = vec![[Tile::ZERO; T]; BANDS * steps];
        for band in 0..BANDS {
            for step in 0..steps {
                for i in 0..ROWS {
                    let at = |row: usize| load(&turned[row * CHUNK + band * ROWS..]);
                    let row = step * STEP + i;
                    join([at(row), at(row + ROWS)], &mut right[band * steps + step], i);
                }
            }
        }
        let mut scores = vec![0.0; CHUNK * CHUNK];
        let mut sums = Sums::ZERO;
        let tiles = Tiles::load(&Config::FULL);
        for t in (0..len.div_ceil(ROWS)).step_by(2) {
            for s in (0..=t).step_by(2) {
                let left = Left::packed([&c[t * steps..], &c[(t + 1) * steps..]]);
                // SAFETY: `steps` tiles a band.
                unsafe {
                    multiply::<T, T>(
                        &tiles,
                        left,
                        [&right[s * steps..], &right[(s + 1) * steps..]],
                        steps,
                        None,
                    );
                }
                keep(&tiles, &mut sums);
                for (at, tile) in sums.0.iter().enumerate() {
                    let (t, s) = ((t + at / 2) * ROWS, (s + at % 2) * ROWS);
                    for (i, row) in tile.iter().enumerate() {
                        scores[(t + i) * CHUNK + s..][..ROWS].copy_from_slice(row);
                    }
                }
            }
        }
        Self { c, b, scores }
    }
}

/// One head of one sequence.
struct Head<'a> {
    shape: Shape,
    xbc: &'a [f32],
    dt: &'a [f32],
    a: f32,
    d: f32,
    head: usize,
}

/// Working memory of a head.
struct Room<const T: usize> {
    sizes: Padded,
    /// The state, [N, P].
    h: Vec<f32>,
    /// The state as right operand, [P / 16, N / 32].
    state: Vec<[Tile; T]>,
    /// u as right operand, [P / 16, Q / 32]; and e^{a_Q − a_t} u.
    u: Vec<[Tile; T]>,
    decayed: Vec<[Tile; T]>,
    /// M as left operand, [Q / 16, Q / 32].
    mixing: Vec<[Tile; T]>,
    /// Δ_t; a_t; e^{a_t}; e^{a_Q − a_t}.
    dt: [f32; CHUNK],
    cumulative: [f32; CHUNK],
    from_start: [f32; CHUNK],
    to_end: [f32; CHUNK],
    sums: [Sums; 2],
}

impl<const T: usize> Room<T> {
    fn new(sizes: Padded) -> Self {
        let (bands, steps) = (sizes.head_dim / ROWS, sizes.steps());
        Self {
            sizes,
            h: vec![0.0; sizes.state * sizes.head_dim],
            state: vec![[Tile::ZERO; T]; bands * steps],
            u: vec![[Tile::ZERO; T]; bands * STEPS],
            decayed: vec![[Tile::ZERO; T]; bands * STEPS],
            mixing: vec![[Tile::ZERO; T]; BANDS * STEPS],
            dt: [0.0; CHUNK],
            cumulative: [0.0; CHUNK],
            from_start: [0.0; CHUNK],
            to_end: [0.0; CHUNK],
            sums: [Sums::ZERO; 2],
        }
    }

    /// Takes a state [P, N] in.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn load(&mut self, h: &[f32], shape: Shape) {
        let Padded { head_dim, .. } = self.sizes;
        transpose(shape.head_dim, shape.state, h, shape.state, &mut self.h, head_dim);
        let steps = self.sizes.steps();
        for (at, tile) in self.state.iter_mut().enumerate() {
            let (band, step) = (at / steps, at % steps);
            for i in 0..ROWS {
                let at = |row: usize| load(&self.h[row * head_dim + band * ROWS..]);
                join([at(step * STEP + i), at(step * STEP + ROWS + i)], tile, i);
            }
        }
    }

    /// Gives the state back.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn store(&mut self, h: &mut [f32], shape: Shape) {
        transpose(shape.state, shape.head_dim, &self.h, self.sizes.head_dim, h, shape.state);
    }

    /// Moves the state past the `len` tokens from `first` on; `put` gives the places of their results.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn chunk<'y>(
        &mut self,
        head: &Head<'_>,
        first: usize,
        len: usize,
        shared: &Shared<T>,
        tiles: &Tiles,
        put: impl Fn(usize, usize, usize) -> &'y mut [f32],
    ) {
        let decay = self.decays(head, first, len);
        self.inputs(head, first, len);
        self.mix(&shared.scores, len);
        let (bands, steps, p) = (self.sizes.head_dim / ROWS, self.sizes.steps(), head.shape.head_dim);
        // Where there is no second row of tiles, the first stands in for it.
        let two = |tiles: usize, at: usize, len: usize| [at * len, (at + 1).min(tiles - 1) * len];
        let x = &head.xbc[first * head.shape.row() + head.shape.x_at(head.head)..];
        for band in (0..bands).step_by(2) {
            let [h0, h1] = two(bands, band, steps);
            let [u0, u1] = two(bands, band, STEPS);
            for t in (0..len.div_ceil(ROWS)).step_by(2) {
                let left = Left::packed([&shared.c[t * steps..], &shared.c[(t + 1) * steps..]]);
                // SAFETY: `steps` tiles a band of C, STEPS a band of M.
                unsafe { multiply::<T, T>(tiles, left, [&self.state[h0..], &self.state[h1..]], steps, None) };
                keep(tiles, &mut self.sums[0]);
                let left = Left::packed([&self.mixing[t * STEPS..], &self.mixing[(t + 1) * STEPS..]]);
                // SAFETY: as above. M has nothing behind its diagonal.
                unsafe { multiply::<T, T>(tiles, left, [&self.u[u0..], &self.u[u1..]], t / 2 + 1, None) };
                keep(tiles, &mut self.sums[1]);
                for at in 0..4 {
                    let (t, p0) = ((t + at / 2) * ROWS, (band + at % 2) * ROWS);
                    if p0 >= p {
                        continue;
                    }
                    let count = ROWS.min(p - p0);
                    for (i, t) in (t..len.min(t + ROWS)).enumerate() {
                        let before = load(&self.sums[0].0[at][i]);
                        let inside = load(&self.sums[1].0[at][i]);
                        let x = part(&x[t * head.shape.row() + p0..][..count]);
                        let y = before.fma(splat(self.from_start[t]), inside);
                        store_part(x.fma(splat(head.d), y), put(t, p0, count));
                    }
                }
            }
        }
        self.advance(shared, decay, tiles);
    }

    /// h ← decay · h + Bᵀ (e^{a_Q − a_t} u), and its terms.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn advance(&mut self, shared: &Shared<T>, decay: f32, tiles: &Tiles) {
        let Padded { head_dim, .. } = self.sizes;
        let (bands, steps) = (head_dim / ROWS, self.sizes.steps());
        for step in 0..steps {
            let left = [&shared.b[2 * step * STEPS..], &shared.b[(2 * step + 1) * STEPS..]];
            for band in (0..bands).step_by(2) {
                let next = (band + 1).min(bands - 1);
                let right = [&self.decayed[band * STEPS..], &self.decayed[next * STEPS..]];
                // SAFETY: STEPS tiles a row of Bᵀ.
                unsafe { multiply::<T, T>(tiles, Left::packed(left), right, STEPS, None) };
                keep(tiles, &mut self.sums[0]);
                for at in 0..2 {
                    let band = band + at;
                    if band >= bands {
                        continue;
                    }
                    for i in 0..ROWS {
                        let row = step * STEP + i;
                        let mut new = [splat(0.0); 2];
                        for (half, new) in new.iter_mut().enumerate() {
                            let h = &mut self.h[(row + half * ROWS) * head_dim + band * ROWS..][..ROWS];
                            *new = load(h).fma(splat(decay), load(&self.sums[0].0[2 * half + at][i]));
                            store_part(*new, h);
                        }
                        join(new, &mut self.state[band * steps + step], i);
                    }
                }
            }
        }
    }

    /// Fills the scalars of the chunk; returns e^{a_Q}.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn decays(&mut self, head: &Head<'_>, first: usize, len: usize) -> f32 {
        let mut sum = 0.0;
        for t in 0..CHUNK {
            self.dt[t] = if t < len { head.dt[(first + t) * head.shape.heads + head.head] } else { 0.0 };
            sum += self.dt[t] * head.a;
            self.cumulative[t] = sum;
        }
        for t in (0..CHUNK).step_by(ROWS) {
            let a = load(&self.cumulative[t..]);
            store_part(a.exp(), &mut self.from_start[t..t + ROWS]);
            store_part(splat(sum).sub(a).exp(), &mut self.to_end[t..t + ROWS]);
        }
        sum.exp()
    }

    /// u and its decayed form.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn inputs(&mut self, head: &Head<'_>, first: usize, len: usize) {
        let shape = head.shape;
        for band in 0..self.sizes.head_dim / ROWS {
            let p = band * ROWS;
            let count = ROWS.min(shape.head_dim - p);
            for step in 0..STEPS {
                let (u, decayed) = (&mut self.u[band * STEPS + step], &mut self.decayed[band * STEPS + step]);
                for i in 0..ROWS {
                    let (mut now, mut end) = ([splat(0.0); 2], [splat(0.0); 2]);
                    for half in 0..2 {
                        let t = step * STEP + half * ROWS + i;
                        if t < len {
                            let x =
                                &head.xbc[(first + t) * shape.row() + shape.x_at(head.head) + p..][..count];
                            now[half] = part(x).mul(splat(self.dt[t]));
                            end[half] = now[half].mul(splat(self.to_end[t]));
                        }
                    }
                    join(now, u, i);
                    join(end, decayed, i);
                }
            }
        }
    }

    /// M[t, s] = scores[t, s] · e^{a_t − a_s} for s ≤ t. Away from the diagonal the factor is a product of one for the
    /// row and one for the column, from where a band of rows begins: neither exponent is positive.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn mix(&mut self, scores: &[f32], len: usize) {
        for band in 0..len.div_ceil(ROWS) {
            let start = band * ROWS;
            let now = load(&self.cumulative[start..]);
            let mut columns = [splat(0.0); BANDS];
            let mut rows = [0.0; ROWS];
            if band > 0 {
                let from = splat(self.cumulative[start - 1]);
                store_part(now.sub(from).exp(), &mut rows);
                for (s, column) in columns[..band].iter_mut().enumerate() {
                    *column = from.sub(load(&self.cumulative[s * ROWS..])).exp();
                }
            }
            for i in 0..ROWS {
                let scores = &scores[(start + i) * CHUNK..][..CHUNK];
                let mut row = [splat(0.0); BANDS];
                for (s, (row, column)) in row[..band].iter_mut().zip(columns).enumerate() {
                    *row = load(&scores[s * ROWS..]).mul(column.mul(splat(rows[i])));
                }
                // Behind the diagonal the exponent may be positive: held to 0 here, and masked.
                let decay = splat(self.cumulative[start + i]).sub(now).min(splat(0.0)).exp();
                row[band] =
                    _mm512_maskz_mul_ps((2u32 << i).wrapping_sub(1) as u16, decay, load(&scores[start..]));
                for step in 0..band / 2 + 1 {
                    join([row[2 * step], row[2 * step + 1]], &mut self.mixing[band * STEPS + step], i);
                }
            }
        }
        // A band without tokens beside one that has some.
        if len.div_ceil(ROWS) % 2 == 1 {
            self.mixing[len.div_ceil(ROWS) * STEPS..][..STEPS].fill([Tile::ZERO; T]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[f32]) -> __m512 {
    let from = &from[..ROWS];
    // SAFETY: 16 values.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat(x: f32) -> __m512 {
    _mm512_set1_ps(x)
}

/// The values of a slice of at most 16, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f")]
fn part(from: &[f32]) -> __m512 {
    assert!(from.len() <= ROWS);
    // SAFETY: the mask ends with the slice.
    unsafe { _mm512_maskz_loadu_ps(((1u32 << from.len()) - 1) as u16, from.as_ptr()) }
}

/// Writes as many values as the slice has, at most 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_part(x: __m512, to: &mut [f32]) {
    assert!(to.len() <= ROWS);
    // SAFETY: the mask ends with the slice.
    unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), ((1u32 << to.len()) - 1) as u16, x) }
}

/// Row `i` of tiles: the terms of two vectors, value j of the first beside value j of the second.
#[inline]
#[target_feature(enable = "avx512f")]
fn join<const T: usize>([mut low, mut high]: [__m512; 2], tiles: &mut [Tile; T], i: usize) {
    let (half, mask) = (_mm512_set1_epi32(0x8000), _mm512_set1_epi32(0xffff_0000_u32 as i32));
    for Tile(rows) in tiles {
        // Rounded to 16 bits: half of the last one is added, the rest cut off.
        let round = |x: __m512| _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), mask);
        let (a, b) = (round(low), round(high));
        let pairs = _mm512_or_si512(_mm512_srli_epi32::<16>(a), b);
        // SAFETY: a row is 64 bytes.
        unsafe { _mm512_store_si512(rows[i].as_mut_ptr().cast(), pairs) };
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(a));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(b));
    }
}
