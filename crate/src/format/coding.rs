//! A format together with which values share a scale, how the scale is found, and how it is stored.

use super::{Encoded, Format, Granularity, Scale, Scales, int, pack};
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

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
        finite(values)?;
        let runs = self.granularity.runs(rows, cols);
        let ideal: Vec<Scale> = (0..runs.count())
            .into_par_iter()
            .with_min_len(64)
            .map(|i| self.ideal(&values[runs.range(i)]))
            .collect();
        self.storable(Scales::store(self.format, self.stored, &ideal))
    }

    /// Refuses scales that are too large for how they are stored.
    fn storable(&self, scales: Scales) -> Result<Scales> {
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

    /// Encodes a matrix [rows, cols] to integers of as many bits as each row is given, by row, in the place of the format's own. They are
    /// kept as integers of 8 bits, of which narrow rows use those near zero: a file gains by it where codes are compressed.
    ///
    /// # Errors
    /// As [`fit`](Self::fit), and if a width is not 2 … 8.
    pub fn encode_rows(&self, values: &[f32], rows: usize, cols: usize, widths: &[u8]) -> Result<Encoded> {
        let of = |bits: u8| Self { format: Format::Int(bits), granularity: Granularity::Row, ..*self };
        let kept = of(8);
        widths.iter().try_for_each(|bits| of(*bits).check(rows, cols))?;
        finite(values)?;
        let row = |row: usize| &values[row * cols..(row + 1) * cols];
        let ideal: Vec<Scale> =
            widths.par_iter().enumerate().map(|(i, bits)| of(*bits).ideal(row(i))).collect();
        let scales = kept.storable(Scales::store(kept.format, self.stored, &ideal))?;
        let late = (self.stored == Stored::F16Late).then(|| Scales::store(kept.format, Stored::F32, &ideal));
        let chosen_by = late.as_ref().unwrap_or(&scales);
        let mut codes = vec![0; values.len()];
        let each = codes.par_chunks_mut(cols).zip(widths).enumerate().with_min_len(64);
        each.for_each(|(i, (codes, bits))| {
            Format::Int(*bits).encode(row(i), chosen_by.get(i), codes);
            codes.iter_mut().for_each(|code| *code = int::signed(*code, *bits) as u8);
        });
        Ok(Encoded::new(kept, rows, cols, &codes, scales))
    }

    /// The value of a run that reaches the top of the range: what the scale of a narrower or wider format comes of.
    pub(crate) fn reach(&self, run: &[f32]) -> f32 {
        self.ideal(run).scale * self.format.top()
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

/// Refuses values that no code stands for.
fn finite(values: &[f32]) -> Result<()> {
    let bad = values.par_chunks(1 << 16).map(|v| v.iter().filter(|v| !v.is_finite()).count());
    match bad.sum::<usize>() {
        0 => Ok(()),
        bad => Err(Error::input(format!("{bad} of {} weights are NaN or infinite", values.len()))
            .hint("such a matrix cannot be quantized")),
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
