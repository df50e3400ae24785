//! A head on its way through the chunks: its state, and the operands that are its own.

use super::super::{CHUNK, Shape};
use super::shared::Shared;
use super::terms::{join, load, part, splat, store_part};
use super::{BANDS, Head, Padded, STEPS};
use crate::kernel::amx::Tiles;
use crate::kernel::amx::product::{keep, multiply};
use crate::kernel::amx::terms::Tile;
use crate::kernel::blocked::{Left, ROWS, STEP, Sums};
use crate::kernel::simd::Lanes;
use crate::kernel::tile::transpose;
use std::arch::x86_64::*;

/// Working memory of a head.
pub(super) struct Room<const T: usize> {
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
    pub fn new(sizes: Padded) -> Self {
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
    pub fn load(&mut self, h: &[f32], shape: Shape) {
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
    pub fn store(&mut self, h: &mut [f32], shape: Shape) {
        transpose(shape.state, shape.head_dim, &self.h, self.sizes.head_dim, h, shape.state);
    }

    /// Moves the state past the `len` tokens from `first` on; `put` gives the places of their results.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn chunk<'y>(
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
                let decay = splat(0.0).min(splat(self.cumulative[start + i]).sub(now)).exp();
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
