//! What the heads of a group share in a chunk: C and Bᵀ as left operands, and the scores C Bᵀ.

use super::super::{CHUNK, Shape};
use super::terms::{join, load, part};
use super::{BANDS, Padded, STEPS};
use crate::kernel::amx::product::{keep, multiply};
use crate::kernel::amx::terms::Tile;
use crate::kernel::amx::{Config, Tiles};
use crate::kernel::blocked::{Left, ROWS, STEP, Sums};
use crate::kernel::tile::transpose;

/// What the heads of a group share in a chunk.
pub(super) struct Shared<const T: usize> {
    /// C as left operand: [Q / 16, N / 32].
    pub c: Vec<[Tile; T]>,
    /// Bᵀ as left operand: [N / 16, Q / 32].
    pub b: Vec<[Tile; T]>,
    /// C Bᵀ, [Q, Q].
    pub scores: Vec<f32>,
}

impl<const T: usize> Shared<T> {
    /// Of `len` tokens, from the first of `rows` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn new(shape: Shape, sizes: Padded, rows: &[f32], len: usize, group: usize) -> Self {
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
