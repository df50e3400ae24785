//! The same command gives the same readings: in another process, after being killed, after a full disk.

use super::command_line::{lowbit, sentence};
use super::fixture::{FIXTURE, Folder};
use lowbit::record::{read_lines, without_timing};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Few tokens and prompts, yet several units of each measurement.
const STUDY: &str = "name: small\nmodels: [tiny]\nschemes: [f32, w4a8-g32-rot-gptq]\n\
                     quantizing: {calibration: {samples: 4, length: 32}}\nmeasures:\n\
                     - perplexity: {max_tokens: 2048}\n\
                     - passkey: {lengths: [300, 350, 400], trials: 4}\n\
                     - cost: {lengths: [64, 100], gen_len: 4, repetitions: 2}\n";

fn reproduce(folder: &Folder, runs: &str) -> Command {
    let mut command = lowbit();
    command.args(["reproduce", "phase1", "--model", FIXTURE, "--runs"]).arg(folder.at(runs));
    command.arg("--config").arg(folder.write("study.yaml", STUDY));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The one run in a folder of runs.
fn run(folder: &Folder, runs: &str) -> PathBuf {
    let all: Vec<_> = fs::read_dir(folder.at(runs)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

/// The bytes of a run's readings without what depends on time.
fn readings(run: &Path) -> String {
    assert!(run.join("finished").exists() && !run.join("metrics.jsonl.torn").exists());
    let lines = read_lines(run.join("metrics.jsonl")).unwrap();
    assert!(lines.warnings.is_empty(), "{:?}", lines.warnings);
    // Two schemes: a perplexity, three lengths of four prompts and a summary, two lengths of two phases.
    assert_eq!(lines.rows.len(), 2 * (1 + 3 * 5 + 2 * 2));
    lines.rows.iter().map(|row| serde_json::to_string(&without_timing(row)).unwrap() + "\n").collect()
}

#[test]
fn two_processes_read_the_same_bytes() {
    let folder = Folder::new();
    let [one, two] = ["one", "two"].map(|runs| {
        assert!(reproduce(&folder, runs).status().unwrap().success());
        run(&folder, runs)
    });
    assert!(readings(&one) == readings(&two), "{}\n{}", readings(&one), readings(&two));
    assert!(readings(&one).contains("key_logprob") && !readings(&one).contains("timestamp"));
    // Of the lines as they lie there, the time is left to tell them apart.
    let raw = |run: &Path| fs::read(run.join("metrics.jsonl")).unwrap();
    assert!(raw(&one) != raw(&two));
    let config = |run: &Path| fs::read(run.join("config_resolved.yaml")).unwrap();
    assert_eq!(config(&one), config(&two));
}

#[test]
fn a_killed_run_ends_with_the_readings_of_a_whole_one() {
    let folder = Folder::new();
    assert!(reproduce(&folder, "whole").status().unwrap().success());
    // A run may finish before it is killed on a machine that has other things to do; then another is started.
    for runs in (0..50).map(|attempt| format!("killed{attempt}")) {
        let mut child = reproduce(&folder, &runs).spawn().unwrap();
        let has_lines = || {
            let entries = fs::read_dir(folder.at(&runs)).into_iter().flatten().flatten();
            entries.flat_map(|e| fs::metadata(e.path().join("metrics.jsonl"))).any(|about| about.len() > 0)
        };
        while !has_lines() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let killed = run(&folder, &runs);
        if killed.join("finished").exists() {
            continue;
        }
        let before = fs::read(killed.join("metrics.jsonl")).unwrap();
        assert!(!before.is_empty(), "it ended by itself");
        assert!(reproduce(&folder, &runs).status().unwrap().success());
        assert_eq!(run(&folder, &runs), killed, "it goes on where it stopped");
        assert!(fs::read(killed.join("metrics.jsonl")).unwrap().starts_with(&before), "a reading was lost");
        assert_eq!(readings(&killed), readings(&run(&folder, "whole")));
        return;
    }
    panic!("no run was killed midway");
}

// A limit on the size of files stands for the full disk: the kernel refuses in the middle of a write.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_nothing_that_was_written() {
    let folder = Folder::new();
    let whole = reproduce(&folder, "full");
    let script = "trap '' XFSZ; ulimit -f 24; exec \"$0\" \"$@\"";
    let mut limited = Command::new("sh");
    limited.args(["-c", script]).arg(whole.get_program()).args(whole.get_args());
    limited.current_dir(whole.get_current_dir().unwrap()).env("POSIXLY_CORRECT", "1").stdout(Stdio::null());
    let (code, sentence) = sentence(limited.output().unwrap());
    let stopped = run(&folder, "full");
    let place = format!("lowbit: {}: ", stopped.join("metrics.jsonl").display());
    assert!(code == 3 && sentence.starts_with(&place), "{sentence}");
    assert!(sentence.contains("beyond the limit") && sentence.ends_with("before is safe\n"), "{sentence}");

    let before = fs::read(stopped.join("metrics.jsonl")).unwrap();
    let lines = read_lines(stopped.join("metrics.jsonl")).unwrap();
    // Whole units only: the one that did not fit left no part behind.
    assert!(lines.warnings.is_empty() && before.ends_with(b"}\n"), "{:?}", lines.warnings);
    assert!(!lines.rows.is_empty() && !stopped.join("finished").exists());
    assert!(reproduce(&folder, "full").status().unwrap().success());
    assert_eq!(run(&folder, "full"), stopped);
    assert!(fs::read(stopped.join("metrics.jsonl")).unwrap().starts_with(&before));
    readings(&stopped);
}
