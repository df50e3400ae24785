//! c · tanh(x / c): logits that stay within ±c.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Values of one task.
const TASK: usize = 1 << 14;

/// x ← c · tanh(x / c), as c · (1 − 2 / (e^(2x/c) + 1)): to c · 2⁻²³.
pub fn softcap(c: f32, x: &mut [f32]) {
    if x.len() <= TASK {
        return forward(c, x);
    }
    x.par_chunks_mut(TASK).for_each(|x| forward(c, x));
}

dispatch! { fn forward(c: f32, x: &mut [f32]) = forward_body; }

#[inline(always)]
fn forward_body<V: Lanes>(c: f32, x: &mut [f32]) {
    // Beyond 20 the tangent is 1 to the last bit, and e^x is not yet too large.
    let whole = x.len() / V::N * V::N;
    for at in (0..whole).step_by(V::N) {
        capped(c, V::load(&x[at..])).store(&mut x[at..]);
    }
    let x = &mut x[whole..];
    if !x.is_empty() {
        capped(c, V::load_part(x)).store_part(x);
    }
}

#[inline(always)]
fn capped<V: Lanes>(c: f32, x: V) -> V {
    let share = V::splat(2.0).div(x.mul(V::splat(2.0 / c)).exp().add(V::splat(1.0)));
    V::splat(1.0).sub(share).mul(V::splat(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_tangent() {
        let x: Vec<f32> = (0..40_001).map(|i| (i as f32 - 20_000.0) * 0.02).collect();
        let mut y = x.clone();
        softcap(30.0, &mut y);
        for (x, y) in x.iter().zip(y) {
            let exact = 30.0 * (f64::from(*x) / 30.0).tanh();
            assert!((f64::from(y) - exact).abs() < 6e-6, "{x}: {y} instead of {exact}");
        }
        let mut far = [1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        softcap(30.0, &mut far);
        assert!(far[..4] == [30.0, -30.0, 30.0, -30.0] && far[4].is_nan(), "{far:?}");
    }
}
