//! Causal depthwise convolution followed by SiLU: `y[t, c] = SiLU(bias[c] + Σ_j w[c, j] x[t − K + 1 + j, c])`.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Tokens of a task.
const BLOCK: usize = 32;

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
    if let (1, 4, (weight, [])) = (time, width, weight.as_chunks()) {
        for (b, (state, y)) in state.chunks_mut(4 * channels).zip(y.chunks_mut(channels)).enumerate() {
            one_token(&x[b * row..][..channels], weight, bias, state.as_chunks_mut().0, y);
        }
        return;
    }
    let taps = by_tap(shape, weight);
    // Sequences are cut into blocks of tokens: for every thread, and so that a block stays in cache.
    y.par_chunks_mut(time * channels).enumerate().for_each(|(b, y)| {
        let (x, past) = (&x[b * time * row..], history(shape, &state[b * channels * width..]));
        y.par_chunks_mut(BLOCK * channels).enumerate().for_each(|(i, y)| {
            convolve(channels, width, i * BLOCK, x, row, &past, &taps, bias, true, y);
        });
    });
    for (b, state) in state.chunks_mut(channels * width).enumerate() {
        advance(shape, &x[b * time * row..], state);
    }
}

/// [C, K] → [K, C]: neighbouring channels side by side.
pub(super) fn by_tap(shape: Shape, weight: &[f32]) -> Vec<f32> {
    let mut taps = vec![0.0; weight.len()];
    super::tile::transpose(shape.channels, shape.width, weight, shape.width, &mut taps, shape.channels);
    taps
}

/// The K − 1 inputs before the first token, [K − 1, C], from a state [C, K].
fn history(shape: Shape, state: &[f32]) -> Vec<f32> {
    let Shape { channels, width, .. } = shape;
    let mut past = vec![0.0; (width - 1) * channels];
    for (j, past) in past.chunks_mut(channels).enumerate() {
        for (c, past) in past.iter_mut().enumerate() {
            *past = state[c * width + j + 1];
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

dispatch! {
    /// One token of a sequence, four taps: `state` [C, 4] is moved on and is then the window itself.
    fn one_token(x: &[f32], weight: &[[f32; 4]], bias: &[f32], state: &mut [[f32; 4]], y: &mut [f32]) = one_token_body;
}

#[inline(always)]
fn one_token_body<V: Lanes>(
    x: &[f32],
    weight: &[[f32; 4]],
    bias: &[f32],
    state: &mut [[f32; 4]],
    y: &mut [f32],
) {
    for (((y, x), bias), (w, s)) in y.iter_mut().zip(x).zip(bias).zip(weight.iter().zip(state)) {
        *s = [s[1], s[2], s[3], *x];
        *y = *bias;
        for j in 0..4 {
            *y = V::fma_one(w[j], s[j], *y); // the steps of `convolve`: the same bits
        }
    }
    silu_all_body::<V>(y);
}

#[inline(always)]
fn silu_all_body<V: Lanes>(y: &mut [f32]) {
    let mut chunks = y.chunks_exact_mut(V::N);
    for y in &mut chunks {
        V::load(y).silu().store(y);
    }
    let rest = chunks.into_remainder();
    V::load_part(rest).silu().store_part(rest);
}

dispatch! {
    /// The tokens from `start` on, as many as `y` has rows; `past` [K − 1, C] comes before the first row of `x`. With or
    /// without the SiLU behind it.
    pub(super) fn convolve(channels: usize, width: usize, start: usize, x: &[f32], row: usize, past: &[f32], taps: &[f32], bias: &[f32], silu: bool, y: &mut [f32]) = convolve_body;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn convolve_body<V: Lanes>(
    channels: usize,
    width: usize,
    start: usize,
    x: &[f32],
    row: usize,
    past: &[f32],
    taps: &[f32],
    bias: &[f32],
    silu: bool,
    y: &mut [f32],
) {
    let input = |t: usize, j: usize| match (start + t + j).checked_sub(width - 1) {
        Some(t) => &x[t * row..][..channels],
        None => &past[(start + t + j) * channels..][..channels],
    };
    let whole = channels / V::N * V::N;
    for (t, y) in y.chunks_exact_mut(channels).enumerate() {
        if width == 4 {
            four_taps::<V>([input(t, 0), input(t, 1), input(t, 2), input(t, 3)], taps, bias, silu, y);
        } else {
            for c in (0..whole).step_by(V::N) {
                let mut sum = V::load(&bias[c..]);
                for j in 0..width {
                    sum = V::load(&taps[j * channels + c..]).fma(V::load(&input(t, j)[c..]), sum);
                }
                if silu {
                    sum = sum.silu();
                }
                sum.store(&mut y[c..]);
            }
        }
        for c in whole..channels {
            y[c] = bias[c];
            for j in 0..width {
                y[c] = V::fma_one(taps[j * channels + c], input(t, j)[c], y[c]);
            }
        }
        if silu {
            silu_all_body::<V>(&mut y[whole..]);
        }
    }
}

/// Whole vectors of one token, with the number of taps that models have.
#[inline(always)]
fn four_taps<V: Lanes>(x: [&[f32]; 4], taps: &[f32], bias: &[f32], silu: bool, y: &mut [f32]) {
    let channels = y.len();
    let (bias, x) = (&bias[..channels], x.map(|x| &x[..channels]));
    let taps: [&[f32]; 4] = std::array::from_fn(|j| &taps[j * channels..][..channels]);
    for c in (0..channels / V::N * V::N).step_by(V::N) {
        let mut sum = V::load(&bias[c..]);
        for j in 0..4 {
            sum = V::load(&taps[j][c..]).fma(V::load(&x[j][c..]), sum);
        }
        if silu {
            sum = sum.silu();
        }
        sum.store(&mut y[c..]);
    }
}
