//! The shapes of a thread's tiles.
//!
//! Other code of the process may use tiles too, and may remember that it has configured them: every product loads its own
//! configuration and leaves behind the one that it found.

use super::Line;
use super::amx::TILE;
use std::arch::asm;

/// While it lives, tiles 0 … 3 are sums, 4 and 5 activations, 6 and 7 weights.
pub(super) struct Configured {
    previous: Line,
}

impl Configured {
    /// Tiles of activations are so many bytes deep, a multiple of 4 up to 64.
    pub fn for_depth(depth: usize) -> Self {
        let mut wanted = Line([0; 64]);
        wanted.0[0] = 1; // the one palette there is
        for tile in 0..8 {
            let (rows, bytes) = match tile {
                0..4 => (TILE, 64),
                4..6 => (TILE, depth),
                _ => (depth / 4, 64),
            };
            wanted.0[16 + 2 * tile] = bytes as u8;
            wanted.0[48 + tile] = rows as u8;
        }
        let mut previous = Line([0; 64]);
        // SAFETY: both are configurations of 64 bytes; the path says that there are tiles.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) &raw mut previous, options(nostack));
            asm!("ldtilecfg [{}]", in(reg) &raw const wanted, options(nostack));
        }
        Self { previous }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: a configuration that was in force before.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const self.previous, options(nostack)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::integer::Integers;
    use crate::kernel::packed::path::{Path, best};
    use crate::kernel::packed::tests::Plain;
    use crate::kernel::packed::{Packed, product};

    fn in_force() -> Line {
        let mut found = Line([0; 64]);
        // SAFETY: 64 bytes are written.
        unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut found, options(nostack)) };
        found
    }

    #[test]
    fn another_users_configuration_survives_on_every_thread() {
        if best() < Path::Amx {
            return;
        }
        // Few enough products to be computed by the calling thread.
        let (m, n, k) = (16, 20, 192);
        let plain = Plain { cols: k, group: k, range: (-7, 7), zeros: false, seed: 1 };
        let packed = Packed::new(n, k, &plain).unwrap();
        let x = Integers { codes: vec![1; m * k], scales: vec![1.0; m], k };
        let output = || {
            let _theirs = Configured::for_depth(24);
            let (before, mut y) = (in_force(), vec![0.0; m * n]);
            product::forward(&x, &packed, &mut y);
            assert_eq!(in_force(), before);
            y
        };
        let expected = output();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| assert_eq!(output(), expected)));
            }
        });
        assert_eq!(in_force().0[0], 0, "no tiles are left in use");
    }
}
