//! 32 rows of a left operand for products on vectors: where they are stored, if that is possible.

use crate::kernel::blocked::{Left, PANEL, Panel, STEP};
use crate::kernel::kept::Kept;
use crate::kernel::stored::Stored;
use crate::kernel::tile::View;
use std::mem::MaybeUninit;
use std::ops::Range;

/// 32 rows of a left operand, of whole steps.
pub(super) enum Rows<'a, T> {
    /// As they are stored, so many values apart.
    Stored(&'a [T], usize),
    /// So many values each, filled up with zeros.
    Own(Kept<T>, usize),
    /// The first values of all rows, then the second ones, filled up with zeros.
    Turned(Kept<T>),
}

/// `len` values that `fill` writes, zero where `whole` does not promise that it writes all of them.
fn own<T: Stored>(len: usize, whole: bool, fill: impl FnOnce(&mut [T])) -> Kept<T> {
    let filled = |to: &mut [MaybeUninit<T>]| {
        if !whole {
            to.fill(MaybeUninit::zeroed());
        }
        // SAFETY: zero bits are a number of every type that is stored, and so is whatever is overwritten unread.
        fill(unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), to.len()) });
    };
    // SAFETY: all are zeroed or written.
    unsafe { Kept::filled(len, filled) }
}

/// Copies lines of at most `WIDE` values, `apart` from each other, next to one another: the first `count` of each.
pub(super) fn copy_lines<const WIDE: usize>(from: &[f32], apart: usize, count: usize, to: &mut [f32]) {
    let lines = from.chunks(apart).zip(to.as_chunks_mut::<WIDE>().0);
    if count == WIDE {
        // Of a known size, without a call for each.
        lines.for_each(|(from, to)| to.copy_from_slice(&from[..WIDE]));
    } else {
        lines.for_each(|(from, to)| to[..count].copy_from_slice(&from[..count]));
    }
}

impl<'a, T: Stored> Rows<'a, T> {
    /// Rows of the matrix `w` if they can stay where they are; else `fill` gets the range of their values, and writes them.
    pub fn stored(w: &'a [T], k: usize, rows: Range<usize>, fill: impl Fn(Range<usize>, &mut [T])) -> Self {
        let values = rows.start * k..rows.end * k;
        let whole = k.is_multiple_of(STEP);
        if whole && rows.len() == PANEL && values.end <= w.len() {
            return Self::Stored(&w[values], k);
        }
        let row = k.next_multiple_of(STEP);
        let own = own(PANEL * row, whole && rows.len() == PANEL, |own| {
            if whole {
                return fill(values.clone(), &mut own[..values.len()]);
            }
            for (i, own) in own.chunks_mut(row).take(rows.len()).enumerate() {
                let first = values.start + i * k;
                fill(first..first + k, &mut own[..k]);
            }
        });
        Self::Own(own, row)
    }
}

impl<'a> Rows<'a, f32> {
    /// Rows of a matrix that lies by rows or by columns.
    pub fn viewed(a: View<'a>, k: usize, rows: Range<usize>) -> Self {
        let (row, from) = (k.next_multiple_of(STEP), &a.data[rows.start * a.row..]);
        let whole = row == k && rows.len() == PANEL;
        if a.col == 1 && whole {
            return Self::Stored(from, a.row);
        }
        if a.col == 1 {
            let own = own(PANEL * row, false, |own| {
                for (from, to) in from.chunks(a.row).zip(own.chunks_mut(row)).take(rows.len()) {
                    to[..k].copy_from_slice(&from[..k]);
                }
            });
            return Self::Own(own, row);
        }
        Self::Turned(own(PANEL * row, whole, |own| {
            copy_lines::<PANEL>(from, a.col, rows.len(), &mut own[..PANEL * k]);
        }))
    }
}

impl<T: Sync> Panel for Rows<'_, T> {
    fn left(&self) -> Left {
        match self {
            Self::Stored(w, k) => Left::stored(w, *k),
            Self::Own(w, row) => Left::stored(w, *row),
            Self::Turned(w) => Left::turned(w),
        }
    }
}
