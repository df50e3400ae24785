//! Integers of n bits, symmetric and with a zero point, and ternary weights.

use super::{Scale, absmax};
use crate::kernel::simd::{Lanes, dispatch};

/// The largest symmetric integer of n bits, 2^(n−1) − 1.
pub(crate) fn top(bits: u8) -> f32 {
    ((1i32 << (bits - 1)) - 1) as f32
}

/// The integer that the low n bits hold in two's complement.
pub fn signed(code: u8, bits: u8) -> i8 {
    let shift = 8 - bits;
    ((code << shift) as i8) >> shift
}

dispatch! {
    /// round(x / divisor) + zero, to even, held to low … high; 0 of NaN.
    pub(super) fn encode(values: &[f32], divisor: f32, zero: f32, low: f32, high: f32, bits: u8, codes: &mut [u8]) = encode_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn encode_body<V: Lanes>(
    values: &[f32],
    divisor: f32,
    zero: f32,
    low: f32,
    high: f32,
    bits: u8,
    codes: &mut [u8],
) {
    // Beyond these everything is held to an end anyway; within them adding 1.5 · 2^23 rounds to even, and leaves the integer in the
    // low bits.
    const ROUND: f32 = 12_582_912.0;
    let (least, most) = (low - zero - 1.0, high - zero + 1.0);
    let mask = u8::MAX >> (8 - bits);
    for (x, code) in values.iter().zip(codes) {
        let rounded = ((x / divisor).clamp(least, most) + ROUND) - ROUND;
        let held = (rounded + zero).clamp(low, high);
        let integer = (held + ROUND).to_bits() as u8 & mask;
        *code = if held.is_nan() { 0 } else { integer };
    }
}

/// Scale and zero point by which the run's smallest value, or `share` of it, becomes 0 and its largest 2^n − 1. The
/// range always holds 0, and 0 becomes the zero point exactly.
pub(super) fn affine(run: &[f32], share: f32, bits: u8) -> Scale {
    let low = run.iter().fold(0.0f32, |low, x| low.min(*x)) * share;
    let high = run.iter().fold(0.0f32, |high, x| high.max(*x)) * share;
    let top = ((1u32 << bits) - 1) as f32;
    if low == high {
        return Scale::of(0.0);
    }
    // Both ends of the range must be hit, or quantizing the result again would find another scale. The scale is
    // therefore rounded down, and further where the two ends would tie to the wrong side. With 16 significant bits its
    // products with codes are exact.
    const STEP: u32 = 1 << 8;
    let mut bits = ((high - low) / top).to_bits() / STEP * STEP;
    loop {
        let scale = f32::from_bits(bits);
        let zero = (-low / scale).round_ties_even().min(top);
        let hit =
            (low / scale).round_ties_even() + zero <= 0.0 && (high / scale).round_ties_even() + zero >= top;
        if hit || bits < STEP {
            return Scale { zero, ..Scale::of(scale) };
        }
        bits -= STEP;
    }
}

/// The scale of ternary weights: the mean of those |w| that lie above half of mean|w|, which BitNet b1.58 (Ma et al. 2024)
/// rounds to ±1. The paper's own scale, mean|w|, serves a training from the start; this one has less error, and
/// weights that are ternary already stay as they are.
pub(super) fn ternary_scale(run: &[f32]) -> f32 {
    let mean = run.iter().map(|x| f64::from(x.abs())).sum::<f64>() / run.len().max(1) as f64;
    let kept = run.iter().map(|x| f64::from(x.abs())).filter(|x| *x > 0.5 * mean);
    let (sum, count) = kept.fold((0.0, 0u64), |(sum, count), x| (sum + x, count + 1));
    if count == 0 { absmax(run) } else { (sum / count as f64) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_definition_for_every_size_zero_and_odd_value() {
        let odd = [
            0.0,
            -0.0,
            0.5,
            1.5,
            -2.5,
            6.5,
            7.5,
            1e9,
            -1e30,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::from_bits(u32::MAX),
        ];
        let values: Vec<f32> =
            odd.into_iter().chain((0..300).map(|i| (i * 7919 % 1009) as f32 / 31.0 - 16.0)).collect();
        for bits in 2..=8 {
            let top = top(bits);
            let span = ((1u32 << bits) - 1) as f32;
            for (zero, low, high) in [(0.0, -top, top), (0.0, 0.0, span), (3.0, 0.0, span), (span, 0.0, span)]
            {
                for divisor in [0.03, 1.0, 2.7, f32::INFINITY] {
                    let (mut found, mut portable) = (vec![9; values.len()], vec![9; values.len()]);
                    encode(&values, divisor, zero, low, high, bits, &mut found);
                    encode_body::<[f32; 8]>(&values, divisor, zero, low, high, bits, &mut portable);
                    let of = |x: &f32| {
                        let rounded = ((x / divisor).round_ties_even() + zero).clamp(low, high);
                        (rounded as i32) as u8 & (u8::MAX >> (8 - bits))
                    };
                    let expected: Vec<u8> = values.iter().map(of).collect();
                    assert_eq!(
                        (&found, &portable),
                        (&expected, &expected),
                        "{bits} bits, {zero}, {low}, {divisor}"
                    );
                }
            }
        }
    }
}
