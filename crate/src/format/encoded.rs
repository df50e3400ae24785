//! A matrix of packed codes and scales.

use super::{Coding, Format, Granularity, Scale, Scales, pack};
use crate::error::{Error, Result};
use crate::kernel::integer::{IntegerRows, Run};
use crate::kernel::levels::{self, Levels};
#[cfg(target_arch = "x86_64")]
use crate::kernel::packed;
use crate::kernel::packed::Packed;
use rayon::prelude::*;
use std::borrow::Cow;

/// An encoded matrix [rows, cols].
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Format, granularity, clipping.
    pub coding: Coding,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    codes: Codes,
    /// Scales of the runs.
    pub scales: Scales,
    /// The value of every code.
    levels: Box<Levels>,
}

/// Where codes are: once.
#[derive(Clone, Debug, PartialEq)]
enum Codes {
    /// As in a file.
    Bytes(Vec<u8>),
    /// In the order of the instructions that multiply them.
    Packed(Packed),
}

impl Encoded {
    /// Packs codes, one a byte, [rows, cols].
    pub fn new(coding: Coding, rows: usize, cols: usize, codes: &[u8], scales: Scales) -> Self {
        let mut packed = vec![0; code_bytes(coding, rows, cols)];
        match coding.granularity {
            Granularity::Block(_) => pack::pack(coding.format, codes, &mut packed),
            _ => {
                let row = pack::bytes(coding.format, cols);
                let rows = packed.par_chunks_mut(row).zip(codes.par_chunks(cols)).with_min_len(16);
                rows.for_each(|(packed, codes)| pack::pack(coding.format, codes, packed));
            }
        }
        Self { coding, rows, cols, codes: Codes::Bytes(packed), scales, levels: levels_of(coding.format) }
    }

    /// Joins codes and scales as they were stored.
    ///
    /// # Errors
    /// If there are fewer or more codes or scales than the shape calls for.
    pub fn from_parts(
        coding: Coding,
        rows: usize,
        cols: usize,
        codes: Vec<u8>,
        scales: Scales,
    ) -> Result<Self> {
        coding.check(rows, cols)?;
        let (runs, found) = (coding.granularity.runs(rows, cols).count(), scales.len());
        let expected = code_bytes(coding, rows, cols);
        if codes.len() != expected || found != runs || !scales.are_whole() {
            return Err(Error::input(format!(
                "a matrix [{rows}, {cols}] as {coding} has {expected} bytes of codes and {runs} scales, found {} and \
                 {found}",
                codes.len()
            ))
            .hint("the file is damaged or was written by another program"));
        }
        let codes = Codes::Bytes(codes);
        Ok(Self { coding, rows, cols, codes, scales, levels: levels_of(coding.format) })
    }

    /// The same matrix in the order of the instructions that multiply, if its runs allow it.
    #[must_use]
    pub fn for_products(&self) -> Self {
        let Some(packed) = Packed::new(self.rows, self.cols, self) else { return self.clone() };
        let Self { coding, rows, cols, .. } = *self;
        let (scales, levels) = (self.scales.clone(), self.levels.clone());
        Self { coding, rows, cols, codes: Codes::Packed(packed), scales, levels }
    }

    /// The matrix as products take it.
    pub fn packed(&self) -> Option<&Packed> {
        match &self.codes {
            Codes::Bytes(_) => None,
            Codes::Packed(packed) => Some(packed),
        }
    }

