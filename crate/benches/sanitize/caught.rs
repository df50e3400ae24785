//! The watch is on: a mistake made on purpose is found.

use std::ffi::c_int;

/// How a child ends that does nothing but this.
///
/// # Safety
/// It calls nothing but the system: other threads do not exist in a child, what they held stays held.
pub unsafe fn end_of_child(mistake: impl FnOnce()) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        match libc::fork() {
            0 => {
                libc::close(libc::STDERR_FILENO); // the report of this one is not of interest
                mistake();
                libc::_exit(0)
            }
            child => {
                let mut status = 0;
                libc::waitpid(child, &raw mut status, 0);
                status
            }
        }
    }
}

/// A child that reads one value past the end of a buffer does not come to its own end.
#[test]
fn one_value_past_the_end_is_fatal() {
    let values = vec![1.0f32; 1000];
    // SAFETY: it only reads, which is the mistake that is to be found.
    let status = unsafe { end_of_child(|| _ = std::ptr::read_volatile(values.as_ptr().add(1000))) };
    assert_ne!(status, 0, "the read was let through");
}
