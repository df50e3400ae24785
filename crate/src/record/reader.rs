//! Reading JSON lines back, torn ends included.

use super::{LEFT_OUT, PART, SUMMARY};
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::path::Path;

/// One line: column name to value.
pub type Row = serde_json::Map<String, serde_json::Value>;

/// What a file of JSON lines holds.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// The rows in file order, without those of units that were cut short.
    pub rows: Vec<Row>,
    /// What was left out, one sentence each.
    pub warnings: Vec<String>,
    /// The file is worth keeping up to here; behind it lies a torn line or a unit without its summary.
    pub(super) good_bytes: u64,
}

/// Reads a file of JSON lines: a run's `metrics.jsonl`, or a training log.
///
/// A last line that is torn (a crash while writing) is left out, with a warning. Rows of a unit of work whose
/// `summary` row is missing are left out, with a warning; rows without fingerprint stand alone and stay.
///
/// # Errors
/// If the file cannot be read, or a line before the last is not a JSON object: the error names file and line.
pub fn read_lines(path: impl AsRef<Path>) -> Result<Lines> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    let (rows, torn) = parse(&bytes).map_err(|e| e.at(path.display()))?;
    let mut warnings = Vec::new();
    let mut good_bytes = bytes.len() as u64;
    if let Some(start) = torn {
        let torn_bytes = bytes.len() as u64 - start;
        warnings
            .push(format!("{}: the last line is torn ({torn_bytes} bytes) and was left out", path.display()));
        good_bytes = start;
    }

    let whole: HashSet<String> =
        rows.iter().filter_map(|(_, row)| closed_unit(row)).map(str::to_string).collect();
    let stands = |row: &Row| unit(row).is_none_or(|unit| whole.contains(unit));
    // A unit is one append, so rows without their summary are the last ones.
    for (start, _) in rows.iter().rev().take_while(|(_, row)| !stands(row)) {
        good_bytes = *start;
    }
    let count = rows.len();
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).filter(|row| stands(row)).collect();
    if rows.len() < count {
        let cut = count - rows.len();
        warnings.push(format!(
            "{}: {cut} rows of a measurement that was cut short (no {SUMMARY} row) were left out",
            path.display()
        ));
    }
    Ok(Lines { rows, warnings, good_bytes })
}

/// The unit of work that a row belongs to.
fn unit(row: &Row) -> Option<&str> {
    row.get("fingerprint")?.as_str().filter(|fingerprint| !fingerprint.is_empty())
}

/// The unit of work that a row completes.
pub(super) fn closed_unit(row: &Row) -> Option<&str> {
    unit(row).filter(|_| row.get("row").and_then(|row| row.as_str()).is_some_and(closes))
}

/// Whether a row of this kind is the last of its unit of work.
pub(super) fn closes(row: &str) -> bool {
    [SUMMARY, PART, LEFT_OUT].contains(&row)
}

/// Rows with the offset of their first byte, and the offset of a torn last line.
type Parsed = (Vec<(u64, Row)>, Option<u64>);

fn parse(bytes: &[u8]) -> Result<Parsed> {
    let mut rows = Vec::new();
    let mut start = 0;
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let end = start + line.len();
        if !line.trim_ascii().is_empty() {
            match serde_json::from_slice::<Row>(line) {
                Ok(row) => rows.push((start as u64, row)),
                Err(_) if bytes[end..].trim_ascii().is_empty() => return Ok((rows, Some(start as u64))),
                Err(e) => {
                    let what = format!("not a JSON object (column {})", e.column());
                    return Err(Error::input(what)
                        .at(format!("line {}", number + 1))
                        .hint("mend or delete the line"));
                }
            }
        }
        start = end;
    }
    Ok((rows, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Lines> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        read_lines(&path)
    }

    #[test]
    fn a_torn_end_is_survived_and_told() {
        let whole = "{\"a\":1}\n{\"a\":2}\n";
        for torn in ["{\"a\":3", "{\"a\":3\n", "\u{0}\u{0}\u{0}", "nul"] {
            let lines = read(&format!("{whole}{torn}")).unwrap();
            assert_eq!((lines.rows.len(), lines.good_bytes), (2, whole.len() as u64), "{torn:?}");
            assert!(lines.warnings[0].contains("the last line is torn"), "{:?}", lines.warnings);
        }
        assert!(read(whole).unwrap().warnings.is_empty());
        assert_eq!(read(whole.trim_end()).unwrap().rows.len(), 2, "a lost final newline loses no row");
        assert!(read("").unwrap().rows.is_empty());
    }

    #[test]
    fn a_bad_line_in_the_middle_is_named() {
        let error = read("{\"a\":1}\n{\"a\":\n{\"a\":3}\n").unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl: line 2: not a JSON object"), "{error}");
        assert!(read("[1]\n{}\n").unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn rows_without_their_summary_are_left_out() {
        let whole = "{\"fingerprint\":\"a\",\"row\":\"trial\"}\n{\"fingerprint\":\"a\",\"row\":\"summary\"}\n{\"fingerprint\":\"\",\"row\":\"x\"}\n";
        let lines = read(&format!("{whole}{{\"fingerprint\":\"b\",\"row\":\"trial\"}}\n{{\"fing")).unwrap();
        assert_eq!((lines.rows.len(), lines.good_bytes), (3, whole.len() as u64));
        assert_eq!(lines.warnings.len(), 2, "{:?}", lines.warnings);
    }
}
