//! Products of tiles of bf16 terms, summed in f32.

use super::Tiles;
use super::terms::Tile;
use crate::kernel::ahead::{Ahead, fetch};
use crate::kernel::blocked::{Left, Sums};
use std::arch::asm;

impl Left {
    /// Rows of tiles of terms.
    pub fn packed<const A: usize>(tiles: [&[[Tile; A]]; 2]) -> Self {
        Self {
            start: tiles.map(|tiles| tiles.as_ptr().cast()),
            row: 64,
            value: 2,
            step: size_of::<[Tile; A]>(),
        }
    }
}

// A load right before the product that needs it leaves the unit least idle: a pass with all four loads ahead takes half as
// long again.
macro_rules! load {
    ($tile:literal, $from:ident, $row:ident, $term:literal) => {
        concat!(
            "tileloadd tmm",
            $tile,
            ", [{",
            stringify!($from),
            "} + {",
            stringify!($row),
            "}*1 + ",
            $term,
            "]\n"
        )
    };
}
macro_rules! dot {
    (0) => {
        "tdpbf16ps tmm0, tmm4, tmm6\n"
    };
    (1) => {
        "tdpbf16ps tmm1, tmm4, tmm7\n"
    };
    (2) => {
        "tdpbf16ps tmm2, tmm5, tmm6\n"
    };
    (3) => {
        "tdpbf16ps tmm3, tmm5, tmm7\n"
    };
}
/// A term of the left operand by one of the right, at these bytes of a step.
macro_rules! both {
    ($left:literal, $right:literal) => {
        concat!(
            load!(4, a0, a_row, $left),
            load!(6, b0, b_row, $right),
            dot!(0),
            load!(7, b1, b_row, $right),
            dot!(1),
            load!(5, a1, a_row, $left),
            dot!(2),
            dot!(3)
        )
    };
}
/// Another term of the left operand by that of the right before.
macro_rules! left {
    ($left:literal) => {
        concat!(load!(4, a0, a_row, $left), dot!(0), dot!(1), load!(5, a1, a_row, $left), dot!(2), dot!(3))
    };
}
/// That of the left before by another of the right operand.
macro_rules! right {
    ($right:literal) => {
        concat!(load!(6, b0, b_row, $right), dot!(0), dot!(2), load!(7, b1, b_row, $right), dot!(1), dot!(3))
    };
}
macro_rules! run {
    ($left:expr, $right:expr, $steps:expr, $b:expr, [$($pass:expr),*] $(, $ahead:ident)?) => {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            $($pass,)*
            $(fetch!([$ahead]),)?
            "add {a0}, {a_step}",
            "add {a1}, {a_step}",
            "add {b0}, {b_step}",
            "add {b1}, {b_step}",
            "dec {left}",
            "jnz 2b",
            a0 = inout(reg) $left.start[0] => _, a1 = inout(reg) $left.start[1] => _,
            b0 = inout(reg) $right[0].as_ptr() => _, b1 = inout(reg) $right[1].as_ptr() => _,
            left = inout(reg) $steps => _,
            $(ahead = inout(reg) $ahead.at, fetched = in(reg) $ahead.step,)?
            a_row = in(reg) $left.row, b_row = in(reg) 64usize, a_step = in(reg) $left.step,
            b_step = const size_of::<Tile>() * $b,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        )
    };
}

macro_rules! by_terms {
    ($a:ident, $b:ident, $left:expr, $right:expr, $steps:expr $(, $ahead:ident)?) => {
        match ($a, $b) {
            (1, 1) => run!($left, $right, $steps, 1, [both!("0", "0")] $(, $ahead)?),
            (2, 2) => {
                run!($left, $right, $steps, 2, [both!("1024", "0"), left!("0"), right!("1024")] $(, $ahead)?)
            }
            (3, 3) => run!(
                $left,
                $right,
                $steps,
                3,
                [
                    both!("2048", "0"),
                    left!("1024"),
                    left!("0"),
                    right!("1024"),
                    left!("1024"),
                    both!("0", "2048")
                ]
                $(, $ahead)?
            ),
            _ => unreachable!("no product of {} and {} terms", $a, $b),
        }
    };
}

/// The tiles 0 … 3 become the sums over `steps` tiles of `A` terms on the left and `B` on the right: all products of
/// terms i and j with i + j < max(A, B), in an order that loads few tiles twice. Meanwhile the next part
/// of `ahead` is fetched.
///
/// # Safety
/// The left operand has `steps` tiles of A terms behind each of its starts.
///
/// # Panics
/// If there are no steps, or the right operand has fewer.
#[inline(always)]
pub unsafe fn multiply<const A: usize, const B: usize>(
    _: &Tiles,
    left: Left,
    right: [&[[Tile; B]]; 2],
    steps: usize,
    ahead: Option<&mut Ahead>,
) {
    assert!(steps > 0 && right[0].len() >= steps && right[1].len() >= steps);
    // SAFETY: in bounds by the assertion and the caller's promise; the shapes are set while there are `Tiles`. What is
    // asked for ahead may be anywhere.
    unsafe {
        match ahead {
            Some(ahead) => by_terms!(A, B, left, right, steps, ahead),
            None => by_terms!(A, B, left, right, steps),
        }
    }
}

/// Writes the tiles 0 … 3 to memory. The compiler has no use of its own for tiles: they last from [`multiply`] to here.
#[inline(always)]
pub fn keep(_: &Tiles, sums: &mut Sums) {
    // SAFETY: four tiles of 1024 bytes fill `sums`; the shapes are set.
    unsafe {
        asm!(
            "tilestored [{to} + {row}*1], tmm0",
            "tilestored [{to} + {row}*1 + 1024], tmm1",
            "tilestored [{to} + {row}*1 + 2048], tmm2",
            "tilestored [{to} + {row}*1 + 3072], tmm3",
            to = in(reg) sums.0.as_mut_ptr(), row = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
}
