//! Weights on their way to the second-level cache while those before them are multiplied: the unit leaves the bus to memory
//! idle, and a task that has to wait for its weights leaves the unit idle.

/// What is to be fetched next.
#[derive(Clone, Copy)]
pub struct Ahead {
    /// Where it begins.
    pub at: *const u8,
    /// Bytes that a step fetches, at most [`STEP`].
    pub step: usize,
}

/// Bytes that the instructions of a step reach.
pub const STEP: usize = 256;

impl Ahead {
    /// What lies behind `now`, as much again, over `steps` steps: matrices lie in the order of their use, and so do their
    /// rows. Fetching from beyond their end does no harm.
    pub fn behind<T>(now: &[T], steps: usize) -> Self {
        let step = size_of_val(now).div_ceil(steps.max(1)).next_multiple_of(64).min(STEP);
        Self { at: now.as_ptr_range().end.cast(), step }
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
