//! An allocator whose blocks end at a page that nobody may touch, and are never used again once freed: a read or a
//! write past the end, or after the end of a block's life, stops the program, whatever instruction it comes from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// Smaller blocks are the system's: the kernels' operands are larger.
const LEAST: usize = 64;
const PAGE: usize = 4096;

struct Guarded;

#[global_allocator]
static GUARDED: Guarded = Guarded;

/// Bytes of the pages that hold a block, the forbidden one not counted.
fn held(layout: Layout) -> usize {
    layout.size().next_multiple_of(PAGE)
}

/// Where a block begins in its pages: as near to their end as its alignment lets it.
fn start(layout: Layout) -> usize {
    (held(layout) - layout.size()) / layout.align() * layout.align()
}

fn is_guarded(layout: Layout) -> bool {
    layout.size() >= LEAST && layout.align() <= PAGE
}

// SAFETY: a guarded block has pages of its own, zeroed by the system, long enough and aligned by `start`; others are
// handed on.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_guarded(layout) {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        }
        let (size, nobody) = (held(layout) + PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new pages, of which the last one is closed.
        unsafe {
            let pages = libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, nobody, -1, 0);
            if pages == libc::MAP_FAILED
                || libc::mprotect(pages.byte_add(held(layout)), PAGE, libc::PROT_NONE) != 0
            {
                return ptr::null_mut();
            }
            pages.cast::<u8>().add(start(layout))
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `alloc` gave the block for the same layout.
        unsafe {
            if is_guarded(layout) {
                libc::munmap(block.sub(start(layout)).cast(), held(layout) + PAGE);
            } else {
                System.dealloc(block, layout);
            }
        }
    }
}
