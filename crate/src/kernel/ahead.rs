//! Weights on their way to the second-level cache while those before them are multiplied: the unit leaves the bus to memory
//! idle, and a task that has to wait for its weights leaves the unit idle.

use super::weight::Weight;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::ops::Range;

/// What is to be fetched next.
#[derive(Clone, Copy)]
pub struct Ahead {
    /// Where it begins.
    pub at: *const u8,
    /// Bytes that a step fetches: whole cache lines.
    pub step: usize,
}

/// Bytes that the instructions of a step reach.
pub const STEP: usize = 256;

impl Ahead {
    /// What lies behind `now`, as much again, over `steps` steps: matrices lie in the order of their use, and so do their
    /// rows. Fetching from beyond their end does no harm.
    pub fn behind<T>(now: &[T], steps: usize) -> Self {
        let step = size_of_val(now).div_ceil(steps.max(1)).next_multiple_of(64);
        Self { at: now.as_ptr_range().end.cast(), step }
    }

    /// What comes behind these rows of W [n, k], over `steps` steps; nothing where they lie nowhere.
    pub fn of(w: Weight<'_>, k: usize, rows: Range<usize>, steps: usize) -> Option<Self> {
        let part = rows.start * k..rows.end * k;
        match w {
            Weight::F32(w) => Some(Self::behind(&w[part], steps)),
            Weight::Bf16(w) => Some(Self::behind(&w[part], steps)),
            Weight::F16(w) => Some(Self::behind(&w[part], steps)),
            Weight::Coded(w) => Some(Self::behind(w.lines(rows), steps)),
            Weight::Decoded(_) => None,
        }
    }

    /// The same with no more a step than the instructions of a step reach.
    pub fn within_reach(self) -> Self {
        Self { step: self.step.min(STEP), ..self }
    }

    /// Fetches so many lines.
    pub fn fetch(&mut self, lines: usize) {
        for _ in 0..lines {
            // SAFETY: a hint that never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.at.cast()) };
            self.at = self.at.wrapping_add(64);
        }
    }
}

/// The instructions of a step. The operands `ahead` and `fetched` hold the fields of an [`Ahead`].
macro_rules! fetch {
    ($([$ahead:ident])?) => {
        "prefetcht1 [{ahead}]
        prefetcht1 [{ahead} + 64]
        prefetcht1 [{ahead} + 128]
        prefetcht1 [{ahead} + 192]
        add {ahead}, {fetched}"
    };
}
pub(in crate::kernel) use fetch;
