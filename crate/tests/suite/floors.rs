//! The floors of the house: a lower one never imports a higher one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up, on the two staircases; `measure` is where they meet.
const FLOORS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("whole", &["error"]),
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
            "whole", "error", "warning", "text", "progress", "json", "memory", "threads", "kernel", "format",
            "layer", "family",
        ],
    ),
    (
        "train",
        &[
            "whole", "error", "progress", "settings", "memory", "threads", "kernel", "layer", "family",
            "model", "corpus", "quantize",
        ],
    ),
    ("record", &["whole", "error", "warning", "stats"]),
    ("frame", &["error", "warning", "record", "stats"]),
    ("figure", &["whole", "error", "record", "stats", "frame"]),
    (
        "quantize",
        &[
            "error", "warning", "progress", "threads", "corpus", "kernel", "format", "layer", "family",
            "model",
        ],
    ),
    ("prune", &["whole", "error", "progress", "threads", "kernel", "layer", "family", "model", "quantize"]),
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
        &[
            "error", "warning", "progress", "settings", "stats", "family", "model", "quantize", "corpus",
            "train", "record", "measure",
        ],
    ),
    ("report", &["whole", "error", "json", "record", "frame", "figure", "measure", "display", "study"]),
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

/// Which other kernels a kernel names, tests left out.
fn kernels_named(kernel: &str, all: &BTreeSet<String>, source: &Path) -> BTreeSet<String> {
    let folder = source.join(kernel);
    let path = if folder.is_dir() { folder } else { source.join(format!("{kernel}.rs")) };
    let mut named = BTreeSet::new();
    for file in files(&path) {
        let text = fs::read_to_string(&file).unwrap();
        let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        // As many times `super::` as there are folders up to the kernels.
        let depth = file.strip_prefix(source).unwrap().components().count();
        let depth = if file.ends_with("mod.rs") { depth - 1 } else { depth };
        let places = ["crate::kernel::".to_string(), "super::".repeat(depth)];
        for line in own.lines().filter(|_| !file.ends_with("tests.rs")) {
            let code = line.split("//").next().unwrap_or_default();
            for place in &places {
                for (at, _) in code.match_indices(place.as_str()) {
                    let rest = &code[at + place.len()..];
                    let more = code[..at].ends_with("super::") || rest.starts_with("super::");
                    let name: String =
                        rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    if !more && name != kernel && all.contains(&name) {
                        named.insert(name);
                    }
                }
            }
        }
    }
    named
}

#[test]
fn no_kernels_know_each_other_in_circles() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernel");
    let names = fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().path());
    let names = names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string());
    let all: BTreeSet<String> = names.filter(|name| name != "mod").collect();
    let mut left: BTreeMap<&String, BTreeSet<String>> =
        all.iter().map(|kernel| (kernel, kernels_named(kernel, &all, &source))).collect();
    assert!(left.values().any(|named| !named.is_empty()), "nothing is found");
    // Those that name none of the others go, until none are left.
    while let Some(free) = left
        .iter()
        .find(|(_, named)| named.iter().all(|other| !left.contains_key(other)))
        .map(|(kernel, _)| *kernel)
    {
        left.remove(free);
    }
    assert!(left.is_empty(), "in circles: {left:?}");
}
