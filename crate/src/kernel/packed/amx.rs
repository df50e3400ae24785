//! The sums of a packed product on AMX: an instruction adds the products of 16 rows of activations, a panel, and 64
//! columns. Its intrinsics are not stable; the instructions are.
//!
//! Other code of the process may use tiles too, and may remember that it has configured them: every call loads its own
//! configuration and leaves behind the one that it found.

use super::product::{Out, Rows, add_group};
use super::{DEPTH, Line, PANEL, Packed};
use rayon::prelude::*;
use std::arch::asm;
use std::ops::Range;

/// Lines of a tile of activations.
const TILE: usize = 16;
/// Sums of a tile, one line for each row of activations.
type Sums = [[i32; PANEL]; TILE];

/// Activations as tiles of 16 rows and one piece of columns.
pub(super) struct Tiles {
    /// \[m / 16\]\[groups · pieces\]\[16\], zeros in the rows behind the last.
    lines: Vec<Line>,
    /// m / 16, rounded up.
    count: usize,
    /// Lines of 16 rows.
    row: usize,
}

impl Tiles {
    pub fn new(x: &Rows<'_>) -> Self {
        let (depth, m) = (x.columns.depth, x.scales.len());
        let (count, row) = (m.div_ceil(TILE), x.padded / depth * TILE);
        let mut lines = vec![Line([0; DEPTH]); count * row];
        lines.par_chunks_mut(row).enumerate().with_min_len(4).for_each(|(tile, lines)| {
            for i in 0..TILE.min(m - tile * TILE) {
                let codes = &x.codes[(tile * TILE + i) * x.padded..][..x.padded];
                for (piece, codes) in codes.chunks_exact(depth).enumerate() {
                    for (to, code) in lines[piece * TILE + i].0.iter_mut().zip(codes) {
                        *to = *code as u8;
                    }
                }
            }
        });
        Self { lines, count, row }
    }
}

/// All rows of activations with these panels.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn product(w: &Packed, x: &Rows<'_>, tiles: &Tiles, panels: Range<usize>, out: Out<'_>) {
    let columns = w.columns;
    let stored = w.lines.len() / w.panels();
    let part = &w.lines[panels.start * stored..panels.end * stored];
    let (unpacked, per_panel);
    let weights = if w.half {
        per_panel = 2 * stored;
        unpacked = unpack(part);
        &unpacked
    } else {
        per_panel = stored;
        part
    };
    let _configured = Configured::for_depth(columns.depth);
    let (group_tiles, group_lines) = (columns.pieces * TILE, columns.span() / 4);
    let mut sums = [[[0; PANEL]; TILE]; 4];
    let mut totals = [[[0.0; PANEL]; TILE]; 4];
    // The activations of two tiles stay in the first cache, the weights of the task in the second.
    for tile in (0..tiles.count).step_by(2) {
        for panel in (0..panels.len()).step_by(2) {
            let (next_tile, next_panel) =
                ((tile + 1).min(tiles.count - 1), (panel + 1).min(panels.len() - 1));
            for g in 0..columns.groups {
                let a = |tile: usize| &tiles.lines[tile * tiles.row + g * group_tiles..][..group_tiles];
                let b = |panel: usize| &weights[panel * per_panel + g * group_lines..][..group_lines];
                multiply([a(tile), a(next_tile)], [b(panel), b(next_panel)], columns.pieces, &mut sums);
                let last = g + 1 == columns.groups;
                for (q, (totals, sums)) in totals.iter_mut().zip(&sums).enumerate() {
                    let (tile, panel) = (tile + q / 2, panel + q % 2);
                    if panel >= panels.len() || tile >= tiles.count {
                        continue;
                    }
                    let (first, panel) = (tile * TILE, panels.start + panel);
                    let rows = first..x.scales.len().min(first + TILE);
                    for ((i, total), dots) in rows.zip(totals).zip(sums) {
                        if g == 0 {
                            *total = [0.0; PANEL];
                        }
                        add_group(total, dots, w, panel, g, x.sum(i, g));
                        if last {
                            // SAFETY: the panels of a task are its own.
                            unsafe { out.put(i, panel, total, x.scales[i]) };
                        }
                    }
                }
            }
        }
    }
}

/// Halves of bytes as bytes.
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(lines: &[Line]) -> Vec<Line> {
    let mut bytes = vec![Line([0; 64]); 2 * lines.len()];
    for (line, to) in lines.iter().zip(bytes.chunks_exact_mut(2)) {
        for (i, byte) in line.0.iter().enumerate() {
            to[0].0[i] = byte & 15;
            to[1].0[i] = byte >> 4;
        }
    }
    bytes
}

/// sums = the four products of two tiles and two panels over `pieces` pieces.
fn multiply(a: [&[Line]; 2], b: [&[Line]; 2], pieces: usize, sums: &mut [Sums; 4]) {
    let (tile, panel) = (a[0].len() / pieces, b[0].len() / pieces);
    assert!(pieces > 0 && tile == TILE && a[1].len() == a[0].len() && b[1].len() == b[0].len());
    // SAFETY: the tiles are configured; every piece of `a` has 16 lines, and every one of `b` as many as the
    // configuration says, within the slices; `sums` takes four tiles of 16 lines.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {line}]",
            "tileloadd tmm6, [{b0} + {line}]",
            "tileloadd tmm7, [{b1} + {line}]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a1} + {line}]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, {step}",
            "add {b1}, {step}",
            "dec {pieces}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            a0 = inout(reg) a[0].as_ptr() => _,
            a1 = inout(reg) a[1].as_ptr() => _,
            b0 = inout(reg) b[0].as_ptr() => _,
            b1 = inout(reg) b[1].as_ptr() => _,
            pieces = inout(reg) pieces => _,
            step = in(reg) 64 * panel,
            sums = in(reg) sums.as_mut_ptr(),
            line = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// While it lives, tiles 0 … 3 are sums, 4 and 5 activations, 6 and 7 weights.
struct Configured {
    previous: Line,
}

impl Configured {
    fn for_depth(depth: usize) -> Self {
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
