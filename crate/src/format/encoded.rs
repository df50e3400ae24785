//! A matrix of packed codes and scales.

use super::{Coding, Format, Granularity, Scale, Scales, pack};
use crate::error::{Error, Result};
use crate::kernel::integer::{IntegerRows, Run};
use rayon::prelude::*;

/// An encoded matrix [rows, cols].
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Format, granularity, clipping.
    pub coding: Coding,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// Packed codes: every row starts at a whole byte, except with [`Granularity::Block`], whose codes go through.
    pub codes: Vec<u8>,
    /// Scales of the runs.
    pub scales: Scales,
    levels: Vec<f32>,
}

impl Encoded {
    /// Packs codes, one a byte, [rows, cols].
    pub fn new(coding: Coding, rows: usize, cols: usize, codes: &[u8], scales: Scales) -> Self {
        let mut packed = vec![0; coding.bytes(rows, cols) - scale_bytes(coding, rows, cols)];
        match coding.granularity {
            Granularity::Block(_) => pack::pack(coding.format, codes, &mut packed),
            _ => {
                let row = pack::bytes(coding.format, cols);
                let rows = packed.par_chunks_mut(row).zip(codes.par_chunks(cols)).with_min_len(16);
                rows.for_each(|(packed, codes)| pack::pack(coding.format, codes, packed));
            }
        }
        Self { coding, rows, cols, codes: packed, scales, levels: coding.format.levels() }
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
        let expected = coding.bytes(rows, cols) - scale_bytes(coding, rows, cols);
        if codes.len() != expected || found != runs {
            return Err(Error::input(format!(
                "a matrix [{rows}, {cols}] as {coding} has {expected} bytes of codes and {runs} scales, found {} and \
                 {found}",
                codes.len()
            ))
            .hint("the file is damaged or was written by another program"));
        }
        Ok(Self { coding, rows, cols, codes, scales, levels: coding.format.levels() })
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
        match self.coding.granularity {
            Granularity::Block(_) => pack::unpack(self.coding.format, &self.codes, row * self.cols, codes),
            _ => {
                let bytes = pack::bytes(self.coding.format, self.cols);
                pack::unpack(self.coding.format, &self.codes[row * bytes..(row + 1) * bytes], 0, codes);
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
                for (value, code) in values[start..end].iter_mut().zip(&codes[start..end]) {
                    *value = (self.levels[usize::from(*code)] - zero) * scale;
                }
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

/// For integer formats: their integers, brought into the range of 8 bits with sign, and the zero points with them.
impl IntegerRows for Encoded {
    fn integers(&self, row: usize, integers: &mut [i8]) {
        let mut codes = vec![0; self.cols];
        self.row_codes(row, &mut codes);
        let levels = integers.iter_mut().zip(codes);
        match self.coding.format {
            Format::Uint(8) => levels.for_each(|(integer, code)| *integer = code.wrapping_sub(128) as i8),
            Format::Uint(_) => levels.for_each(|(integer, code)| *integer = code as i8),
            format => {
                let bits = format.width() as u8;
                levels.for_each(|(integer, code)| *integer = super::int::signed(code, bits));
            }
        }
    }

    fn runs(&self, row: usize, runs: &mut Vec<Run>) {
        let moved = if self.coding.format == Format::Uint(8) { 128.0 } else { 0.0 };
        runs.extend(self.row_scales(row).map(|(end, s)| Run { end, scale: s.scale, zero: s.zero - moved }));
    }
}

fn scale_bytes(coding: Coding, rows: usize, cols: usize) -> usize {
    Scales::bytes_of(coding.format, coding.granularity.runs(rows, cols).count())
}
