//! How commands end: with readers that stop reading, figures that cannot be drawn, columns that were not measured, and
//! settings that mean nothing.

use super::command_line::{lowbit, refused};
use super::fixture::{FIXTURE, Folder};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const TEXT: &str = "Whoever reads the first line may have read enough. ";

/// The one run in a folder of runs.
fn only(runs: &str) -> std::path::PathBuf {
    let mut found = fs::read_dir(runs).unwrap();
    let run = found.next().unwrap().unwrap().path();
    assert!(found.next().is_none());
    run
}

/// Runs a command whose output nobody reads beyond its first line.
fn cut_short(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_reader_that_stops_ends_the_program_quietly_and_figures_are_drawn() {
    let folder = Folder::new();
    let (runs, text) = (folder.text("runs"), folder.write("text.txt", TEXT.repeat(20)));
    let ppl = ["ppl", FIXTURE, "--corpus", &text, "--runs", &runs];
    for args in [&ppl[..], &["schemes"], &["--help"], &["ppl", "--help"], &["info", FIXTURE, "--linears"]] {
        let (code, told) = cut_short(lowbit().args(args));
        assert_eq!(code, Some(0), "{args:?}: {told}");
        assert!(told.lines().all(|line| line.starts_with("lowbit: warning: perplexity")), "{args:?}: {told}");
    }
    assert!(only(&runs).join("plots/perplexity.png").is_file());
    assert!(only(&runs).join("finished").is_file());
    // Nobody reads complaints either.
    let mut child = lowbit().args(["info", "no/such/model"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_told() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = lowbit().arg("schemes").stdout(full()).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), told.as_str()),
        (Some(3), "lowbit: standard output: the disk is full\n")
    );
}

#[test]
fn a_model_without_a_training_length_has_its_table_and_figures() {
    let folder = Folder::new();
    let (runs, text) = (folder.text("runs"), folder.write("text.txt", TEXT.repeat(20)));
    let args =
        ["context", FIXTURE, "--scheme", "w8a8", "--corpus", &text, "--lengths", "16,32", "--runs", &runs];
    let output = lowbit().args(args).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plots = only(&runs).join("plots");
    assert!(out.contains("\ncontext\n") && plots.join("context.png").is_file(), "{out}");
    // The message names the figure and the readings as they can be opened.
    assert!(out.contains(&*plots.join("context.png").to_string_lossy()), "{out}");
    assert!(out.trim_end().ends_with("metrics.jsonl"), "{out}");
}

#[test]
fn one_figure_that_cannot_be_drawn_is_told_and_the_others_are_drawn() {
    let folder = Folder::new();
    let row = r#"{"measure":"perplexity","row":"summary","model":"m","scheme":"f32","ppl":4,"bits_per_byte":2,"weight_bytes":0}"#;
    folder.write("metrics.jsonl", format!("{row}\n"));
    let path = folder.path().to_string_lossy().into_owned();
    let output = lowbit().args(["plots", &path]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && folder.at("plots/perplexity.png").is_file(), "{told}");
    assert!(
        told.contains("warning: the figure size was not drawn: ") && told.contains("logarithmic"),
        "{told}"
    );
    // Where nothing could be drawn, nothing is what was asked for.
    folder.write("metrics.jsonl", format!("{}\n", row.replace("\"ppl\":4,", "")));
    let (code, sentence) = refused(&["plots", &path]);
    assert!(code == 2 && sentence.contains("figure size: "), "{sentence}");
}

#[test]
fn settings_that_no_measurement_has_are_one_sentence() {
    let folder = Folder::new();
    let runs = folder.text("runs");
    for (args, part) in [
        (&["ppl", "--threads", "100000"][..], "100000 threads are more than 1024"),
        (&["ppl", "--threads", "0"], "0 threads cannot work"),
        (&["outliers", "--top-share", "nan"], "top_share must be a number, found nan"),
        (&["outliers", "--top-share", "inf"], "top_share must be a number, found inf"),
        (&["outliers", "--top-share", "-1"], "a share between 0 and 1, found -1"),
        (&["outliers", "--top-share", "2"], "a share between 0 and 1, found 2"),
        (&["passkey", "--digits", "18446744073709551615"], "digits must be at most 1000"),
        (&["stability", "--prompts", "1000000000000"], "must be at most"),
    ] {
        let (code, sentence) = refused(&[&[args[0], FIXTURE, "--runs", &runs], &args[1..]].concat());
        assert!(code == 2 && sentence.contains(part), "{part}: {sentence}");
    }
    for (measure, yaml, part) in [
        ("outliers", "top_share: .nan", "top_share must be a number, found nan"),
        ("outliers", "top_share: -0.5", "a share between 0 and 1"),
        ("divergence", "interval: {blocks: 1}", "blocks must be at least 2"),
        ("context", "interval: {blocks: 0}", "blocks must be at least 2"),
        ("context", "interval: {level: 2}", "level is a share between 0 and 1"),
        ("sensitivity", "interval: {level: .inf}", "level must be a number, found inf"),
        ("cost", "threads: 0", "0 threads cannot work"),
        ("cost", "repetitions: -1", "line 1"),
    ] {
        let file = folder.write("settings.yaml", format!("{yaml}\n"));
        let (code, sentence) = refused(&[measure, FIXTURE, "--runs", &runs, "--config", &file]);
        assert!(code == 2 && sentence.contains(part), "{part}: {sentence}");
    }
    assert!(!folder.at("runs").exists() || fs::read_dir(&runs).unwrap().count() <= 1);
}

#[cfg(unix)]
#[test]
fn what_was_interrupted_says_how_it_goes_on_and_does() {
    let folder = Folder::new();
    let runs = folder.text("runs");
    let args = ["passkey", FIXTURE, "--lengths", "300,301", "--trials", "1500", "--runs", &runs];
    let interrupted = |after: usize| {
        let child = lowbit().args(args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let recorded = || match fs::read_dir(&runs) {
            Ok(all) => all.flatten().any(|run| {
                fs::read_to_string(run.path().join("metrics.jsonl"))
                    .is_ok_and(|text| text.lines().count() >= after)
            }),
            Err(_) => false,
        };
        while !recorded() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let stop = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(stop.success());
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told) = interrupted(0);
    assert_eq!(code, Some(130), "{told}");
    let begins = "lowbit: interrupted; nothing was recorded yet: the same command begins again\n";
    assert!(told == begins || told.contains("the same command goes on from there"), "{told}");
    let first = only(&runs);
    let (code, told) = interrupted(1);
    assert!(code == Some(130) && told.contains("the same command goes on from there"), "{told}");
    assert_eq!(only(&runs), first, "the same run went on");
}

#[test]
fn a_bare_call_says_what_to_do_next() {
    let output = Command::new(env!("CARGO_BIN_EXE_lowbit")).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    for next in ["reproduce glance", "lowbit ppl", "cargo lab", "--help"] {
        assert!(out.contains(next), "{next}: {out}");
    }
    assert!(out.lines().count() <= 8, "{out}");
}
