//! AMX, the matrix unit of recent Intel processors, from stable Rust: may it be used, and with which tile shapes.
//!
//! The shapes are a state of the thread that other libraries set too, and may remember as set: whoever uses the tiles
//! holds a [`Tiles`] for that long, which puts back what it found.

use super::simd::{Level, level};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Shapes of the eight tile registers, as the processor reads them.
#[repr(C, align(64))]
pub struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// Every tile has 16 rows of 64 bytes.
    pub const FULL: Self = Self::all(1, 64, 16);
    /// The tiles are not in use.
    const NONE: Self = Self::all(0, 0, 0);

    const fn all(palette: u8, row_bytes: u16, rows: u8) -> Self {
        let mut config = Self { palette, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            (config.row_bytes[tile], config.rows[tile]) = (row_bytes, rows);
            tile += 1;
        }
        config
    }
}

/// Whether products of bf16 tiles can be used. A `LOWBIT_SIMD` that asks for less than AMX forbids them.
pub fn has_bf16() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        let wanted = std::env::var("LOWBIT_SIMD").map_or(true, |least| least == "amx");
        wanted
            && level() == Level::Avx512
            && is_x86_feature_detected!("avx512bf16")
            && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES
            && permitted()
    })
}

/// Asks the kernel for the tiles' 8 KiB in this process's saved registers (ARCH_REQ_XCOMP_PERM of XTILEDATA).
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    // SAFETY: this call reads no memory; older kernels answer with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1023, 18) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// While it lives, this thread's tiles have the shapes that were asked for; then those from before.
pub struct Tiles {
    before: Config,
    /// The shapes belong to a thread.
    stays: PhantomData<*const ()>,
}

impl Tiles {
    /// Sets the shapes. Between here and the drop, the thread must not wait for other tasks: they may use tiles too.
    ///
    /// # Panics
    /// If not [`has_bf16`].
    pub fn load(config: &Config) -> Self {
        assert!(has_bf16(), "no AMX");
        let mut before = Config::NONE;
        // SAFETY: the tiles exist and are permitted; both operands are 64 bytes, and FULL is a valid configuration.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) &raw mut before, options(nostack, preserves_flags));
            asm!("ldtilecfg [{}]", in(reg) config, options(nostack, preserves_flags, readonly));
        }
        Self { before, stays: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the processor itself wrote this configuration; palette 0 frees the tiles.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const self.before, options(nostack, preserves_flags, readonly))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> (u8, u16, u8) {
        let mut now = Config::NONE;
        // SAFETY: called only where the tiles can be used.
        unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut now, options(nostack, preserves_flags)) };
        (now.palette, now.row_bytes[7], now.rows[7])
    }

    #[test]
    fn shapes_from_before_come_back() {
        if !has_bf16() {
            return;
        }
        assert_eq!(current(), (0, 0, 0));
        let other = Config::all(1, 32, 5);
        let outer = Tiles::load(&other);
        {
            let _inner = Tiles::load(&Config::FULL);
            assert_eq!(current(), (1, 64, 16));
        }
        assert_eq!(current(), (1, 32, 5));
        drop(outer);
        assert_eq!(current(), (0, 0, 0));
    }
}
