//! Bad texts, settings and folders: one sentence each, and no half-made run or training folder.

use super::command_line::refused;
use super::fixture::{FIXTURE, Folder};
use std::fs;

/// A command that must be refused with these parts, before it makes anything in `folder`.
fn check(folder: &Folder, args: &[&str], code: i32, parts: &[&str]) {
    let before = fs::read_dir(folder.path()).unwrap().count();
    let (found, sentence) = refused(args);
    assert_eq!(found, code, "{sentence}");
    parts.iter().for_each(|part| assert!(sentence.contains(part), "{part}: {sentence}"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before, "left behind after: {sentence}");
}

#[test]
fn texts_that_cannot_be_scored() {
    let folder = Folder::new();
    let (runs, empty) = (folder.text("runs"), folder.text("empty"));
    fs::create_dir(&empty).unwrap();
    let nothing = folder.write("nothing.txt", "");
    let latin = folder.write("latin.txt", b"caf\xe9");
    let lines = folder.write("lines.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n");
    let ppl = |corpus: &str, code: i32, parts: &[&str]| {
        check(&folder, &["ppl", FIXTURE, "--runs", &runs, "--corpus", corpus], code, parts);
    };
    ppl(&folder.text("none.txt"), 3, &["none.txt: no such file"]);
    ppl(&nothing, 2, &["nothing.txt: empty corpus", "name a file"]);
    ppl(&empty, 2, &["empty: empty corpus: the folder holds no .txt", "put text files there"]);
    ppl(&latin, 2, &["latin.txt: not UTF-8 text: the byte at offset 3", "convert"]);
    ppl(&lines, 2, &["lines.jsonl: line 2: ", "missing field `text`"]);
    ppl("data/corpus", 2, &["data/corpus: empty corpus", "load one of its splits: test, train, valid"]);
    let split = ["ppl", FIXTURE, "--runs", &runs, "--corpus", "data/corpus", "--split", "tset"];
    check(&folder, &split, 2, &["data/corpus: no split 'tset'", "it has test, train, valid"]);
}

#[test]
fn settings_that_measure_nothing() {
    let folder = Folder::new();
    let runs = folder.text("runs");
    for (args, parts) in [
        (&["ppl", "--seq-len", "0"][..], &["seq_len must be at least 1, found 0"][..]),
        (&["ppl", "--stride", "0"], &["stride must be at least 1, found 0"]),
        (
            &["ppl", "--seq-len", "8", "--stride", "9"],
            &["stride 9 is larger than seq_len 8", "at most seq_len"],
        ),
        (&["ppl", "--max-tokens", "1"], &["max_tokens must be at least 2, found 1"]),
        // The long length comes first, and is not measured before the short one is refused.
        (&["passkey", "--lengths", "100000,20"], &["20 tokens is shorter than the prompt", "245 tokens"]),
        (&["passkey", "--trials", "0"], &["at least one length and one trial"]),
        (&["passkey", "--digits", "0"], &["at least one digit"]),
        (&["cost", "--lengths", "16,0"], &["at least 1"]),
        (&["cost", "--repetitions", "0"], &["at least 1"]),
    ] {
        check(&folder, &[&[args[0], FIXTURE, "--runs", &runs], &args[1..]].concat(), 2, parts);
    }
    let study =
        folder.write("study.yaml", "name: x\nmodels: [y]\nmeasures:\n- passkey: {lengths: [400, 20]}\n");
    let args = ["reproduce", "phase1", "--model", FIXTURE, "--runs", &runs, "--config", &study];
    check(&folder, &args, 2, &["20 tokens is shorter than the prompt"]);
}

#[test]
fn a_mistake_in_a_settings_file_is_told_with_its_line() {
    let folder = Folder::new();
    let out = folder.text("out");
    for (command, yaml, parts) in [
        ("ppl", "seq_len: 16\nstrid: 4\n", &["line 2, column 1: unknown field `strid`", "stride"][..]),
        ("ppl", "seq_len: 16\nstride: four\n", &["line 2, column 9: "]),
        ("ppl", "seq_len: [16\n", &["line 1, column "]),
        ("passkey", "lengths: [300]\ntrails: 4\n", &["line 2, column 1: unknown field `trails`", "trials"]),
        (
            "reproduce",
            "name: x\nmodels: [y]\nmeasures:\n- cost:\n    genlen: 4\n",
            &["line 5, column 5: unknown field `genlen`"],
        ),
        ("reproduce", "name: x\nmodel: y\n", &["line 2, column 1: unknown field `model`", "models"]),
        ("train", "steps: 4\nmixture:\n  batchsize: 2\n", &["line 3, column 3: unknown field `batchsize`"]),
        ("train", "steps: 4\nmodel: {model_type: mamba2, hiden_size: 8}\n", &["line 2", "`hiden_size`"]),
        ("train", "model: {model_type: gpt2}\n", &["line 1", "unknown variant `gpt2`", "mamba2"]),
    ] {
        let file = folder.write("settings.yaml", yaml);
        let args: &[&str] = match command {
            "train" => &["train", "--out", &out],
            "reproduce" => &["reproduce", "phase1", "--model", FIXTURE, "--runs", &out],
            _ => &[command, FIXTURE, "--runs", &out],
        };
        let parts = &[&["settings.yaml: "], parts].concat();
        check(&folder, &[args, &["--config", &file]].concat(), 2, parts);
    }
    check(&folder, &["ppl", FIXTURE, "--config", &folder.text("none.yaml")], 3, &["none.yaml: no such file"]);
}

#[test]
fn settings_that_cannot_be_trained_with() {
    let folder = Folder::new();
    let out = folder.text("out");
    let small = "model: {model_type: mamba2, hidden_size: 16, num_hidden_layers: 1, num_heads: 2, head_dim: 16, state_size: 8}";
    for (yaml, part) in [
        ("mixture: {seq_len: 0}", "mixture.seq_len must be at least 1, found 0"),
        ("mixture: {batch_size: 0}", "mixture.batch_size must be at least 1, found 0"),
        ("mixture: {passkey: 1.5}", "mixture.passkey is a share from 0 to 1, found 1.5"),
        ("mixture: {digits: 0}", "at least one digit"),
        ("mixture: {seq_len: 100000000000}", "fewer than the 100000000000 tokens of one sequence"),
        ("validate_every: 0", "validate_every must be at least 1, found 0"),
        ("checkpoint_every: 0", "checkpoint_every must be at least 1, found 0"),
        ("schedule: {peak: .nan}", "schedule.peak must be a learning rate, found NaN"),
        ("model: {model_type: mamba2, num_heads: 0}", "model: num_heads must be a positive integer, found 0"),
        (
            "model: {model_type: mamba2, num_heads: 3, n_groups: 2}",
            "model: n_groups = 2 does not divide num_heads = 3",
        ),
        ("model: {model_type: mamba2, vocab_size: 100}", "embeddings for 100"),
        ("model: {model_type: mamba2, time_step_limit: [1, 0]}", "model: time_step_limit must be a range"),
        ("corpus: no/such/corpus", "no/such/corpus: no such file or folder"),
        ("start: no/such/start.pt", "no/such/start.pt: no such file or folder"),
    ] {
        let model = if yaml.starts_with("model") { "" } else { small };
        let file = folder.write("settings.yaml", format!("steps: 1\n{yaml}\n{model}\n"));
        // A folder that wrong settings had claimed would refuse the right ones.
        let code = if part.contains("no such file") { 3 } else { 2 };
        check(&folder, &["train", "--out", &out, "--config", &file], code, &[part]);
    }
}

#[test]
fn runs_that_cannot_be_written() {
    // A path below a file is as unwritable for root as for anybody.
    let folder = Folder::new();
    let file = folder.write("file", "");
    for (runs, what) in [
        (file.clone(), ""),
        (file.clone() + "/runs", "a part of this path is a file and not a folder"),
        #[cfg(target_os = "linux")]
        ("/proc/runs".to_string(), ""),
    ] {
        let parts = [&*format!("lowbit: {runs}: {what}"), "choose another folder with --runs or LOWBIT_RUNS"];
        check(
            &folder,
            &["passkey", FIXTURE, "--lengths", "300", "--trials", "1", "--runs", &runs],
            3,
            &parts,
        );
        check(&folder, &["reproduce", "phase1", "--small", "--model", FIXTURE, "--runs", &runs], 3, &parts);
    }
    check(&folder, &["convert", FIXTURE, "--out", &file], 3, &["file: there is a file of this name already"]);
    check(&folder, &["plots", &folder.text("none")], 2, &["none: no such run"]);
}
