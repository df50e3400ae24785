//! The hot arithmetic, on plain slices: nothing here knows a tensor, a layer or a model.
//!
//! | file | computes |
//! |---|---|
//! | [`linear`] | Y = X Wᵀ for f32, bf16, f16 and decoded weights, and its two gradients |
//! | [`weight`], [`stored`] | a matrix by its storage; values by theirs, one by one and by the vector |
//! | [`stream`] | the same for a few rows of X, at the speed of memory |
//! | `blocked` | the same for many rows of X, in blocks: on the matrix unit `amx` from terms that are `split`, or on `vectors` |
//! | `floats` | the same on vectors of 256 bits, from panels; `dwords` is their loop, and that of integers |
//! | [`coded`] | f32 and bf16 with every bit, in fewer: exponents as half bytes |
//! | [`integer`] | activations rounded to integers, and exact products with integer weights |
//! | [`levels`] | codes of up to 8 bits → values |
//! | [`packed`] | the same products, much faster, from a matrix in the order of the instructions |
//! | [`conv`] | causal depthwise convolution with SiLU |
//! | [`conv_grad`] | its gradients |
//! | [`attention`] | causal attention in tiles, over a cache of keys and values |
//! | [`rotary`] | positions as rotations of queries and keys |
//! | [`gated`], [`squared`], [`gelu`] | SiLU(a) · b, ReLU(x)² and GELU, and their gradients |
//! | [`diagonal`] | rows whose channels each have a weight |
//! | [`scan`] | the linear recurrence, with a decay for a head or for each channel of the keys: token by token, chunked as matrix products, and with a rounded state |
//! | [`decay`] | the decays of the second kind, from gates |
//! | [`scan_grad`] | its gradient |
//! | [`round`] | values rounded to integers and back |
//! | [`norm`] | RMSNorm, plain and gated; `norm_gated`: the gate after it, or alone |
//! | [`layer_norm`] | LayerNorm |
//! | [`hadamard`] | a randomized orthonormal rotation of channels |
//! | [`softcap`] | c · tanh(x / c) |
//! | [`softplus`] | the step sizes of the recurrence |
//! | [`softmax`] | negative log-likelihood and its gradient; divergence of two distributions |
//! | [`simd`], [`tile`] | vectors of the width that the processor has, and small matrix products on them |
//! | `kept`, `pages`, `line`, `ahead` | memory that a thread keeps, in large pages, by cache lines, and asked for ahead of its use |
//!
//! All matrices are row-major. Work is split over the current rayon pool; results do not depend on its size.
//! SIMD is chosen at run time; `LOWBIT_SIMD=portable|avx2|avxvnni|avx512|vnni|amx` forces a lower level (for tests).

#[cfg(target_arch = "x86_64")]
pub mod ahead;
#[cfg(target_arch = "x86_64")]
pub mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
pub mod blocked;
pub mod coded;
pub mod conv;
pub mod conv_grad;
pub mod decay;
pub mod diagonal;
#[cfg(target_arch = "x86_64")]
pub(crate) mod dwords;
#[cfg(target_arch = "x86_64")]
pub mod floats;
pub mod gated;
pub mod gelu;
pub mod hadamard;
pub mod integer;
pub(crate) mod kept;
pub mod layer_norm;
pub mod levels;
pub(crate) mod line;
pub mod linear;
pub mod norm;
pub mod norm_gated;
pub mod packed;
pub(crate) mod pages;
pub mod rotary;
pub mod round;
pub mod scan;
pub mod scan_grad;
pub mod simd;
pub mod softcap;
pub mod softmax;
pub mod softplus;
#[cfg(target_arch = "x86_64")]
pub mod split;
pub mod squared;
pub mod stored;
pub mod stream;
pub mod tile;
#[cfg(target_arch = "x86_64")]
pub mod vectors;
pub mod weight;

/// A mutable buffer that parallel tasks write at places that do not overlap.
#[derive(Clone, Copy)]
pub(crate) struct Scatter<'a> {
    start: *mut f32,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `slice`, whose contract forbids overlap between tasks.
unsafe impl Send for Scatter<'_> {}
// SAFETY: as above.
unsafe impl Sync for Scatter<'_> {}

impl<'a> Scatter<'a> {
    pub(crate) fn new(data: &'a mut [f32]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), owner: std::marker::PhantomData }
    }

    /// Asks for the cache line of a place, to be written.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn prefetch(self, offset: usize) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a hint that never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(self.start.wrapping_add(offset).cast()) };
    }

    /// The `len` values from `offset` on.
    ///
    /// # Safety
    /// No two live slices of one buffer may overlap.
    pub(crate) unsafe fn slice(self, offset: usize, len: usize) -> &'a mut [f32] {
        assert!(offset + len <= self.len, "scatter out of bounds");
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}
