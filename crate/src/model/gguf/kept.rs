//! Blocks as they are: the codes and scales of a file in the layout that products take, without a number rounded.

use super::Block;
use crate::format::{Coding, Encoded, Format, Scales};
use half::f16;

/// Elements of a block that can be kept.
const SIZE: usize = 32;

impl Block {
    /// The format of a matrix in these blocks, if there are kernels for it.
    pub fn coding(self) -> Option<Coding> {
        let (bits, min) = match self {
            Self::Q8_0 => (8, false),
            Self::Q5_0 => (5, false),
            Self::Q4_0 => (4, false),
            Self::Q5_1 => (5, true),
            Self::Q4_1 => (4, true),
            Self::F32 | Self::F16 | Self::BF16 | Self::Q6_K | Self::Q5_K | Self::Q4_K => return None,
        };
        Some(Coding::of(Format::Ggml { bits, min }))
    }

    /// The matrix [rows, cols] of these blocks, if there are kernels for it: every weight is the number that
    /// [`decode`](Self::decode) gives.
    pub fn encoded(self, rows: usize, cols: usize, blocks: &[u8]) -> Option<Encoded> {
        let coding = self.coding()?;
        let Format::Ggml { bits, min } = coding.format else { return None };
        let (mut codes, mut scales, mut mins) = (Vec::with_capacity(rows * cols), vec![], vec![]);
        for block in blocks.chunks_exact(self.bytes()) {
            let number = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
            scales.push(number(0));
            if min {
                mins.push(number(2));
            }
            let rest = &block[if min { 4 } else { 2 }..];
            // Codes of 5 bits: the fifth ones of all first.
            let (fifths, halves) = rest.split_at(if bits == 5 { 4 } else { 0 });
            let fifth = |i: usize| if bits == 5 { (fifths[i / 8] >> (i % 8) & 1) << 4 } else { 0 };
            let middle = if min { 0 } else { 1 << (bits - 1) };
            match bits {
                8 => codes.extend_from_slice(halves),
                // The low halves of all bytes, then the high ones; the middle of those without minimum is zero.
                _ => codes.extend((0..SIZE).map(|i| {
                    let half = halves[i % 16] >> (i / 16 * 4) & 15;
                    (half | fifth(i)) ^ middle
                })),
            }
        }
        Some(Encoded::new(coding, rows, cols, &codes, Scales::F16(scales, min.then_some(mins))))
    }
}
