//! Number formats: how a matrix of weights becomes few bits, and what comes back.
//!
//! A matrix [rows, cols] is cut into runs of values that follow one another in memory and share a [`Scale`]; a code of
//! few bits stands for each value: value = (level(code) − zero) · scale.
//!
//! | file | holds |
//! |---|---|
//! | [`encoded`] | [`Encoded`]: packed codes and scales, the exact bytes |
//! | [`granularity`] | which values share a scale |
//! | [`scales`] | how scales are stored |
//! | [`int`] | int-n, symmetric and asymmetric, and ternary |
//! | [`nf4`] | NF4, and the 8-bit map of its second level |
//! | [`minifloat`] | FP8 E4M3 and FP4 E2M1 |
//! | [`pack`] | codes ↔ bytes |
//!
//! A format is a variant of [`Format`]; the compiler lists the matches.

pub mod encoded;
pub mod granularity;
pub mod int;
pub mod minifloat;
pub mod nf4;
pub mod pack;
pub mod scales;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
pub use encoded::Encoded;
pub use granularity::Granularity;
use rayon::prelude::*;
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

/// How far the largest value of a run reaches in the format's range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// It becomes the largest level: nothing is clipped.
    #[default]
    Max,
    /// The share of it, of those in [`CLIPS`], that makes the run's squared error smallest.
    Mse,
    /// This quantile of the run's magnitudes, in percent, interpolated, becomes it.
    Quantile(Exact),
}

/// How the scales of integers, ternary weights and FP8 are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// In bf16; codes are chosen after the scale is rounded.
    #[default]
    Bf16,
    /// In f16, likewise.
    F16,
    /// In f16, and codes are chosen before the scale is rounded, as the exporter of parameter-golf's pull request 316 does.
    F16Late,
    /// In f32.
    F32,
}

impl Stored {
    /// All but the customary one, by their parts of a name.
    const NAMES: [(&str, Self); 3] = [("sf16", Self::F16), ("sf16late", Self::F16Late), ("sf32", Self::F32)];
}

/// A finite number that equals itself: as part of what must be the same to the bit.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Exact(pub f32);

impl PartialEq for Exact {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Exact {}

/// The shares that [`Clip::Mse`] tries.
pub const CLIPS: [f32; 16] =
    [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.73, 0.7, 0.66, 0.62, 0.58, 0.54, 0.5];

/// A format, which values share a scale, and how the scale is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coding {
    /// What a code means.
    pub format: Format,
    /// Which values share a scale.
    pub granularity: Granularity,
    /// How far the largest value reaches.
    #[serde(default)]
    pub clip: Clip,
    /// How scales are stored, where the format leaves it open.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stored: Stored,
    /// The least value that reaches the format's top: a run of smaller ones has the scale of this one. It trades error for codes
    /// that compress better.
    #[serde(default, skip_serializing_if = "is_default")]
    pub floor: Option<Exact>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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

impl Coding {
    /// A format with its customary granularity: rows for int-n and FP8, the matrix for ternary, blocks of 64 for NF4,
    /// groups of 32 for MXFP4 and the blocks of GGUF, and of 16 for NVFP4.
    pub fn of(format: Format) -> Self {
        let granularity = match format {
            Format::Int(_) | Format::Uint(_) | Format::Fp8 => Granularity::Row,
            Format::Ternary => Granularity::Tensor,
            Format::Nf4 | Format::Nf4Double => Granularity::Block(64),
            Format::Mxfp4 | Format::Ggml { .. } => Granularity::Group(32),
            Format::Nvfp4 => Granularity::Group(16),
        };
        Self { format, granularity, clip: Clip::Max, stored: Stored::Bf16, floor: None }
    }

    /// Another granularity.
    #[must_use]
    pub fn shared_by(self, granularity: Granularity) -> Self {
        Self { granularity, ..self }
    }

