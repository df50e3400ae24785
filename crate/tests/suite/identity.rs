//! A reading never leaves its subject: what changed is measured anew, and two subjects are never taken for one.

use super::command_line::lowbit;
use super::fixture::{FIXTURE, Folder, config, tensors};
use lowbit::measure::{Measure, subject};
use lowbit::prelude::*;
use lowbit::record::{Row, read_lines};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const TEXT: &str = "The quality of mercy is not strained, it droppeth as the gentle rain from heaven. ";

fn rows(run: &Path) -> Vec<Row> {
    read_lines(run.join("metrics.jsonl")).unwrap().rows
}

/// A study of a model in a folder, on a text beside it.
fn study(folder: &Folder) -> Study {
    let text = folder.write("text.txt", TEXT.repeat(12));
    Study::new("resumed")
        .models([folder.path().to_string_lossy()])
        .schemes(["f32", "w8a16"])
        .measure(Perplexity::of(&text).windows(64, 64))
        .measure(Divergence::default().on(&text))
        .measure(Stability::lengths([16]).on(&text).prompts(2).generate(4))
}

/// Interrupts a study after its perplexities, changes something, and measures on: the run of both.
fn resumed(folder: &Folder, change: impl Fn()) -> (Vec<Row>, Vec<Row>) {
    let root = Folder::new();
    let study = study(folder);
    let run = study.run_into(|| study.open(root.path())).unwrap();
    let path = run.path().to_path_buf();
    drop(run);
    let all = fs::read_to_string(path.join("metrics.jsonl")).unwrap();
    let first: Vec<&str> = all.lines().filter(|line| line.contains("\"measure\":\"perplexity\"")).collect();
    fs::write(path.join("metrics.jsonl"), first.join("\n") + "\n").unwrap();
    fs::remove_file(path.join("finished")).unwrap();
    let before = rows(&path);
    change();
    let run = study.run_into(|| study.open(root.path())).unwrap();
    assert_eq!(run.path(), path, "the same run goes on");
    (before, rows(&path))
}

fn values(rows: &[Row], column: &str) -> BTreeSet<String> {
    rows.iter().filter_map(|row| row.get(column)).map(Value::to_string).collect()
}

#[test]
fn a_resumed_run_holds_readings_of_one_subject() {
    let folder = || Folder::checkpoint(&tensors(), Some(&config()));
    let words = |unk: &str| {
        format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
                "pre_tokenizer": {{"type": "Whitespace"}}, "post_processor": null, "decoder": null,
                "model": {{"type": "WordLevel", "vocab": {{"[unk]": 0, "{unk}": 1}}, "unk_token": "[unk]"}}}}"#
        )
    };
    // Nothing has changed: what was measured stays.
    let same = folder();
    let (before, after) = resumed(&same, || {});
    assert!(before.iter().all(|row| after.contains(row)) && after.len() > before.len());

    let mended = folder();
    let (before, after) = resumed(&mended, || {
        let mut config = config();
        config["layer_norm_epsilon"] = json!(0.01);
        mended.write("config.json", config.to_string());
    });
    assert!(before.iter().all(|row| !after.contains(row)));
    assert_eq!(values(&after, "config_hash").len(), 1);
    assert_eq!(values(&after, "model_hash"), values(&before, "model_hash"));

    let other = folder();
    other.write("tokenizer.json", words("mercy"));
    let (before, after) = resumed(&other, || {
        other.write("tokenizer.json", words("rain"));
    });
    assert!(before.iter().all(|row| !after.contains(row)));
    assert_eq!(values(&after, "tokenizer_hash").len(), 1);

    let text = folder();
    let (before, after) = resumed(&text, || drop(fs::write(text.at("text.txt"), TEXT.repeat(13))));
    assert!(before.iter().all(|row| !after.contains(row)));
    assert_eq!(values(&after, "corpus_hash").len(), 1);

    // The summaries are those of a run that was never interrupted.
    let whole = Folder::new();
    let study = study(&mended);
    let run = study.run_into(|| study.open(whole.path())).unwrap();
    let check = Study::check_run(run.path()).unwrap();
    assert!(check.comparison.differences.is_empty(), "{check}");
}

#[test]
fn everything_that_can_change_a_reading_is_in_its_fingerprint() {
    let folder = Folder::checkpoint(&tensors(), Some(&config()));
    let text = folder.write("text.txt", TEXT.repeat(12));
    let measure = Divergence::default().on(&text);
    let of = || measure.fingerprint(&folder.load()).unwrap();
    let first = of();
    assert_eq!(first, of());
    // A reference of the same weights and another config.
    let named = Divergence { reference: Some(FIXTURE.to_string()), ..measure.clone() };
    let reference = Folder::checkpoint(&tensors(), Some(&config()));
    let beside = |measure: &Divergence| measure.fingerprint(&Model::load(FIXTURE).unwrap()).unwrap();
    let (a, mut settings) = (beside(&named), config());
    settings["layer_norm_epsilon"] = json!(0.01);
    reference.write("config.json", settings.to_string());
    let other = Divergence { reference: Some(reference.path().to_string_lossy().into()), ..measure.clone() };
    assert_ne!(a, beside(&other));
    // What was assumed: the same numbers, but no longer a guess.
    fs::remove_file(folder.at("config.json")).unwrap();
    let guessed = folder.load();
    assert!(!guessed.assumed.is_empty());
    assert_ne!(of(), first);
    let told = subject(&guessed).assumed.unwrap();
    assert!(told.contains("n_groups = 1; "), "{told}");
    // Rounded and widened again is not what it was.
    let f32s = Model::load(FIXTURE).unwrap();
    let narrowed = f32s.cast(candle_core::DType::BF16).unwrap().cast(candle_core::DType::F32).unwrap();
    assert_ne!(subject(&narrowed).identity(), subject(&f32s).identity());
    let there = f32s.cast(candle_core::DType::BF16).unwrap();
    assert_eq!(subject(&there).model_hash, f32s.hash);
    // Two sets of tensors without a file are two.
    let made = |model: &Model| {
        Model::from_tensors("made", model.config.clone(), model.tensors().clone(), &Default::default())
            .unwrap()
    };
    assert_eq!(subject(&made(&f32s)), subject(&made(&f32s)));
    assert_ne!(subject(&made(&f32s)).model_hash, subject(&made(&narrowed)).model_hash);
}

#[test]
fn two_models_of_one_name_are_told_apart() {
    let (one, other, runs) = (Folder::new(), Folder::new(), Folder::new());
    let mut settings = config();
    for folder in [&one, &other] {
        let source = Folder::checkpoint(&tensors(), Some(&settings));
        source.load().save(&folder.at("bard")).unwrap();
        settings["layer_norm_epsilon"] = json!(0.01);
    }
    let text = one.write("text.txt", TEXT.repeat(12));
    for folder in [&one, &other] {
        let output = lowbit()
            .args(["ppl", &folder.text("bard"), "--corpus", &text, "--seq-len", "64", "--stride", "64"])
            .args(["--runs", &runs.path().to_string_lossy()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let found: Vec<String> = fs::read_dir(runs.path())
        .unwrap()
        .map(|run| run.unwrap().path().to_string_lossy().into_owned())
        .collect();
    let output = lowbit().arg("compare").args(&found).output().unwrap();
    let (told, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{warned}");
    assert!(told.matches("bard (").count() >= 2, "{told}");
    assert!(warned.contains("several models named bard"), "{warned}");
    let frame = Frame::load_all(&found).unwrap().mean("ppl", ["model"]).unwrap();
    assert_eq!(frame.height(), 2);
}
