//! Tasks that models are compared by, and texts that people want continued, as a user calls them.

use super::command_line::{lowbit, refused};
use super::fixture::Folder;
use lowbit::record::{Row, read_lines};
use lowbit::study::Study;
use serde_json::json;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};

const MODEL: &str = "random:mamba2-tiny";

fn run(args: &[&str]) -> Output {
    lowbit().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn only_run(runs: &str) -> PathBuf {
    fs::read_dir(runs).unwrap().next().unwrap().unwrap().path()
}

fn rows(run: &std::path::Path) -> Vec<Row> {
    read_lines(run.join("metrics.jsonl")).unwrap().rows
}

#[test]
fn last_words_are_measured_compared_and_checked() {
    let folder = Folder::new();
    let line =
        |i: usize| json!({"text": format!("The {i} of May is a day as any other day")}).to_string() + "\n";
    let corpus = folder.write("words.jsonl", (0..70).map(line).collect::<String>());
    let runs = folder.text("runs");
    let output = run(&["lambada", MODEL, "--corpus", &corpus, "--runs", &runs]);
    let told = text(&output.stdout);
    assert!(
        output.status.success() && told.contains("accuracy_low") && told.contains("words.jsonl"),
        "{told}"
    );
    let first = only_run(&runs);
    let all = rows(&first);
    let count = |kind: &str| all.iter().filter(|row| row["row"] == kind).count();
    assert_eq!((count("item"), count("part"), count("summary")), (70, 2, 1));
    let check = run(&["reproduce", "--check", &first.to_string_lossy()]);
    assert!(check.status.success(), "{}{}", text(&check.stdout), text(&check.stderr));

    // In a study, schemes are set side by side item by item.
    let study = Study::new("words").models([MODEL]).schemes(["f32", "w2a16"]).measure(
        lowbit::measure::lambada::Lambada {
            items: Some(66),
            ..lowbit::measure::lambada::Lambada::of(&corpus)
        },
    );
    let made = study.run_into(|| study.open(folder.at("studies"))).unwrap();
    let compared = run(&["compare", &made.path().to_string_lossy()]);
    let told = text(&compared.stdout);
    assert!(
        told.contains("words") && told.contains("/66") && told.contains("McNemar's exact test"),
        "{told}"
    );
    // Another text under the same name is noticed.
    assert!(study.current_in(folder.at("studies")).unwrap().is_some());
    folder.write("words.jsonl", (1..71).map(line).collect::<String>());
    assert!(study.current_in(folder.at("studies")).unwrap().is_none());
}

#[test]
fn choices_are_measured_and_bad_lines_named() {
    let folder = Folder::new();
    let line = json!({"question": "The opposite of hot is", "choices": ["cold", "warm", "wet"], "answer": 0});
    let corpus = folder.write("set.jsonl", format!("{line}\n").repeat(5));
    let runs = folder.text("runs");
    let output = run(&["choice", MODEL, "--corpus", &corpus, "--items", "4", "--runs", &runs]);
    let told = text(&output.stdout);
    assert!(output.status.success() && told.contains("accuracy_norm"), "{told}{}", text(&output.stderr));
    let all = rows(&only_run(&runs));
    let items: Vec<&Row> = all.iter().filter(|row| row["row"] == "item").collect();
    assert_eq!((items.len(), items[3]["name"].as_str()), (4, Some("set:4")));
    let config = fs::read_to_string(only_run(&runs).join("config_resolved.yaml")).unwrap();
    assert!(config.contains("measure:\n  corpus: ") && config.contains("  items: 4\n"), "{config}");
    let bad = folder.write("bad.jsonl", format!("{line}\n{{\"query\": \"q\"}}\n"));
    let blank = folder.write("blank.jsonl", "{\"text\": \"one two\"}\n{\"text\": \"alone\"}\n");
    for (args, part) in [
        (&["choice", MODEL, "--corpus", &bad][..], "bad.jsonl: line 2: not a JSON object with a question"),
        (&["lambada", MODEL, "--corpus", &blank], "blank:2: the text has no blank"),
        (&["lambada", MODEL, "--corpus", &corpus], "set.jsonl: line 1: not a JSON object with a text"),
        (&["lambada", MODEL], "no file is named"),
        (&["choice", MODEL, "--corpus", &corpus, "--items", "0"], "items must be at least 1"),
    ] {
        let (code, sentence) = refused(&[args, &["--runs", &folder.text("none")]].concat());
        assert!(code == 2 && sentence.contains(part), "{sentence}");
    }
    assert!(!folder.at("none").exists());
}

#[test]
fn a_text_is_continued_as_it_was_asked_for() {
    let say = |args: &[&str]| {
        let output = run(&[&["generate", MODEL, "To be, or not to "], args].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let hot = ["--temperature", ".8", "--top-p", ".95", "--seed", "1", "--max-tokens", "40"];
    let first = say(&hot);
    assert!(first.ends_with('\n') && first == say(&hot));
    assert_ne!(first, say(&["--temperature", ".8", "--top-p", ".95", "--seed", "2", "--max-tokens", "40"]));
    assert_eq!(
        say(&["--max-tokens", "9"]),
        say(&["--max-tokens", "9", "--seed", "5"]),
        "greedy knows no seed"
    );
    // A stop text ends what was said before it.
    let letters: Vec<char> = first.chars().collect();
    let stop: String = letters[12..14].iter().collect();
    if !stop.contains(['\\', '\n', '\t', '\r', '-']) {
        let stopped = say(&[&hot[..], &["--stop", &stop]].concat());
        assert_eq!(stopped.trim_end_matches('\n'), first.split(&stop).next().unwrap().trim_end_matches('\n'));
    }
    // A prompt alone is continued by the default model; `-` is read.
    let mut child = lowbit()
        .args(["generate", "-", "--max-tokens", "20"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"ACT I. SCENE 1.\n").unwrap();
    let read = child.wait_with_output().unwrap();
    let given = run(&["generate", "ACT I. SCENE 1.\n", "--max-tokens", "20"]);
    assert!(read.status.success() && !read.stdout.is_empty() && read.stdout == given.stdout);
    for (args, part) in [
        (&["--top-p", ".9"][..], "top_p is set, but at temperature 0 nothing is drawn; set a temperature"),
        (&["--temperature", "-1"], "temperature must be 0 or more, found -1"),
        (&["--temperature", "1", "--top-k", "0"], "top_k must be at least 1"),
        (&["--stop", ""], "a stop text is empty"),
        (&["--stop", r"\x"], r"'\x' is none of"),
        (&["--max-tokens", "0"], "max_tokens must be at least 1"),
    ] {
        let (code, sentence) = refused(&[&["generate", MODEL, "prompt"], args].concat());
        assert!(code == 2 && sentence.contains(part), "{sentence}");
    }
    let (code, sentence) = refused(&["generate", MODEL, ""]);
    assert!(code == 2 && sentence.contains("there are no tokens to read"), "{sentence}");
}

/// The file that people measure: where `LOWBIT_LAMBADA` names it, its words are all of its lines'.
#[test]
fn the_published_words_are_read() {
    let Some(path) = std::env::var_os("LOWBIT_LAMBADA") else {
        println!("skipped: LOWBIT_LAMBADA names no lambada_test.jsonl");
        return;
    };
    let lambada = lowbit::measure::lambada::Lambada::of(PathBuf::from(path));
    let model = lowbit::Model::load(MODEL).unwrap();
    lowbit::Measure::check(&lambada, &model).unwrap();
}
