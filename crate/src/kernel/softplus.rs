//! Δ = ln(1 + e^(raw + bias)), held to a range: the step sizes of the recurrence; and one step for all channels, the mean of
//! theirs, with its gradient.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Rows of a task.
const ROWS: usize = 64;

/// `dt` [T, H], overwritten, from the last H values of each row of `raw` [T, `row`] and `bias` `[H]`.
pub fn step_sizes(raw: &[f32], row: usize, bias: &[f32], limit: (f32, f32), dt: &mut [f32]) {
    let heads = bias.len();
    let block = |(i, dt): (usize, &mut [f32])| {
        for (raw, dt) in raw[i * ROWS * row..].chunks(row).zip(dt.chunks_mut(heads)) {
            one_row(&raw[row - heads..], bias, limit, dt);
        }
    };
    if dt.len() <= ROWS * heads {
        block((0, dt))
    } else {
        dt.par_chunks_mut(ROWS * heads).enumerate().for_each(block)
    }
}

dispatch! { fn one_row(raw: &[f32], bias: &[f32], limit: (f32, f32), dt: &mut [f32]) = body; }

#[inline(always)]
fn body<V: Lanes>(raw: &[f32], bias: &[f32], limit: (f32, f32), dt: &mut [f32]) {
    let whole = dt.len() / V::N * V::N;
    for i in (0..whole).step_by(V::N) {
        softplus(V::load(&raw[i..]).add(V::load(&bias[i..])), limit).store(&mut dt[i..]);
    }
    let rest = whole..dt.len();
    let x = V::load_part(&raw[rest.clone()]).add(V::load_part(&bias[rest.clone()]));
    softplus(x, limit).store_part(&mut dt[rest]);
}

/// `mean` `[T]`, overwritten, of ln(1 + e^raw) over each row of `raw` [T, C].
pub fn mean_steps(raw: &[f32], mean: &mut [f32]) {
    let width = raw.len() / mean.len().max(1);
    let block = |(raw, mean): (&[f32], &mut [f32])| {
        raw.chunks(width).zip(mean).for_each(|(raw, mean)| *mean = sum_of_row(raw) / width as f32);
    };
    if mean.len() <= ROWS {
        block((raw, mean))
    } else {
        raw.par_chunks(ROWS * width).zip(mean.par_chunks_mut(ROWS)).for_each(block)
    }
}

/// Of [`mean_steps`] and the gradient `dmean` `[T]` of what it gave: `raw` becomes its gradient, σ(raw) · dmean / C.
pub fn mean_steps_grad(raw: &mut [f32], dmean: &[f32]) {
    let width = raw.len() / dmean.len().max(1);
    raw.par_chunks_mut(width).zip(dmean).for_each(|(raw, dmean)| slopes_of_row(dmean / width as f32, raw));
}

dispatch! { fn sum_of_row(raw: &[f32]) -> f32 = sum_body; }

#[inline(always)]
fn sum_body<V: Lanes>(raw: &[f32]) -> f32 {
    let all = (0.0, f32::INFINITY);
    let (mut sum, whole) = (V::splat(0.0), raw.len() / V::N * V::N);
    for at in (0..whole).step_by(V::N) {
        sum = sum.add(softplus(V::load(&raw[at..]), all));
    }
    let rest = &raw[whole..];
    let mut last = [0.0; 16];
    softplus(V::load_part(rest), all).store_part(&mut last[..rest.len()]);
    sum.sum() + last.iter().sum::<f32>()
}

dispatch! { fn slopes_of_row(factor: f32, raw: &mut [f32]) = slopes_body; }

#[inline(always)]
fn slopes_body<V: Lanes>(factor: f32, raw: &mut [f32]) {
    let (factor, one, zero) = (V::splat(factor), V::splat(1.0), V::splat(0.0));
    let whole = raw.len() / V::N * V::N;
    for at in (0..whole).step_by(V::N) {
        factor.div(one.add(zero.sub(V::load(&raw[at..])).exp())).store(&mut raw[at..]);
    }
    let raw = &mut raw[whole..];
    if !raw.is_empty() {
        factor.div(one.add(zero.sub(V::load_part(raw)).exp())).store_part(raw);
    }
}

