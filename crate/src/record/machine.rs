//! The machine that a row was measured on, as far as it decides in which order sums are taken.

use super::Row;
use super::unit::text;
use serde_json::Value;
use std::fmt;

/// Processor, the features that decide which kernels run, and threads. Where all are the same, so is every bit that is
/// computed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The processor, as it calls itself.
    pub cpu_model: String,
    /// Its SIMD features, separated by spaces.
    pub cpu_features: String,
    /// Threads of the kernels, where the row says so.
    pub threads: Option<u64>,
}

impl Machine {
    /// The machine of a row.
    pub fn of(row: &Row) -> Self {
        Self {
            cpu_model: text(row, "cpu_model").to_string(),
            cpu_features: text(row, "cpu_features").to_string(),
            threads: row.get("threads").and_then(Value::as_u64),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |text: &str| if text.is_empty() { "unknown".to_string() } else { text.to_string() };
        write!(f, "{} ({}", of(&self.cpu_model), of(&self.cpu_features))?;
        match self.threads {
            Some(1) => f.write_str("; 1 thread)"),
            Some(threads) => write!(f, "; {threads} threads)"),
            None => f.write_str(")"),
        }
    }
}
