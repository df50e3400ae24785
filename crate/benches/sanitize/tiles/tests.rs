//! The instructions themselves, emulated or not: both ways they have to do the same.

use super::EMULATED;
use super::product::{Product, Tile};
use crate::caught::end_of_child;
use crate::kernel::amx::{has_bf16, has_int8};
use std::arch::asm;
use std::ffi::c_int;

/// Shapes of the eight tiles: rows and bytes of a row.
#[repr(C, align(64))]
struct Config([u8; 64]);

impl Config {
    fn new(shapes: [(u8, u8); 8]) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for (tile, (rows, row_bytes)) in shapes.into_iter().enumerate() {
            (bytes[48 + tile], bytes[16 + 2 * tile]) = (rows, row_bytes);
        }
        Self(bytes)
    }

    fn load(&self) {
        // SAFETY: 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) self, options(nostack, preserves_flags, readonly)) };
    }
}

fn release() {
    // SAFETY: no memory.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
}

/// The same numbers for the same seed: such that are near 1 as bf16, or any bytes.
fn values(seed: usize, near_one: bool) -> Tile {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let near = |x: u32| x & 0x807f_807f | 0x3f80_3f80;
    std::array::from_fn(|_| std::array::from_fn(|_| if near_one { near(next()) } else { next() }))
}

macro_rules! on_the_unit {
    ($instruction:literal, $sums:ident, $left:ident, $right:ident) => {
        // SAFETY: the shapes are set; rows 64 bytes apart lie in tiles of 16.
        unsafe {
            asm!(
                "tileloadd tmm5, [{sums} + {row}]",
                "tileloaddt1 tmm2, [{left} + {row}]",
                "tileloadd tmm7, [{right} + {row}]",
                concat!($instruction, " tmm5, tmm2, tmm7"),
                "tilestored [{sums} + {row}], tmm5",
                sums = in(reg) $sums.as_mut_ptr(), left = in(reg) $left.as_ptr(), right = in(reg) $right.as_ptr(),
                row = in(reg) 64usize,
                out("tmm2") _, out("tmm5") _, out("tmm7") _,
                options(nostack, preserves_flags),
            )
        }
    };
}

/// The product by its instruction.
fn add(product: Product, sums: &mut Tile, left: &Tile, right: &Tile) {
    match product {
        Product::Bf16 => on_the_unit!("tdpbf16ps", sums, left, right),
        Product::SignedSigned => on_the_unit!("tdpbssd", sums, left, right),
        Product::SignedUnsigned => on_the_unit!("tdpbsud", sums, left, right),
        Product::UnsignedSigned => on_the_unit!("tdpbusd", sums, left, right),
        Product::UnsignedUnsigned => on_the_unit!("tdpbuud", sums, left, right),
    }
}

#[test]
fn the_kernels_see_a_unit() {
    assert!(has_bf16() && has_int8(), "the tests of the kernels would return early");
}

/// Where the unit is real, this is what holds the emulation to it.
#[test]
fn products_of_the_unit_are_those_of_the_functions() {
    use Product::*;
    let mut seed = 0;
    for [m, k, n] in [[1, 1, 1], [16, 16, 16], [5, 3, 7], [16, 1, 16], [2, 16, 9], [15, 13, 11], [3, 12, 16]]
    {
        let mut shapes = [(0, 0); 8];
        (shapes[5], shapes[2], shapes[7]) = ((m, 4 * n), (m, 4 * k), (k, 4 * n));
        for product in [Bf16, SignedSigned, SignedUnsigned, UnsignedSigned, UnsignedUnsigned] {
            for near_one in [true, false] {
                seed += 3;
                let [before, left, right] = [0, 1, 2].map(|of| values(seed + of, near_one));
                let (mut expected, mut found) = (before, before);
                product.add(&mut expected, &left, &right, [m, k, n].map(usize::from));
                Config::new(shapes).load();
                add(product, &mut found, &left, &right);
                release();
                for (expected, found) in expected.as_flattened().iter().zip(found.as_flattened()) {
                    let nan = |bits: u32| product == Bf16 && f32::from_bits(bits).is_nan();
                    let same = expected == found || nan(*expected) && nan(*found);
                    assert!(same, "{product:?} {m}×{k}×{n}: {found:08x} instead of {expected:08x}");
                }
            }
        }
    }
}

