//! Studies: models × number formats × measurements, recorded in one resumable run.
//!
//! | file | holds |
//! |---|---|
//! | [`phase1`] | the full-precision baseline: perplexity, passkey and cost of one model at f32 and bf16 |

pub mod phase1;
