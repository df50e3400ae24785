//! Which columns may differ between two runs of the same thing on the same machine.

use super::Row;

/// Columns that hold time, or what follows from it: `*` stands for any text.
///
/// Everything else of two identical runs on one machine and commit is equal byte for byte.
pub const TIMING_FIELDS: &[&str] =
    &["run_id", "timestamp", "*_s", "*_per_s", "*_per_s_*", "*peak_bytes", "*peak_rss_bytes"];

/// Whether `column` matches one of [`TIMING_FIELDS`].
pub fn is_timing_field(column: &str) -> bool {
    fits(column, TIMING_FIELDS)
}

/// Whether `column` holds seconds, or a speed.
pub(super) fn is_time_field(column: &str) -> bool {
    fits(column, &TIMING_FIELDS[2..5])
}

/// Whether `column` holds memory in use.
pub(super) fn is_memory_field(column: &str) -> bool {
    fits(column, &TIMING_FIELDS[5..])
}

fn fits(column: &str, patterns: &[&str]) -> bool {
    patterns.iter().any(|pattern| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (None, _) => column == *pattern,
        (Some(end), None) => column.ends_with(end),
        (Some(part), Some(_)) => column.contains(part.trim_end_matches('*')),
    })
}

/// The row without its timing fields, for comparing two runs.
pub fn without_timing(row: &Row) -> Row {
    row.iter().filter(|(column, _)| !is_timing_field(column)).map(|(c, v)| (c.clone(), v.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_from_results() {
        for column in [
            "runtime_s",
            "tokens_per_s",
            "tokens_per_s_min",
            "first_call_s",
            "peak_bytes",
            "run_id",
            "timestamp",
        ] {
            assert!(is_timing_field(column), "{column}");
        }
        for column in
            ["ppl", "state_bytes", "weight_bytes", "bits_per_byte", "n_tokens", "window_tokens", "accuracy"]
        {
            assert!(!is_timing_field(column), "{column}");
        }
        assert!(super::super::COLUMNS.iter().filter(|c| is_timing_field(c)).eq([&"run_id", &"timestamp"]));
        for (column, time, memory) in [
            ("runtime_s", true, false),
            ("tokens_per_s_max", true, false),
            ("added_peak_bytes", false, true),
            ("run_id", false, false),
        ] {
            assert_eq!((is_time_field(column), is_memory_field(column)), (time, memory), "{column}");
        }
    }
}
