//! ReLU(x)² (So et al. 2021), and its gradient.

use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Values of one task.
const TASK: usize = 1 << 14;

/// x ← max(x, 0)².
pub fn relu_squared(x: &mut [f32]) {
    if x.len() <= TASK {
        return forward(x);
    }
    x.par_chunks_mut(TASK).for_each(forward);
}

/// Of y = max(x, 0)²: dy ← 2 max(x, 0) dy.
pub fn relu_squared_grad(x: &[f32], dy: &mut [f32]) {
    x.par_chunks(TASK).zip(dy.par_chunks_mut(TASK)).for_each(|(x, dy)| backward(x, dy));
}

dispatch! { fn forward(x: &mut [f32]) = forward_body; }

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn forward_body<V: Lanes>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| {
        // A NaN stays one: `max` would take the zero.
        let up = if *x < 0.0 { 0.0 } else { *x };
        *x = up * up;
    });
}

dispatch! { fn backward(x: &[f32], dy: &mut [f32]) = backward_body; }

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn backward_body<V: Lanes>(x: &[f32], dy: &mut [f32]) {
    dy.iter_mut().zip(x).for_each(|(dy, x)| *dy *= 2.0 * x.max(0.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_the_slope() {
        let x: Vec<f32> = (0..40_000).map(|i| ((i * 31) % 101) as f32 / 25.0 - 2.0).collect();
        let (mut y, mut dx) = (x.clone(), vec![3.0; x.len()]);
        relu_squared(&mut y);
        relu_squared_grad(&x, &mut dx);
        for ((x, y), dx) in x.iter().zip(y).zip(dx) {
            let up = f64::from(*x).max(0.0);
            assert!((f64::from(y) - up * up).abs() < 1e-6 && (f64::from(dx) - 6.0 * up).abs() < 1e-6);
        }
        let mut broken = [f32::NAN];
        relu_squared(&mut broken);
        assert!(broken[0].is_nan());
    }
}
