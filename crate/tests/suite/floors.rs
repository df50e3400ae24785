//! The floors of the house: a lower one never imports a higher one.

use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up, on the two staircases; `measure` is where they meet.
const FLOORS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("warning", &[]),
    ("text", &["error"]),
    ("progress", &["error"]),
    ("json", &["error"]),
    ("memory", &[]),
    ("threads", &["error", "warning"]),
    ("kernel", &[]),
    ("settings", &["error"]),
    ("stats", &["error"]),
    ("corpus", &["error", "text", "progress"]),
    ("format", &["error", "kernel"]),
    ("layer", &["error", "kernel", "format"]),
    ("family", &["error", "json", "threads", "kernel", "format", "layer"]),
    (
        "model",
        &[
            "error", "warning", "text", "progress", "json", "memory", "threads", "kernel", "format", "layer",
            "family",
        ],
    ),
    (
        "train",
        &[
            "error", "progress", "settings", "memory", "threads", "kernel", "layer", "family", "model",
            "corpus",
        ],
    ),
    ("record", &["error", "warning", "stats"]),
    ("frame", &["error", "warning", "record", "stats"]),
    ("figure", &["error", "record", "stats", "frame"]),
    (
        "quantize",
        &[
            "error", "warning", "progress", "threads", "corpus", "kernel", "format", "layer", "family",
            "model",
        ],
    ),
    (
        "measure",
        &[
            "error", "warning", "progress", "memory", "threads", "kernel", "format", "layer", "family",
            "model", "corpus", "train", "quantize", "record", "stats", "settings",
        ],
    ),
    (
        "display",
        &[
            "error", "progress", "layer", "family", "model", "quantize", "train", "record", "frame",
            "figure", "measure", "study",
        ],
    ),
    ("widget", &["error", "display"]),
    (
        "study",
        &["error", "warning", "progress", "settings", "model", "quantize", "corpus", "record", "measure"],
    ),
    ("report", &["error", "json", "record", "frame", "figure", "measure", "display", "study"]),
];

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let mut all: Vec<_> =
        fs::read_dir(path).unwrap().flat_map(|entry| files(&entry.unwrap().path())).collect();
    all.sort();
    all
}

#[test]
fn a_lower_floor_never_imports_a_higher_one() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = vec![];
    for (floor, below) in FLOORS {
        let folder = source.join(floor);
        let path = if folder.is_dir() { folder } else { source.join(format!("{floor}.rs")) };
        for file in files(&path) {
            for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for (at, _) in code.match_indices("crate::") {
                    let name: String =
                        code[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    if name != *floor
                        && !below.contains(&name.as_str())
                        && FLOORS.iter().any(|(f, _)| *f == name)
                    {
                        broken.push(format!("{}:{}: {floor} imports {name}", file.display(), number + 1));
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_module_has_a_floor() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for name in source.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')) {
        assert!(name == "prelude" || FLOORS.iter().any(|(floor, _)| *floor == name), "{name} has no floor");
    }
}

#[test]
fn models_know_no_frames_and_figures_know_no_tensors() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (floors, forbidden) in [
        (&["kernel", "layer", "family", "model", "train", "measure"][..], &["polars", "plotters"][..]),
        (&["record", "frame", "figure"][..], &["candle_core", "candle_nn"][..]),
    ] {
        for file in floors.iter().flat_map(|floor| files(&source.join(floor))) {
            let text = fs::read_to_string(&file).unwrap();
            for name in forbidden {
                assert!(!text.contains(&format!("{name}::")), "{} names {name}", file.display());
            }
        }
    }
}
