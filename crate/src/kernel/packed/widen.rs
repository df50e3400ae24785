//! What the numbers of a packed matrix stand for, row by row, for products with f32 where no instruction takes them as
//! they are.

use super::{Line, PANEL, Packed};
use crate::kernel::levels::Levels;
use crate::kernel::simd::{Lanes, dispatch};

impl Packed {
    /// The rows from `first` on, as many as `to` has room for: (integer − zero) · scale.
    pub fn widen(&self, first: usize, to: &mut [f32]) {
        integers(self, first, to);
    }

    /// As [`widen`](Self::widen), where what is stored is the number of a level: (level − zero) · scale.
    pub fn widen_levels(&self, levels: &Levels, first: usize, to: &mut [f32]) {
        of_levels(self, levels, first, to);
    }
}

dispatch! {
    fn integers(w: &Packed, first: usize, to: &mut [f32]) = integers_body;
}

dispatch! {
    fn of_levels(w: &Packed, levels: &Levels, first: usize, to: &mut [f32]) = levels_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn integers_body<V: Lanes>(w: &Packed, first: usize, to: &mut [f32]) {
    rows(w, first, to, |stored| (i32::from(stored) - w.offset) as f32);
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler makes gathers of this loop")]
#[inline(always)]
fn levels_body<V: Lanes>(w: &Packed, levels: &Levels, first: usize, to: &mut [f32]) {
    rows(w, first, to, |stored| levels[usize::from(stored)]);
}

#[inline(always)]
fn rows(w: &Packed, first: usize, to: &mut [f32], number: impl Fn(u8) -> f32) {
    for (row, to) in (first..).zip(to.chunks_exact_mut(w.columns.count)) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        for g in 0..w.columns.groups {
            let at = panel * w.columns.groups + g;
            let zero = w.zeros.get(at).map_or(0.0, |zeros| zeros[lane]);
            let value = |stored: u8| (number(stored) - zero) * w.scales[at][lane];
            let (lines, to) = (w.group_lines(panel, g), &mut to[w.columns.of(g)]);
            let mut eights = to.chunks_exact_mut(8);
            let mut l = 0;
            for to in &mut eights {
                to.copy_from_slice(&eight(lines, l, lane, w.half).map(value));
                l += if w.half { 1 } else { 2 };
            }
            let rest = eights.into_remainder();
            // A piece ends with a whole line; columns beyond are filled up.
            if !rest.is_empty() {
                rest.copy_from_slice(&eight(lines, l, lane, w.half).map(value)[..rest.len()]);
            }
        }
    }
}

/// Eight stored integers of a row, from line `l` of its group on.
#[inline(always)]
fn eight(lines: &[Line], l: usize, lane: usize, half: bool) -> [u8; 8] {
    let four = |l: usize| {
        let line = &lines[l].0;
        u32::from_le_bytes([line[4 * lane], line[4 * lane + 1], line[4 * lane + 2], line[4 * lane + 3]])
    };
    let [low, high] = match half {
        true => [four(l) & 0x0f0f_0f0f, four(l) >> 4 & 0x0f0f_0f0f],
        false => [four(l), four(l + 1)],
    };
    (u64::from(low) | u64::from(high) << 32).to_le_bytes()
}