    /// Packed codes: every row starts at a whole byte, except with [`Granularity::Block`], whose codes go through.
    pub fn codes(&self) -> Cow<'_, [u8]> {
        match &self.codes {
            Codes::Bytes(codes) => Cow::Borrowed(codes),
            Codes::Packed(_) => {
                let mut codes = vec![0; self.rows * self.cols];
                let rows = codes.par_chunks_mut(self.cols).enumerate().with_min_len(16);
                rows.for_each(|(row, codes)| self.row_codes(row, codes));
                let plain = Self::new(self.coding, self.rows, self.cols, &codes, self.scales.clone());
                match plain.codes {
                    Codes::Bytes(codes) => Cow::Owned(codes),
                    Codes::Packed(_) => unreachable!("codes are bytes until they are laid out for products"),
                }
            }
        }
    }

    /// Bytes of codes, scales and zero points.
    pub fn bytes(&self) -> usize {
        self.coding.bytes(self.rows, self.cols)
    }

    /// Bits of a weight, scales and zero points included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / (self.rows * self.cols) as f64
    }

    /// The codes of a row, one a byte.
    pub fn row_codes(&self, row: usize, codes: &mut [u8]) {
        let format = self.coding.format;
        match (&self.codes, self.coding.granularity) {
            (Codes::Packed(packed), _) => {
                packed.stored(row, codes);
                let sign = sign_bit(format);
                codes.iter_mut().for_each(|code| *code ^= sign);
            }
            (Codes::Bytes(packed), Granularity::Block(_)) => {
                pack::unpack(format, packed, row * self.cols, codes);
            }
            (Codes::Bytes(packed), _) => {
                let bytes = pack::bytes(format, self.cols);
                pack::unpack(format, &packed[row * bytes..(row + 1) * bytes], 0, codes);
            }
        }
    }

    /// The parts of a row that share a scale, in order: where each ends, and its scale.
    pub fn row_scales(&self, row: usize) -> impl Iterator<Item = (usize, Scale)> + '_ {
        let runs = self.coding.granularity.runs(self.rows, self.cols);
        let mut col = 0;
        std::iter::from_fn(move || {
            (col < self.cols).then(|| {
                let scale = self.scales.get(runs.of(row, col));
                col = runs.end_in_row(row, col);
                (col, scale)
            })
        })
    }

    /// The values of the rows from `first` on; `values` [any number of rows, cols] is overwritten.
    pub fn decode_rows(&self, first: usize, values: &mut [f32]) {
        let mut codes = vec![0; self.cols];
        for (i, values) in values.chunks_mut(self.cols).enumerate() {
            self.row_codes(first + i, &mut codes);
            let mut start = 0;
            for (end, Scale { scale, zero }) in self.row_scales(first + i) {
                levels::decode(&codes[start..end], &self.levels, zero, scale, &mut values[start..end]);
                start = end;
            }
        }
    }

    /// All values, [rows, cols].
    pub fn decode(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        values.par_chunks_mut(16 * self.cols).enumerate().for_each(|(i, values)| {
            self.decode_rows(16 * i, values);
        });
        values
    }
}

/// For integer formats their integers, brought into the range of 8 bits with sign, and the zero points with them; for
/// others the numbers of their codes.
impl IntegerRows for Encoded {
    fn integers(&self, row: usize, integers: &mut [i8]) {
        let mut codes = vec![0; self.cols];
        self.row_codes(row, &mut codes);
        let (low, sign) = (self.range().0, sign_bit(self.coding.format));
        for (integer, code) in integers.iter_mut().zip(codes) {
            *integer = (code ^ sign).wrapping_add_signed(low) as i8;
        }
    }

    fn runs(&self, row: usize, runs: &mut Vec<Run>) {
        let moved = if self.coding.format == Format::Uint(8) { 128.0 } else { 0.0 };
        runs.extend(self.row_scales(row).map(|(end, s)| Run { end, scale: s.scale, zero: s.zero - moved }));
    }

    fn range(&self) -> (i8, i8) {
        match (self.coding.format, self.coding.format.width()) {
            (_, 8) => (-128, 127),
            (Format::Int(_) | Format::Ternary, bits) => (-1 << (bits - 1), (1 << (bits - 1)) - 1),
            (_, bits) => (0, ((1u8 << bits) - 1) as i8),
        }
    }
}

impl Encoded {
    /// y = x Wᵀ for f32 activations x [m, cols], y [m, rows], straight from the codes. Gives false, and leaves y as it is,
    /// if decoding them first is faster.
    pub(crate) fn product(&self, m: usize, x: &[f32], y: &mut [f32]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if let Codes::Packed(packed) = &self.codes {
            use packed::float::{Bytes, forward};
            let sign = usize::from(sign_bit(self.coding.format));
            let levels = std::array::from_fn(|stored| self.levels[stored ^ sign]);
            let bytes = if self.coding.format == Format::Fp8 { Bytes::E4m3 } else { Bytes::Integers };
            return forward(m, x, packed, &levels, bytes, y);
        }
        false
    }
}

/// The bit by which codes with a sign, in two's complement, differ from their distance to the least one.
fn sign_bit(format: Format) -> u8 {
    match format {
        Format::Int(_) | Format::Ternary => 1 << (format.width() - 1),
        _ => 0,
    }
}

fn levels_of(format: Format) -> Box<Levels> {
    let mut levels = Box::new([0.0; 256]);
    for (level, value) in levels.iter_mut().zip(format.levels()) {
        *level = value;
    }
    levels
}

fn code_bytes(coding: Coding, rows: usize, cols: usize) -> usize {
    coding.bytes(rows, cols) - Scales::bytes_of(coding.format, coding.granularity.runs(rows, cols).count())
}
