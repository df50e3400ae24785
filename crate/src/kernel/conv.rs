//! Causal depthwise convolution followed by SiLU: `y[t, c] = SiLU(bias[c] + Σ_j w[c, j] x[t − K + 1 + j, c])`.

use super::Scatter;
use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// The sizes of one convolution: `channels` C, `width` K taps, rows of the input `row` values apart.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each sequence.
    pub time: usize,
    /// Channels C.
    pub channels: usize,
    /// Taps K.
    pub width: usize,
    /// Distance between the rows of the input, at least C.
    pub row: usize,
}

/// Convolves `x` (rows [B·T] of C values, from the slice's start, `row` apart) into `y` [B, T, C].
///
/// `weight` [C, K]; `bias` `[C]`; `state` [B, C, K] holds the last K inputs, oldest first, and is moved on by T tokens.
pub fn conv_silu(shape: Shape, x: &[f32], weight: &[f32], bias: &[f32], state: &mut [f32], y: &mut [f32]) {
    let Shape { time, channels, width, row, .. } = shape;
    let taps = by_tap(shape, weight);
    let block = time.clamp(1, 256);
    let blocks = time.div_ceil(block);
    // Sequences are cut into blocks of tokens, so that one long prompt uses every thread.
    let jobs: Vec<_> = y
        .chunks_mut(time * channels)
        .enumerate()
        .flat_map(|(b, y)| y.chunks_mut(block * channels).enumerate().map(move |(i, y)| (b, i, y)))
        .collect();
    let run = |(b, i, y): (usize, usize, &mut [f32])| {
        let past = history(shape, x, state, b, i * block);
        let rows = y.len() / channels;
        let start = (b * time + i * block) * row;
        convolve(channels, width, rows, &x[start..], row, &past, &taps, bias, y);
        silu_all(y);
    };
    if blocks * shape.batch == 1 {
        jobs.into_iter().for_each(run);
    } else {
        jobs.into_par_iter().for_each(run);
    }
    for (b, state) in state.chunks_mut(channels * width).enumerate() {
        advance(shape, &x[b * time * row..], state);
    }
}

/// The gradients of [`conv_silu`] from a zero state: `dx` (rows `row` apart, overwritten), `dweight` and `dbias` (added to).
pub fn conv_silu_grad(
    shape: Shape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let Shape { batch, time, channels, width, row } = shape;
    let taps = by_tap(shape, weight);
    let dx = Scatter::new(dx);
    let parts: Vec<(Vec<f32>, Vec<f32>)> = (0..batch)
        .into_par_iter()
        .map(|b| {
            let x = &x[b * time * row..];
            let zeros = vec![0.0; (width - 1) * channels];
            let mut ds = vec![0.0; time * channels];
            convolve(channels, width, time, x, row, &zeros, &taps, bias, &mut ds);
            silu_grad(&mut ds, &dy[b * time * channels..][..time * channels]);
            let (mut dtaps, mut db) = (vec![0.0; width * channels], vec![0.0; channels]);
            for t in 0..time {
                // SAFETY: every (b, t) writes its own row.
                let dx = unsafe { dx.slice((b * time + t) * row, channels) };
                dx.fill(0.0);
                for j in 0..width.min(time - t) {
                    let tap = width - 1 - j;
                    mul_add(&ds[(t + j) * channels..][..channels], &taps[tap * channels..][..channels], dx);
                }
                let ds = &ds[t * channels..][..channels];
                add(ds, &mut db);
                for tap in 0..width {
                    if let Some(past) = (t + tap).checked_sub(width - 1) {
                        mul_add(ds, &x[past * row..][..channels], &mut dtaps[tap * channels..][..channels]);
                    }
                }
            }
            (dtaps, db)
        })
        .collect();
    for (dtaps, db) in parts {
        add(&db, dbias);
        for tap in 0..width {
            for c in 0..channels {
                dweight[c * width + tap] += dtaps[tap * channels + c];
            }
        }
    }
}

/// [C, K] → [K, C]: neighbouring channels side by side.
fn by_tap(shape: Shape, weight: &[f32]) -> Vec<f32> {
    let mut taps = vec![0.0; weight.len()];
    super::tile::transpose(shape.channels, shape.width, weight, shape.width, &mut taps);
    taps
}

