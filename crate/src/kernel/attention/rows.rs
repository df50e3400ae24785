//! Keys or values with a row for each head and token, in f32 or fewer bits.

use super::Width;
use crate::kernel::round::fake_int;
use crate::kernel::weight::{Weight, widen};
use half::bf16;

/// Bytes of so many codes.
pub(super) fn codes(dim: usize, bits: u8) -> usize {
    if bits == 4 { dim.div_ceil(2) } else { dim }
}

/// Keys, or values, of a head and token a row.
#[derive(Clone)]
pub(super) struct Rows {
    dim: usize,
    width: Width,
    floats: Vec<f32>,
    halves: Vec<bf16>,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Rows {
    pub fn new(dim: usize, width: Width) -> Self {
        Self { dim, width, floats: vec![], halves: vec![], codes: vec![], scales: vec![] }
    }

    /// Moves the first `len` positions of each head to where they lie if there is memory for `to` instead of `from`.
    pub fn grow(&mut self, heads: usize, (from, len): (usize, usize), to: usize) {
        let Self { dim, width, floats, halves, codes: bytes, scales } = self;
        let dim = *dim;
        match *width {
            Width::F32 => spread(floats, heads, dim, (from, len), to),
            Width::Bf16 => spread(halves, heads, dim, (from, len), to),
            Width::Int(bits) | Width::Channel(bits) => {
                spread(bytes, heads, codes(dim, bits), (from, len), to);
                spread(scales, heads, 1, (from, len), to);
            }
        }
    }

    /// Stores a row.
    pub fn write(&mut self, row: usize, values: &[f32]) {
        let dim = self.dim;
        match self.width {
            Width::F32 => self.floats[row * dim..][..dim].copy_from_slice(values),
            Width::Bf16 => {
                let to = &mut self.halves[row * dim..][..dim];
                to.iter_mut().zip(values).for_each(|(to, value)| *to = bf16::from_f32(*value));
            }
            Width::Int(bits) | Width::Channel(bits) => {
                // By the one function that rounds to integers, so that the cache is what a simulation of it says.
                let mut rounded = values.to_vec();
                fake_int(&mut rounded, bits);
                let most = ((1i32 << (bits - 1)) - 1) as f32;
                let top = values.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
                // No code stands for NaN or an infinity: the scale tells of them.
                let scale = if values.iter().all(|x| x.is_finite()) { top / most } else { f32::NAN };
                self.scales[row] = scale;
                let size = codes(dim, bits);
                let to = &mut self.codes[row * size..][..size];
                let code = |value: &f32| if scale > 0.0 { (value / scale).round() as i8 } else { 0 };
                put_codes(to, bits, rounded.iter().map(|value| code(value) as u8));
            }
        }
    }

    /// So many rows from `row` on, [count, D]; `wide` is room for those that are not f32.
    pub fn read<'a>(&'a self, row: usize, count: usize, wide: &'a mut Vec<f32>) -> &'a [f32] {
        let dim = self.dim;
        if self.width == Width::F32 {
            return &self.floats[row * dim..][..count * dim];
        }
        wide.resize(count * dim, 0.0);
        match self.width {
            Width::F32 => {}
            Width::Bf16 => widen(Weight::Bf16(&self.halves), row, dim, wide),
            Width::Int(bits) | Width::Channel(bits) => {
                let size = codes(dim, bits);
                let rows = self.codes[row * size..][..count * size].chunks_exact(size);
                for ((to, from), scale) in wide.chunks_exact_mut(dim).zip(rows).zip(&self.scales[row..]) {
                    if bits == 4 {
                        for (i, to) in to.iter_mut().enumerate() {
                            let code = ((from[i / 2] >> (4 * (i % 2))) << 4) as i8 >> 4;
                            *to = f32::from(code) * scale;
                        }
                    } else {
                        to.iter_mut().zip(from).for_each(|(to, from)| *to = f32::from(*from as i8) * scale);
                    }
                }
            }
        }
        wide
    }
}

/// Writes codes of so many bits, 8 or 4: those of 4 bits two a byte.
pub(super) fn put_codes(to: &mut [u8], bits: u8, codes: impl Iterator<Item = u8>) {
    if bits == 8 {
        return to.iter_mut().zip(codes).for_each(|(to, code)| *to = code);
    }
    to.fill(0);
    for (i, code) in codes.enumerate() {
        to[i / 2] |= (code & 15) << (4 * (i % 2));
    }
}

/// Moves the first `len` of `size` values each of every head to where they lie if there is memory for `to` instead of `from`.
pub(super) fn spread<T: Copy + Default>(
    values: &mut Vec<T>,
    heads: usize,
    size: usize,
    (from, len): (usize, usize),
    to: usize,
) {
    let mut grown = vec![T::default(); heads * to * size];
    for head in 0..heads {
        grown[head * to * size..][..len * size].copy_from_slice(&values[head * from * size..][..len * size]);
    }
    *values = grown;
}
