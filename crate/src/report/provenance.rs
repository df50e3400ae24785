//! Where the records of a run come from, as they say themselves.

use crate::error::{Error, Result};
use crate::record::{Machine, Row, SUMMARY};
use crate::study::CHECKED_BY;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Names, and what is to be said of each.
pub(super) type Facts = Vec<(String, Vec<String>)>;

/// Who measured what, when, where and with what.
pub(super) fn facts(rows: &[Row], folder: &Path, id: &str) -> Result<Facts> {
    let facts = [
        ("run", vec![id.to_string()]),
        ("recorded", vec![recorded(rows)]),
        ("commit", distinct(rows, commit)),
        ("program", distinct(rows, program)),
        ("machine", distinct(rows, machine)),
        ("processor", distinct(rows, |row| Some(Machine::of(row).to_string()))),
        (
            "GPU",
            distinct(rows, |row| {
                Some(joined(" · driver ", [text(row, "gpu")?, text(row, "driver").unwrap_or_default()]))
            }),
        ),
        ("model", distinct(rows, model)),
        ("stored as", distinct(rows, |row| text(row, "stored_as"))),
        ("tokenizer", distinct(rows, |row| hashed(text(row, "tokenizer"), text(row, "tokenizer_hash")))),
        (
            "special tokens before a text (BOS), left out",
            distinct(rows, |row| row.get("bos_left_out")?.as_u64().map(|count| count.to_string())),
        ),
        ("assumed", distinct(rows, |row| text(row, "assumed"))),
        ("text", distinct(rows, |row| hashed(text(row, "corpus"), text(row, "corpus_hash")))),
        ("calibration", distinct(rows, |row| text(row, "calibration"))),
        (
            "measurements",
            distinct(rows, |row| {
                Some(format!("{}, version {}", text(row, "measure")?, row.get("measure_version")?))
            }),
        ),
        ("files", files(folder)?),
        ("checked", vec![check(folder, id)]),
    ];
    let told = facts.into_iter().filter(|(_, values)| values.iter().any(|value| !value.is_empty()));
    Ok(told.map(|(name, values)| (name.to_string(), values)).collect())
}

/// The values that rows have, each once, in their order.
pub(super) fn distinct(rows: &[Row], of: impl Fn(&Row) -> Option<String>) -> Vec<String> {
    let mut found: Vec<String> = vec![];
    for value in rows.iter().filter_map(of) {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// A column's text, where there is some.
pub(super) fn text(row: &Row, column: &str) -> Option<String> {
    Some(row.get(column)?.as_str()?.to_string()).filter(|text| !text.is_empty())
}

fn joined<const N: usize>(by: &str, parts: [String; N]) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(by)
}

fn hashed(name: Option<String>, hash: Option<String>) -> Option<String> {
    let name = name?;
    Some(match hash.filter(|hash| *hash != name) {
        Some(hash) => format!("{name}, SHA-256 {hash}"),
        None => name,
    })
}

fn recorded(rows: &[Row]) -> String {
    let units = rows.iter().filter(|row| text(row, "row").as_deref() == Some(SUMMARY)).count();
    let mut moments = distinct(rows, |row| text(row, "timestamp"));
    moments.sort();
    let when = match moments.as_slice() {
        [] => String::new(),
        [one] => format!(", at {one}"),
        [first, .., last] => format!(", from {first} to {last}"),
    };
    format!("{} readings of {units} measurements{when}", rows.len())
}

fn commit(row: &Row) -> Option<String> {
    let changes = match row.get("git_dirty").and_then(Value::as_bool) {
        Some(true) => "with uncommitted changes",
        Some(false) => "",
        None => "whether with uncommitted changes is unknown",
    };
    Some(joined(", ", [text(row, "git_commit")?, changes.into()]))
}

fn program(row: &Row) -> Option<String> {
    let part = |name: &str, column: &str| match text(row, column) {
        Some(version) => format!("{name} {version}"),
        None => String::new(),
    };
    let parts = [
        part("lowbit", "lowbit_version"),
        part("candle", "candle_version"),
        part("rustc", "rustc"),
        text(row, "profile").unwrap_or_default(),
    ];
    Some(joined(" · ", parts))
}

fn machine(row: &Row) -> Option<String> {
    let memory = row.get("memory_bytes").and_then(Value::as_f64);
    let memory = memory.map_or_else(String::new, |bytes| format!("{:.1} GB of memory", bytes / 1e9));
    let device = text(row, "device").unwrap_or_default();
    Some(joined(" · ", [text(row, "host")?, text(row, "os").unwrap_or_default(), memory, device]))
}

fn model(row: &Row) -> Option<String> {
    let count = row.get("parameters").and_then(Value::as_u64);
    let parts = [
        text(row, "model")?,
        text(row, "family").unwrap_or_default(),
        count.map_or_else(String::new, |count| format!("{count} parameters")),
        text(row, "model_revision").map_or_else(String::new, |revision| format!("revision {revision}")),
        text(row, "model_hash").map_or_else(String::new, |hash| format!("SHA-256 {hash}")),
        text(row, "config_hash").map_or_else(String::new, |hash| format!("config {hash}")),
    ];
    Some(joined(", ", parts))
}

/// The SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, &error))?;
    Ok(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

fn files(folder: &Path) -> Result<Vec<String>> {
    let files =
        ["metrics.jsonl", "config_resolved.yaml"].into_iter().filter(|name| folder.join(name).is_file());
    files.map(|name| Ok(format!("{name}, SHA-256 {}", sha256(&folder.join(name))?))).collect()
}

/// How the run can be checked.
fn check(folder: &Path, id: &str) -> String {
    let mark = std::fs::read_to_string(folder.join(CHECKED_BY)).unwrap_or_default();
    match mark.trim().split_once(' ') {
        Some((commit, why)) => format!("by the program of commit {commit}: {}", why.trim_end_matches('.')),
        None if folder.join("config_resolved.yaml").is_file() => {
            format!("lowbit reproduce --check {id} measures it again and compares")
        }
        None => String::new(),
    }
}
