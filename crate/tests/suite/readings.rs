//! Equal fingerprints, equal readings: what was measured once with a fingerprint is measured with it ever after.
//!
//! A fingerprint promises that a reading need not be taken again. The promise is broken when the meaning of a reading
//! changes and no version is raised: then old and new numbers of one fingerprint stand in one table. So a few tiny readings
//! are kept with their fingerprints, and measured again by every run of the tests on every machine.
//!
//! After a change that is meant: `LOWBIT_BLESS=1 cargo test --release --test suite readings`.

use super::fixture::Folder;
use lowbit::prelude::*;
use lowbit::quantize::{Calibration, Quantizing};
use lowbit::record::{Comparison, Difference, Kind, Row, SUMMARY, is_timing_field, read_lines};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/readings.jsonl");

/// Every way of storing weights, activations and state, and of choosing codes, at least once.
const SCHEMES: [&str; 14] = [
    "f32",
    "bf16",
    "bf16-lossless",
    "w8a8",
    "w4a8-g64",
    "w4a16-gptq",
    "w4a4-rot",
    "w3a8-static+head=nf4",
    "w4a8-smooth0.5+out_proj=keep",
    "nf4",
    "fp8",
    "ternary",
    "w16a16-h8",
    "w4a8-x8-bc8",
];

fn text_of<'a>(row: &'a Row, column: &str) -> &'a str {
    row.get(column).and_then(Value::as_str).unwrap_or_default()
}

/// Some of them, for measurements that look into the model.
const FEW: [&str; 5] = ["f32", "bf16", "w8a8", "w4a4-rot", "w16a16-h8"];

/// Summaries, and of the other rows one of each measurement whose summary says little.
fn is_kept(row: &Row) -> bool {
    let is = |column: &str, value: Value| row.get(column) == Some(&value);
    match text_of(row, "row") {
        SUMMARY => true,
        "bin" => is("context_low", json!(64)),
        "role" => is("role", json!("out_proj")),
        kind => kind == "trial",
    }
}

/// The readings of every measurement of a random model, without what depends on the machine.
fn measured() -> Vec<Row> {
    let (folder, root) = (Folder::new(), Folder::new());
    let words = (0..60).map(|i| format!("{} green bottles hang on wall {}. ", i * i % 977, i % 7));
    let text = folder.write("text.txt", words.collect::<String>());
    let lines = |line: fn(usize) -> Value| (0..12).map(|i| line(i).to_string() + "\n").collect::<String>();
    let words = folder.write(
        "words.jsonl",
        lines(|i| json!({"text": format!("{i} green bottles hang on wall {}", i % 7)})),
    );
    let questions = |i: usize| {
        let query = format!("{i} green bottles hang on");
        json!({"query": query, "choices": ["walls", "a wall", "é"], "gold": i % 3})
    };
    let questions = folder.write("questions.jsonl", lines(questions));
    let calibration =
        Calibration { corpus: (&text).into(), split: None, samples: 2, length: 32, ..Calibration::default() };
    let study = |name: &str, schemes: &[&str]| Study {
        quantizing: Quantizing { calibration: calibration.clone(), ..Quantizing::default() },
        ..Study::new(name).models(["random:mamba2-tiny"]).schemes(schemes)
    };
    let studies = [
        study("text", &SCHEMES)
            .measure(Perplexity::of(&text).windows(64, 32).max_tokens(200))
            .measure(Divergence::default().on(&text).windows(64, 64).max_tokens(200)),
        study("within", &FEW)
            .measure(Drift::default().on(&text).pieces(1, 48))
            .measure(Outliers { seq_len: 64, ..Outliers::default() }.on(&text).max_tokens(100))
            .measure(Stability::lengths([16]).on(&text).prompts(2).generate(4))
            .measure(LongContext::lengths([32, 128]).on(&text).max_tokens(256))
            .measure(Passkey { lengths: vec![260], trials: 1, ..Passkey::default() }),
        study("matrices", &["w8a8", "nf4", "w4a16-gptq"])
            .measure(Sqnr { seq_len: 64, max_tokens: Some(65), ..Sqnr::default() }.on(&text)),
        study("parts", &["f32"]).measure(Sensitivity {
            calibration: calibration.clone(),
            ..Sensitivity::to(["w3a16+head=w3"]).on(&text).by(Grain::Layer).max_tokens(100)
        }),
        study("tasks", &["f32", "w8a8"]).measure(Lambada::of(&words)).measure(MultipleChoice::of(&questions)),
    ];
    let stays = |kind: &str, column: &str, value: &Value| {
        let provenance = Kind::of(kind, column, [value; 2]) == Kind::Provenance;
        !provenance && !value.is_null() && !is_timing_field(column)
    };
    let mut all = vec![];
    for study in studies {
        let run = study.run_into(|| study.open(root.path())).unwrap();
        let rows = read_lines(run.path().join("metrics.jsonl")).unwrap().rows;
        for mut row in rows.into_iter().filter(is_kept) {
            let kind = text_of(&row, "row").to_string();
            row.retain(|column, value| stays(&kind, column, value));
            all.push(row);
        }
    }
    all
}