    /// Ends with the error that encoding a matrix of this shape would end with.
    ///
    /// # Errors
    /// A width that is not 2 … 8, or a group that is 0 or larger than the row.
    pub fn check(&self, rows: usize, cols: usize) -> Result<()> {
        if let Format::Int(bits) | Format::Uint(bits) = self.format
            && !(2..=8).contains(&bits)
        {
            return Err(Error::input(format!("integers of {bits} bits are not known"))
                .hint("choose a width of 2 to 8 bits"));
        }
        let open = matches!(self.format, Format::Int(_) | Format::Ternary | Format::Fp8);
        if !open && (self.stored != Stored::Bf16 || self.floor.is_some()) {
            return Err(Error::input(format!("{} has scales of its own", self.format))
                .hint("sf16, sf32 and floor are for w2 … w8, fp8 and ternary"));
        }
        let magnitudes = matches!(self.format, Format::Int(_) | Format::Fp8);
        if !magnitudes && matches!(self.clip, Clip::Quantile(_)) {
            return Err(Error::input(format!("{} does not clip at a quantile", self.format))
                .hint("clip at a quantile for w2 … w8 and fp8"));
        }
        self.granularity.check(rows, cols)
    }

    /// The scales of a matrix [rows, cols], as they will be stored.
    ///
    /// # Errors
    /// As [`check`](Self::check), and if a value is NaN or infinite, or too large for the scale that it needs.
    pub fn fit(&self, values: &[f32], rows: usize, cols: usize) -> Result<Scales> {
        self.check(rows, cols)?;
        if let Format::Ggml { .. } = self.format {
            return Err(Error::input(format!("blocks of {self} are kept where a file has them, not made"))
                .hint("w8, w4 or u4 with -g32 are their like"));
        }
        let bad = values.par_chunks(1 << 16).map(|v| v.iter().filter(|v| !v.is_finite()).count());
        let bad: usize = bad.sum();
        if bad > 0 {
            let what = format!("{bad} of {} weights are NaN or infinite", values.len());
            return Err(Error::input(what).hint("such a matrix cannot be quantized"));
        }
        let runs = self.granularity.runs(rows, cols);
        let ideal: Vec<Scale> = (0..runs.count())
            .into_par_iter()
            .with_min_len(64)
            .map(|i| self.ideal(&values[runs.range(i)]))
            .collect();
        let scales = Scales::store(self.format, self.stored, &ideal);
        match (0..scales.len()).all(|i| scales.get(i).scale.is_finite()) {
            true => Ok(scales),
            false => Err(Error::input(format!("a weight is too large for a scale of {self}"))
                .hint("leave this matrix out, or choose another format")),
        }
    }

    fn ideal(&self, run: &[f32]) -> Scale {
        let found = self.unbounded(run);
        let floor = self.floor.map_or(0.0, |floor| floor.0 / self.format.top());
        Scale { scale: found.scale.max(floor), ..found }
    }

    /// The scale without a floor.
    fn unbounded(&self, run: &[f32]) -> Scale {
        if let Clip::Quantile(percent) = self.clip {
            return Scale::of(magnitude(run, percent) / self.format.top());
        }
        let whole = self.format.ideal(run, 1.0);
        // A ternary scale fits its codes already.
        if self.clip == Clip::Max || self.format == Format::Ternary {
            return whole;
        }
        let mut codes = vec![0; run.len()];
        let mut error = |scale: Scale| -> f64 {
            let scale = Scales::round(self.format, self.stored, scale);
            self.format.encode(run, scale, &mut codes);
            let error = |(x, code): (&f32, &u8)| f64::from(x - self.format.value(*code, scale)).powi(2);
            run.iter().zip(&codes).map(error).sum()
        };
        let (mut best, mut least) = (whole, error(whole));
        for share in &CLIPS[1..] {
            let scale = self.format.ideal(run, *share);
            let error = error(scale);
            if error < least {
                (best, least) = (scale, error);
            }
        }
        best
    }

