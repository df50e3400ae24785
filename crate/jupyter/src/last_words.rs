//! What a process of cells prints just before it ends: an exit, an abort, a stack that overflows.
//!
//! The thread that tells the kernel what is printed ends with the process. So the end waits for it, a moment at most.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// What that thread is told: the process is about to end.
pub const ENDING: u8 = b'x';
/// How long the end waits, in milliseconds.
const PATIENCE: u32 = 500;

/// Where it is told.
static REPLIES: AtomicI32 = AtomicI32::new(-1);
/// Whether everything is told.
static TOLD: AtomicBool = AtomicBool::new(false);

/// From now on an exit and an abort say so at `replies`, and wait for [`told`].
pub fn wait_for_them(replies: RawFd) {
    REPLIES.store(replies, Ordering::SeqCst);
    // SAFETY: both only write to a pipe and wait.
    unsafe {
        libc::atexit(wait);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_abort as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK; // a stack that has overflowed is aborted on the alternate one
        libc::sigaction(libc::SIGABRT, &raw const action, std::ptr::null_mut());
    }
}

/// Everything is told; the process may end.
pub fn told() {
    TOLD.store(true, Ordering::SeqCst);
}

extern "C" fn wait() {
    // SAFETY: writes one byte from a place of one byte.
    unsafe { libc::write(REPLIES.load(Ordering::SeqCst), [ENDING].as_ptr().cast(), 1) };
    let pause = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    for _ in 0..PATIENCE {
        if TOLD.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: a valid duration; the rest of an interrupted pause is not wanted.
        unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
    }
}

extern "C" fn on_abort(signal: libc::c_int) {
    wait();
    // SAFETY: the process ends of the signal, as it would have.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}
