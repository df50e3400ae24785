//! The recurrence with its state in integers: rounded after every token, by [`round`](crate::kernel::round).

use super::{Shape, each_token};
use crate::kernel::Scatter;
use crate::kernel::round::{fake_int, fake_int_feedback};

/// [`recurrent`](super::recurrent) with the state rounded to integers after every token, with one scale for each
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
    each_token(shape, xbc, dt, a, d, h, y, rounding(bits, feedback));
}

/// What rounds the state of a (sequence, head), by its number, after every token; arguments as in [`recurrent_rounded`].
pub(super) fn rounding<'a>(
    bits: u8,
    feedback: Option<(&'a mut [f32], Option<u8>)>,
) -> impl Fn(usize, &mut [f32]) + Sync + 'a {
    let feedback = feedback.map(|(error, bits)| (Scatter::new(error), bits));
    move |index, state| match feedback {
        None => fake_int(state, bits),
        Some((error, residual)) => {
            // SAFETY: every (sequence, head) has its own values.
            let error = unsafe { error.slice(index * state.len(), state.len()) };
            fake_int_feedback(state, error, bits);
            if let Some(bits) = residual {
                fake_int(error, bits);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::recurrent;
    use super::*;

    /// The definition, one value after the other.
    fn definition(values: &[f32], bits: u8) -> Vec<f32> {
        let top = values.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        let scale = top / (2_f32.powi(i32::from(bits) - 1) - 1.0);
        values.iter().map(|x| if top == 0.0 { 0.0 } else { (x / scale).round_ties_even() * scale }).collect()
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
            None => recurrent(shape, &xbc, &dt, &a, &d, &mut h, &mut y),
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
                    recurrent(one, xbc, dt, &a, &d, &mut exact[..], &mut out);
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
