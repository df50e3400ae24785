//! What kind of thing a column holds, which decides how two recordings of it are compared.

use super::timing::{is_memory_field, is_time_field};
use serde_json::Value;
use std::sync::OnceLock;
use wildmatch::WildMatch;

/// How two values of a column are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Who measured, when and with what: not compared, only told where it differs.
    Provenance,
    /// Names, settings, counts, bytes, hashes, seeds: equal on every machine.
    Exact,
    /// What a close call decides, and what follows from it at once: answers, the first bin of a rise, greedy words. Equal
    /// on the same processor; on another, a stated share of them may be others.
    Choice,
    /// A measured number: equal bit for bit on the same processor, within a tolerance on another.
    Numeric,
    /// A statistic of measured numbers. As numeric, and recomputed from its parts where these are recorded.
    Statistical,
    /// A time, or what follows from it: compared as ratios within the run.
    Timing,
    /// Memory in use: compared as ratios.
    Memory,
}

/// The kinds of columns by name: the first pattern that fits holds, and `*` stands for any text. A pattern with a point is
/// of one kind of row: `head.layer` is the layer of a row `head`. Columns of times and memory are known by
/// [`TIMING_FIELDS`](super::TIMING_FIELDS). What is not listed here is [`Numeric`](Kind::Numeric) where it has a fraction,
/// and [`Exact`](Kind::Exact) where it has none.
pub const KINDS: [(&str, Kind); 59] = [
    ("run_id", Kind::Provenance),
    ("timestamp", Kind::Provenance),
    ("git_*", Kind::Provenance),
    ("host", Kind::Provenance),
    ("os", Kind::Provenance),
    ("cpu_*", Kind::Provenance),
    ("memory_bytes", Kind::Provenance),
    ("gpu", Kind::Provenance),
    ("driver", Kind::Provenance),
    ("lowbit_version", Kind::Provenance),
    ("candle_version", Kind::Provenance),
    ("rustc", Kind::Provenance),
    ("profile", Kind::Provenance),
    ("threads", Kind::Provenance),
    ("notes", Kind::Provenance),
    // Settings that have a fraction.
    ("w_bits", Kind::Exact),
    ("a_bits", Kind::Exact),
    ("depth", Kind::Exact),
    ("chance", Kind::Exact),
    ("top_share", Kind::Exact),
    ("context", Kind::Exact),
    ("context_low", Kind::Exact),
    ("context_high", Kind::Exact),
    ("bias", Kind::Exact),
    ("predictor.predictor", Kind::Exact),
    // What close calls decide.
    ("*_nonfinite", Kind::Choice),
    ("warning", Kind::Choice),
    ("answer", Kind::Choice),
    ("correct*", Kind::Choice),
    ("values_right", Kind::Choice),
    ("chosen*", Kind::Choice),
    ("parts_at", Kind::Choice),
    ("widens_at", Kind::Choice),
    ("worst_layer", Kind::Choice),
    ("worst_head", Kind::Choice),
    ("worst_role", Kind::Choice),
    ("predictor", Kind::Choice),
    ("absmax_token", Kind::Choice),
    ("absmax_position", Kind::Choice),
    ("absmax_channel", Kind::Choice),
    ("*at_first", Kind::Choice),
    ("together", Kind::Choice),
    ("parted", Kind::Choice),
    ("*_blocks", Kind::Choice),
    ("prompt.*entropy", Kind::Choice),
    ("prompt.*repetition", Kind::Choice),
    // Statistics.
    ("*_low", Kind::Statistical),
    ("*_high", Kind::Statistical),
    ("*_error", Kind::Statistical),
    ("*_p", Kind::Statistical),
    ("*_p_holm", Kind::Statistical),
    ("ppl*", Kind::Statistical),
    ("bits_per_byte", Kind::Statistical),
    ("*accuracy*", Kind::Statistical),
    ("never_parted", Kind::Statistical),
    ("together_*", Kind::Statistical),
    ("*entropy", Kind::Statistical),
    ("*repetition", Kind::Statistical),
    ("*tau*", Kind::Statistical),
];

impl Kind {
    /// The kind of a column in rows of this kind, for values that it holds.
    pub fn of(row: &str, column: &str, values: [&Value; 2]) -> Self {
        static COMPILED: OnceLock<Vec<(WildMatch, bool, Kind)>> = OnceLock::new();
        let compiled = COMPILED.get_or_init(|| {
            KINDS
                .iter()
                .map(|(pattern, kind)| (WildMatch::new(pattern), pattern.contains('.'), *kind))
                .collect()
        });
        let placed = format!("{row}.{column}");
        let fits = |(pattern, in_row, _): &&(WildMatch, bool, Kind)| {
            pattern.matches(if *in_row { &placed } else { column })
        };
        let fraction = |value: &Value| match value {
            Value::Array(items) => items.iter().any(Value::is_f64),
            value => value.is_f64(),
        };
        match compiled.iter().find(fits) {
            Some((.., kind)) => *kind,
            None if is_time_field(column) => Self::Timing,
            None if is_memory_field(column) => Self::Memory,
            None if values.into_iter().any(fraction) => Self::Numeric,
            None => Self::Exact,
        }
    }

    /// Whether it holds what was measured of the model, and not what was asked for or how long it took.
    pub fn is_measured(self) -> bool {
        matches!(self, Self::Choice | Self::Numeric | Self::Statistical)
    }
}

#[cfg(test)]
mod tests {
    use super::super::COLUMNS;
    use super::*;
    use serde_json::json;

    fn kind(row: &str, column: &str, value: Value) -> Kind {
        Kind::of(row, column, [&value, &Value::Null])
    }

    #[test]
    fn columns_are_known_by_name_and_by_value() {
        for (row, column, value, expected) in [
            ("summary", "ppl", json!(4.2), Kind::Statistical),
            ("summary", "kl", json!(0.1), Kind::Numeric),
            ("summary", "kl_high", json!(0.1), Kind::Statistical),
            ("summary", "window_nll", json!([1.5, 2.0]), Kind::Numeric),
            ("summary", "window_tokens", json!([1, 2]), Kind::Exact),
            ("bin", "context_low", json!(4), Kind::Exact),
            ("summary", "weight_bytes", json!(4), Kind::Exact),
            ("predictor", "predictor", json!("kl"), Kind::Exact),
            ("summary", "predictor", json!("kl"), Kind::Choice),
            ("prompt", "reference_entropy", json!(1.0), Kind::Choice),
            ("summary", "reference_entropy", json!(1.0), Kind::Statistical),
            ("summary", "tokens_per_s_min", json!(1.0), Kind::Timing),
            ("summary", "added_peak_bytes", json!(1), Kind::Memory),
            ("summary", "template_version", json!(1), Kind::Exact),
        ] {
            assert_eq!(kind(row, column, value), expected, "{row} {column}");
        }
    }

    /// Whoever adds a column to the schema says whether it is about the machine or about the reading.
    #[test]
    fn of_the_schema_only_the_machine_is_not_compared() {
        let free = COLUMNS.iter().filter(|column| kind("summary", column, Value::Null) == Kind::Provenance);
        let expected = [
            "run_id",
            "timestamp",
            "threads",
            "notes",
            "git_commit",
            "git_dirty",
            "host",
            "os",
            "cpu_model",
            "cpu_threads",
            "cpu_features",
            "memory_bytes",
            "gpu",
            "driver",
            "lowbit_version",
            "candle_version",
            "rustc",
            "profile",
        ];
        assert_eq!(free.copied().collect::<Vec<_>>(), expected);
    }
}
