//! A record that was changed after it was measured is told, whichever column it was.

use super::fixture::Folder;
use lowbit::prelude::*;
use lowbit::quantize::{Calibration, Quantizing};
use lowbit::record::{COLUMNS, Comparison, Kind, Row, read_lines};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// What may be other than recorded: who measured, when, and with what. Nothing else may.
const PROVENANCE: [&str; 18] = [
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

/// Readings of every measurement, taken once for all tests.
fn readings() -> &'static [Row] {
    static READINGS: OnceLock<Vec<Row>> = OnceLock::new();
    READINGS.get_or_init(measured)
}

/// In few tokens: a model as it is and in four bits.
fn measured() -> Vec<Row> {
    let (folder, root) = (Folder::new(), Folder::new());
    let words: String =
        (0..120).map(|i| format!("{} green bottles hang on wall {}. ", i * i % 977, i % 7)).collect();
    let text = folder.write("text.txt", words);
    let calibration =
        Calibration { corpus: (&text).into(), split: None, samples: 2, length: 32, ..Calibration::default() };
    let study = |name: &str, schemes: &[&str]| Study {
        quantizing: Quantizing { calibration: calibration.clone(), ..Quantizing::default() },
        ..Study::new(name).models(["random:mamba2-tiny"]).schemes(schemes)
    };
    let both = study("both", &["f32", "w4a8"])
        .measure(Perplexity::of(&text).windows(64, 64).max_tokens(500))
        .measure(Divergence::default().on(&text).windows(64, 64).max_tokens(500))
        .measure(Sqnr { seq_len: 64, max_tokens: Some(100), ..Sqnr::default() }.on(&text))
        .measure(Drift::default().on(&text).pieces(2, 32))
        .measure(Outliers { seq_len: 64, ..Outliers::default() }.on(&text).max_tokens(200))
        .measure(Stability::lengths([16]).on(&text).prompts(6).generate(12))
        .measure(LongContext::lengths([32, 128]).on(&text).max_tokens(600))
        .measure(Passkey { lengths: vec![260], trials: 6, ..Passkey::default() })
        .measure(Cost { lengths: vec![16], gen_len: 2, repetitions: 2, ..Cost::default() });
    let parts = study("parts", &["f32"]).measure(Sensitivity {
        calibration: calibration.clone(),
        ..Sensitivity::to(["w3a16+head=w3"]).on(&text).by(Grain::Layer).max_tokens(200)
    });
    let rows = |study: Study| {
        let run = study.run_into(|| study.open(root.path())).unwrap();
        read_lines(run.path().join("metrics.jsonl")).unwrap().rows
    };
    [rows(both), rows(parts)].concat()
}

fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row.get(column).and_then(Value::as_str).unwrap_or_default()
}

/// The rows of one unit of work of each measurement and scheme.
fn units(rows: &[Row]) -> Vec<Vec<Row>> {
    let name = |row: &Row| ["measure", "fingerprint"].map(|column| text(row, column).to_string());
    let names: BTreeSet<_> = rows.iter().map(name).collect();
    let units = names.iter().map(|unit| rows.iter().filter(|row| name(row) == *unit).cloned().collect());
    let mut met = BTreeSet::new();
    // Of the many parts of a model one is enough.
    let is_new =
        |unit: &Vec<Row>| met.insert(["measure", "scheme", "phase"].map(|c| text(&unit[0], c).to_string()));
    units.collect::<Vec<_>>().into_iter().filter(is_new).collect()
}

/// What a value could be changed to.
fn changes(column: &str, value: &Value) -> Vec<Value> {
    let timing = lowbit::record::is_timing_field(column);
    match value {
        Value::Null => vec![json!(1)],
        Value::Bool(value) => vec![json!(!value), Value::Null],
        Value::String(value) => vec![json!(format!("{value}x")), Value::Null],
        Value::Number(_) if column == "peak_bytes" => vec![json!(1), Value::Null],
        // No time can be told from another within a factor that machines differ by.
        Value::Number(n) if timing => {
            let x = n.as_f64().unwrap();
            vec![json!(1e4 * x + 1e9), json!(x / 1e4 - 1e9), Value::Null]
        }
        Value::Number(n) if n.is_f64() => {
            let x = n.as_f64().unwrap();
            vec![
                json!(if x == 0.0 { 1e-9 } else { 1.5 * x }),
                json!(if x == 0.0 { 1.0 } else { -x }),
                Value::Null,
            ]
        }
        Value::Number(n) => vec![json!(n.as_i64().unwrap() + 1), Value::Null],
        Value::Array(items) => {
            let mut other = items.clone();
            let last = other.len() - 1;
            other[last] = json!(other[last].as_f64().unwrap_or_default() + 1.0);
            vec![json!(other), json!(items[..last]), Value::Null]
        }
        Value::Object(_) => panic!("a record is flat"),
    }
}

