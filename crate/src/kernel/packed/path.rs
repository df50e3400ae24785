//! Which instructions multiply integers.

use crate::kernel::simd::{Level, Most, level, most};
use std::sync::OnceLock;

/// The instructions of an integer product. All give the same integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// No intrinsics.
    Portable,
    /// Pairs of 16-bit products, and of byte products that fit 16 bits.
    Avx2,
    /// Vectors of 256 bits with four byte products an instruction.
    AvxVnni,
    /// AVX-512 with four byte products an instruction.
    Vnni,
    /// Tiles of 16 × 64 bytes for many rows, VNNI for few.
    Amx,
}

/// The best path of this processor, or a lesser one if `LOWBIT_SIMD` asks for it.
pub fn path() -> Path {
    static PATH: OnceLock<Path> = OnceLock::new();
    *PATH.get_or_init(|| {
        let wanted = match most() {
            Most::Portable => Path::Portable,
            // AVX-512 without VNNI gains little over AVX2 here.
            Most::Avx2 | Most::Avx512 => Path::Avx2,
            Most::AvxVnni => Path::AvxVnni,
            Most::Vnni => Path::Vnni,
            Most::Amx => Path::Amx,
        };
        let lesser = Path::EACH.into_iter().rev().filter(|path| *path <= wanted);
        // Permission for the tiles is asked only where they would be used.
        lesser.into_iter().find(|path| path.available()).unwrap_or(Path::Portable)
    })
}

impl Path {
    /// From the least to the best.
    pub(super) const EACH: [Self; 5] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Vnni, Self::Amx];

    /// Whether the processor has it and the system permits it.
    pub(super) fn available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => level() >= Level::Avx2,
            Self::AvxVnni => level() >= Level::Avx2 && has_avx_vnni(),
            Self::Vnni => level() == Level::Avx512 && has_vnni(),
            Self::Amx => Self::Vnni.available() && has_tiles(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx_vnni() -> bool {
    is_x86_feature_detected!("avxvnni")
}

#[cfg(target_arch = "x86_64")]
fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

#[cfg(target_arch = "x86_64")]
use crate::kernel::amx::has_int8 as has_tiles;

#[cfg(not(target_arch = "x86_64"))]
use none::{has_avx_vnni, has_tiles, has_vnni};

#[cfg(not(target_arch = "x86_64"))]
mod none {
    pub fn has_avx_vnni() -> bool {
        false
    }
    pub use has_avx_vnni as has_vnni;
    pub use has_avx_vnni as has_tiles;
}
