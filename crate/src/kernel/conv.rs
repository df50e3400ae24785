//! Causal depthwise convolution followed by SiLU: `y[t, c] = SiLU(bias[c] + Σ_j w[c, j] x[t − K + 1 + j, c])`.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens of a task.
const BLOCK: usize = 32;
/// Tokens whose gradients are made together: each is a stream that the processor fetches ahead.
const GRAD_BLOCK: usize = 16;

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
    let Shape { time, channels, width, row, .. } = shape;
    let taps = by_tap(shape, weight);
    let sequences = dx.par_chunks_mut(time * row).zip(x.par_chunks(time * row));
    let parts = sequences.zip(dy.par_chunks(time * channels)).map(|((dx, x), dy)| {
        let (mut dtaps, mut db) = (vec![0.0; width * channels], vec![0.0; channels]);
        match width {
            4 => four_taps_grad(channels, x, row, &taps, bias, dy, dx, &mut dtaps, &mut db),
            _ => any_taps_grad(shape, x, &taps, bias, dy, dx, &mut dtaps, &mut db),
        }
        (dtaps, db)
    });
    for (dtaps, db) in parts.collect::<Vec<(Vec<f32>, Vec<f32>)>>() {
        add(&db, dbias);
        for tap in 0..width {
            for c in 0..channels {
                dweight[c * width + tap] += dtaps[tap * channels + c];
            }
        }
    }
}

/// One sequence, with any number of taps: dx (overwritten), dtaps [K, C] and db (added to).
#[allow(clippy::too_many_arguments)]
fn any_taps_grad(
    shape: Shape,
    x: &[f32],
    taps: &[f32],
    bias: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dtaps: &mut [f32],
    db: &mut [f32],
) {
    let Shape { time, channels, width, row, .. } = shape;
    let past = vec![0.0; (width - 1) * channels];
    let mut ds = vec![0.0; time * channels];
    convolve(channels, width, 0, x, row, &past, taps, bias, false, &mut ds);
    silu_grad(&mut ds, dy);
    for t in 0..time {
        let dx = &mut dx[t * row..][..channels];
        dx.fill(0.0);
        for j in 0..width.min(time - t) {
            let tap = width - 1 - j;
            mul_add(&ds[(t + j) * channels..][..channels], &taps[tap * channels..][..channels], dx);
        }
        let ds = &ds[t * channels..][..channels];
        add(ds, db);
        for tap in 0..width {
            if let Some(past) = (t + tap).checked_sub(width - 1) {
                mul_add(ds, &x[past * row..][..channels], &mut dtaps[tap * channels..][..channels]);
            }
        }
    }
}