/// What is to be done about a difference.
fn advice(difference: &Difference, changed: &BTreeSet<&str>) -> String {
    let Difference { measure, unit, column, recorded, found } = difference;
    let place = format!("{measure}, {unit}, {column}: {recorded} → {found}");
    match column.as_str() {
        "" | "fingerprint" | "measure_version" => format!("{place}: bless again if this is meant"),
        _ if changed.contains(measure.as_str()) => {
            format!("{place}: its fingerprint has changed too: bless again if this is meant")
        }
        _ => format!("{place}: the fingerprint is the same, so raise the version of {measure}"),
    }
}

fn kept() -> Vec<Row> {
    read_lines(KEPT).unwrap().rows
}

#[test]
fn a_reading_that_changes_its_meaning_raises_a_version() {
    // The texts are short: what a last bit turns between processors is more than the tolerances of longer ones. So all measure on
    // the vectors that all have, each in a process of its own.
    if std::env::var("LOWBIT_SIMD").as_deref() != Ok("avx2") {
        let own = "readings::a_reading_that_changes_its_meaning_raises_a_version";
        let again = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", own])
            .env("LOWBIT_SIMD", "avx2")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success(), "{told}");
        assert!(String::from_utf8_lossy(&again.stdout).contains("1 passed"), "{told}");
        return;
    }
    let now = measured();
    if std::env::var_os("LOWBIT_BLESS").is_some() {
        let lines: Vec<String> = now.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
        fs::write(Path::new(KEPT), lines.concat()).unwrap();
    }
    let differences = Comparison::across_processors(&kept(), &now).differences;
    let is_new = |d: &&Difference| ["fingerprint", "measure_version"].contains(&d.column.as_str());
    let changed = differences.iter().filter(is_new).map(|d| d.measure.as_str()).collect();
    let told: Vec<String> = differences.iter().map(|difference| advice(difference, &changed)).collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

/// The meanings that did change without a version: each of these would have been noticed.
#[test]
fn what_broke_the_promise_before_is_noticed() {
    let kept = kept();
    let told = |change: &dyn Fn(&mut Row) -> bool| {
        let mut now = kept.clone();
        assert!(now.iter_mut().filter_map(|row| change(row).then_some(())).count() > 0);
        let differences = Comparison::across_processors(&kept, &now).differences;
        assert!(!differences.is_empty());
        differences
            .iter()
            .map(|difference| advice(difference, &BTreeSet::new()))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let set = |row: &mut Row, column: &str, by: &dyn Fn(f64) -> f64| match row
        .get(column)
        .and_then(Value::as_f64)
    {
        Some(x) => row.insert(column.to_string(), by(x).into()).is_some(),
        None => false,
    };
    // The head in eight bits instead of as it is; inputs rounded to bf16 or not; the file's own bytes counted.
    let of = |row: &Row, measure: &str, scheme: &str| {
        text_of(row, "measure") == measure && text_of(row, "scheme") == scheme
    };
    let head = |row: &mut Row| of(row, "divergence", "w8a8") && set(row, "kl", &|kl| 0.7 * kl);
    let inputs = |row: &mut Row| of(row, "divergence", "bf16") && set(row, "kl", &|kl| 1.5 * kl);
    let bytes =
        |row: &mut Row| of(row, "perplexity", "nf4") && set(row, "weight_bytes", &|bytes| bytes + 64.0);
    let drift = |row: &mut Row| of(row, "drift", "w8a8") && set(row, "drift_max", &|drift| 1.1 * drift);
    for (change, measure) in [
        (&head as &dyn Fn(&mut Row) -> bool, "divergence"),
        (&inputs, "divergence"),
        (&bytes, "perplexity"),
        (&drift, "drift"),
    ] {
        let told = told(change);
        assert!(told.contains(&format!("raise the version of {measure}")), "{told}");
    }
    // A raised version is no breach, and is blessed.
    let raised = told(&|row| text_of(row, "measure") == "drift" && set(row, "measure_version", &|v| v + 1.0));
    assert!(raised.contains("bless again") && !raised.contains("raise the version"), "{raised}");
}
