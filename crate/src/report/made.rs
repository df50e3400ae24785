//! Who made the outputs of a notebook, and whether they are still those: what `cargo lab run` notes in the notebook's metadata,
//! and what can be told from it. `cargo lab` includes this file too, so that what it writes is what is read here.
//!
//! The note (`metadata.lowbit`) holds the provenance in the words of the records, the moment, the hash of the sources that
//! cells linked to, and the prints of each code cell: hashes of its code and of its outputs.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The key of the note in the notebook's metadata.
pub const NOTE: &str = "lowbit";

/// The code cells of a notebook.
pub fn code_cells(notebook: &Value) -> impl Iterator<Item = &Value> {
    let cells = notebook["cells"].as_array().map(Vec::as_slice).unwrap_or_default();
    cells.iter().filter(|cell| cell["cell_type"] == "code")
}

/// The note, if there is one.
pub fn note(notebook: &Value) -> Option<&Value> {
    Some(&notebook["metadata"][NOTE]).filter(|note| note.is_object())
}

/// Text as notebooks hold it: a string, or a list of lines.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => String::new(),
    }
}

/// The prints of each code cell: 16 hex digits of the SHA-256 of its code, a blank, and those of its outputs.
pub fn prints(notebook: &Value) -> Vec<String> {
    let hex = |digest: Sha256| -> String {
        digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    };
    let prints = code_cells(notebook).map(|cell| {
        let (mut code, mut outputs) = (Sha256::new(), Sha256::new());
        feed(&cell["source"], &mut code);
        feed(&cell["outputs"], &mut outputs);
        format!("{} {}", hex(code), hex(outputs))
    });
    prints.collect()
}

/// What says nothing of an output: counts of executions, and what front ends note beside it.
const ASIDE: [&str; 3] = ["execution_count", "metadata", "id"];

/// A value in an order and a form that do not depend on who wrote the file: a text is the same in lines and as a whole, a
/// number the same as 1.0 and as 1.
fn feed(value: &Value, digest: &mut Sha256) {
    match value {
        Value::Array(items) if !items.iter().all(Value::is_string) => {
            digest.update(format!("[{}]", items.len()));
            items.iter().for_each(|item| feed(item, digest));
        }
        Value::String(_) | Value::Array(_) => {
            let text = text(value);
            digest.update(format!("\"{}\"{text}", text.len()));
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> =
                fields.iter().filter(|(key, _)| !ASIDE.contains(&key.as_str())).collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            for (key, value) in fields {
                digest.update(format!("{{{}}}{key}", key.len()));
                feed(value, digest);
            }
        }
        // Readers may differ in the last bits of a number.
        Value::Number(number) => {
            digest.update(format!("{:?}", number.as_f64().unwrap_or_default() as f32));
        }
        Value::Bool(_) | Value::Null => digest.update(value.to_string()),
    }
}

