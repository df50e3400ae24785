//! Codes ↔ bytes.
//!
//! Codes of b bits follow one another from the low bits of a byte up, without gaps; NF4's from the high bits down, as in
//! bitsandbytes; ternary codes share a byte by five, as digits of base 3.

use super::Format;

/// Ternary codes of a byte: 3⁵ = 243.
const TRITS: usize = 5;

/// Bytes of `count` packed codes.
pub fn bytes(format: Format, count: usize) -> usize {
    match format {
        Format::Ternary => count.div_ceil(TRITS),
        _ => (count * format.width() as usize).div_ceil(8),
    }
}

/// Packs codes into [`bytes`] bytes.
pub fn pack(format: Format, codes: &[u8], packed: &mut [u8]) {
    match (format, format.width()) {
        (Format::Ternary, _) => {
            for (codes, byte) in codes.chunks(TRITS).zip(packed) {
                *byte = codes.iter().rev().fold(0, |byte, code| byte * 3 + trit(*code));
            }
        }
        (_, 8) => packed.copy_from_slice(codes),
        (Format::Nf4 | Format::Nf4Double, _) => {
            for (pair, byte) in codes.chunks(2).zip(packed) {
                *byte = pair[0] << 4 | pair.get(1).unwrap_or(&0);
            }
        }
        (_, 4) => {
            for (pair, byte) in codes.chunks(2).zip(packed) {
                *byte = pair[0] | pair.get(1).unwrap_or(&0) << 4;
            }
        }
        (_, width) => {
            packed.fill(0);
            for (i, code) in codes.iter().enumerate() {
                let (at, shift) = place(i, width);
                let both = u16::from(*code) << shift;
                packed[at] |= both as u8;
                if shift + width > 8 {
                    packed[at + 1] |= (both >> 8) as u8;
                }
            }
        }
    }
}

/// Unpacks the codes from number `first` on.
pub fn unpack(format: Format, packed: &[u8], first: usize, codes: &mut [u8]) {
    match (format, format.width()) {
        (Format::Ternary, _) => {
            for (i, code) in codes.iter_mut().enumerate() {
                let i = first + i;
                let digit = packed[i / TRITS] / 3u8.pow((i % TRITS) as u32) % 3;
                *code = [0, 1, 3][usize::from(digit)]; // two bits in two's complement
            }
        }
        (_, 8) => codes.copy_from_slice(&packed[first..first + codes.len()]),
        (Format::Nf4 | Format::Nf4Double, _) => halves(packed, first, codes, 4),
        (_, 4) => halves(packed, first, codes, 0),
        (_, width) => {
            let mask = u8::MAX >> (8 - width);
            for (i, code) in codes.iter_mut().enumerate() {
                let (at, shift) = place(first + i, width);
                let high = packed.get(at + 1).copied().unwrap_or(0);
                *code = (u16::from_le_bytes([packed[at], high]) >> shift) as u8 & mask;
            }
        }
    }
}

/// Half bytes; those of even number lie `even` bits up.
fn halves(packed: &[u8], first: usize, codes: &mut [u8], even: u32) {
    let (mut codes, mut i) = (codes, first);
    if i % 2 == 1 && !codes.is_empty() {
        codes[0] = packed[i / 2] >> (4 - even) & 15;
        (codes, i) = (&mut codes[1..], i + 1);
    }
    for (pair, byte) in codes.chunks_mut(2).zip(&packed[i / 2..]) {
        pair[0] = byte >> even & 15;
        if let Some(odd) = pair.get_mut(1) {
            *odd = byte >> (4 - even) & 15;
        }
    }
}

/// Byte and bit where code `i` starts.
fn place(i: usize, width: u32) -> (usize, u32) {
    let bit = i * width as usize;
    (bit / 8, (bit % 8) as u32)
}

/// 0, 1, −1 (in two bits) → 0, 1, 2.
fn trit(code: u8) -> u8 {
    code.min(2)
}
