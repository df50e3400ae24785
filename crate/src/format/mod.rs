//! Number formats: how a matrix of weights becomes few bits, and what comes back.
//!
//! A matrix [rows, cols] is cut into runs of values that follow one another in memory and share a [`Scale`]; a code of
//! few bits stands for each value: value = (level(code) − zero) · scale.
//!
//! | file | holds |
//! |---|---|
//! | [`coding`] | [`Coding`]: a format, which values share a scale, how the scale is found and stored |
//! | [`encoded`] | [`Encoded`]: packed codes and scales, the exact bytes |
//! | [`granularity`] | which values share a scale |
//! | [`scales`] | how scales are stored |
//! | [`int`] | int-n, symmetric and asymmetric, and ternary |
//! | [`nf4`] | NF4, and the 8-bit map of its second level |
//! | [`minifloat`] | FP8 E4M3 and FP4 E2M1 |
//! | [`pack`] | codes ↔ bytes |
//! | [`range`] | codes ↔ words of a range coder |
//!
//! A format is a variant of [`Format`]; the compiler lists the matches.

pub mod coding;
pub mod encoded;
pub mod granularity;
pub mod int;
pub mod minifloat;
pub mod nf4;
pub mod pack;
pub mod range;
pub mod scales;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
pub use coding::{CLIPS, Clip, Coding, Exact, Stored};
pub use encoded::Encoded;
pub use granularity::Granularity;
pub use scales::{Scale, Scales};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a code of a few bits means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Integers −(2^(n−1)−1) … 2^(n−1)−1, n = 2 … 8.
    Int(u8),
    /// Integers 0 … 2^n−1 with a zero point, n = 2 … 8.
    Uint(u8),
    /// −1, 0, 1 (BitNet b1.58).
    Ternary,
    /// The 16 quantiles of QLoRA, as bitsandbytes has them.
    Nf4,
    /// NF4 whose scales are quantized to 8 bits in their turn.
    Nf4Double,
    /// E4M3 without infinities, up to 448.
    Fp8,
    /// E2M1 with a power of two as scale (OCP microscaling).
    Mxfp4,
    /// E2M1 with an E4M3 scale, and one f32 scale for the matrix.
    Nvfp4,
    /// The blocks of GGUF files named Q8_0, Q5_0 and Q4_0, and with a minimum Q5_1 and Q4_1, as llama.cpp has them: kept as
    /// they are read, never made.
    Ggml {
        /// Bits of a code: 4, 5 or 8.
        bits: u8,
        /// Whether codes count from the minimum of their block: value = code · scale + minimum, without sign.
        min: bool,
    },
}

impl Format {
    /// Bits of a code, exactly: 1.6 for ternary, of which five share a byte.
    pub fn bits(self) -> f64 {
        match self {
            Self::Ternary => 1.6,
            _ => f64::from(self.width()),
        }
    }

    /// Bits that tell the codes apart.
    pub(crate) fn width(self) -> u32 {
        match self {
            Self::Int(bits) | Self::Uint(bits) | Self::Ggml { bits, .. } => u32::from(bits),
            Self::Ternary => 2,
            Self::Nf4 | Self::Nf4Double | Self::Mxfp4 | Self::Nvfp4 => 4,
            Self::Fp8 => 8,
        }
    }