/// max(x, 0) + ln(1 + e^−|x|); with s = t / (2 + t) ≤ ⅓, ln(1 + t) = 2 (s + s³/3 + s⁵/5 + …). NaN stays NaN.
#[inline(always)]
pub(super) fn softplus<V: Lanes>(x: V, (low, high): (f32, f32)) -> V {
    let t = V::splat(0.0).sub(x.abs()).exp();
    let s = t.div(V::splat(2.0).add(t));
    let square = s.mul(s);
    let mut series = V::splat(2.0 / 13.0);
    for odd in [11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series.fma(square, V::splat(2.0 / odd));
    }
    // Of a number and NaN the second is taken.
    let step = s.fma(series, V::splat(0.0).max(x));
    V::splat(high).min(V::splat(low).max(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_is_no_number_stays_none() {
        for heads in [1, 8, 24, 35] {
            let mut raw = vec![0.5; heads];
            raw[heads / 2] = f32::NAN;
            let (bias, limit) = (vec![0.0; heads], (0.0, f32::INFINITY));
            for run in [one_row, body::<[f32; 8]>] {
                let mut dt = vec![0.0; heads];
                run(&raw, &bias, limit, &mut dt);
                let odd: Vec<usize> = (0..heads).filter(|i| dt[*i].is_nan()).collect();
                assert_eq!(odd, [heads / 2]);
            }
        }
    }

    #[test]
    fn steps_are_the_logarithm_held_to_the_range() {
        for (heads, limit) in [(1, (0.0, f32::INFINITY)), (24, (0.0, f32::INFINITY)), (35, (0.02, 0.8))] {
            let row = heads + 3;
            let raw: Vec<f32> = (0..70 * row).map(|i| ((i * 7919) % 2003) as f32 / 20.0 - 50.0).collect();
            let bias: Vec<f32> = (0..heads).map(|i| i as f32 * 0.1 - 1.0).collect();
            let mut dt = vec![0.0; 70 * heads];
            step_sizes(&raw, row, &bias, limit, &mut dt);
            for (i, dt) in dt.iter().enumerate() {
                let x = f64::from(raw[i / heads * row + 3 + i % heads] + bias[i % heads]);
                let exact = x.exp().ln_1p().clamp(limit.0.into(), limit.1.into());
                assert!((f64::from(*dt) - exact).abs() <= 5e-7 * exact, "{x}: {dt}, not {exact}");
            }
        }
    }

    #[test]
    fn one_step_is_the_mean_of_all_channels() {
        for (time, width) in [(1, 1), (3, 40), (150, 33)] {
            let raw: Vec<f32> =
                (0..time * width).map(|i| ((i * 7919) % 2003) as f32 / 100.0 - 10.0).collect();
            let dmean: Vec<f32> = (0..time).map(|t| t as f32 * 0.3 - 1.0).collect();
            let (mut mean, mut draw) = (vec![0.0; time], raw.clone());
            mean_steps(&raw, &mut mean);
            mean_steps_grad(&mut draw, &dmean);
            for (t, raw) in raw.chunks(width).enumerate() {
                let exact: f64 = raw.iter().map(|x| f64::from(*x).exp().ln_1p()).sum::<f64>() / width as f64;
                assert!((f64::from(mean[t]) - exact).abs() < 1e-6 * (1.0 + exact));
                for (c, x) in raw.iter().enumerate() {
                    let slope = f64::from(dmean[t]) / width as f64 / (1.0 + (-f64::from(*x)).exp());
                    assert!((f64::from(draw[t * width + c]) - slope).abs() < 1e-6);
                }
            }
        }
    }
}
