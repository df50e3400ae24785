//! Whether two recordings of the same thing are the same, within stated tolerances.
//!
//! On one machine and commit they are, byte for byte but for times. Another processor sums in another order, and what
//! follows from rounding moves a little: [`TOLERANCES`] says how far is too far, column by column.

use super::unit::{named, text};
use super::{Row, SUMMARY, is_timing_field};
use serde_json::Value;
use std::collections::HashSet;
use wildmatch::WildMatch;

/// How far apart two values of a column may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Not compared: who measured, or what a close call decides.
    Free,
    /// Equal.
    Equal,
    /// |found − recorded| ≤ absolute + relative · |recorded|.
    Within {
        /// In the column's unit.
        absolute: f64,
        /// Of the recorded value.
        relative: f64,
    },
}

const fn within(absolute: f64, relative: f64) -> Tolerance {
    Tolerance::Within { absolute, relative }
}

/// The tolerance of each column: the first pattern that fits its name; `*` stands for any text. Columns of times are
/// never compared; for others fractions have [`FRACTION`], everything else is to be equal.
pub const TOLERANCES: [(&str, Tolerance); 29] = [
    // Who measured.
    ("git_*", Tolerance::Free),
    ("host", Tolerance::Free),
    ("os", Tolerance::Free),
    ("cpu_*", Tolerance::Free),
    ("memory_bytes", Tolerance::Free),
    ("gpu", Tolerance::Free),
    ("driver", Tolerance::Free),
    ("*_version", Tolerance::Free),
    ("rustc", Tolerance::Free),
    ("profile", Tolerance::Free),
    ("threads", Tolerance::Free),
    ("notes", Tolerance::Free),
    // Where a sum in another order may turn a close call: what follows from many of them is compared.
    ("answer", Tolerance::Free),
    ("correct", Tolerance::Free),
    ("parts_at", Tolerance::Free),
    ("widens_at", Tolerance::Free),
    ("worst_layer", Tolerance::Free),
    ("predictor", Tolerance::Free),
    // Shares and probabilities.
    ("accuracy*", within(0.06, 0.0)),
    ("same_top*", within(0.005, 0.0)),
    ("*_p", within(0.05, 0.0)),
    ("*_p_holm", within(0.1, 0.0)),
    ("tau*", within(0.1, 0.0)),
    // Means of many tokens, and the small differences between two of them.
    ("*key_logprob", within(0.05, 0.02)),
    ("*_db", within(0.2, 0.0)),
    ("*kl*", within(1e-5, 0.05)),
    ("*delta*", within(5e-4, 0.05)),
    ("*ln_ppl_ratio*", within(5e-4, 0.05)),
    ("gradient", within(5e-4, 0.05)),
];

/// The tolerance of numbers with a fraction whose column is not among [`TOLERANCES`].
pub const FRACTION: Tolerance = within(1e-6, 0.005);

/// A value that is not what was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The measurement.
    pub measure: String,
    /// The scheme, and what else names the unit of work.
    pub unit: String,
    /// The column; empty where a whole row is missing.
    pub column: String,
    /// What was recorded.
    pub recorded: String,
    /// What was found.
    pub found: String,
}

/// What differs between the rows of a run and those of another of the same study, and how many values were compared.
pub fn differences(recorded: &[Row], found: &[Row]) -> (Vec<Difference>, usize) {
    let (mut all, mut compared) = (vec![], 0);
    let units: HashSet<&str> = recorded.iter().map(|row| text(row, "fingerprint")).collect();
    let mut left: Vec<&Row> = found.iter().collect();
    for row in recorded {
        // Rows of a unit of work are written in one order, and taken in that order. A unit with a fingerprint of another
        // version, or of something that changed, is known by its names.
        let same = |other: &&Row| same_place(row, other);
        let named = |other: &&Row| named(row) == named(other) && !units.contains(text(other, "fingerprint"));
        let Some(place) = left.iter().position(same).or_else(|| left.iter().position(named)) else {
            all.push(missing(row, "recorded", "not measured"));
            continue;
        };
        let other = left.remove(place);
        let version = |row: &Row| row.get("schema_version").and_then(Value::as_u64).unwrap_or_default();
        let older = version(row) < version(other);
        // An older record lacks newer columns, and its fingerprints cover less.
        let new = other.keys().filter(|column| !older && !row.contains_key(*column));
        let covers = !older && text(row, "row") == SUMMARY;
        let columns = row.keys().chain(new).filter(|column| covers || *column != "fingerprint");
        for column in columns.filter(|column| !is_timing_field(column)) {
            let [a, b] = [row, other].map(|row| row.get(column).unwrap_or(&Value::Null));
            let tolerance = tolerance(column, a, b);
            compared += usize::from(tolerance != Tolerance::Free);
            if !agree(tolerance, a, b) {
                let (recorded, found) = (shown(a), shown(b));
                all.push(Difference { column: column.clone(), recorded, found, ..missing(row, "", "") });
            }
        }
    }
    all.extend(left.into_iter().map(|row| missing(row, "not recorded", "measured")));
    (all, compared)
}