#[test]
fn every_column_of_every_row_is_compared() {
    let rows = readings();
    assert_eq!(Comparison::of(rows, rows).differences, [], "as it was measured");
    let mut untold = vec![];
    let (mut free, mut named) = (BTreeSet::new(), BTreeSet::new());
    for unit in units(rows) {
        let kinds: BTreeSet<&str> = unit.iter().map(|row| text(row, "row")).collect();
        for (nth, kind) in kinds.iter().enumerate() {
            let columns: BTreeSet<&String> =
                unit.iter().filter(|row| text(row, "row") == *kind).flat_map(Row::keys).collect();
            // The columns of the schema are the same in every kind of row.
            for column in columns.into_iter().filter(|column| nth == 0 || !COLUMNS.contains(&column.as_str()))
            {
                let is_one = |row: &&Row| text(row, "row") == *kind && row.contains_key(column);
                let known = |row: &&Row| is_one(row) && !row[column].is_null();
                let at = unit
                    .iter()
                    .position(|row| known(&row))
                    .or_else(|| unit.iter().position(|row| is_one(&row)));
                let at = at.unwrap();
                for change in changes(column, &unit[at][column]) {
                    let mut falsified = unit.clone();
                    falsified[at].insert(column.clone(), change.clone());
                    let found = Comparison::of(&falsified, &unit);
                    named.extend(found.provenance.iter().cloned());
                    if found.differences.is_empty() {
                        let place = format!("{} {kind} {column}", text(&unit[at], "measure"));
                        match PROVENANCE.contains(&column.as_str()) {
                            true => _ = free.insert(column.clone()),
                            false => untold.push(format!("{place}: {} → {change}", unit[at][column])),
                        }
                    }
                }
            }
        }
    }
    assert!(untold.is_empty(), "{} changes were not told:\n{}", untold.len(), untold.join("\n"));
    let provenance: BTreeSet<String> = PROVENANCE.iter().map(ToString::to_string).collect();
    assert_eq!(free, provenance, "only these may be others");
    assert_eq!(named, provenance, "and they are named");
}

/// Where sums may be taken in another order, a number is told that is not of its size.
#[test]
fn another_processor_excuses_no_other_reading() {
    let rows = readings();
    assert_eq!(Comparison::across_processors(rows, rows).differences, [], "as it was measured");
    let mut untold = vec![];
    for unit in units(rows) {
        let columns: BTreeSet<&String> = unit.iter().flat_map(Row::keys).collect();
        for column in columns.into_iter().filter(|column| !PROVENANCE.contains(&column.as_str())) {
            // All rows of a kind at once: of a single close call nothing can be said.
            let kinds: BTreeSet<&str> =
                unit.iter().filter(|row| row.contains_key(column)).map(|row| text(row, "row")).collect();
            for kind in kinds {
                let mut falsified = unit.clone();
                let of = |row: &&mut Row| {
                    text(row, "row") == kind && row.get(column).is_some_and(|v| !v.is_null())
                };
                let mut count = 0;
                for row in falsified.iter_mut().filter(of) {
                    let other = match &row[column] {
                        value if lowbit::record::is_timing_field(column) => changes(column, value)[0].clone(),
                        Value::Number(n) if n.is_f64() => json!(3.0 * n.as_f64().unwrap() + 10.0),
                        Value::Array(items) => {
                            json!(
                                items
                                    .iter()
                                    .map(|x| 3.0 * x.as_f64().unwrap_or_default() + 10.0)
                                    .collect::<Vec<_>>()
                            )
                        }
                        value => changes(column, value)[0].clone(),
                    };
                    row.insert(column.clone(), other);
                    count += 1;
                }
                let alone = Kind::of(kind, column, [&Value::Null; 2]) == Kind::Choice && count <= 1;
                if count > 0
                    && !alone
                    && Comparison::across_processors(&falsified, &unit).differences.is_empty()
                {
                    untold.push(format!("{} {kind} {column}", text(&unit[0], "measure")));
                }
            }
        }
    }
    assert!(untold.is_empty(), "{} columns were not told:\n{}", untold.len(), untold.join("\n"));
}

#[test]
fn values_of_two_schemes_that_changed_places_are_told() {
    let rows = readings();
    let value = |column: &&String| !COLUMNS.contains(&column.as_str());
    for measure in ["perplexity", "divergence", "drift", "stability", "context", "passkey"] {
        let all: Vec<Row> = rows.iter().filter(|row| text(row, "measure") == measure).cloned().collect();
        let half = all.len() / 2;
        assert_ne!(text(&all[0], "scheme"), text(&all[half], "scheme"), "{measure}");
        let mut swapped = all.clone();
        for (i, row) in swapped.iter_mut().enumerate() {
            let from = &all[(i + half) % all.len()];
            row.retain(|column, _| COLUMNS.contains(&column.as_str()));
            row.extend(from.iter().filter(|(column, _)| value(column)).map(|(c, v)| (c.clone(), v.clone())));
        }
        assert!(!Comparison::of(&swapped, &all).differences.is_empty(), "{measure}");
        assert!(!Comparison::across_processors(&swapped, &all).differences.is_empty(), "{measure}");
    }
}
