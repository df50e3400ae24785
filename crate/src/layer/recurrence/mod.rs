//! A recurrence, whatever branch it is in: S_t = diag(a_t) S_{t−1} + k_t v_tᵀ, y_t = S_tᵀ q_t.
//!
//! | letter | meaning | in Mamba2 | in gated linear attention |
//! |---|---|---|---|
//! | T, H | tokens, heads | | |
//! | k, q | what writes a head's state, and what reads it | B and C | keys, and queries / √K |
//! | v | what is written | Δ x | values |
//! | a | the decay: the share of its state that a head keeps from one token to the next, 0 … 1 | e^(Δ A) | σ(gate)^(1/16) |
//! | A | decays of a head: one, or one for each channel of its keys | 1 | K |
//!
//! Mamba2 is of this form (Dao & Gu 2024, section 7) with one decay a head, gated linear attention (Yang et al. 2023) with one
//! a key channel.

mod bits;
pub(super) mod definition;
mod products;

pub use bits::{Recurrence, StateBits};
use candle_core::{Result, Tensor};

/// The recurrence of a branch, for measurements that look into it. Its state is
/// [`LayerState::recurrent`](super::state::LayerState::recurrent), of as many heads.
pub trait Recurrent: Sync {
    /// The decays [H, A] that the weights alone tell: what the branch reads is 0.
    ///
    /// # Errors
    /// If memory fails.
    fn at_rest(&self) -> Result<Tensor>;

    /// The decays [T, H, A] for what the branch reads, `u` [1, T, hidden], on the CPU.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn decays(&self, u: &Tensor) -> Result<Tensor>;

    /// What goes in, by name, each [T, channels]: as it is before a scheme rounds it, for a sequence `u` [1, T, hidden] that
    /// starts from nothing.
    ///
    /// # Errors
    /// If shapes do not fit, or anything is not on the CPU.
    fn inputs(&self, u: &Tensor) -> Result<Vec<(&'static str, Tensor)>>;
}
