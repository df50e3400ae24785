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
