//! Statistics of readings: what a difference is worth.
//!
//! | file | holds |
//! |---|---|
//! | `summary` | means, quantiles, spread of repeated measurements |
//! | `proportion` | shares: Wilson's interval, McNemar's test of pairs |
//! | `bootstrap` | intervals of means over a text, from resampled blocks |
//! | `rank` | Kendall's τ-b with its interval |
//! | `holm` | several tests at once |
//!
//! Everything is plain numbers in and plain numbers out, and what is random has a seed.

mod bootstrap;
mod holm;
mod proportion;
mod rank;
mod summary;

pub use bootstrap::{Bootstrap, Estimate};
pub use holm::holm;
pub use proportion::{McNemar, Z95, wilson};
pub use rank::{Kendall, kendall};
pub use summary::{Mean, Summary, largest, quantile};
