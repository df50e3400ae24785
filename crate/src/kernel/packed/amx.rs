//! The sums of a packed product on AMX: an instruction adds the products of 16 rows of activations, a panel, and 64
//! columns. Its intrinsics are not stable; the instructions are.

use super::columns::{Columns, DEPTH};
use super::product::{Out, put_vector, vector, with_group};
use super::{Line, PANEL, Packed};
use crate::kernel::ahead::{Ahead, fetch};
use crate::kernel::amx::{self, Config};
use crate::kernel::integer::{Integers, total};
use rayon::prelude::*;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a tile.
pub(super) const TILE: usize = 16;
/// Sums of two tiles with two panels, by tile and panel: a line for each row of activations.
type Sums = [[[Line; TILE]; 2]; 2];

/// Activations as tiles of 16 rows and one piece of columns.
pub(super) struct Tiles<'a> {
    /// \[m / 16\]\[groups · pieces\]\[16\], zeros in the rows behind the last.
    lines: Vec<Line>,
    /// Lines of 16 rows.
    row: usize,
    /// \[m / 16\]\[groups\]\[16\]: sums of the groups of rows, and those times the offset of the stored integers.
    sums: Vec<[[i32; TILE]; 2]>,
    /// `[m]`.
    scales: &'a [f32],
}

impl<'a> Tiles<'a> {
    pub fn new(x: &'a Integers, w: &Packed) -> Self {
        let Columns { depth, groups, .. } = w.columns;
        let m = x.scales.len();
        let (count, row) = (m.div_ceil(TILE), w.columns.padded() / depth * TILE);
        let mut lines = vec![Line([0; DEPTH]); count * row];
        let mut sums = vec![[[0; TILE]; 2]; count * groups];
        let tiles = lines.par_chunks_mut(row).zip(sums.par_chunks_mut(groups)).enumerate();
        tiles.with_min_len(4).for_each(|(tile, (lines, sums))| {
            for i in 0..TILE.min(m - tile * TILE) {
                let codes = &x.codes[(tile * TILE + i) * x.k..][..x.k];
                for (g, sums) in sums.iter_mut().enumerate() {
                    let codes = &codes[w.columns.of(g)];
                    let sum = total(codes);
                    (sums[0][i], sums[1][i]) = (sum, sum.wrapping_mul(w.offset));
                    let pieces =
                        codes.chunks(depth).zip(lines[g * w.columns.pieces * TILE..].chunks_mut(TILE));
                    for (codes, lines) in pieces {
                        for (to, code) in lines[i].0.iter_mut().zip(codes) {
                            *to = *code as u8;
                        }
                    }
                }
            }
        });
        Self { lines, row, sums, scales: &x.scales }
    }
}

/// These rows of activations, from the first of a tile on, with these panels.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn product(w: &Packed, tiles: &Tiles<'_>, rows: Range<usize>, panels: Range<usize>, out: Out<'_>) {
    let columns = w.columns;
    let stored = w.lines.len() / w.panels();
    let part = &w.lines[panels.start * stored..panels.end * stored];
    let unpacked;
    let weights = if w.half {
        unpacked = unpack(part);
        &unpacked
    } else {
        part
    };
    let panel_lines = columns.padded() / 4;
    let (tile_lines, group_lines) = (columns.pieces * TILE, columns.span() / 4);
    let mut task = Task {
        w,
        x: tiles,
        out,
        end: rows.end,
        panels: panels.clone(),
        sums: [[[Line([0; 64]); TILE]; 2]; 2],
        totals: [[[[0.0; PANEL]; TILE]; 2]; 2],
    };
    let passes = rows.len().div_ceil(2 * TILE) * panels.len().div_ceil(2);
    let mut ahead = Ahead::behind(part, passes * columns.groups * columns.pieces).within_reach();
    let _tiles = amx::Tiles::load(&Config::for_depth(columns.depth));
    let mut before = None;
    // The activations of two tiles stay in the first cache, the weights of the task in the second.
    let end = rows.end.div_ceil(TILE);
    for tile in (rows.start / TILE..end).step_by(2) {
        for panel in (0..panels.len()).step_by(2) {
            for g in 0..columns.groups {
                let a = |tile: usize| &tiles.lines[tile * tiles.row + g * tile_lines..][..tile_lines];
                let b = |panel: usize| &weights[panel * panel_lines + g * group_lines..][..group_lines];
                // Where there is no second tile or panel, the first stands in for it.
                let (tiles, panels) = (end - 1, panels.len() - 1);
                let pieces = columns.pieces;
                multiply(
                    [a(tile), a(tiles.min(tile + 1))],
                    [b(panel), b(panels.min(panel + 1))],
                    pieces,
                    &mut ahead,
                );
                // While tiles are multiplied, the vectors finish what was before.
                if let Some((tile, panel, g)) = before.replace((tile, panel, g)) {
                    task.finish(tile, panel, g);
                }
                store(&mut task.sums);
            }
        }
    }
    if let Some((tile, panel, g)) = before {
        task.finish(tile, panel, g);
    }
}

