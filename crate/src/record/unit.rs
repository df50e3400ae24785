//! What a unit of work is called: the columns that tell it from others, whatever its fingerprint covers.

use super::Row;
use serde_json::Value;

/// Columns that name a unit within its run; values that were measured are not among them.
const NAMES: [&str; 18] = [
    "measure",
    "row",
    "model",
    "scheme",
    "dtype",
    "device",
    "batch_size",
    "seq_len",
    "stride",
    "gen_len",
    "seed",
    "corpus",
    "reference",
    "probe",
    "grain",
    "unit",
    "context_length",
    "phase",
];

/// The values of those columns in a row; those that it does not have are null.
pub(super) fn named(row: &Row) -> Vec<&Value> {
    NAMES.iter().map(|column| row.get(*column).unwrap_or(&Value::Null)).collect()
}

/// The text of a column; empty where there is none.
pub(super) fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row.get(column).and_then(Value::as_str).unwrap_or_default()
}
