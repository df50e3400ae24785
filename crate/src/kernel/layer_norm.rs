//! LayerNorm (Ba, Kiros & Hinton 2016): y = (x − mean x) / √(var x + ε) · w + b over the channels, and its gradients.

use super::Scatter;
use super::norm::{ROWS, add, dot_body, each_block, sum_into};
use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// y = LayerNorm(x) for rows of `w.len()` values.
pub fn layer_norm(x: &[f32], (w, b): (&[f32], &[f32]), eps: f32, y: &mut [f32]) {
    let width = w.len();
    each_block(y, width, |first, y| norm_rows(&x[first * width..][..y.len()], w, b, eps, y));
}

/// x += y, then y = LayerNorm(x).
pub fn add_layer_norm(x: &mut [f32], (w, b): (&[f32], &[f32]), eps: f32, y: &mut [f32]) {
    let (width, x) = (w.len(), Scatter::new(x));
    each_block(y, width, |first, y| {
        // SAFETY: these rows belong to this task.
        let x = unsafe { x.slice(first * width, y.len()) };
        add(y, x);
        norm_rows(x, w, b, eps, y);
    });
}

/// Gradients of [`layer_norm`]: `dx` is overwritten, those of w and b, `dw` and `db`, are added to.
pub fn layer_norm_grad(
    x: &[f32],
    w: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    (dw, db): (&mut [f32], &mut [f32]),
) {
    let width = w.len();
    let parts: Vec<(Vec<f32>, Vec<f32>)> = dx
        .par_chunks_mut(ROWS * width)
        .enumerate()
        .map(|(i, dx)| {
            let at = i * ROWS * width;
            let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
            norm_rows_grad(&x[at..][..dx.len()], w, eps, &dy[at..][..dx.len()], dx, &mut dw, &mut db);
            (dw, db)
        })
        .collect();
    let (dws, dbs) = parts.into_iter().unzip();
    sum_into(dws, dw);
    sum_into(dbs, db);
}

/// The mean of a row, and 1 / √(var + ε).
#[inline(always)]
fn moments<V: Lanes>(x: &[f32], eps: f32) -> (f32, f32) {
    let (whole, count) = (x.len() / V::N * V::N, x.len() as f32);
    let mut sum = V::splat(0.0);
    for at in (0..whole).step_by(V::N) {
        sum = sum.add(V::load(&x[at..]));
    }
    let mean = (sum.sum() + x[whole..].iter().sum::<f32>()) / count;
    let mut squares = V::splat(0.0);
    for at in (0..whole).step_by(V::N) {
        let far = V::load(&x[at..]).sub(V::splat(mean));
        squares = far.fma(far, squares);
    }
    let rest: f32 = x[whole..].iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, 1.0 / ((squares.sum() + rest) / count + eps).sqrt())
}

dispatch! { fn norm_rows(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) = norm_rows_body; }

#[inline(always)]
fn norm_rows_body<V: Lanes>(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    for (x, y) in x.chunks(w.len()).zip(y.chunks_mut(w.len())) {
        let (mean, scale) = moments::<V>(x, eps);
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
            *y = (x - mean) * scale * w + b;
        }
    }
}

dispatch! {
    /// With r = 1/√(var + ε), x̂ = r (x − mean) and g = dy · w: dw += dy · x̂, db += dy, dx = r (g − mean g − x̂ · mean(g · x̂)).
    fn norm_rows_grad(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32], db: &mut [f32]) = norm_rows_grad_body;
}

#[inline(always)]
fn norm_rows_grad_body<V: Lanes>(
    x: &[f32],
    w: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let width = w.len();
    let mut unit = vec![0.0; width];
    for ((x, dy), dx) in x.chunks(width).zip(dy.chunks(width)).zip(dx.chunks_mut(width)) {
        let (mean, scale) = moments::<V>(x, eps);
        for c in 0..width {
            unit[c] = (x[c] - mean) * scale;
            dx[c] = dy[c] * w[c];
            dw[c] += dy[c] * unit[c];
            db[c] += dy[c];
        }
        let along = dot_body::<V>(dx, &unit) / width as f32;
        let middle = dx.iter().sum::<f32>() / width as f32;
        for c in 0..width {
            dx[c] = scale * (dx[c] - middle - unit[c] * along);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Vec<f64> {
        let count = x.len() as f64;
        let mean = x.iter().sum::<f64>() / count;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        (0..x.len()).map(|c| (x[c] - mean) / (variance + eps).sqrt() * w[c] + b[c]).collect()
    }

    #[test]
    fn rows_have_their_mean_and_variance_and_gradients_their_slopes() {
        for (rows, width) in [(1, 7), (3, 24), (70, 33)] {
            let wave = |len: usize, seed: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * 31 + seed * 17) % 101) as f32 / 25.0 - 1.7).collect()
            };
            let [w, b] = [1, 2].map(|seed| wave(width, seed));
            let [x, dy] = [3, 4].map(|seed| wave(rows * width, seed));
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![f32::NAN; x.len()]);
            let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
            layer_norm(&x, (&w, &b), 1e-5, &mut y);
            layer_norm_grad(&x, &w, 1e-5, &dy, &mut dx, (&mut dw, &mut db));
            let (mut sum, mut after) = (x.iter().map(|x| x - 0.5).collect::<Vec<_>>(), vec![0.5; x.len()]);
            add_layer_norm(&mut sum, (&w, &b), 1e-5, &mut after);
            let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<f64>>();
            let (w, b) = (wide(&w), wide(&b));
            let (mut exact_dw, mut exact_db) = (vec![0.0; width], vec![0.0; width]);
            for row in 0..rows {
                let at = row * width..(row + 1) * width;
                let (x, dy) = (wide(&x[at.clone()]), wide(&dy[at.clone()]));
                let given = exact(&x, &w, &b, 1e-5);
                for c in 0..width {
                    assert!((f64::from(y[at.start + c]) - given[c]).abs() < 1e-5);
                    assert!((f64::from(after[at.start + c]) - given[c]).abs() < 1e-5);
                    let moved = |by: f64| {
                        let mut x = x.clone();
                        x[c] += by;
                        exact(&x, &w, &b, 1e-5).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
                    };
                    let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    assert!((f64::from(dx[at.start + c]) - slope).abs() < 2e-5 * (1.0 + slope.abs()));
                    exact_db[c] += dy[c];
                    exact_dw[c] += dy[c] * (given[c] - b[c]) / w[c];
                }
            }
            for c in 0..width {
                assert!((f64::from(db[c]) - exact_db[c]).abs() < 1e-4);
                assert!((f64::from(dw[c]) - exact_dw[c]).abs() < 1e-3 * (1.0 + exact_dw[c].abs()));
            }
        }
    }
}
