//! Values rounded to symmetric n-bit integers (or to bf16) and back, and the recurrence that keeps its state in the first.
//!
//! With scale s = max |x| / (2^{n−1} − 1): x ← s · round(x / s), ties to even. The integers lie within
//! ± (2^{n−1} − 1) by construction, so nothing is ever cut off.
//!
//! **Error feedback.** Where values are rounded again and again, what rounding took is given back the next time: q_t
//! = Q(x_t + e_{t−1}), e_t = x_t + e_{t−1} − q_t. A state that decays slowly needs it: an update below s/2 is
//! otherwise rounded away at every token, however many there are. The residual e may itself be rounded, with a scale
//! of its own: e_t = Q'(x_t + e_{t−1} − q_t). What that takes is lost, and is less by the ratio of the two scales.

use super::Scatter;
use super::scan::{Shape, each_token};
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

/// [`scan::recurrent`](super::scan::recurrent) with the state rounded to integers after every token, with one scale for each
/// (sequence, head). The next token reads the rounded state; y_t reads h_t as it is before rounding.
///
/// `feedback`, if given, is the error feedback of integers: the residual [B, H, P, N] before the first token and, on
/// return, after the last; and the bits that it is rounded to after every token, if it is, with a scale for each
/// (sequence, head).
pub fn recurrent_rounded(
    shape: Shape,
    xbc: &[f32],
    dt: &[f32],
    a: &[f32],
    d: &[f32],
    h: &mut [f32],
    y: &mut [f32],
    bits: u8,
    feedback: Option<(&mut [f32], Option<u8>)>,
) {
    let size = shape.head_dim * shape.state;
    match feedback.map(|(error, bits)| (Scatter::new(error), bits)) {
        None => each_token(shape, xbc, dt, a, d, h, y, |_, h| fake_int(h, bits)),
        Some((error, residual)) => each_token(shape, xbc, dt, a, d, h, y, |index, h| {
            // SAFETY: every (sequence, head) has its own P·N values.
            let error = unsafe { error.slice(index * size, size) };
            fake_int_feedback(h, error, bits);
            if let Some(bits) = residual {
                fake_int(error, bits);
            }
        }),
    }
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

    /// One head that keeps .999 of its state, P = 1 and N = 2: a large value that holds itself, and with it the scale,
    /// at 100, and a small one that grows to 20 in steps of at most .02, far below half of the scale.
    fn small_steps(bits: Option<u8>, feedback: Option<(&mut [f32], Option<u8>)>) -> Vec<f32> {
        const TIME: usize = 12_000;
        let shape = Shape { batch: 1, time: TIME, heads: 1, head_dim: 1, groups: 1, state: 2, out: 1 };
        let xbc = [1.0, 0.1, 0.02, 0.0, 1.0].repeat(TIME); // x, B, C: y is the small value
        let (dt, a, d) = (vec![1.0; TIME], [0.999_f32.ln()], [0.0]);
        let (mut h, mut y) = (vec![100.0, 0.0], vec![0.0; TIME]);
        match bits {
            Some(bits) => {
                recurrent_rounded(shape, &xbc, &dt, &a, &d, &mut h, &mut y, bits, feedback);
            }
            None => super::super::scan::recurrent(shape, &xbc, &dt, &a, &d, &mut h, &mut y),
        }
        y
    }

    #[test]
    fn feedback_follows_a_state_that_plain_rounding_stalls() {
        let mean = |y: &[f32]| y[8_000..].iter().sum::<f32>() / 4_000.0;
        let exact = mean(&small_steps(None, None));
        let stalled = mean(&small_steps(Some(8), None));
        let mut error = [0.0; 2];
        let followed = mean(&small_steps(Some(8), Some((&mut error[..], None))));
        // A residual in 8 bits rounds away steps below 1 / 254 of half of the state's scale, and these are larger.
        let coarsely = mean(&small_steps(Some(8), Some((&mut [0.0; 2][..], Some(8)))));
        assert!((exact - 20.0).abs() < 0.1, "{exact}");
        assert!((stalled - 0.02).abs() < 1e-6, "the last update alone, not {stalled}");
        assert!((followed - exact).abs() < 0.1, "{followed} of {exact}");
        assert!((coarsely - exact).abs() < 0.5, "{coarsely} of {exact}");
        assert!(error.iter().all(|e| e.abs() <= 50.1 / 127.0), "{error:?}");
    }

    /// The recurrence with a residual in few bits against the definition: token by token, one value after the other.
    #[test]
    fn a_rounded_residual_is_its_definition() {
        const TIME: usize = 40;
        let shape = Shape { batch: 2, time: TIME, heads: 3, head_dim: 5, groups: 1, state: 7, out: 15 };
        let wave = |len: usize, step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        let (xbc, dt) = (wave(2 * TIME * (15 + 14), 1.7), wave(2 * TIME * 3, 0.9));
        let dt: Vec<f32> = dt.iter().map(|dt| 0.6 + 0.5 * dt).collect();
        let (a, d, size) = ([-0.02, -0.3, -1.0], [0.5, -0.2, 1.0], 5 * 7);
        for (bits, residual) in [(8, Some(8)), (4, Some(8)), (4, Some(4)), (3, Some(2)), (4, None)] {
            let mut h = vec![0.0; 2 * 3 * size];
            let (mut error, mut y) = (h.clone(), vec![0.0; 2 * TIME * 15]);
            let feedback = Some((&mut error[..], residual));
            recurrent_rounded(shape, &xbc, &dt, &a, &d, &mut h, &mut y, bits, feedback);

            let one = Shape { batch: 1, time: 1, ..shape };
            for batch in 0..2 {
                let (mut exact, mut left) = (vec![0.0; 3 * size], vec![0.0; 3 * size]);
                for token in batch * TIME..(batch + 1) * TIME {
                    let (xbc, dt) = (&xbc[token * 29..][..29], &dt[token * 3..][..3]);
                    let mut out = [0.0; 15];
                    super::super::scan::recurrent(one, xbc, dt, &a, &d, &mut exact[..], &mut out);
                    assert_eq!(out, y[token * 15..][..15], "{bits} and {residual:?} bits, token {token}");
                    for (exact, left) in exact.chunks_mut(size).zip(left.chunks_mut(size)) {
                        let aim: Vec<f32> = exact.iter().zip(&*left).map(|(x, e)| x + e).collect();
                        exact.copy_from_slice(&definition(&aim, bits));
                        let rest: Vec<f32> = aim.iter().zip(&*exact).map(|(x, q)| x - q).collect();
                        left.copy_from_slice(&residual.map_or(rest.clone(), |bits| definition(&rest, bits)));
                    }
                }
                assert_eq!(h[batch * 3 * size..][..3 * size], exact);
                assert_eq!(error[batch * 3 * size..][..3 * size], left);
            }
        }
    }
}
