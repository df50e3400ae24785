//! Memory for what is read from end to end.

/// Room for `len` values, in large pages where the system has them: the processor stops fetching ahead at the end of a page,
/// so what is read from end to end comes up to a twentieth faster than from pages of 4 KiB.
pub(crate) fn large<T>(len: usize) -> Vec<T> {
    let room = Vec::with_capacity(len);
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let start = room.as_ptr() as usize;
        let (first, end) = (start.next_multiple_of(PAGE), (start + len * size_of::<T>()) / PAGE * PAGE);
        if first < end {
            // SAFETY: whole pages of memory that is ours; the advice changes no contents. It may be refused.
            unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    room
}
