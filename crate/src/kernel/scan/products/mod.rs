//! The products of a chunk in few bits: SageAttention2 (Zhang et al. 2024, sections 3.1 and 3.3) carried over to the chunk form
//! of a recurrence.
//!
//! The tokens of a chunk meet in sub-chunks. With n the first token of sub-chunk i, its queries and the keys of the chunk before
//! it take the decays up to n, so that none of them is divided by what was forgotten:
//!
//! - q̂_t = q_t ∘ a_{n+1} ∘ … ∘ a_t and k̂_s = k_s ∘ a_{s+1} ∘ … ∘ a_n; a decay for a whole head leaves both as they are, since it can
//!   be multiplied to the scores;
//! - scores = q̂ k̂ᵀ of integers, y = scores · v of FP8, where a scheme asks for either.
//!
//! What tokens of one sub-chunk give each other, what comes from the state, and what goes to it are never rounded.
//!
//! **Smoothing** takes the means q̄ and k̄ of the rows away before they are rounded, and γq, γk are left:
//! q̂ k̂ᵀ = γq γkᵀ + q̄ γkᵀ + (γq k̄ᵀ) 1ᵀ + q̄ k̄ᵀ. Only the first product is in integers. Softmax may leave the last two out, which are
//! constant in a row; a linear attention may not.
//!
//! Codes are integers of a byte, or of half a byte up to 4 bits; their products are exact, so that those of the codes and those of
//! what they stand for are the same to the last bit.

mod fp8;
mod scores;
#[cfg(test)]
mod tests;

pub use fp8::{Values, round_scores};
pub use scores::{Operands, Room};
use serde::{Deserialize, Serialize};

/// How the products of a chunk are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Products {
    /// The scores, queries with keys; none: in f32.
    pub scores: Option<Scores>,
    /// Whether scores and values meet in FP8 E4M3: a scale for the scores of a sub-chunk, and one for every channel of the
    /// values before it.
    pub fp8_values: bool,
    /// Tokens of a sub-chunk: 8, 16 or 32.
    pub sub: u8,
}

/// How queries and keys are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Bits of a code, 2 … 8.
    pub bits: u8,
    /// What shares a scale.
    pub share: Share,
    /// Whose means are taken away before.
    pub smooth: Smooth,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// The rows of a sub-chunk.
    Block,
    /// Each row has its own.
    Row,
}

/// Whose means are taken away before rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smooth {
    /// Nobody's.
    None,
    /// Those of the keys.
    K,
    /// Those of the queries.
    Q,
    /// Both.
    Qk,
    /// Both, and the terms that are constant in a row are left out, as softmax allows: to show what that costs.
    QkDropped,
}

impl Products {
    /// Whether any of so many tokens meets one of another sub-chunk; else nothing is rounded, and every form is exact.
    pub fn round(&self, time: usize) -> bool {
        time > usize::from(self.sub)
    }
}

impl Smooth {
    fn keys(self) -> bool {
        matches!(self, Self::K | Self::Qk | Self::QkDropped)
    }

    fn queries(self) -> bool {
        matches!(self, Self::Q | Self::Qk | Self::QkDropped)
    }
}

/// Tokens of a sub-chunk that there are.
pub const SUBS: [u8; 3] = [8, 16, 32];
