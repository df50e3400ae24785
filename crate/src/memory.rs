//! Memory of this process: how the allocator treats large buffers, and the peak of what is resident.

use candle_core::Device;

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

/// The peak of memory over a segment of work: of what this process has resident, or for a GPU of what is in use there.
pub struct Watch {
    before: Option<u64>,
    gpu: Option<gpu::Sampler>,
    resets: bool,
}

impl Watch {
    /// Begins a segment of work on `device`.
    pub fn begin(device: &Device) -> Self {
        if device.is_cpu() {
            let resets = reset_peak();
            return Self { before: resident(), gpu: None, resets };
        }
        let gpu = gpu::Sampler::begin(device);
        Self { before: gpu.as_ref().map(gpu::Sampler::now), gpu, resets: false }
    }

    /// Bytes in use before the segment, where the system tells.
    pub fn before(&self) -> Option<u64> {
        self.before
    }

    /// The highest number of bytes in use since. Where a peak cannot be reset, no number is better than one that
    /// belongs to another segment.
    pub fn peak(self) -> Option<u64> {
        match self.gpu {
            Some(sampler) => Some(sampler.end()),
            None => peak().filter(|_| self.resets),
        }
    }
}

/// A GPU keeps no peak, so what is in use is sampled every millisecond; what other programs use there counts too.
#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::Device;
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::Duration;

    pub struct Sampler {
        context: Arc<CudaContext>,
        state: Arc<(AtomicU64, AtomicBool)>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    fn in_use(context: &CudaContext) -> u64 {
        context.mem_get_info().map_or(0, |(free, total)| (total - free) as u64)
    }

    impl Sampler {
        pub fn begin(device: &Device) -> Option<Self> {
            let context = device.as_cuda_device().ok()?.cuda_stream().context().clone();
            let state = Arc::new((AtomicU64::new(in_use(&context)), AtomicBool::new(false)));
            let (watched, seen) = (context.clone(), state.clone());
            let thread = std::thread::spawn(move || {
                while !seen.1.load(Ordering::Relaxed) {
                    seen.0.fetch_max(in_use(&watched), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            Some(Self { context, state, thread: Some(thread) })
        }

        pub fn now(&self) -> u64 {
            in_use(&self.context)
        }

        pub fn end(mut self) -> u64 {
            self.state.1.store(true, Ordering::Relaxed);
            if let Some(thread) = self.thread.take() {
                let _ = thread.join(); // a sampler that failed leaves its last sample
            }
            self.state.0.load(Ordering::Relaxed).max(self.now())
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use candle_core::Device;

    /// Without the `cuda` feature there is no GPU to watch.
    pub enum Sampler {}

    impl Sampler {
        pub fn begin(_device: &Device) -> Option<Self> {
            None
        }

        pub fn now(&self) -> u64 {
            match *self {}
        }

        pub fn end(self) -> u64 {
            match self {}
        }
    }
}

fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The allocator of the unit tests, which counts what each thread asks for.
#[cfg(test)]
pub(crate) mod counted {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    struct Counting;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    thread_local! {
        static COUNT: Cell<usize> = const { Cell::new(0) };
    }

    /// How often `work` asks for memory on this thread.
    pub fn allocations(work: impl FnOnce()) -> usize {
        let before = COUNT.get();
        work();
        COUNT.get() - before
    }

    // SAFETY: everything is the system's; a counter is no allocation.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let _ = COUNT.try_with(|count| count.set(count.get() + 1));
            // SAFETY: the caller's promise.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(at, layout) }
        }
    }
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
