//! Values rounded to symmetric n-bit integers (or to bf16, or to FP8) and back.
//!
//! With scale s = max |x| / (2^{n−1} − 1): x ← s · round(x / s), ties to even. The integers lie within
//! ± (2^{n−1} − 1) by construction, so nothing is ever cut off.
//!
//! **Error feedback.** Where values are rounded again and again, what rounding took is given back the next time: q_t
//! = Q(x_t + e_{t−1}), e_t = x_t + e_{t−1} − q_t. A state that decays slowly needs it: an update below s/2 is
//! otherwise rounded away at every token, however many there are. The residual e may itself be rounded, with a scale
//! of its own: e_t = Q'(x_t + e_{t−1} − q_t). What that takes is lost, and is less by the ratio of the two scales.

use super::kept::Kept;
use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Values that a task rounds.
const TASK: usize = 1 << 15;

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
    fn nearest_bf16(values: &[f32], to: &mut [f32]) = nearest_bf16_body;
}

/// The nearest bf16 of each value, found on all threads.
pub(super) fn all_nearest_bf16(values: &[f32]) -> Kept<f32> {
    // SAFETY: they are only written, and any bits are a number.
    unsafe {
        Kept::filled(values.len(), |to| {
            let to = std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), to.len());
            to.par_chunks_mut(TASK)
                .zip(values.par_chunks(TASK))
                .for_each(|(to, from)| nearest_bf16(from, to));
        })
    }
}

dispatch! {
    /// The nearest numbers of FP8 E4M3 with the scale s = `top` / 448, and back: x ← s · e4m3(x / s), ties to even, the largest
    /// being 448. `top` is the largest magnitude; if it is infinite, all become NaN.
    pub fn fake_fp8(values: &mut [f32], top: f32) = fake_fp8_body;
}

dispatch! {
    /// [`fake_fp8`], each value by a top of its own.
    pub fn fake_fp8_each(values: &mut [f32], tops: &[f32]) = fake_fp8_each_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn fake_fp8_body<V: Lanes>(values: &mut [f32], top: f32) {
    let scale = fp8_scale(top);
    values.iter_mut().for_each(|x| *x = e4m3(*x / scale) * scale);
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn fake_fp8_each_body<V: Lanes>(values: &mut [f32], tops: &[f32]) {
    for (x, top) in values.iter_mut().zip(tops) {
        let scale = fp8_scale(*top);
        *x = e4m3(*x / scale) * scale;
    }
}

/// The largest number of E4M3.
const E4M3_MAX: f32 = 448.0;

/// What is too small for a scale that is a normal number becomes zero.
#[inline(always)]
fn fp8_scale(top: f32) -> f32 {
    let scale = top / E4M3_MAX;
    if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
}

/// The nearest number of E4M3 (OCP 8-bit floating point, without infinities), ties to even; NaN stays.
#[inline(always)]
fn e4m3(x: f32) -> f32 {
    let (sign, size) = (x.to_bits() & 1 << 31, x.abs());
    // Three bits of the mantissa stay: half of the last, less a bit, and the last itself carry into them.
    let bits = size.to_bits();
    let normal = f32::from_bits((bits + 0x7_ffff + (bits >> 20 & 1)) & !0xf_ffff);
    // Below 2^−6 numbers are 2^−9 apart, as those of 2^14 … 2^15 are in f32.
    let fine = (size + 24_576.0) - 24_576.0;
    // The carry of a NaN might leave its bits.
    let near = if size < 0.015_625 { fine } else { normal };
    let near = if size.is_nan() { size } else { near };
    let near = if near > E4M3_MAX { E4M3_MAX } else { near };
    f32::from_bits(near.to_bits() | sign)
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
    fn fp8_is_the_nearest_of_its_numbers() {
        // All 127 magnitudes: eight multiples of 2^−9, then eight for each power of two, without the last.
        let mut all: Vec<f32> = (0..8).map(|i| i as f32 / 512.0).collect();
        all.extend((-6..=8).flat_map(|e| (8..16).map(move |m| m as f32 / 8.0 * 2f32.powi(e))));
        all.pop();
        assert_eq!((all.len(), all.last()), (127, Some(&448.0)));
        let between = all.windows(2).flat_map(|pair| {
            let middle = f32::midpoint(pair[0], pair[1]);
            [pair[0], middle.next_down(), middle, middle.next_up()]
        });
        for x in between.chain([448.0, 460.0, 464.0, 1e6]) {
            let distance = |n: &f32| (n - x).abs();
            let least = all.iter().map(distance).fold(f32::INFINITY, f32::min);
            let near: Vec<usize> = (0..127).filter(|i| distance(&all[*i]) == least).collect();
            // Codes count the magnitudes up: of two the even one.
            let expected = all[*near.iter().find(|i| near.len() == 1 || *i % 2 == 0).unwrap()];
            for run in [fake_fp8, fake_fp8_body::<[f32; 8]>] {
                let mut found = [x, -x, x * 0.5];
                run(&mut found, 448.0);
                assert_eq!(found[..2], [expected, -expected], "{x}");
            }
        }
        let mut each = [1.0, 3.0, -0.7, 0.0, f32::NAN];
        fake_fp8_each(&mut each, &[1.0, 6.0, 0.0, 0.0, 1.0]);
        let mut odd = [f32::NAN, -f32::NAN, f32::from_bits(u32::MAX), f32::from_bits(0x7fff_ffff)];
        fake_fp8(&mut odd, 1.0);
        assert!(odd.iter().all(|x| x.is_nan()), "{odd:?}");
        assert_eq!(each[..4], [1.0, 3.0, -0.6875, 0.0]);
        assert!(each[4].is_nan());
        let mut lost = [1.0, f32::INFINITY];
        fake_fp8(&mut lost, f32::INFINITY);
        assert!(lost.iter().all(|x| x.is_nan()), "{lost:?}");
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
