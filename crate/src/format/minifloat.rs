//! Floating-point formats of 8 and 4 bits: a sign, a few exponent bits, a few mantissa bits, no infinities.

/// A small floating-point format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Minifloat {
    /// Bits of a code.
    bits: u32,
    /// Bits of the mantissa.
    mantissa: u32,
    /// Exponent of the smallest normal number; below it numbers are evenly spaced.
    least_exponent: i32,
    /// The largest number.
    pub max: f32,
}

/// E4M3 in its `fn` variant (OCP 8-bit floating point; torch's `float8_e4m3fn`).
pub const E4M3: Minifloat = Minifloat { bits: 8, mantissa: 3, least_exponent: -6, max: 448.0 };
/// E2M1 (OCP microscaling formats): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
pub const E2M1: Minifloat = Minifloat { bits: 4, mantissa: 1, least_exponent: 0, max: 6.0 };

impl Minifloat {
    /// The number of a code.
    pub fn value(self, code: u8) -> f32 {
        let sign = if code >> (self.bits - 1) & 1 == 1 { -1.0 } else { 1.0 };
        let magnitude = i32::from(code) & ((1 << (self.bits - 1)) - 1);
        let (exponent, mantissa) = (magnitude >> self.mantissa, magnitude & ((1 << self.mantissa) - 1));
        let (units, shift) = match exponent {
            0 => (mantissa, 0),
            _ => (mantissa + (1 << self.mantissa), exponent - 1),
        };
        // NaN, the largest code of E4M3, is never written; it reads as what the pattern would mean.
        sign * units as f32 * f32::powi(2.0, shift + self.least_exponent - self.mantissa as i32)
    }

    /// The nearest number, ties to the even code; too large becomes the largest.
    pub fn round(self, x: f32) -> f32 {
        self.value(self.code(x))
    }

    /// The code of the nearest number.
    pub fn code(self, x: f32) -> u8 {
        let sign = u8::from(x.is_sign_negative()) << (self.bits - 1);
        let magnitude = x.abs().min(self.max);
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(self.least_exponent);
        // Units of the last mantissa bit at this exponent: an exact division by a power of two.
        let units = (magnitude / f32::powi(2.0, exponent - self.mantissa as i32)).round_ties_even() as i32;
        // Rounding up to the next power of two carries into the exponent by itself.
        let field = ((exponent - self.least_exponent) << self.mantissa) + units;
        sign | field as u8
    }

    /// The codes nearest to x / divisor.
    pub(super) fn encode(self, values: &[f32], divisor: f32, codes: &mut [u8]) {
        for (x, code) in values.iter().zip(codes) {
            *code = self.code(x / divisor);
        }
    }
}
