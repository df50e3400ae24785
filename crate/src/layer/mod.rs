//! Layers: tensors in, tensors out; the fused kernels on a CPU, tensor operations elsewhere.
//!
//! | file | holds |
//! |---|---|
//! | [`linear`] | the one seam of quantization: every matrix of a model is a [`linear::Linear`] |
//! | [`quantized`] | matrices in few bits |
//! | [`rotation`] | orthonormal rotation of activations |
//! | [`norm`] | RMSNorm and LayerNorm |
//! | [`branch`] | what a block can add to the residual stream |
//! | [`recurrence`] | what all recurrences have in common: decays, inputs, bits |
//! | [`mamba2`] | Mamba2's mixer: projections, convolution, recurrence, gated norm |
//! | [`gla`] | the mixer of gated linear attention: projections, gates, recurrence, norm and output gate |
//! | [`meeting`] | how the tokens of a chunk meet, in recurrences and in attention |
//! | [`attention`] | causal attention with rotary positions and a cache |
//! | [`selective`] | the mixer of Itera-Lite: one step size a token, one state for all channels |
//! | [`mlp`], [`feed_forward`] | feed-forward layers: gated, of three matrices; and of two, by a curve or gated |
//! | [`moe`] | a mixture of experts: a router that chooses among feed-forward layers |
//! | [`beside`] | branches side by side, whose outputs are added |
//! | `room` | buffers that inference and training use again and again |
//! | [`state`] | what a model carries from token to token |
//!
//! Activations are f32 throughout; a weight's dtype says how it is stored.

pub mod attention;
pub mod beside;
pub mod branch;
pub mod feed_forward;
pub mod gla;
pub mod linear;
pub mod mamba2;
pub mod meeting;
pub mod mlp;
pub mod moe;
pub mod norm;
pub(crate) mod op;
pub mod quantized;
pub mod recurrence;
pub(crate) mod room;
pub mod rotation;
pub mod selective;
pub mod state;