/// The K − 1 inputs before token `start` of sequence `b`, [K − 1, C], from the input itself or from the state.
fn history(shape: Shape, x: &[f32], state: &[f32], b: usize, start: usize) -> Vec<f32> {
    let Shape { time, channels, width, row, .. } = shape;
    let state = &state[b * channels * width..][..channels * width];
    let mut past = vec![0.0; (width - 1) * channels];
    for (j, past) in past.chunks_mut(channels).enumerate() {
        match (start + j).checked_sub(width - 1) {
            Some(t) => past.copy_from_slice(&x[(b * time + t) * row..][..channels]),
            None => {
                for (c, past) in past.iter_mut().enumerate() {
                    *past = state[c * width + start + j + 1];
                }
            }
        }
    }
    past
}

/// Moves a state [C, K] past the rows of `x`.
fn advance(shape: Shape, x: &[f32], state: &mut [f32]) {
    let Shape { time, channels, width, row, .. } = shape;
    for c in 0..channels {
        let state = &mut state[c * width..][..width];
        state.rotate_left(time.min(width));
        for j in 0..time.min(width) {
            state[width - 1 - j] = x[(time - 1 - j) * row + c];
        }
    }
}

dispatch! { fn convolve(channels: usize, width: usize, rows: usize, x: &[f32], row: usize, past: &[f32], taps: &[f32], bias: &[f32], y: &mut [f32]) = convolve_body; }

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn convolve_body<V: Lanes>(
    channels: usize,
    width: usize,
    rows: usize,
    x: &[f32],
    row: usize,
    past: &[f32],
    taps: &[f32],
    bias: &[f32],
    y: &mut [f32],
) {
    for t in 0..rows {
        let y = &mut y[t * channels..][..channels];
        let input = |j: usize| match (t + j).checked_sub(width - 1) {
            Some(t) => &x[t * row..][..channels],
            None => &past[(t + j) * channels..][..channels],
        };
        let mut c = 0;
        while c + V::N <= channels {
            let mut sum = V::load(&bias[c..]);
            for j in 0..width {
                sum = V::load(&taps[j * channels + c..]).fma(V::load(&input(j)[c..]), sum);
            }
            sum.store(&mut y[c..]);
            c += V::N;
        }
        for c in c..channels {
            y[c] = bias[c] + (0..width).map(|j| taps[j * channels + c] * input(j)[c]).sum::<f32>();
        }
    }
}

dispatch! { fn silu_all(y: &mut [f32]) = silu_body; }

#[inline(always)]
fn silu_body<V: Lanes>(y: &mut [f32]) {
    let mut chunks = y.chunks_exact_mut(V::N);
    for y in &mut chunks {
        V::load(y).silu().store(y);
    }
    let rest = chunks.into_remainder();
    V::load_part(rest).silu().store_part(rest);
}

dispatch! {
    /// Replaces each s by dy · SiLU′(s).
    fn silu_grad(s: &mut [f32], dy: &[f32]) = silu_grad_body;
}

#[inline(always)]
fn silu_grad_body<V: Lanes>(s: &mut [f32], dy: &[f32]) {
    let (mut s, mut dy) = (s.chunks_exact_mut(V::N), dy.chunks_exact(V::N));
    for (s, dy) in (&mut s).zip(&mut dy) {
        V::load(dy).mul(V::load(s).silu_slope()).store(s);
    }
    let (s, dy) = (s.into_remainder(), dy.remainder());
    V::load_part(dy).mul(V::load_part(s).silu_slope()).store_part(s);
}

dispatch! { fn mul_add(a: &[f32], b: &[f32], sum: &mut [f32]) = mul_add_body; }

#[inline(always)]
fn mul_add_body<V: Lanes>(a: &[f32], b: &[f32], sum: &mut [f32]) {
    let whole = sum.len() / V::N * V::N;
    for i in (0..whole).step_by(V::N) {
        V::load(&a[i..]).fma(V::load(&b[i..]), V::load(&sum[i..])).store(&mut sum[i..]);
    }
    for i in whole..sum.len() {
        sum[i] += a[i] * b[i];
    }
}

fn add(a: &[f32], sum: &mut [f32]) {
    for (sum, a) in sum.iter_mut().zip(a) {
        *sum += a;
    }
}
