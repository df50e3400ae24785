//! Values rounded to symmetric n-bit integers (or to bf16) and back.
//!
//! With scale s = max |x| / (2^{n−1} − 1): x ← s · round(x / s), ties to even. The integers lie within
//! ± (2^{n−1} − 1) by construction, so nothing is ever cut off.
//!
//! **Error feedback.** Where values are rounded again and again, what rounding took is given back the next time: q_t
//! = Q(x_t + e_{t−1}), e_t = x_t + e_{t−1} − q_t. A state that decays slowly needs it: an update below s/2 is
//! otherwise rounded away at every token, however many there are. The residual e may itself be rounded, with a scale
//! of its own: e_t = Q'(x_t + e_{t−1} − q_t). What that takes is lost, and is less by the ratio of the two scales.

use super::simd::{Lanes, dispatch};

dispatch! {
    /// Rounds `values`, which share one scale, to integers of `bits` (2 … 8) and back. The same bits on every
    /// processor, but for the sign of zeros.
    ///
    /// Values too small for a scale that is a normal number become zeros. NaN stays NaN and does not touch the others; an
    /// infinite value leaves no scale, and all become NaN.
    pub fn fake_int(values: &mut [f32], bits: u8) = fake_int_body;
}

dispatch! {
    /// [`fake_int`] with feedback: `error` (as many values) is added before and holds what rounding took after.
    pub fn fake_int_feedback(values: &mut [f32], error: &mut [f32], bits: u8) = fake_int_feedback_body;
}

dispatch! {
    /// The nearest bf16 of each value.
    pub(super) fn fake_bf16(values: &mut [f32]) = fake_bf16_body;
}

dispatch! {
    /// [`fake_bf16`] of `values`, which stay as they are.
    pub(super) fn nearest_bf16(values: &[f32], to: &mut [f32]) = nearest_bf16_body;
}

/// Rounds the values of a head's state once: to bf16 if `bits` are 16, else [`fake_int`].
pub fn fake_state(values: &mut [f32], bits: u8) {
    if bits == 16 { fake_bf16(values) } else { fake_int(values, bits) }
}

#[inline(always)]
fn fake_bf16_body<V: Lanes>(values: &mut [f32]) {
    let whole = values.len() / V::N * V::N;
    for x in values[..whole].chunks_exact_mut(V::N) {
        V::load(x).to_bf16().store(x);
    }
    let rest = &mut values[whole..];
    V::load_part(rest).to_bf16().store_part(rest);
}

#[inline(always)]
fn nearest_bf16_body<V: Lanes>(values: &[f32], to: &mut [f32]) {
    let whole = values.len() / V::N * V::N;
    for (x, to) in values[..whole].chunks_exact(V::N).zip(to.chunks_exact_mut(V::N)) {
        V::load(x).to_bf16().store(to);
    }
    V::load_part(&values[whole..]).to_bf16().store_part(&mut to[whole..]);
}

#[inline(always)]
fn fake_int_body<V: Lanes>(values: &mut [f32], bits: u8) {
    let whole = values.len() / V::N * V::N;
    let mut top = V::splat(0.0);
    for x in values[..whole].chunks_exact(V::N) {
        top = V::load(x).abs().max(top); // in this order NaN is passed over
    }
    top = V::load_part(&values[whole..]).abs().max(top);
    let scale = top.largest() / ((1_u32 << (bits - 1)) - 1) as f32;
    if scale < f32::MIN_POSITIVE {
        for x in values {
            *x *= 0.0;
        }
        return;
    }
    let scale = V::splat(scale);
    for x in values[..whole].chunks_exact_mut(V::N) {
        V::load(x).div(scale).round().mul(scale).store(x);
    }
    let rest = &mut values[whole..];
    V::load_part(rest).div(scale).round().mul(scale).store_part(rest);
}

#[inline(always)]
fn fake_int_feedback_body<V: Lanes>(values: &mut [f32], error: &mut [f32], bits: u8) {
    for (x, e) in values.iter_mut().zip(error.iter_mut()) {
        *x += *e;
        *e = *x;
    }
    fake_int_body::<V>(values, bits);
    for (x, e) in values.iter().zip(error) {
        *e -= x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one value after the other.
    fn definition(values: &[f32], bits: u8) -> Vec<f32> {
        let top = values.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        let scale = top / (2_f32.powi(i32::from(bits) - 1) - 1.0);
        values.iter().map(|x| if top == 0.0 { 0.0 } else { (x / scale).round_ties_even() * scale }).collect()
    }

    #[test]
    fn rounding_is_its_definition() {
        for bits in 2..=8 {
            let limit = 2_f32.powi(i32::from(bits) - 1) - 1.0;
            for len in 0..70 {
                let wave: Vec<f32> = (0..len).map(|i| (i as f32 * 1.7).sin() * 3.3).collect();
                // All multiples of ½ with scale 1: every second value is a tie.
                let ties: Vec<f32> = (0..len).map(|i| limit - 0.5 * i as f32 % (2.0 * limit)).collect();
                for values in [wave, ties, vec![0.0; len]] {
                    let expected = definition(&values, bits);
                    for run in [fake_int, fake_int_body::<[f32; 8]>] {
                        let mut found = values.clone();
                        run(&mut found, bits);
                        assert_eq!(found, expected, "{bits} bits of {values:?}");
                    }
                }
            }
        }
        let mut ties = [7.0, 0.5, 1.5, -0.5, -1.5, -2.5];
        fake_int(&mut ties, 4);
        assert_eq!(ties, [7.0, 0.0, 2.0, 0.0, -2.0, -2.0]);
    }

    #[test]
    fn sixteen_bits_are_bf16() {
        for len in 0..40 {
            let values: Vec<f32> = (0..len).map(|i| (i as f32 * 1.7).sin() * 3.3).collect();
            let expected: Vec<f32> = values.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
            let mut found = values;
            fake_state(&mut found, 16);
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn odd_values_neither_spread_nor_vanish() {
        let rounded = |mut values: Vec<f32>| {
            fake_int(&mut values, 8);
            values
        };
        let with_nan = rounded(vec![f32::NAN, 127.0, 1.2]);
        assert!(with_nan[0].is_nan() && with_nan[1..] == [127.0, 1.0], "{with_nan:?}");
        assert!(rounded(vec![f32::INFINITY, 1.0]).iter().all(|x| x.is_nan()));
        assert_eq!(rounded(vec![1e-45, -1e-40]), [0.0, 0.0]);
    }

    #[test]
    fn feedback_keeps_what_rounding_took() {
        let (mut values, mut error) = (vec![10.0, 0.3, -0.2], vec![0.0, 0.2, 0.0]);
        fake_int_feedback(&mut values, &mut error, 4);
        let scale = 10.0 / 7.0;
        assert_eq!(values, [10.0, 0.0, 0.0]);
        assert_eq!(error, [0.0, 0.5, -0.2], "below half of {scale}");
    }
}