/// Halves of bytes as bytes.
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(lines: &[Line]) -> Vec<Line> {
    let mut bytes = Vec::with_capacity(2 * lines.len());
    for line in lines {
        let (mut low, mut high) = (line.0, line.0);
        for (low, high) in low.iter_mut().zip(&mut high) {
            (*low, *high) = (*low & 15, *high >> 4);
        }
        bytes.extend([Line(low), Line(high)]);
    }
    bytes
}

/// The floating-point end of the panels of a task.
struct Task<'a> {
    w: &'a Packed,
    x: &'a Tiles<'a>,
    out: Out<'a>,
    /// One past the last row.
    end: usize,
    panels: Range<usize>,
    sums: Sums,
    totals: [[[[f32; PANEL]; TILE]; 2]; 2],
}

impl Task<'_> {
    /// What [`add_group`](super::product::add_group) and `put` do, for group `g` of two tiles and two panels.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn finish(&mut self, tile: usize, panel: usize, g: usize) {
        for (t, p) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let (first, panel) = ((tile + t) * TILE, self.panels.start + panel + p);
            if panel >= self.panels.end || first >= self.end {
                continue;
            }
            match (g == 0, g + 1 == self.w.columns.groups) {
                (true, true) => self.add::<true, true>(t, p, first, panel, g),
                (true, false) => self.add::<true, false>(t, p, first, panel, g),
                (false, true) => self.add::<false, true>(t, p, first, panel, g),
                (false, false) => self.add::<false, false>(t, p, first, panel, g),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn add<const FIRST: bool, const LAST: bool>(
        &mut self,
        t: usize,
        p: usize,
        first: usize,
        panel: usize,
        g: usize,
    ) {
        let (w, x, count) = (self.w, self.x, TILE.min(self.end - first));
        let at = panel * w.columns.groups + g;
        let (scale, zero) = (vector(&w.scales[at]), w.zeros.get(at).map(|zeros| vector(zeros)));
        let [sums, moved] = &x.sums[first / TILE * w.columns.groups + g];
        let totals =
            self.totals[t][p].iter_mut().zip(&self.sums[t][p]).zip(moved.iter().zip(sums)).take(count);
        for (i, ((total, stored), (moved, sum))) in totals.enumerate() {
            // SAFETY: a line has 16 integers.
            let stored = unsafe { _mm512_load_si512(stored.0.as_ptr().cast()) };
            let before = if FIRST { _mm512_setzero_ps() } else { vector(total) };
            let sum = with_group(before, stored, scale, *moved, zero.map(|zero| (zero, *sum)));
            // SAFETY: the panels of a task are its own; 16 numbers.
            unsafe {
                match LAST {
                    true => put_vector(self.out, first + i, panel, sum, x.scales[first + i]),
                    false => _mm512_storeu_ps(total.as_mut_ptr(), sum),
                }
            }
        }
    }
}

/// Tiles 0 … 3 become the products of two tiles with two panels over `pieces` pieces. Meanwhile the next part of `ahead` is
/// fetched.
#[inline(always)]
fn multiply(a: [&[Line]; 2], b: [&[Line]; 2], pieces: usize, ahead: &mut Ahead) {
    let (tile, panel) = (a[0].len() / pieces, b[0].len() / pieces);
    assert!(pieces > 0 && tile == TILE && a[1].len() == a[0].len() && b[1].len() == b[0].len());
    // SAFETY: the tiles are configured; every piece of `a` has 16 lines, and every one of `b` as many as the
    // configuration says, within the slices.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {line}]",
            "tileloadd tmm6, [{b0} + {line}]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {line}]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {line}]",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            fetch!(),
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, {step}",
            "add {b1}, {step}",
            "dec {pieces}",
            "jnz 2b",
            a0 = inout(reg) a[0].as_ptr() => _,
            a1 = inout(reg) a[1].as_ptr() => _,
            b0 = inout(reg) b[0].as_ptr() => _,
            b1 = inout(reg) b[1].as_ptr() => _,
            pieces = inout(reg) pieces => _,
            ahead = inout(reg) ahead.at,
            fetched = in(reg) ahead.step,
            step = in(reg) 64 * panel,
            line = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}

/// Writes tiles 0 … 3, which the compiler does not know to be in use: nothing else of it uses tiles.
#[inline(always)]
fn store(sums: &mut Sums) {
    // SAFETY: four tiles of 16 lines.
    unsafe {
        asm!(
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            sums = in(reg) sums.as_mut_ptr(),
            line = in(reg) 64usize,
            options(nostack),
        );
    }
}
