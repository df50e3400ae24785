//! SiLU(a) · b, the gate of a feed-forward layer (Shazeer 2020), and its gradient.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Values of one task.
const TASK: usize = 1 << 14;

/// a ← SiLU(a) · b.
pub fn silu_product(a: &mut [f32], b: &[f32]) {
    if a.len() <= TASK {
        return forward(a, b);
    }
    a.par_chunks_mut(TASK).zip(b.par_chunks(TASK)).for_each(|(a, b)| forward(a, b));
}

/// Of y = SiLU(a) · b and the gradient `dy`: a ← da, b ← db.
pub fn silu_product_grad(a: &mut [f32], b: &mut [f32], dy: &[f32]) {
    let parts = a.par_chunks_mut(TASK).zip(b.par_chunks_mut(TASK)).zip(dy.par_chunks(TASK));
    parts.for_each(|((a, b), dy)| backward(a, b, dy));
}

/// The same of rows [a | b] of twice `width` values: `y` of `width` values a row, overwritten.
pub fn silu_halves(ab: &[f32], width: usize, y: &mut [f32]) {
    let rows = (TASK / width).max(1);
    let each = |(ab, y): (&[f32], &mut [f32])| {
        for (ab, y) in ab.chunks(2 * width).zip(y.chunks_mut(width)) {
            y.copy_from_slice(&ab[..width]);
            forward(y, &ab[width..]);
        }
    };
    if y.len() <= rows * width {
        return each((ab, y));
    }
    ab.par_chunks(2 * width * rows).zip(y.par_chunks_mut(width * rows)).for_each(each);
}

/// Of [`silu_halves`] and the gradient `dy`: rows [a | b] ← [da | db].
pub fn silu_halves_grad(ab: &mut [f32], width: usize, dy: &[f32]) {
    let rows = (TASK / width).max(1);
    ab.par_chunks_mut(2 * width * rows).zip(dy.par_chunks(width * rows)).for_each(|(ab, dy)| {
        for (ab, dy) in ab.chunks_mut(2 * width).zip(dy.chunks(width)) {
            let (a, b) = ab.split_at_mut(width);
            backward(a, b, dy);
        }
    });
}

dispatch! { fn forward(a: &mut [f32], b: &[f32]) = forward_body; }

#[inline(always)]
fn forward_body<V: Lanes>(a: &mut [f32], b: &[f32]) {
    let whole = a.len() / V::N * V::N;
    for at in (0..whole).step_by(V::N) {
        V::load(&a[at..]).silu().mul(V::load(&b[at..])).store(&mut a[at..]);
    }
    let (a, b) = (&mut a[whole..], &b[whole..]);
    if !a.is_empty() {
        V::load_part(a).silu().mul(V::load_part(b)).store_part(a);
    }
}

dispatch! { fn backward(a: &mut [f32], b: &mut [f32], dy: &[f32]) = backward_body; }

#[inline(always)]
fn backward_body<V: Lanes>(a: &mut [f32], b: &mut [f32], dy: &[f32]) {
    let whole = a.len() / V::N * V::N;
    for at in (0..whole).step_by(V::N) {
        let (x, y, d) = (V::load(&a[at..]), V::load(&b[at..]), V::load(&dy[at..]));
        d.mul(y).mul(x.silu_slope()).store(&mut a[at..]);
        d.mul(x.silu()).store(&mut b[at..]);
    }
    let (a, b, dy) = (&mut a[whole..], &mut b[whole..], &dy[whole..]);
    if !a.is_empty() {
        let (x, y, d) = (V::load_part(a), V::load_part(b), V::load_part(dy));
        d.mul(y).mul(x.silu_slope()).store_part(a);
        d.mul(x.silu()).store_part(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_rows_are_the_two_apart() {
        for (width, rows) in [(1, 1), (7, 5), (33, 1001)] {
            let ab: Vec<f32> = (0..2 * width * rows).map(|i| (i as f32 * 0.37).sin() * 2.0).collect();
            let dy: Vec<f32> = (0..width * rows).map(|i| (i as f32 * 0.11).cos()).collect();
            let half = |first: usize| -> Vec<f32> {
                ab.chunks(2 * width).flat_map(|row| row[first..first + width].to_vec()).collect()
            };
            let (mut a, mut b, mut y, mut dab) = (half(0), half(width), vec![f32::NAN; dy.len()], ab.clone());
            let mut apart = a.clone();
            silu_product(&mut apart, &b);
            silu_halves(&ab, width, &mut y);
            assert!(apart.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-6));
            silu_product_grad(&mut a, &mut b, &dy);
            silu_halves_grad(&mut dab, width, &dy);
            let rows = a.chunks(width).zip(b.chunks(width)).flat_map(|(a, b)| [a, b].concat());
            assert!(rows.zip(dab).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }

    #[test]
    fn the_gradient_is_the_slope() {
        for len in [1, 7, 8, 16, 33, 20_000] {
            let wave = |seed: usize| (0..len).map(move |i| ((i * 31 + seed * 17) % 101) as f32 / 25.0 - 2.0);
            let (a, b, dy): (Vec<f32>, Vec<f32>, Vec<f32>) =
                (wave(1).collect(), wave(2).collect(), wave(3).collect());
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let mut y = a.clone();
            silu_product(&mut y, &b);
            let (mut da, mut db) = (a.clone(), b.clone());
            silu_product_grad(&mut da, &mut db, &dy);
            for i in 0..len {
                let [x, g, d] = [a[i], b[i], dy[i]].map(f64::from);
                assert!((f64::from(y[i]) - silu(x) * g).abs() < 1e-6);
                let slope = (silu(x + 1e-5) - silu(x - 1e-5)) / 2e-5;
                assert!((f64::from(da[i]) - d * g * slope).abs() < 1e-5);
                assert!((f64::from(db[i]) - d * silu(x)).abs() < 1e-5);
            }
        }
    }
}
