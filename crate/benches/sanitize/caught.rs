//! The watch is on: a mistake made on purpose is found.

/// A child that reads one value past the end of a buffer does not come to its own end.
#[test]
fn one_value_past_the_end_is_fatal() {
    let values = vec![1.0f32; 1000];
    // SAFETY: the child calls nothing but the system; its read is the mistake that is to be found.
    let status = unsafe {
        match libc::fork() {
            0 => {
                libc::close(libc::STDERR_FILENO); // the report of this one is not of interest
                std::ptr::read_volatile(values.as_ptr().add(1000));
                libc::_exit(0)
            }
            child => {
                let mut status = 0;
                libc::waitpid(child, &raw mut status, 0);
                status
            }
        }
    };
    assert_ne!(status, 0, "the read was let through");
}
