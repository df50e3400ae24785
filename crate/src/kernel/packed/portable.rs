//! The sums of a packed product without intrinsics.

use super::product::{Out, Rows, add_group};
use super::{Line, PANEL, Packed};
use std::ops::Range;

/// These rows of activations with these panels.
pub(super) fn product(w: &Packed, x: &Rows<'_>, rows: Range<usize>, panels: Range<usize>, out: Out<'_>) {
    for panel in panels {
        for i in rows.clone() {
            let mut total = [0.0; PANEL];
            for g in 0..w.columns.groups {
                let (lines, codes) = (w.group_lines(panel, g), x.group(i, g));
                let dots = if w.half { dots_half(lines, codes) } else { dots(lines, codes) };
                add_group(&mut total, &dots, w, panel, x, i, g);
            }
            // SAFETY: the panels of a task are its own.
            unsafe { out.put(i, panel, &total, x.scales[i]) };
        }
    }
}

fn dots(lines: &[Line], x: &[i8]) -> [i32; PANEL] {
    let mut dots = [0; PANEL];
    for (line, x) in lines.iter().zip(x.chunks_exact(4)) {
        for (dot, w) in dots.iter_mut().zip(line.0.chunks_exact(4)) {
            for (w, x) in w.iter().zip(x) {
                *dot += i32::from(*w) * i32::from(*x);
            }
        }
    }
    dots
}

fn dots_half(lines: &[Line], x: &[i8]) -> [i32; PANEL] {
    let mut dots = [0; PANEL];
    for (line, x) in lines.iter().zip(x.chunks_exact(8)) {
        for (dot, w) in dots.iter_mut().zip(line.0.chunks_exact(4)) {
            for (i, w) in w.iter().enumerate() {
                *dot += i32::from(w & 15) * i32::from(x[i]) + i32::from(w >> 4) * i32::from(x[i + 4]);
            }
        }
    }
    dots
}