/// Whether two rows are of one kind in one unit of work.
fn same_place(row: &Row, other: &Row) -> bool {
    ["fingerprint", "measure", "row"].iter().all(|column| row.get(*column) == other.get(*column))
}

fn missing(row: &Row, recorded: &str, found: &str) -> Difference {
    let text = |column: &str| row.get(column).map(shown).filter(|text| text != "null").unwrap_or_default();
    let kind = text("row");
    let names = [
        text("scheme"),
        text("probe"),
        text("unit"),
        text("context_length"),
        text("context_low"),
        text("phase"),
        text("layer"),
        text("trial"),
        if kind == SUMMARY { String::new() } else { kind },
    ];
    let names: Vec<String> = names.into_iter().filter(|name| !name.is_empty()).collect();
    Difference {
        measure: text("measure"),
        unit: names.join(" · "),
        column: String::new(),
        recorded: recorded.into(),
        found: found.into(),
    }
}

/// The tolerance of a column, for values that it holds.
fn tolerance(column: &str, a: &Value, b: &Value) -> Tolerance {
    let named = TOLERANCES.iter().find(|(pattern, _)| WildMatch::new(pattern).matches(column));
    let fraction = |value: &Value| match value {
        Value::Array(items) => items.iter().any(Value::is_f64),
        value => value.is_f64(),
    };
    match named {
        Some((_, tolerance)) => *tolerance,
        None if fraction(a) || fraction(b) => FRACTION,
        None => Tolerance::Equal,
    }
}

fn agree(tolerance: Tolerance, a: &Value, b: &Value) -> bool {
    match (tolerance, a, b) {
        (Tolerance::Free, _, _) => true,
        (Tolerance::Equal, _, _) => a == b,
        (Tolerance::Within { .. }, Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| agree(tolerance, a, b))
        }
        (Tolerance::Within { absolute, relative }, a, b) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (b - a).abs() <= absolute + relative * a.abs(),
            _ => a == b,
        },
    }
}

/// A value as a cell of a table; a long one is cut.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(value: Value) -> Row {
        let mut row: Row = serde_json::from_value(json!({
            "measure": "perplexity", "row": "summary", "fingerprint": "a", "scheme": "w4a8", "host": "here",
            "ppl": 4.2, "n_tokens": 100, "window_nll": [1.0, 2.0], "kl": 0.01, "runtime_s": 3.0, "corpus": "plays",
            "accuracy": 0.5, "delta_nll": 1e-4,
        }))
        .unwrap();
        let changes: Row = serde_json::from_value(value).unwrap();
        row.extend(changes);
        row
    }

    fn columns(change: Value) -> Vec<String> {
        let (all, compared) = differences(&[row(json!({}))], &[row(change)]);
        assert!(compared >= 10);
        all.into_iter().map(|difference| difference.column).collect()
    }

    #[test]
    fn values_may_differ_as_far_as_is_stated_and_no_farther() {
        let within = json!({
            "ppl": 4.21, "window_nll": [1.001, 2.0], "kl": 0.0104, "runtime_s": 9.0, "host": "there", "accuracy": 0.54,
            "delta_nll": 5e-4,
        });
        assert!(columns(within).is_empty());
        for (change, column) in [
            (json!({"ppl": 4.25}), "ppl"),
            (json!({"ppl": null}), "ppl"),
            (json!({"n_tokens": 101}), "n_tokens"),
            (json!({"window_nll": [1.0, 2.1]}), "window_nll"),
            (json!({"window_nll": [1.0]}), "window_nll"),
            (json!({"kl": 0.0106}), "kl"),
            (json!({"corpus": "bible"}), "corpus"),
            (json!({"accuracy": 0.6}), "accuracy"),
            (json!({"delta_nll": 7e-4}), "delta_nll"),
            (json!({"new": 1}), "new"),
        ] {
            assert_eq!(columns(change.clone()), [column], "{change}");
        }
    }

    #[test]
    fn a_record_of_an_older_version_is_compared_by_what_it_holds() {
        let newer = json!({"schema_version": 2, "fingerprint": "b", "config_hash": "c", "new": 1});
        assert_eq!(columns(newer), Vec::<String>::new());
        let changed = json!({"schema_version": 2, "fingerprint": "b", "ppl": 5.0});
        assert_eq!(columns(changed), ["ppl"]);
        // Of one version, a fingerprint is of something else.
        assert_eq!(columns(json!({"fingerprint": "b"})), ["fingerprint"]);
    }

    #[test]
    fn rows_that_are_missing_are_told() {
        let (one, other) = (row(json!({})), row(json!({"fingerprint": "b", "scheme": "nf4"})));
        let (all, _) = differences(&[one.clone(), other.clone()], std::slice::from_ref(&one));
        assert_eq!((all.len(), all[0].unit.as_str(), all[0].found.as_str()), (1, "nf4", "not measured"));
        let (all, _) = differences(std::slice::from_ref(&one), &[other, one.clone()]);
        assert_eq!((all.len(), all[0].recorded.as_str()), (1, "not recorded"));
    }
}
