//! A matrix of packed codes and scales.

use super::{Coding, Format, Granularity, Scale, Scales, pack};
use crate::error::{Error, Result};
use crate::kernel::integer::{self, IntegerRows, Integers, Run};
use crate::kernel::levels::{self, Levels};
use crate::kernel::linear::{self, Weight};
use crate::kernel::packed::{self, Packed};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

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

    /// Columns of a run, at most. Blocks of the flattened matrix end at other columns in each row if these are no multiple of a
    /// block, and products take groups that lie alike in all rows: the codes of levels are cut where any row's blocks may end.
    fn piece(&self) -> usize {
        match self.coding.granularity {
            Granularity::Block(size)
                if !self.coding.format.is_integer() && !size.is_multiple_of(self.cols) =>
            {
                let (mut piece, mut rest) = (self.cols, size % self.cols);
                while rest > 0 {
                    (piece, rest) = (rest, piece % rest); // Euclid
                }
                if piece.is_multiple_of(8) { piece } else { self.cols }
            }
            _ => self.cols,
        }
    }

    /// The values of the rows from `first` on; `values` [any number of rows, cols] is overwritten.
    pub fn decode_rows(&self, first: usize, values: &mut [f32]) {
        if let Codes::Packed(packed) = &self.codes {
            match self.coding.format.is_integer() {
                true => packed.widen(first, values),
                false => packed.widen_levels(&self.levels, first, values),
            }
            return self.raise(first, values);
        }
        let mut codes = vec![0; self.cols];
        for (i, values) in values.chunks_mut(self.cols).enumerate() {
            self.row_codes(first + i, &mut codes);
            let mut start = 0;
            for (end, Scale { scale, zero, .. }) in self.row_scales(first + i) {
                levels::decode(&codes[start..end], &self.levels, zero, scale, &mut values[start..end]);
                start = end;
            }
        }
        self.raise(first, values);
    }

    /// Adds the minimums of the rows from `first` on, where there are any. Not in one rounding with the products: the numbers of
    /// ggml are a product, and then a sum.
    fn raise(&self, first: usize, values: &mut [f32]) {
        if let (Scales::F16(_, Some(mins)), Granularity::Group(size)) =
            (&self.scales, self.coding.granularity)
        {
            let mins = mins.chunks(self.cols.div_ceil(size)).skip(first);
            values.chunks_mut(self.cols).zip(mins).for_each(|(row, mins)| levels::raise(row, size, mins));
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
/// others the numbers of their codes. Minimums are not among them.
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
        let (piece, mut start) = (self.piece(), 0);
        for (end, Scale { scale, zero, .. }) in self.row_scales(row) {
            let ends = (start + piece..end).step_by(piece).chain([end]);
            runs.extend(ends.map(|end| Run { end, scale, zero: zero - moved }));
            start = end;
        }
    }

    fn range(&self) -> (i8, i8) {
        match (self.coding.format, self.coding.format.width()) {
            (_, 8) => (-128, 127),
            (Format::Int(_) | Format::Ternary | Format::Ggml { min: false, .. }, bits) => {
                (-1 << (bits - 1), (1 << (bits - 1)) - 1)
            }
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
            if forward(m, x, packed, &levels, bytes, y) {
                self.add_minimums(m, y, |i, run| x[i * self.cols..][run].iter().sum());
                return true;
            }
        }
        false
    }

    /// y = x Wᵀ for integer activations x [m, cols], y [m, rows], where codes are integers: exact sums in every run.
    pub(crate) fn integer_product(&self, x: &Integers, y: &mut [f32]) {
        match self.packed() {
            Some(packed) => packed::forward(x, packed, y),
            None => integer::forward(x, self.rows, self, y),
        }
        let sum = |i: usize, run: Range<usize>| {
            let codes = &x.codes[i * self.cols..][run];
            codes.iter().map(|code| i32::from(*code)).sum::<i32>() as f32 * x.scales[i]
        };
        self.add_minimums(x.scales.len(), y, sum);
    }

    /// Adds what the minimums of groups do: y += S minᵀ, where `sum` tells the sum S of each group of a row of x, so that no
    /// product over codes has to know of them.
    fn add_minimums(&self, m: usize, y: &mut [f32], sum: impl Fn(usize, Range<usize>) -> f32) {
        let (Scales::F16(_, Some(mins)), Granularity::Group(size)) = (&self.scales, self.coding.granularity)
        else {
            return;
        };
        let starts = (0..self.cols).step_by(size);
        let groups = starts.len();
        let sums: Vec<f32> = (0..m)
            .flat_map(|i| starts.clone().map(move |start| (i, start)))
            .map(|(i, start)| sum(i, start..self.cols.min(start + size)))
            .collect();
        let mut part = vec![0.0; y.len()];
        linear::forward(m, groups, self.rows, &sums, Weight::F16(mins), &mut part);
        y.iter_mut().zip(part).for_each(|(y, part)| *y += part);
    }
}

/// The bit by which codes with a sign, in two's complement, differ from their distance to the least one.
fn sign_bit(format: Format) -> u8 {
    match format {
        Format::Int(_) | Format::Ternary | Format::Ggml { min: false, .. } => 1 << (format.width() - 1),
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
    coding.bytes(rows, cols)
        - Scales::bytes_of(coding.format, coding.stored, coding.granularity.runs(rows, cols).count())
}