#[test]
fn a_load_leaves_zeros_beyond_its_rows_and_columns() {
    let (from, mut to) = (values(1, false), [[7u8; 48]; 16]);
    let mut shapes = [(16, 64); 8];
    Config::new(shapes).load();
    shapes[3] = (5, 18);
    let narrow = Config::new(shapes);
    // SAFETY: rows of 18 bytes, 64 and 48 apart, within both.
    unsafe {
        asm!(
            "tileloadd tmm3, [{from} + {row}]",
            "ldtilecfg [{narrow}]",
            "tilestored [{to} + {third}*2 + 480], tmm3", // zeros: new shapes empty the tiles
            "tileloadd tmm3, [{from} + {row}]",
            "tilestored [{to} + {third}*2], tmm3",
            from = in(reg) from.as_ptr(), row = in(reg) 64usize,
            to = in(reg) to.as_mut_ptr(), third = in(reg) 24usize, narrow = in(reg) &raw const narrow,
            out("tmm3") _,
            options(nostack, preserves_flags),
        );
    }
    release();
    for (row, to) in to.iter().enumerate() {
        for (col, to) in to.iter().enumerate() {
            let expected = match (row, col) {
                (0..5, ..18) => from[row][col / 4].to_le_bytes()[col % 4],
                (10..15, ..18) => 0,
                _ => 7,
            };
            assert_eq!(*to, expected, "at {row}, {col}");
        }
    }
}

#[test]
fn shapes_are_read_back_and_released() {
    let shapes = Config::new([(1, 4), (2, 8), (3, 12), (0, 0), (5, 20), (6, 24), (7, 28), (16, 64)]);
    let (mut now, mut after) = (Config([9; 64]), Config([9; 64]));
    shapes.load();
    // SAFETY: 64 bytes each.
    unsafe {
        asm!(
            "sttilecfg [{now}]",
            "tilerelease",
            "sttilecfg [{after}]",
            now = in(reg) &raw mut now, after = in(reg) &raw mut after,
            options(nostack, preserves_flags),
        );
    }
    assert!(now.0 == shapes.0 && after.0 == [0; 64]);
}

/// How a child ends that sets these shapes and then does this.
fn end(shapes: &Config, then: impl FnOnce()) -> c_int {
    // SAFETY: only instructions.
    unsafe {
        end_of_child(|| {
            shapes.load();
            then();
        })
    }
}

#[test]
fn what_the_processor_refuses_is_fatal() {
    let full = Config::new([(16, 64); 8]);
    // SAFETY: no memory.
    let product = || unsafe { asm!("tdpbssd tmm0, tmm1, tmm2", options(nostack, preserves_flags)) };
    // SAFETY: no memory; `tdpbssd tmm0, tmm1, tmm1`, which no assembler writes.
    let twice = || unsafe { asm!(".byte 0xc4, 0xe2, 0x73, 0x5e, 0xc1", options(nostack)) };
    // SAFETY: no memory; `tilezero` with a number of four bits.
    let fifteenth = || unsafe { asm!(".byte 0xc4, 0x62, 0x7b, 0x49, 0xf8", options(nostack)) };
    // SAFETY: no memory.
    let nothing_of_ours = || unsafe { asm!("ud2", options(nostack)) };
    // Emulated, the end is one of its own, behind a line that says why.
    let refused =
        |status: c_int| status != 0 && (EMULATED.get().is_none() || libc::WTERMSIG(status) == libc::SIGABRT);
    assert_eq!(end(&full, product), 0);
    assert!(refused(end(&full, twice)), "a tile twice");
    assert!(refused(end(&full, fifteenth)), "no such tile");
    assert!(refused(end(&Config([0; 64]), product)), "no shapes");
    assert_eq!(libc::WTERMSIG(end(&full, nothing_of_ours)), libc::SIGILL, "the default action");
    for (tile, shape) in
        [(0, (15, 64)), (0, (16, 60)), (1, (15, 64)), (1, (16, 60)), (2, (15, 64)), (2, (0, 0))]
    {
        let mut shapes = [(16, 64); 8];
        shapes[tile] = shape;
        assert!(refused(end(&Config::new(shapes), product)), "{tile}: {shape:?}");
    }
    for (at, byte) in [(0, 2), (2, 1), (16, 65), (32, 1), (48, 17), (48, 0), (56, 1)] {
        let mut config = Config::new([(16, 64); 8]);
        config.0[at] = byte;
        assert!(refused(end(&config, || ())), "byte {at} is {byte}");
    }
}

/// A watch that sees compiled code alone does not see the real unit.
#[test]
fn a_row_past_the_end_is_fatal() {
    if EMULATED.get().is_none() && !cfg!(feature = "guard") {
        return;
    }
    let full = Config::new([(16, 64); 8]);
    let mut bytes = vec![0u8; 1024];
    for (past, fatal) in [(0, false), (64, true)] {
        let at = bytes.as_mut_ptr().wrapping_add(past);
        // SAFETY: within the bytes, or the mistake that is to be found.
        let load =
            || unsafe { asm!("tileloadd tmm0, [{} + {}]", in(reg) at, in(reg) 64usize, options(nostack)) };
        // SAFETY: as above.
        let store =
            || unsafe { asm!("tilestored [{} + {}], tmm0", in(reg) at, in(reg) 64usize, options(nostack)) };
        assert_eq!(end(&full, load) != 0, fatal, "a load {past} bytes on");
        assert_eq!(end(&full, store) != 0, fatal, "a store {past} bytes on");
    }
}
