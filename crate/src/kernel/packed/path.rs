//! Which instructions multiply integers.

use crate::kernel::simd::{Level, Most, level, most};
use std::sync::OnceLock;

/// The instructions of an integer product. All give the same integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// No intrinsics.
    Portable,
    /// Pairs of 16-bit products.
    Avx2,
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
            Most::Vnni => Path::Vnni,
            // Permission for the tiles is asked only where they would be used.
            Most::Amx => return best(),
        };
        wanted.min(vectors())
    })
}

/// What the processor has and the system permits.
pub(super) fn best() -> Path {
    static BEST: OnceLock<Path> = OnceLock::new();
    *BEST.get_or_init(|| if vectors() == Path::Vnni && tiles() { Path::Amx } else { vectors() })
}

fn vectors() -> Path {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 && is_x86_feature_detected!("avx512vnni") {
        return Path::Vnni;
    }
    if level() >= Level::Avx2 { Path::Avx2 } else { Path::Portable }
}

fn tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::kernel::amx::has_int8();
    #[cfg(not(target_arch = "x86_64"))]
    false
}
