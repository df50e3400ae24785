//! Warnings: what is told while it happens, beside what records hold.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Tells on standard error what is no error, but should be known: what was assumed, dropped or replaced. Nothing happens
/// where nobody reads it. The same sentence is told once in a process: a study comes by the same fact with every scheme and
/// every measurement.
pub fn warn(sentence: impl Display) {
    let sentence = sentence.to_string();
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(sentence.clone()) {
        let _ = writeln!(std::io::stderr(), "lowbit: warning: {sentence}");
    }
}
