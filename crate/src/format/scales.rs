//! How the scales of a matrix are stored.

use super::minifloat::{E2M1, E4M3};
use super::nf4::{dynamic_map, nearest};
use super::{Format, Stored, absmax};
use half::{bf16, f16};

/// What the codes of a run mean: value = (level − zero) · scale, or level · scale + min.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Distance of the levels; 0 for a run of zeros.
    pub scale: f32,
    /// The level that stands for 0; other than 0 for unsigned integers only.
    pub zero: f32,
    /// What stands at level 0, where a format has one.
    pub min: Option<f32>,
}

impl Scale {
    /// A scale without zero point.
    pub fn of(scale: f32) -> Self {
        Self { scale, zero: 0.0, min: None }
    }
}

/// The scales of all runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// bf16: 8 bits of precision suffice, because codes are chosen after the scale is rounded, and no weight is too
    /// small or too large for it. Int-n, ternary, FP8.
    Bf16(Vec<bf16>),
    /// f32 and zero points: both ends of a run are to be met, to which 8 bits of precision do not suffice. Unsigned
    /// integers.
    Affine(Vec<f32>, Vec<u8>),
    /// f32. NF4; integers, ternary and FP8 where that is asked for.
    F32(Vec<f32>),
    /// (map\[code\] · absmax of a block of 256 scales) + offset. NF4 with double quantization.
    Double {
        /// One for each run.
        codes: Vec<u8>,
        /// One for each 256 runs.
        absmax: Vec<f32>,
        /// The mean of the scales.
        offset: f32,
        /// The numbers of the 256 codes.
        map: Box<[f32; 256]>,
    },
    /// f16, and minimums where codes count from one. The blocks of GGUF; integers, ternary and FP8 where that is asked for.
    F16(Vec<f16>, Option<Vec<f16>>),
    /// 2^(code − 127). MXFP4.
    Power(Vec<u8>),
    /// E4M3 times one f32. NVFP4.
    Fp8 {
        /// One for each run.
        codes: Vec<u8>,
        /// The factor of all.
        tensor: f32,
    },
}

/// Scales of one block of the second level of NF4.
const SECOND: usize = 256;

impl Scales {
    /// The nearest scales that the format can store.
    pub(crate) fn store(format: Format, stored: Stored, ideal: &[Scale]) -> Self {
        let plain = || ideal.iter().map(|s| s.scale);
        match format {
            Format::Int(_) | Format::Ternary | Format::Fp8 => match stored {
                Stored::Bf16 => Self::Bf16(plain().map(bf16::from_f32).collect()),
                Stored::F16 | Stored::F16Late => Self::F16(plain().map(f16::from_f32).collect(), None),
                Stored::F32 => Self::F32(plain().collect()),
            },
            Format::Uint(_) => Self::Affine(plain().collect(), ideal.iter().map(|s| s.zero as u8).collect()),
            Format::Nf4 => Self::F32(plain().collect()),
            Format::Nf4Double => double(&plain().collect::<Vec<_>>()),
            Format::Ggml { min, .. } => {
                let mins = || ideal.iter().map(|s| f16::from_f32(s.min.unwrap_or_default())).collect();
                Self::F16(plain().map(f16::from_f32).collect(), min.then(mins))
            }
            Format::Mxfp4 => Self::Power(plain().map(power).collect()),
            Format::Nvfp4 => {
                let scales: Vec<f32> = plain().collect();
                let tensor = bf16::from_f32(absmax(&scales) / E4M3.max).to_f32();
                let unit = if tensor > 0.0 { tensor } else { f32::INFINITY };
                Self::Fp8 { codes: scales.iter().map(|s| E4M3.code(s / unit)).collect(), tensor }
            }
        }
    }

    /// One scale as it will be stored, as far as that can be told without the others.
    pub(super) fn round(format: Format, stored: Stored, ideal: Scale) -> Scale {
        match format {
            Format::Nf4 | Format::Nf4Double | Format::Nvfp4 => ideal,
            _ => Self::store(format, stored, &[ideal]).get(0),
        }
    }

