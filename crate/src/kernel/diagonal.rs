//! Products with diagonal matrices: rows of a stream, each channel by a weight of its own, or all by one; and their gradients.

use super::simd::{Lanes, dispatch};

dispatch! {
    /// x ← w ⊙ x for rows of `w.len()` values.
    pub fn scale(w: &[f32], x: &mut [f32]) = scale_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn scale_body<V: Lanes>(w: &[f32], x: &mut [f32]) {
    for x in x.chunks_mut(w.len()) {
        x.iter_mut().zip(w).for_each(|(x, w)| *x *= w);
    }
}

dispatch! {
    /// x ← x + w ⊙ y for rows of `w.len()` values.
    pub fn add_scaled(w: &[f32], y: &[f32], x: &mut [f32]) = add_scaled_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn add_scaled_body<V: Lanes>(w: &[f32], y: &[f32], x: &mut [f32]) {
    for (x, y) in x.chunks_mut(w.len()).zip(y.chunks(w.len())) {
        x.iter_mut().zip(y).zip(w).for_each(|((x, y), w)| *x += w * y);
    }
}

dispatch! {
    /// dw ← dw + Σ dy ⊙ x over rows of `dw.len()` values: the gradient of the weights of y = w ⊙ x.
    pub fn weight_grad(x: &[f32], dy: &[f32], dw: &mut [f32]) = weight_grad_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn weight_grad_body<V: Lanes>(x: &[f32], dy: &[f32], dw: &mut [f32]) {
    for (x, dy) in x.chunks(dw.len()).zip(dy.chunks(dw.len())) {
        dw.iter_mut().zip(x).zip(dy).for_each(|((dw, x), dy)| *dw += x * dy);
    }
}

dispatch! {
    /// x ← factor · x.
    pub fn multiply(factor: f32, x: &mut [f32]) = multiply_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn multiply_body<V: Lanes>(factor: f32, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x *= factor);
}

dispatch! {
    /// y ← y + factor · x.
    pub fn add_times(factor: f32, x: &[f32], y: &mut [f32]) = add_times_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn add_times_body<V: Lanes>(factor: f32, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_its_weight() {
        let (w, y) = ([2.0, -1.0, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut x = [1.0; 6];
        add_scaled(&w, &y, &mut x);
        assert_eq!(x, [3.0, -1.0, 2.5, 9.0, -4.0, 4.0]);
        scale(&w, &mut x);
        assert_eq!(x, [6.0, 1.0, 1.25, 18.0, 4.0, 2.0]);
        let mut dw = [1.0; 3];
        weight_grad(&y, &x, &mut dw);
        assert_eq!(dw, [1.0 + 6.0 + 72.0, 1.0 + 2.0 + 20.0, 1.0 + 3.75 + 12.0]);
    }
}
