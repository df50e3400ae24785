//! AMX, the matrix unit of recent Intel processors, from stable Rust: may it be used, and with which tile shapes.
//!
//! The shapes are a state of the thread that other libraries set too, and may remember as set: whoever uses the tiles
//! holds a [`Tiles`] for that long, which puts back what it found.

pub mod product;
pub mod terms;

use super::simd::{Level, Most, level, most};
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
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

    /// Tiles 0 … 3 are sums of 32 bits, 4 and 5 left operands `depth` bytes deep, a multiple of 4 up to 64, and 6 and 7
    /// right ones.
    pub fn for_depth(depth: usize) -> Self {
        let mut config = Self::FULL;
        config.row_bytes[4..6].fill(depth as u16);
        config.rows[6..8].fill(depth as u8 / 4);
        config
    }

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
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| {
        most() == Most::Amx && is_x86_feature_detected!("avx512bf16") && features() & (1 << 22) != 0
    })
}

/// Whether products of int8 tiles can be used, whatever `LOWBIT_SIMD` says of tiles.
pub fn has_int8() -> bool {
    features() & (1 << 25) != 0
}

/// Feature bits of tiles that are emulated, where tests do so: set before any of them begins.
#[cfg(test)]
pub(crate) static EMULATED: OnceLock<u32> = OnceLock::new();

/// The processor's feature bits if its tiles can be used, else 0.
fn features() -> u32 {
    #[cfg(test)]
    if let Some(bits) = EMULATED.get() {
        return *bits;
    }
    static BITS: OnceLock<u32> = OnceLock::new();
    *BITS.get_or_init(|| {
        let (most, bits) = (__cpuid(0).eax, __cpuid_count(7, 0).edx);
        let tiles = level() == Level::Avx512 && most >= 7 && bits & (1 << 24) != 0;
        if tiles && permitted() { bits } else { 0 }
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
    /// If there are none.
    pub fn load(config: &Config) -> Self {
        assert!(features() != 0, "no AMX");
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

    use crate::kernel::integer::Integers;
    use crate::kernel::packed::tests::Plain;
    use crate::kernel::packed::{Packed, forward};
    use crate::kernel::weight::Weight;
    use crate::kernel::{scan, split};

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

    #[test]
    fn kernels_on_many_threads_leave_others_shapes_and_results_alone() {
        if !has_bf16() {
            return;
        }
        // Few enough products to be computed by the calling thread.
        let (m, n, k) = (16, 20, 192);
        let plain = Plain { cols: k, group: k, range: (-7, 7), zeros: false, seed: 1 };
        let packed = Packed::new(n, k, &plain).unwrap();
        let codes = Integers { codes: vec![1; m * k], scales: vec![1.0; m], k };
        let x: Vec<f32> = (0..m * k).map(|i| (i % 23) as f32 - 11.0).collect();
        let shape = scan::Shape { batch: 1, time: 70, heads: 1, head_dim: 4, groups: 1, state: 8, out: 4 };
        let run = || {
            let theirs = Tiles::load(&Config::for_depth(24));
            let before = current();
            let (mut y, mut z) = (vec![0.0; m * n], vec![0.0; m * m]);
            forward(&codes, &packed, &mut y);
            split::forward(m, k, m, &x, Weight::F32(&x), &mut z);
            let (mut h, mut out) = (vec![0.0; 32], vec![0.0; 280]);
            scan::scan(shape, false, &x, &[0.1; 70], &[-1.0], &[1.0], &mut h, &mut out);
            assert_eq!(current(), before);
            drop(theirs);
            (y, z, h, out)
        };
        let expected = run();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| assert_eq!(run(), expected)));
            }
        });
        assert_eq!(current().0, 0, "no tiles are left in use");
    }
}
