//! The decays of gated linear attention, a = σ(x)^(1/16), and the gradient of their logarithms (Yang et al. 2023, section 4.4).

use super::simd::{Lanes, dispatch};
use super::softplus::softplus;
use rayon::prelude::*;

/// Values of one task.
const TASK: usize = 1 << 13;
/// By which the logarithm of a gate is divided, so that channels begin by forgetting slowly.
const NORMALIZER: f32 = 16.0;

/// x → a = e^max(ln σ(x) / 16, least).
pub fn decays(x: &mut [f32], least: f32) {
    match x.len() <= TASK {
        true => forward(x, least),
        false => x.par_chunks_mut(TASK).for_each(|x| forward(x, least)),
    }
}

/// The gradient of ln a → that of `x`: none where `least` holds.
pub fn decays_grad(x: &[f32], least: f32, grad: &mut [f32]) {
    grad.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(grad, x)| backward(x, least, grad));
}

dispatch! { fn forward(x: &mut [f32], least: f32) = forward_body; }

#[inline(always)]
fn forward_body<V: Lanes>(x: &mut [f32], least: f32) {
    let mut whole = x.chunks_exact_mut(V::N);
    for x in &mut whole {
        logarithm::<V>(V::load(x), least).exp().store(x);
    }
    let rest = whole.into_remainder();
    if !rest.is_empty() {
        logarithm::<V>(V::load_part(rest), least).exp().store_part(rest);
    }
}

/// max(ln σ(x) / 16, least), where ln σ(x) = −ln(1 + e^−x).
#[inline(always)]
fn logarithm<V: Lanes>(x: V, least: f32) -> V {
    let zero = V::splat(0.0);
    let log = zero.sub(softplus(zero.sub(x), (0.0, f32::INFINITY)));
    // Of a number and NaN the second is taken.
    V::splat(least).max(log.mul(V::splat(1.0 / NORMALIZER)))
}

dispatch! { fn backward(x: &[f32], least: f32, grad: &mut [f32]) = backward_body; }

#[inline(always)]
fn backward_body<V: Lanes>(x: &[f32], least: f32, grad: &mut [f32]) {
    let (mut whole, mut of) = (grad.chunks_exact_mut(V::N), x.chunks_exact(V::N));
    for (grad, x) in (&mut whole).zip(&mut of) {
        slope::<V>(V::load(x), least).mul(V::load(grad)).store(grad);
    }
    let rest = whole.into_remainder();
    if !rest.is_empty() {
        slope::<V>(V::load_part(of.remainder()), least).mul(V::load_part(rest)).store_part(rest);
    }
}

/// The derivative of [`logarithm`]: σ(−x) / 16 where it is above `least`.
#[inline(always)]
fn slope<V: Lanes>(x: V, least: f32) -> V {
    let share = V::splat(0.0).sub(x).sigmoid().mul(V::splat(1.0 / NORMALIZER));
    if least == f32::NEG_INFINITY {
        return share;
    }
    // 1 where there is any distance above the least, else 0.
    let above = logarithm::<V>(x, least).sub(V::splat(least));
    share.mul(V::splat(1.0).min(above.mul(V::splat(f32::MAX))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decays_and_their_slope_are_the_definition() {
        let x: Vec<f32> = (0..1003).map(|i| i as f32 * 0.1 - 50.0).collect();
        for least in [f32::NEG_INFINITY, -0.05] {
            let log = |x: f64| (-(-x).exp().ln_1p() / 16.0).max(f64::from(least));
            let (mut a, mut grad) = (x.clone(), vec![2.0; x.len()]);
            decays(&mut a, least);
            decays_grad(&x, least, &mut grad);
            let mut plain = x.clone();
            forward_body::<[f32; 8]>(&mut plain, least);
            for (((x, a), grad), plain) in x.iter().zip(a).zip(grad).zip(plain) {
                let x = f64::from(*x);
                let exact = log(x).exp();
                assert!((f64::from(a) - exact).abs() < 1e-6 * exact, "{x}: {a}, not {exact}");
                assert!((f64::from(plain) - exact).abs() < 1e-6 * exact);
                let slope = (log(x + 1e-4) - log(x - 1e-4)) / 1e-4;
                assert!((f64::from(grad) - slope).abs() < 1e-5, "{x}: {grad}, not {slope}");
            }
        }
    }
}
