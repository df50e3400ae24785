//! Memory of this process: how the allocator treats large buffers, and the peak of what is resident.

/// Keeps freed large buffers instead of returning them to the system.
///
/// A training step frees and asks for the same hundreds of megabytes again and again; without this, a quarter of
/// its time goes into page faults. Does nothing where the C library is not glibc.
pub fn keep_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` only changes two settings of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Bytes resident now, where the system tells.
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// The highest number of resident bytes since [`reset_peak`], or since the start of the process.
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

/// Returns freed memory to the system and starts a new peak; false where the system cannot (then [`peak`] is that of the whole process).
pub fn reset_peak() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` releases memory that nothing uses.
    unsafe {
        libc::malloc_trim(0);
    }
    // Writing 5 resets the peak to what is resident now (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_raises_the_peak_and_a_reset_forgets_it() {
        if !reset_peak() {
            return; // a container may forbid it
        }
        let before = peak().unwrap();
        let buffer = vec![1u8; 256 << 20];
        assert!(buffer.iter().step_by(4096).map(|x| u64::from(*x)).sum::<u64>() > 0);
        assert!(peak().unwrap() >= before + (200 << 20));
        drop(buffer);
        assert!(reset_peak());
        assert!(peak().unwrap() < before + (128 << 20));
    }
}
