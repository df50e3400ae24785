//! Statistics of readings: what a difference is worth.
//!
//! | file | holds |
//! |---|---|
//! | `summary` | means, quantiles, spread of repeated measurements |
//! | `proportion` | shares: Wilson's interval, McNemar's test of pairs |
//! | `interval` | intervals of means over a text, from blocks of it or its documents |
//! | `student` | Student's t |
//! | `paired` | differences of a few pairs |
//! | `rank` | Kendall's τ-b with its interval |
//! | `holm` | several tests at once |
//!
//! Everything is plain numbers in and plain numbers out, and what is random has a seed.

mod holm;
mod interval;
mod paired;
mod proportion;
mod rank;
mod student;
mod summary;

pub use holm::{holm, holm_discrete};
pub use interval::{BLOCKS, DOCUMENTS, Estimate, GROUPS, Interval};
pub use paired::{Paired, paired};
pub use proportion::{McNemar, Z95, wilson};
pub use rank::{Kendall, kendall};
use student::{quantile_of_t, two_sided_t};
pub use summary::{Mean, Summary, largest, quantile};
