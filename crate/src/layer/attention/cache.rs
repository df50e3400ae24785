//! The keys and values that attention carries from token to token.

use crate::kernel::attention as kernel;
use candle_core::{Result, Tensor, bail};

/// The keys and values of the tokens read so far.
#[derive(Clone, Debug)]
pub enum Cache {
    /// As the kernels read them.
    Kernel(Box<kernel::Cache>),
    /// As tensor operations do: keys after rotation and values, each [B, KV, T, D]; none before the first token.
    Tensors(Option<[Tensor; 2]>),
}

impl Cache {
    /// Tokens in it.
    pub fn len(&self) -> usize {
        match self {
            Self::Kernel(cache) => cache.len(),
            Self::Tensors(None) => 0,
            Self::Tensors(Some([k, _])) => k.dims()[2],
        }
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of what is in it.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Kernel(cache) => cache.bytes(),
            Self::Tensors(tensors) => {
                let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
                tensors.iter().flatten().map(bytes).sum()
            }
        }
    }

    /// Makes room for `more` tokens where the kernels read, so that a text which comes in pieces is not copied for each of them.
    pub(crate) fn reserve(&mut self, more: usize) {
        if let Self::Kernel(cache) = self {
            cache.reserve(more);
        }
    }

    /// Whether it can go back to where `len` tokens were read.
    pub(crate) fn reaches(&self, len: usize) -> bool {
        match self {
            Self::Kernel(cache) => cache.reaches(len),
            Self::Tensors(_) => len <= self.len(),
        }
    }

    /// Forgets all tokens; what was allocated stays where the kernels read.
    pub(crate) fn clear(&mut self) {
        match self {
            Self::Kernel(cache) => cache.truncate(0),
            Self::Tensors(tensors) => *tensors = None,
        }
    }

    /// Forgets the tokens from the `len`-th on.
    ///
    /// # Errors
    /// If there are fewer, or what is left was rounded with them.
    pub(crate) fn truncate(&mut self, len: usize) -> Result<()> {
        if !self.reaches(len) {
            bail!("a cache of {} tokens cannot go back to {len}", self.len())
        }
        match self {
            Self::Kernel(cache) => cache.truncate(len),
            Self::Tensors(None) => {}
            Self::Tensors(Some(tensors)) => {
                for tensor in tensors {
                    *tensor = tensor.narrow(2, 0, len)?;
                }
            }
        }
        Ok(())
    }
}