    /// Encodes a matrix [rows, cols] to the nearest codes.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn encode(&self, values: &[f32], rows: usize, cols: usize) -> Result<Encoded> {
        let scales = self.fit(values, rows, cols)?;
        // As in bitsandbytes, codes are chosen before the second level rounds the scales.
        let first = match (self.format, self.stored) {
            (Format::Nf4Double, _) => Some(Self { format: Format::Nf4, ..*self }),
            (_, Stored::F16Late) => Some(Self { stored: Stored::F32, ..*self }),
            _ => None,
        };
        let first = first.map(|coding| coding.fit(values, rows, cols)).transpose()?;
        let chosen_by = first.as_ref().unwrap_or(&scales);
        let runs = self.granularity.runs(rows, cols);
        let mut codes = vec![0; values.len()];
        runs.split(&mut codes).into_par_iter().with_min_len(64).enumerate().for_each(|(i, codes)| {
            self.format.encode(&values[runs.range(i)], chosen_by.get(i), codes);
        });
        Ok(Encoded::new(*self, rows, cols, &codes, scales))
    }

    /// Bytes of an encoded matrix [rows, cols]: codes, scales and zero points.
    pub fn bytes(&self, rows: usize, cols: usize) -> usize {
        let codes = match self.granularity {
            Granularity::Block(_) => pack::bytes(self.format, rows * cols),
            _ => rows * pack::bytes(self.format, cols),
        };
        codes + Scales::bytes_of(self.format, self.stored, self.granularity.runs(rows, cols).count())
    }
}

/// The quantile, in percent, of the magnitudes of a run, interpolated in f32 as torch does.
fn magnitude(run: &[f32], percent: Exact) -> f32 {
    let mut sizes: Vec<f32> = run.iter().map(|x| x.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    let Some(last) = sizes.len().checked_sub(1) else { return 0.0 };
    let place = percent.0 / 100.0 * last as f32;
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sizes[below] + (place - below as f32) * (sizes[above] - sizes[below])
}

impl Coding {
    /// What its name says behind the format: what is not customary.
    pub(crate) fn details(&self) -> Vec<String> {
        let mut parts = vec![];
        if self.granularity != Self::of(self.format).granularity {
            parts.push(self.granularity.to_string());
        }
        match self.clip {
            Clip::Max => {}
            Clip::Mse => parts.push("mse".to_string()),
            Clip::Quantile(percent) => parts.push(format!("q{}", percent.0)),
        }
        let stored = Stored::NAMES.iter().find(|(_, stored)| *stored == self.stored);
        parts.extend(stored.map(|(name, _)| (*name).to_string()));
        parts.extend(self.floor.map(|floor| format!("floor{}", floor.0)));
        parts
    }

    /// Takes a part of a name in; false if it says nothing of a coding.
    pub(crate) fn set(&mut self, part: &str) -> bool {
        let number = |start: &str, fits: fn(f32) -> bool| {
            part.strip_prefix(start).and_then(|x| x.parse().ok()).filter(|x| fits(*x)).map(Exact)
        };
        if let Some((_, stored)) = Stored::NAMES.iter().find(|(name, _)| *name == part) {
            self.stored = *stored;
        } else if let Some(floor) = number("floor", |x| x.is_finite() && x > 0.0) {
            self.floor = Some(floor);
        } else if let Some(percent) = number("q", |x| x > 50.0 && x <= 100.0) {
            self.clip = Clip::Quantile(percent);
        } else if part == "mse" {
            self.clip = Clip::Mse;
        } else if let Ok(granularity) = part.parse() {
            self.granularity = granularity;
        } else {
            return false;
        }
        true
    }
}

/// Such as `w4-g64`: the format, then what is not customary.
impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.format)?;
        self.details().iter().try_for_each(|part| write!(f, "-{part}"))
    }
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

/// The reverse of `Display`.
impl FromStr for Coding {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let mut parts = name.split('-');
        let mut coding = Self::of(parts.next().unwrap_or_default().parse()?);
        for part in parts {
            if !coding.set(part) {
                return Err(Error::input(format!("unknown part {part:?} of a format")).hint(
                    "known are g64, b64, row, tensor, mse, q99.99, sf16, sf16late, sf32 and floor0.5",
                ));
            }
        }
        Ok(coding)
    }
}