    /// The scale of run `i`.
    pub fn get(&self, i: usize) -> Scale {
        match self {
            Self::Bf16(scales) => Scale::of(scales[i].to_f32()),
            Self::Affine(scales, zeros) => Scale { zero: f32::from(zeros[i]), ..Scale::of(scales[i]) },
            Self::F32(scales) => Scale::of(scales[i]),
            Self::F16(scales, mins) => {
                Scale { min: mins.as_ref().map(|mins| mins[i].to_f32()), ..Scale::of(scales[i].to_f32()) }
            }
            Self::Double { codes, absmax, offset, map } => {
                Scale::of(map[usize::from(codes[i])] * absmax[i / SECOND] + offset)
            }
            Self::Power(codes) => Scale::of(if codes[i] == 0 { 0.0 } else { power_of(codes[i]) }),
            Self::Fp8 { codes, tensor } => Scale::of(E4M3.value(codes[i]) * tensor),
        }
    }

    /// How many scales there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Bf16(scales) => scales.len(),
            Self::F16(scales, _) => scales.len(),
            Self::F32(scales) | Self::Affine(scales, _) => scales.len(),
            Self::Double { codes, .. } | Self::Power(codes) | Self::Fp8 { codes, .. } => codes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every scale has what belongs to it: a zero point, or a factor of its block.
    pub(super) fn are_whole(&self) -> bool {
        match self {
            Self::Affine(scales, zeros) => scales.len() == zeros.len(),
            Self::F16(scales, Some(mins)) => scales.len() == mins.len(),
            Self::Double { codes, absmax, .. } => absmax.len() == codes.len().div_ceil(SECOND),
            _ => true,
        }
    }

    /// Bytes of the scales of `runs` runs.
    pub(super) fn bytes_of(format: Format, stored: Stored, runs: usize) -> usize {
        match format {
            Format::Int(_) | Format::Ternary | Format::Fp8 if stored == Stored::F32 => 4 * runs,
            Format::Int(_) | Format::Ternary | Format::Fp8 => 2 * runs,
            Format::Uint(_) => 5 * runs,
            Format::Nf4 => 4 * runs,
            Format::Ggml { min, .. } => (2 + 2 * usize::from(min)) * runs,
            Format::Nf4Double => runs + 4 * runs.div_ceil(SECOND) + 4,
            Format::Mxfp4 => runs,
            Format::Nvfp4 => runs + 4,
        }
    }
}

/// The second level of NF4: the scales' distances from their mean, by the dynamic map, in blocks of 256.
fn double(scales: &[f32]) -> Scales {
    let map = Box::new(dynamic_map());
    let offset = (scales.iter().map(|s| f64::from(*s)).sum::<f64>() / scales.len().max(1) as f64) as f32;
    let centred: Vec<f32> = scales.iter().map(|s| s - offset).collect();
    let mut codes = Vec::with_capacity(scales.len());
    let absmax = centred.chunks(SECOND).map(|block| {
        let top = absmax(block);
        let unit = if top > 0.0 { top } else { f32::INFINITY };
        codes.extend(block.iter().map(|s| nearest(&map, s / unit)));
        top
    });
    let absmax = absmax.collect();
    Scales::Double { codes, absmax, offset, map }
}

/// The power of two by which the largest value falls into the range of E2M1's largest exponent, 4 … 8 (where it
/// saturates at 6), as the microscaling specification has it; 0 stands for a run of zeros.
fn power(ideal: f32) -> u8 {
    if ideal <= 0.0 {
        return 0;
    }
    let largest = ideal * E2M1.max;
    let exponent = (largest.to_bits() >> 23) as i32 - 127 - 2;
    (exponent + 127).clamp(1, 254) as u8
}

fn power_of(code: u8) -> f32 {
    f32::from_bits(u32::from(code) << 23)
}