    /// Whether codes are integers, so that products with integer activations are exact.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int(_) | Self::Uint(_) | Self::Ternary | Self::Ggml { .. })
    }

    /// The value of every code at scale 1 and zero 0.
    pub fn levels(self) -> Vec<f32> {
        (0..1u32 << self.width()).map(|code| self.level(code as u8)).collect()
    }

    fn level(self, code: u8) -> f32 {
        match self {
            Self::Int(bits) | Self::Ggml { bits, min: false } => f32::from(int::signed(code, bits)),
            Self::Ternary => f32::from(int::signed(code, 2)),
            Self::Uint(_) | Self::Ggml { min: true, .. } => f32::from(code),
            Self::Nf4 | Self::Nf4Double => nf4::LEVELS[usize::from(code & 15)],
            Self::Fp8 => minifloat::E4M3.value(code),
            Self::Mxfp4 | Self::Nvfp4 => minifloat::E2M1.value(code),
        }
    }

    /// The largest level.
    fn top(self) -> f32 {
        match self {
            Self::Int(bits) | Self::Ggml { bits, min: false } => int::top(bits),
            Self::Uint(bits) | Self::Ggml { bits, min: true } => (1u32 << bits) as f32 - 1.0,
            Self::Ternary | Self::Nf4 | Self::Nf4Double => 1.0,
            Self::Fp8 => minifloat::E4M3.max,
            Self::Mxfp4 | Self::Nvfp4 => minifloat::E2M1.max,
        }
    }

    /// The code of the level nearest to `x` under a scale.
    pub fn code(self, x: f32, scale: Scale) -> u8 {
        let mut code = [0];
        self.encode(&[x], scale, &mut code);
        code[0]
    }

    /// What a code stands for under a scale.
    pub fn value(self, code: u8, scale: Scale) -> f32 {
        let value = (self.level(code) - scale.zero) * scale.scale;
        scale.min.map_or(value, |min| value + min)
    }

    /// Nearest codes of a run. A scale of 0 stands for a run of zeros.
    pub(crate) fn encode(self, values: &[f32], scale: Scale, codes: &mut [u8]) {
        // Unsigned formats have zeros at the zero point, all others at code 0.
        let divisor = if scale.scale > 0.0 { scale.scale } else { f32::INFINITY };
        match self {
            Self::Int(bits) | Self::Ggml { bits, min: false } => {
                int::encode(values, divisor, 0.0, -int::top(bits), int::top(bits), bits, codes)
            }
            Self::Ternary => int::encode(values, divisor, 0.0, -1.0, 1.0, 2, codes),
            Self::Uint(bits) => int::encode(values, divisor, scale.zero, 0.0, self.top(), bits, codes),
            Self::Ggml { bits, min: true } => {
                let min = scale.min.unwrap_or_default();
                let above: Vec<f32> = values.iter().map(|x| x - min).collect();
                int::encode(&above, divisor, 0.0, 0.0, self.top(), bits, codes);
            }
            Self::Nf4 | Self::Nf4Double => nf4::encode(values, divisor, codes),
            Self::Fp8 => minifloat::E4M3.encode(values, divisor, codes),
            Self::Mxfp4 | Self::Nvfp4 => minifloat::E2M1.encode(values, divisor, codes),
        }
    }

    /// The scale of a run before it is rounded to how it is stored, when the largest value reaches `share` of the top.
    fn ideal(self, run: &[f32], share: f32) -> Scale {
        match self {
            Self::Uint(bits) => int::affine(run, share, bits),
            Self::Ternary => Scale::of(int::ternary_scale(run)),
            _ => Scale::of(absmax(run) * share / self.top()),
        }
    }
}

pub(crate) fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |top, x| x.abs().max(top))
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(bits) => write!(f, "w{bits}"),
            Self::Uint(bits) => write!(f, "u{bits}"),
            Self::Ternary => f.write_str("ternary"),
            Self::Nf4 => f.write_str("nf4"),
            Self::Nf4Double => f.write_str("nf4dq"),
            Self::Fp8 => f.write_str("fp8"),
            Self::Mxfp4 => f.write_str("mxfp4"),
            Self::Nvfp4 => f.write_str("nvfp4"),
            Self::Ggml { bits, min } => write!(f, "q{bits}_{}", u8::from(*min)),
        }
    }
}

impl Format {
    /// The formats that have one name.
    pub const NAMED: [Self; 6] =
        [Self::Nf4, Self::Nf4Double, Self::Fp8, Self::Mxfp4, Self::Nvfp4, Self::Ternary];
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        if let Some(format) = Self::NAMED.into_iter().find(|format| format.to_string() == name) {
            return Ok(format);
        }
        let width = |prefix| name.strip_prefix(prefix).and_then(|bits| bits.parse::<u8>().ok());
        let integer = width('w').map(Self::Int).or_else(|| width('u').map(Self::Uint));
        match integer {
            Some(format @ (Self::Int(bits) | Self::Uint(bits))) if (2..=8).contains(&bits) => Ok(format),
            _ => Err(Error::input(format!("unknown number format {name:?}"))
                .hint("known are w2 … w8, u2 … u8, nf4, nf4dq, fp8, mxfp4, nvfp4 and ternary")),
        }
    }
}
