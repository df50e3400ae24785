//! The runs that the repository holds: each can be checked by today's program, or says by which commit.

use lowbit::record::read_lines;
use lowbit::study::ablation::Ablation;
use lowbit::study::{CHECKED_BY, Study};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of the runs; none where the crate stands alone.
fn runs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runs");
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

fn id(run: &Path) -> String {
    run.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn every_run_can_be_checked_or_says_by_which_commit() {
    for run in runs() {
        let mark = run.join(CHECKED_BY);
        if let Ok(mark) = fs::read_to_string(&mark) {
            let (commit, why) = mark.split_once(' ').unwrap();
            assert!(
                commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()),
                "{}: {mark}",
                id(&run)
            );
            let error = Study::check_run(&run).unwrap_err().to_string();
            assert!(error.contains(commit) && error.contains(why.trim().trim_end_matches('.')), "{error}");
            continue;
        }
        let gives = |run: &Path| -> lowbit::Result<Vec<(&str, u32)>> {
            Ok(match Ablation::of_run(run)? {
                Some(ablation) => ablation.gives(),
                None => Study::of_run(run)?.measures.iter().flat_map(|measure| measure.gives()).collect(),
            })
        };
        let gives = gives(&run).unwrap_or_else(|error| {
            panic!(
                "{error}\nput a file {CHECKED_BY} there: the commit that can check the run, a blank, and why"
            )
        });
        // Readings of another version are no readings of today's measurement.
        for row in read_lines(run.join("metrics.jsonl")).unwrap().rows {
            let text = |column: &str| row[column].as_str().unwrap_or_default().to_string();
            let version = row["measure_version"].as_u64().unwrap();
            let known =
                gives.iter().any(|(name, now)| *name == text("measure") && u64::from(*now) == version);
            assert!(
                known,
                "{}: {} of version {version} is not measured today: mark the run in a file {CHECKED_BY}",
                id(&run),
                text("measure")
            );
        }
    }
}

#[test]
fn no_run_is_of_a_tree_with_uncommitted_changes() {
    let dirty = |run: &PathBuf| {
        let rows = read_lines(run.join("metrics.jsonl")).unwrap().rows;
        assert!(!rows.is_empty(), "{}", id(run));
        rows.iter().any(|row| row.get("git_dirty") != Some(&Value::Bool(false)))
    };
    let found: Vec<String> = runs().iter().filter(|run| dirty(run)).map(|run| id(run)).collect();
    assert!(found.is_empty(), "commit before measuring: {}", found.join(", "));
}

/// A run that only an earlier program can check says so in one sentence.
#[test]
fn a_marked_run_is_refused_with_the_way_to_check_it() {
    let folder = super::fixture::Folder::new();
    fs::create_dir(folder.at("old")).unwrap();
    fs::write(folder.at("old").join("metrics.jsonl"), "").unwrap();
    fs::write(
        folder.at("old").join(CHECKED_BY),
        "0123456789abcdef0123456789abcdef01234567 its settings had dtypes.\n",
    )
    .unwrap();
    let (code, sentence) = super::command_line::refused(&["reproduce", "--check", &folder.text("old")]);
    assert_eq!(code, 2);
    for part in ["its settings had dtypes; git checkout 0123456789abcdef", "checked by an earlier program"] {
        assert!(sentence.contains(part), "{sentence}");
    }
}
