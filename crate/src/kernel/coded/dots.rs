//! Products of coded rows with few rows of x, at the speed of memory.

use super::vectors::Grouped;
use super::{Coded, Exception, GROUP, group_lines};
use crate::kernel::line::Line;
use crate::kernel::simd::prefetch;
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

/// Cache lines that a stream is asked for ahead: far, as looking up takes part of the time that memory needs.
const AHEAD: usize = 32;

/// Rows of weights that are read once, as fast as memory gives them: coded ones, and others.
pub(in crate::kernel) trait Streamed: Copy {
    /// How many they are.
    fn count(self) -> usize;
    /// x · each of R rows, `apart` rows from each other. The order of the sum is the same for every R.
    fn dots<V: Grouped, const R: usize>(self, x: &[f32], row: usize, apart: usize) -> [f32; R];
}

/// Some rows, to be multiplied with rows of x that are filled up to whole groups.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Rows<'a> {
    w: &'a Coded,
    first: usize,
    count: usize,
}

impl<'a> Rows<'a> {
    pub(in crate::kernel) fn of(w: &'a Coded, rows: Range<usize>) -> Self {
        assert!(rows.end <= w.rows);
        Self { w, first: rows.start, count: rows.len() }
    }
}

impl Streamed for Rows<'_> {
    fn count(self) -> usize {
        self.count
    }

    #[inline(always)]
    fn dots<V: Grouped, const R: usize>(self, x: &[f32], row: usize, apart: usize) -> [f32; R] {
        match self.w.single {
            true => dots::<V, true, R>(self.w, x, self.first + row, apart),
            false => dots::<V, false, R>(self.w, x, self.first + row, apart),
        }
    }
}

/// x · each of R rows. Where rows are multiples of 32 wide it sums in the order of rows that are not coded.
#[inline(always)]
fn dots<V: Grouped, const SINGLE: bool, const R: usize>(
    w: &Coded,
    x: &[f32],
    row: usize,
    apart: usize,
) -> [f32; R] {
    let mut walks = [Walk::<V>::new(w, row); R];
    for (r, walk) in walks.iter_mut().enumerate().skip(1) {
        *walk = Walk::new(w, row + r * apart);
    }
    let groups = x.len() / GROUP;
    let mut g = 0;
    while g < groups {
        // Up to the next group with an exception.
        let end = walks.iter().fold(groups, |end, walk| end.min(walk.exceptions.group()));
        for g in g..end {
            let x = &x[g * GROUP..][..GROUP];
            // Not in a loop, so that all sums and tables stay in registers.
            walks[0].step::<SINGLE>(g, x);
            if R > 1 {
                walks[1].step::<SINGLE>(g, x);
            }
            if R > 2 {
                walks[2].step::<SINGLE>(g, x);
                walks[3].step::<SINGLE>(g, x);
            }
        }
        if end < groups {
            let x = &x[end * GROUP..][..GROUP];
            for walk in &mut walks {
                walk.mended_step::<SINGLE>(end, x);
            }
        }
        g = end + 1;
    }
    let mut dots = [0.0; R];
    for (dot, walk) in dots.iter_mut().zip(walks) {
        *dot = walk.sums[0].add(walk.sums[1]).sum();
    }
    dots
}

/// A row on its way.
#[derive(Clone, Copy)]
struct Walk<'a, V: Grouped> {
    lines: &'a [Line],
    table: V::Table,
    sums: [V; 2],
    exceptions: Ahead<'a>,
}

impl<'a, V: Grouped> Walk<'a, V> {
    #[inline(always)]
    fn new(w: &'a Coded, row: usize) -> Self {
        let (lines, table) = (w.lines(row..row + 1), V::table(w.exponents(row)));
        Self { lines, table, sums: [V::splat(0.0); 2], exceptions: Ahead::new(w, row) }
    }

    #[inline(always)]
    fn group<const SINGLE: bool>(&self, g: usize) -> V::Group {
        let size = group_lines(SINGLE);
        let lines = &self.lines[g * size..][..size];
        for line in 0..size {
            prefetch(lines, line + AHEAD);
        }
        V::group::<SINGLE>(lines, self.table)
    }

    #[inline(always)]
    fn add(&mut self, group: V::Group, x: &[f32]) {
        for (i, values) in group.as_ref().iter().enumerate() {
            self.sums[i % 2] = values.fma(V::load(&x[i * V::N..]), self.sums[i % 2]);
        }
    }

    /// Adds the products of group `g`, which has no exceptions.
    #[inline(always)]
    fn step<const SINGLE: bool>(&mut self, g: usize, x: &[f32]) {
        self.add(self.group::<SINGLE>(g), x);
        // One step after the other: the compiler would interleave them, and run out of registers.
        compiler_fence(Ordering::SeqCst);
    }

    /// Adds the products of group `g`.
    #[inline(always)]
    fn mended_step<const SINGLE: bool>(&mut self, g: usize, x: &[f32]) {
        let mut group = self.group::<SINGLE>(g);
        // Nobody can predict in which of the rows it is: each mends one, perhaps none, and then seldom another.
        loop {
            let exception = self.exceptions.first();
            let place = exception.col().wrapping_sub(g * GROUP);
            V::mend(&mut group, place, exception);
            self.exceptions.at += usize::from(place < GROUP);
            if self.exceptions.group() != g {
                break;
            }
        }
        self.add(group, x);
    }
}

/// The exceptions of a row that are still to come.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    all: &'a [Exception],
    at: usize,
    end: usize,
}

impl<'a> Ahead<'a> {
    #[inline(always)]
    fn new(w: &'a Coded, row: usize) -> Self {
        Self { all: &w.exceptions, at: w.starts[row] as usize, end: w.starts[row + 1] as usize }
    }

    /// The next one; behind the last, one that no row has.
    #[inline(always)]
    fn first(self) -> Exception {
        self.all[if self.at < self.end { self.at } else { self.all.len() - 1 }]
    }

    /// Its group.
    #[inline(always)]
    fn group(self) -> usize {
        self.first().col() / GROUP
    }
}