dispatch! {
    /// [`any_taps_grad`] with the number of taps that models have, in one pass.
    fn four_taps_grad(channels: usize, x: &[f32], row: usize, taps: &[f32], bias: &[f32], dy: &[f32], dx: &mut [f32], dtaps: &mut [f32], db: &mut [f32]) = four_taps_grad_body;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn four_taps_grad_body<V: Lanes>(
    channels: usize,
    x: &[f32],
    row: usize,
    taps: &[f32],
    bias: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dtaps: &mut [f32],
    db: &mut [f32],
) {
    let (time, whole) = (dy.len() / channels, channels / V::N * V::N);
    let mut recent = vec![0.0; 3 * channels];
    // Down the tokens of a block with all sums in registers; the block keeps what it reads in cache.
    for first in (0..time).step_by(GRAD_BLOCK) {
        let tokens = first..(first + GRAD_BLOCK).min(time);
        for c in (0..whole).step_by(V::N) {
            let at = Column { channels, row, first: c, width: V::N };
            four_taps_down::<V>(at, tokens.clone(), x, taps, bias, dy, dx, dtaps, db, &mut recent);
        }
        if whole < channels {
            let at = Column { channels, row, first: whole, width: channels - whole };
            four_taps_down::<V>(at, tokens, x, taps, bias, dy, dx, dtaps, db, &mut recent);
        }
    }
}

/// Some neighbouring channels, at most a vector.
#[derive(Clone, Copy)]
struct Column {
    channels: usize,
    row: usize,
    first: usize,
    width: usize,
}

impl Column {
    /// Those of row `t` of rows `row` apart.
    #[inline(always)]
    fn load<V: Lanes>(self, from: &[f32], t: usize, row: usize) -> V {
        let from = &from[t * row + self.first..][..self.width];
        if self.width == V::N { V::load(from) } else { V::load_part(from) }
    }

    #[inline(always)]
    fn store<V: Lanes>(self, values: V, to: &mut [f32], t: usize, row: usize) {
        let to = &mut to[t * row + self.first..][..self.width];
        if self.width == V::N { values.store(to) } else { values.store_part(to) }
    }
}

/// `tokens` of some channels. `recent` [3, C] holds the gradients of the last sums before them, the latest first.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn four_taps_down<V: Lanes>(
    at: Column,
    tokens: Range<usize>,
    x: &[f32],
    taps: &[f32],
    bias: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dtaps: &mut [f32],
    db: &mut [f32],
    recent: &mut [f32],
) {
    let (Column { channels, row, .. }, zero) = (at, V::splat(0.0));
    let (mut w, mut dw, mut ds, mut window) = ([zero; 4], [zero; 4], [zero; 4], [zero; 4]);
    for j in 0..4 {
        (w[j], dw[j]) = (at.load(taps, j, channels), at.load(dtaps, j, channels));
    }
    for j in 0..3 {
        ds[j + 1] = at.load(recent, j, channels);
        // The three inputs before the first token, the oldest first.
        if let Some(t) = (tokens.start + j).checked_sub(3) {
            window[j + 1] = at.load(x, t, row);
        }
    }
    let (bias, mut sum) = (at.load::<V>(bias, 0, channels), at.load::<V>(db, 0, channels));
    for t in tokens.clone() {
        window = [window[1], window[2], window[3], at.load(x, t, row)];
        let mut s = bias;
        for j in 0..4 {
            s = w[j].fma(window[j], s); // the steps of `convolve`
        }
        ds[0] = at.load::<V>(dy, t, channels).mul(s.silu_slope());
        for j in 0..4 {
            dw[j] = ds[0].fma(window[j], dw[j]);
        }
        sum = sum.add(ds[0]);
        if let Some(t) = t.checked_sub(3) {
            at.store(all_taps(w, ds), dx, t, row);
        }
        ds = [zero, ds[0], ds[1], ds[2]];
    }
    if tokens.end * channels == dy.len() {
        // The last inputs reach beyond the end with some of their taps.
        for t in tokens.end..tokens.end + 3 {
            if let Some(t) = t.checked_sub(3) {
                at.store(all_taps(w, ds), dx, t, row);
            }
            ds = [zero, ds[0], ds[1], ds[2]];
        }
    }
    for (j, dw) in dw.into_iter().enumerate() {
        at.store(dw, dtaps, j, channels);
    }
    for (j, ds) in ds[1..].iter().enumerate() {
        at.store(*ds, recent, j, channels);
    }
    at.store(sum, db, 0, channels);
}

/// What an input gets from the four sums that it is part of, the latest first.
#[inline(always)]
fn all_taps<V: Lanes>(w: [V; 4], ds: [V; 4]) -> V {
    w[3].mul(ds[3]).add(w[2].mul(ds[2])).add(w[1].fma(ds[1], w[0].mul(ds[0])))
}

/// [C, K] → [K, C]: neighbouring channels side by side.
fn by_tap(shape: Shape, weight: &[f32]) -> Vec<f32> {
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
    fn convolve(channels: usize, width: usize, start: usize, x: &[f32], row: usize, past: &[f32], taps: &[f32], bias: &[f32], silu: bool, y: &mut [f32]) = convolve_body;
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
