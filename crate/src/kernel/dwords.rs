//! Sums of products on vectors of 256 bits: one loop, whatever it is that meets in 32 bits.
//!
//! Sixteen rows of the one operand make a panel, a sequence of lines of 64 bytes: 32 bits of the first row, 32 of the
//! second, and so on, then the next 32 of each. Of the other operand, 32 bits of a row meet those of all sixteen at once:
//! an f32, two integers of 16 bits, or four of 8 ([`Dot`]). Up to six rows against a panel have sums that fit the sixteen
//! registers beside what is multiplied.

use super::line::Line;
use std::arch::x86_64::*;

/// A sum for each row of a panel.
pub(super) type Sums = [__m256i; 2];

/// What meets in 32 bits, on some instructions.
pub(super) trait Dot {
    /// Steps that a line holds: more than one where its values take less room than those they meet.
    const PARTS: usize;
    /// Lines whose products fit the sums of [`dot`](Self::dot), which are then [`gathered`](Self::gathered).
    const RUN: usize = usize::MAX;

    /// Half of a line as it enters a step.
    ///
    /// # Safety
    /// The calling function has the instructions.
    unsafe fn part(line: __m256i, part: usize) -> __m256i;

    /// The sum with the products of what meets in each of eight times 32 bits.
    ///
    /// # Safety
    /// The calling function has the instructions.
    unsafe fn dot(sum: __m256i, line: __m256i, x: __m256i) -> __m256i;

    /// The sums of 32 bits with those of a run.
    ///
    /// # Safety
    /// The calling function has the instructions.
    unsafe fn gathered(_sums: __m256i, run: __m256i) -> __m256i {
        run
    }
}

/// `sums` with the products of R rows, by their first 32 bits, and P panels of `count` lines.
///
/// # Safety
/// The calling function has the instructions of D. The panels have as many lines, the rows 32 bits for each of their parts.
#[inline(always)]
pub(super) unsafe fn add<D: Dot, const P: usize, const R: usize>(
    panels: [*const Line; P],
    count: usize,
    rows: [*const i32; R],
    sums: &mut [[Sums; R]; P],
) {
    for first in (0..count).step_by(D::RUN) {
        let end = count.min(first.saturating_add(D::RUN));
        // SAFETY: the caller's promise.
        unsafe {
            let mut near = *sums;
            if D::RUN < usize::MAX {
                near = [[[_mm256_setzero_si256(); 2]; R]; P];
            }
            for l in first..end {
                for part in 0..D::PARTS {
                    let mut lines = [[_mm256_setzero_si256(); 2]; P];
                    for (lines, panel) in lines.iter_mut().zip(panels) {
                        for (half, line) in lines.iter_mut().enumerate() {
                            let at = panel.add(l).cast::<__m256i>().add(half);
                            *line = D::part(_mm256_load_si256(at), part);
                        }
                    }
                    for (r, row) in rows.iter().enumerate() {
                        let x = _mm256_set1_epi32(row.add(l * D::PARTS + part).read_unaligned());
                        for (near, lines) in near.iter_mut().zip(lines) {
                            for (sum, line) in near[r].iter_mut().zip(lines) {
                                *sum = D::dot(*sum, line, x);
                            }
                        }
                    }
                }
            }
            for (sums, near) in sums.as_flattened_mut().iter_mut().zip(near.as_flattened()) {
                for (sum, near) in sums.iter_mut().zip(near) {
                    *sum = D::gathered(*sum, *near);
                }
            }
        }
    }
}
