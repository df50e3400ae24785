//! Memory that a thread keeps from one product to the next.
//!
//! Every product packs an operand into about a megabyte. Memory of that size from the allocator is either returned to the
//! system at once, so that the next product waits for new pages, or leaves a hole that the next one does not fit, as that is
//! aligned to cache lines: a sixth of the time of a prompt, or 20 MB.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

/// Lines above which memory goes back to the allocator: 4 MiB. With debug assertions all does, so that a tool which watches
/// memory sees where each operand ends.
const MOST: usize = if cfg!(debug_assertions) { 0 } else { 1 << 16 };

/// A cache line, of anything.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line {
    _bytes: [MaybeUninit<u8>; 64],
}

thread_local! {
    /// What this thread does not use now.
    static SPARE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(vec![]) };
}

/// Values in memory that the thread which drops them keeps.
pub struct Kept<T> {
    lines: Vec<Line>,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Copy> Kept<T> {
    /// `len` values, which `fill` writes.
    ///
    /// # Safety
    /// It writes all of them.
    pub unsafe fn filled(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Self {
        const { assert!(align_of::<T>() <= align_of::<Line>() && size_of::<T>() > 0) };
        let mut lines = spare((len * size_of::<T>()).div_ceil(size_of::<Line>()));
        // SAFETY: aligned, as asserted, large enough, ours, and of any bits.
        fill(unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) });
        Self { lines, len, values: PhantomData }
    }
}

impl<T> Deref for Kept<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values were written here by the promise of `filled`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.capacity() <= MOST {
            // A thread that is about to end keeps nothing.
            let _ = SPARE.try_with(|spare| spare.borrow_mut().push(lines));
        }
    }
}

/// Memory with a capacity of `len` lines: the smallest kept one that is large enough, else in place of the largest.
fn spare(len: usize) -> Vec<Line> {
    let kept = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        let sizes = || spare.iter().map(Vec::capacity).enumerate();
        let best = sizes().filter(|(_, size)| *size >= len).min_by_key(|(_, size)| *size);
        let largest = || sizes().max_by_key(|(_, size)| *size).filter(|_| len <= MOST);
        let at = best.or_else(largest)?.0;
        Some(spare.swap_remove(at))
    });
    let kept = kept.ok().flatten().filter(|lines| lines.capacity() >= len);
    kept.unwrap_or_else(|| Vec::with_capacity(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<T: Copy>(len: usize, value: T) -> Kept<T> {
        // SAFETY: all are written.
        unsafe { Kept::filled(len, |to| to.fill(MaybeUninit::new(value))) }
    }

    #[test]
    #[cfg_attr(debug_assertions, ignore = "nothing is kept")]
    fn memory_is_used_again_when_it_is_large_enough() {
        let (small, large) = (of(100, 1u8), of(1000, 2.0f32));
        assert!(small.iter().all(|x| *x == 1) && large.iter().all(|x| *x == 2.0));
        let places = [small.as_ptr() as usize, large.as_ptr() as usize];
        drop((large, small));
        let (a, b) = (of(90, 3u8), of(120, 4u16));
        assert_eq!([a.as_ptr() as usize, b.as_ptr() as usize], places);
        assert!(a.len() == 90 && b.len() == 120 && b.iter().all(|x| *x == 4));
        drop((a, b));
        // What is too small makes room for what is larger; what is very large is not kept.
        let larger = of(5000, 5.0f32);
        drop((larger, of(64 * MOST + 1, 6u8)));
        let sizes =
            || SPARE.with(|spare| spare.borrow().iter().map(|s| s.capacity() * 64).collect::<Vec<_>>());
        assert_eq!(sizes(), [128, 20_032]);
        assert!(of(0, 7u8).is_empty());
    }
}
