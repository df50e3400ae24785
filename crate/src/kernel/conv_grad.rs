//! The gradients of the convolution with SiLU, from a zero state.

use super::conv::{Shape, by_tap, convolve};
use super::norm::add;
use super::simd::{Lanes, dispatch};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose gradients are made together: each is a stream that the processor fetches ahead.
const BLOCK: usize = 16;

/// The gradients of [`conv_silu`](super::conv::conv_silu) from a zero state: `dx` (rows `row` apart, overwritten), `dweight`
/// and `dbias` (added to).
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
    for first in (0..time).step_by(BLOCK) {
        let tokens = first..(first + BLOCK).min(time);
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
