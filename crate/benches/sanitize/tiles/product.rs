//! What the products of tiles compute, after Intel's manual, as plain functions of plain numbers.
//!
//! A row of the left operand meets a column of the right one, which holds side by side what lies one below the other in
//! its matrix: pairs of bf16 or four bytes. Sizes are [rows of the sums, values of 32 bits in a row of the left operand,
//! columns of the sums].

/// 16 rows of 16 values of 32 bits, zeros behind those in use.
pub type Tile = [[u32; 16]; 16];

/// The product of tiles that an instruction makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// `tdpbf16ps`.
    Bf16,
    /// `tdpbssd`.
    SignedSigned,
    /// `tdpbsud`.
    SignedUnsigned,
    /// `tdpbusd`.
    UnsignedSigned,
    /// `tdpbuud`.
    UnsignedUnsigned,
}

impl Product {
    /// Adds it to the sums.
    pub fn add(self, sums: &mut Tile, left: &Tile, right: &Tile, sizes: [usize; 3]) {
        // SAFETY: tiles are emulated, and compared, only beside AVX-512.
        unsafe {
            match self {
                Self::Bf16 => tdpbf16ps(sums, left, right, sizes),
                Self::SignedSigned => bytes::<true, true>(sums, left, right, sizes),
                Self::SignedUnsigned => bytes::<true, false>(sums, left, right, sizes),
                Self::UnsignedSigned => bytes::<false, true>(sums, left, right, sizes),
                Self::UnsignedUnsigned => bytes::<false, false>(sums, left, right, sizes),
            }
        }
    }
}

/// Pairs of bf16: the first of each pair and the second have sums in f32 of their own, by fused steps from 0 on, which
/// are added to one another and then to what was there. Subnormal numbers count as zeros, whether they come or go.
#[target_feature(enable = "avx512f,fma")]
fn tdpbf16ps(sums: &mut Tile, left: &Tile, right: &Tile, [m, k, n]: [usize; 3]) {
    for (sums, left) in sums[..m].iter_mut().zip(left) {
        let mut halves = [[0.0f32; 16]; 2];
        for (left, right) in left[..k].iter().zip(right) {
            for (half, sums) in halves.iter_mut().enumerate() {
                let left = bf16(*left, half);
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = flushed(left.mul_add(bf16(*right, half), *sum));
                }
            }
        }
        let [first, second] = halves;
        for ((sum, first), second) in sums[..n].iter_mut().zip(first).zip(second) {
            *sum = flushed(flushed(f32::from_bits(*sum)) + flushed(first + second)).to_bits();
        }
    }
}

/// The first or the second of a pair.
#[inline]
fn bf16(pair: u32, half: usize) -> f32 {
    flushed(f32::from_bits(if half == 0 { pair << 16 } else { pair & 0xffff_0000 }))
}

/// Zero of the same sign instead of a subnormal number.
#[inline]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

/// Four products of bytes, with signs or without, are added to a sum of 32 bits, which wraps around.
#[target_feature(enable = "avx512f,avx512bw")]
fn bytes<const LEFT: bool, const RIGHT: bool>(
    sums: &mut Tile,
    left: &Tile,
    right: &Tile,
    [m, k, n]: [usize; 3],
) {
    for (sums, left) in sums[..m].iter_mut().zip(left) {
        for (left, right) in left[..k].iter().zip(right) {
            for at in 0..4 {
                let left = byte::<LEFT>(*left, at);
                for (sum, right) in sums[..n].iter_mut().zip(right) {
                    *sum = sum.wrapping_add_signed(left * byte::<RIGHT>(*right, at));
                }
            }
        }
    }
}

