//! Warnings: what is told while it happens, beside what records hold.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Tells a sentence on stderr. The same sentence is told once in a process: a study comes by the same fact with every
/// scheme and every measurement.
pub fn warn(sentence: &str) {
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(sentence.to_string()) {
        eprintln!("lowbit: warning: {sentence}");
    }
}