/// Why the outputs of a notebook are not those of its cells, one sentence each; empty where nothing speaks against it.
pub fn faults(notebook: &Value) -> Vec<String> {
    let mut faults = vec![];
    let mut told = |cells: Vec<usize>, one: &str, several: &str| match cells.as_slice() {
        [] => {}
        [cell] => faults.push(format!("code cell {cell} {one}")),
        cells => {
            let cells: Vec<String> = cells.iter().map(usize::to_string).collect();
            faults.push(format!("code cells {} {several}", cells.join(", ")));
        }
    };
    let numbers = |is: &dyn Fn(usize, &Value) -> bool| -> Vec<usize> {
        let cells = code_cells(notebook).enumerate();
        cells.filter(|(index, cell)| is(*index, cell)).map(|(index, _)| index + 1).collect()
    };
    let not_run =
        |cell: &Value| cell["execution_count"].is_null() && !text(&cell["source"]).trim().is_empty();
    let (noted, now) = (noted_prints(notebook), prints(notebook));
    let same_cells = noted.as_ref().filter(|noted| noted.len() == now.len());
    let part = |print: &str, part: usize| print.split(' ').nth(part).map(str::to_string);
    let other = |index: usize, of: usize| {
        same_cells.is_some_and(|noted| part(&noted[index], of) != part(&now[index], of))
    };
    told(numbers(&|_, cell| not_run(cell)), "was not run", "were not run");
    let edited = |index: usize, cell: &Value| other(index, 0) && !not_run(cell);
    told(numbers(&edited), "was edited after the run", "were edited after the run");
    let changed = |index: usize, cell: &Value| other(index, 1) && !other(index, 0) && !not_run(cell);
    told(
        numbers(&changed),
        "has other outputs than the run gave it",
        "have other outputs than the run gave them",
    );
    let failed = |_: usize, cell: &Value| {
        let outputs = cell["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let tags = cell["metadata"]["tags"].as_array().map(Vec::as_slice).unwrap_or_default();
        outputs.iter().any(|output| output["output_type"] == "error")
            && !tags.iter().any(|tag| tag == "raises-exception")
    };
    told(numbers(&failed), "ended in an error", "ended in errors");
    if let Some(noted) = noted.filter(|noted| noted.len() != now.len()) {
        faults.push(format!("{} code cells were run, and now there are {}", noted.len(), now.len()));
    }
    faults
}

/// The prints of the note.
fn noted_prints(notebook: &Value) -> Option<Vec<String>> {
    serde_json::from_value(note(notebook)?["cells"].clone()).ok()
}

/// Who made the outputs, in one sentence.
pub fn by(note: &Value) -> String {
    let known = |name: &str| note[name].as_str().filter(|text| !text.is_empty()).unwrap_or("unknown");
    let commit: String = known("git_commit").chars().take(10).collect();
    let changes = match note["git_dirty"].as_bool() {
        Some(true) => " with uncommitted changes",
        Some(false) => "",
        None => " (whether with uncommitted changes is unknown)",
    };
    let threads = note["cpu_threads"].as_u64().map_or_else(String::new, |count| format!(", {count} threads"));
    format!(
        "made on {} at commit {commit}{changes} by lowbit {} (rustc {}, {}) on {} ({}{threads}), {}",
        known("date"),
        known("lowbit_version"),
        known("rustc"),
        known("profile"),
        known("cpu_model"),
        known("cpu_features"),
        known("os"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn notebook() -> Value {
        let cell = |code: &str, text: &str| {
            json!({"cell_type": "code", "source": code, "execution_count": 1, "metadata": {},
                   "outputs": [{"output_type": "stream", "name": "stdout", "text": text}]})
        };
        let mut notebook = json!({"metadata": {}, "cells": [
            {"cell_type": "markdown", "source": "# Title"}, cell("let a = 1;", "1\n2\n"), cell("a", "1.5")]});
        notebook["metadata"][NOTE]["cells"] = json!(prints(&notebook));
        notebook
    }

    #[test]
    fn who_writes_the_file_changes_no_print() {
        let mut other = notebook();
        other["cells"][1]["source"] = json!(["let ", "a = 1;"]);
        other["cells"][1]["outputs"][0]["text"] = json!(["1\n", "2\n"]);
        other["cells"][2]["execution_count"] = json!(7);
        other["cells"][2]["outputs"][0]["metadata"] = json!({"a": 1});
        assert_eq!(faults(&other), [""; 0]);
        let chart = |x: Value| {
            let mut digest = Sha256::new();
            feed(&json!({"data": {"values": [x, true, null]}, "a": []}), &mut digest);
            digest.finalize()
        };
        assert_eq!(chart(json!(1)), chart(json!(1.0)));
        assert_ne!(chart(json!(1)), chart(json!(1.01)));
        // Where one text ends and the next begins matters.
        let two = |a: &str, b: &str| {
            prints(&json!({"cells": [{"cell_type": "code", "outputs": [{"x": a, "y": b}]}]}))
        };
        assert_ne!(two("ab", "c"), two("a", "bc"));
    }

    #[test]
    fn what_no_longer_fits_is_told() {
        assert_eq!(faults(&notebook()), [""; 0]);
        let told = |change: fn(&mut Value)| {
            let mut changed = notebook();
            change(&mut changed);
            faults(&changed)
        };
        assert_eq!(
            told(|n| n["cells"][2]["source"] = json!("a + 1")),
            ["code cell 2 was edited after the run"]
        );
        assert_eq!(
            told(|n| n["cells"][1]["outputs"] = json!([])),
            ["code cell 1 has other outputs than the run gave it"]
        );
        assert_eq!(
            told(|n| (1..3).for_each(|i| n["cells"][i]["execution_count"] = Value::Null)),
            ["code cells 1, 2 were not run"]
        );
        assert_eq!(
            told(|n| n["cells"].as_array_mut().unwrap().truncate(2)),
            ["2 code cells were run, and now there are 1"]
        );
        let error = json!([{"output_type": "error", "ename": "Panic", "evalue": "x", "traceback": []}]);
        let mut failed = notebook();
        failed["cells"][1]["outputs"] = error;
        failed["metadata"][NOTE]["cells"] = json!(prints(&failed));
        assert_eq!(faults(&failed), ["code cell 1 ended in an error"]);
        failed["cells"][1]["metadata"]["tags"] = json!(["raises-exception"]);
        assert_eq!(faults(&failed), [""; 0]);
        // Without a note nothing is known of edits.
        failed["metadata"] = json!({});
        failed["cells"][2]["source"] = json!("b");
        assert_eq!(faults(&failed), [""; 0]);
    }
}
