//! GELU (Hendrycks & Gimpel 2016) by the error function, x · Φ(x) with Φ the normal distribution, and its gradient.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Values of one task.
const TASK: usize = 1 << 14;

/// x ← x · Φ(x).
pub fn gelu(x: &mut [f32]) {
    if x.len() <= TASK {
        return forward(x);
    }
    x.par_chunks_mut(TASK).for_each(forward);
}

/// Of y = x · Φ(x): dy ← (Φ(x) + x · φ(x)) dy, with φ the density.
pub fn gelu_grad(x: &[f32], dy: &mut [f32]) {
    x.par_chunks(TASK).zip(dy.par_chunks_mut(TASK)).for_each(|(x, dy)| backward(x, dy));
}

/// Φ(x) = ½ erfc(−x/√2), with erfc(z) = t · e^(−z² + P(t)), t = 1 / (1 + z/2), for z ≥ 0 and 2 − erfc(−z) below: to 1.2 · 10⁻⁷ of
/// its value (Press et al., Numerical Recipes, section 6.2). Also e^(−x²/2).
#[inline(always)]
fn distribution<V: Lanes>(x: V) -> (V, V) {
    let (zero, half, one) = (V::splat(0.0), V::splat(0.5), V::splat(1.0));
    let z = x.abs().mul(V::splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = one.div(z.fma(half, one));
    let mut series = V::splat(0.170_872_8);
    for term in [
        -0.822_152_2,
        1.488_515_9,
        -1.135_204,
        0.278_868_1,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ] {
        series = series.fma(t, V::splat(term));
    }
    let square = zero.sub(z.mul(z));
    let tail = half.mul(t).mul(square.add(series).exp()); // Φ(−|x|)
    // Where x > 0: 1 − tail; else tail. Near 0, where both are ½, anything between the two. A NaN stays one.
    let above = one.min(zero.max(x).mul(V::splat(1e30)));
    (above.fma(one.sub(tail).sub(tail), tail), square.exp())
}

dispatch! { fn forward(x: &mut [f32]) = forward_body; }

#[inline(always)]
fn forward_body<V: Lanes>(x: &mut [f32]) {
    let whole = x.len() / V::N * V::N;
    for at in (0..whole).step_by(V::N) {
        let v = V::load(&x[at..]);
        v.mul(distribution(v).0).store(&mut x[at..]);
    }
    let x = &mut x[whole..];
    if !x.is_empty() {
        let v = V::load_part(x);
        v.mul(distribution(v).0).store_part(x);
    }
}

dispatch! { fn backward(x: &[f32], dy: &mut [f32]) = backward_body; }

#[inline(always)]
fn backward_body<V: Lanes>(x: &[f32], dy: &mut [f32]) {
    // 1/√(2π).
    let height = V::splat(0.398_942_3);
    let whole = x.len() / V::N * V::N;
    for at in (0..whole).step_by(V::N) {
        let (v, d) = (V::load(&x[at..]), V::load(&dy[at..]));
        let (share, bell) = distribution(v);
        v.mul(bell).fma(height, share).mul(d).store(&mut dy[at..]);
    }
    let (x, dy) = (&x[whole..], &mut dy[whole..]);
    if !x.is_empty() {
        let (v, d) = (V::load_part(x), V::load_part(dy));
        let (share, bell) = distribution(v);
        v.mul(bell).fma(height, share).mul(d).store_part(dy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Φ(x) by the series of the error function, which converges everywhere, in f64.
    fn exact(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    #[test]
    fn values_and_slopes_are_those_of_the_distribution() {
        let x: Vec<f32> = (0..40_003).map(|i| (i as f32 - 20_000.0) * 3e-4).collect();
        let (mut y, mut slope) = (x.clone(), vec![1.0; x.len()]);
        gelu(&mut y);
        gelu_grad(&x, &mut slope);
        for ((x, y), slope) in x.iter().zip(y).zip(slope) {
            let wide = f64::from(*x);
            let share = exact(wide);
            assert!((f64::from(y) - wide * share).abs() < 1e-6 * (0.1 + wide.abs()), "{x}: {y}");
            let density = (-wide * wide / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(slope) - share - wide * density).abs() < 1e-6, "{x}: {slope}");
        }
        let mut far = [40.0, -40.0, 0.0, f32::NAN, 1e30];
        gelu(&mut far);
        assert!(far[0] == 40.0 && far[1].abs() < 1e-30 && far[2] == 0.0 && far[3].is_nan() && far[4] == 1e30);
    }
}