/// One of the four bytes of a value, as a number with a sign or without.
#[inline(always)]
fn byte<const SIGNED: bool>(four: u32, at: usize) -> i32 {
    let moved = four << (24 - 8 * at);
    if SIGNED { moved as i32 >> 24 } else { (moved >> 24) as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of one row and one column, added to `before`.
    fn one(product: Product, before: u32, left: &[u32], right: &[u32]) -> u32 {
        let (mut sums, mut a, mut b) = ([[0; 16]; 16], [[0; 16]; 16], [[0; 16]; 16]);
        sums[0][0] = before;
        a[0][..left.len()].copy_from_slice(left);
        b.iter_mut().zip(right).for_each(|(row, right)| row[0] = *right);
        product.add(&mut sums, &a, &b, [1, left.len(), 1]);
        sums[0][0]
    }

    fn pair(first: f32, second: f32) -> u32 {
        first.to_bits() >> 16 | second.to_bits() & 0xffff_0000
    }

    fn float(before: f32, left: &[u32], right: &[u32]) -> f32 {
        f32::from_bits(one(Product::Bf16, before.to_bits(), left, right))
    }

    #[test]
    fn each_half_of_the_pairs_has_a_sum_of_its_own() {
        let ones = [pair(1.0, 1.0); 3];
        // In one sum of both, the ones would be lost beside 2²⁴; beside what was there before, they are.
        let left = [pair(16_777_216.0, 1.0), pair(0.0, 1.0), pair(-16_777_216.0, 1.0)];
        assert_eq!(float(0.0, &left, &ones), 3.0);
        assert_eq!(float(16_777_216.0, &[pair(0.5, 0.5)], &ones[..1]), 16_777_216.0);
        assert_eq!(float(16_777_216.0, &[pair(1.0, 1.0)], &ones[..1]), 16_777_218.0);
    }

    #[test]
    fn a_product_within_a_step_has_no_bounds_of_its_own() {
        let (large, least) = (f32::powi(2.0, 127), f32::MIN_POSITIVE);
        assert_eq!(
            float(0.0, &[pair(-large, 0.0), pair(large, 0.0)], &[pair(1.0, 0.0), pair(2.0, 0.0)]),
            large
        );
        let half = [pair(1.0, 0.0), pair(0.5, 0.0)];
        assert_eq!(float(0.0, &[pair(least, 0.0), pair(least, 0.0)], &half), 1.5 * least);
    }

    #[test]
    fn subnormal_numbers_are_zeros() {
        let (small, least) = (f32::from_bits(0x0040_0000), f32::MIN_POSITIVE);
        let one = [pair(1.0, 1.0)];
        assert_eq!(float(0.0, &[pair(small, 0.0)], &[pair(1e9, 0.0)]), 0.0);
        assert_eq!(float(1.0e-40, &[pair(0.0, 0.0)], &one), 0.0);
        assert_eq!(float(0.0, &[pair(least, 0.0)], &[pair(0.5, 0.0)]), 0.0);
        assert_eq!(float(0.0, &[pair(least, 0.0)], &one), least);
        assert_eq!(float(0.0, &[pair(1.5 * least, -least)], &one), 0.0, "the sum of the two halves");
    }

    #[test]
    fn bytes_have_signs_where_the_name_says_so_and_sums_wrap() {
        let (left, right) = ([2u8, 1, 255, 128], [255u8, 128, 2, 255]);
        let with = |bytes: [u8; 4]| bytes.map(|byte| i32::from(byte as i8));
        let without = |bytes: [u8; 4]| bytes.map(i32::from);
        for (product, a, b) in [
            (Product::SignedSigned, with(left), with(right)),
            (Product::SignedUnsigned, with(left), without(right)),
            (Product::UnsignedSigned, without(left), with(right)),
            (Product::UnsignedUnsigned, without(left), without(right)),
        ] {
            let expected: i32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
            let found = one(product, 5, &[u32::from_le_bytes(left)], &[u32::from_le_bytes(right)]);
            assert_eq!(found as i32, 5 + expected, "{product:?}");
        }
        assert_eq!(one(Product::SignedSigned, i32::MAX as u32, &[1], &[1]) as i32, i32::MIN);
    }
}
