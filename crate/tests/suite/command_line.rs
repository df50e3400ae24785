//! The program as a user calls it, and its sentence for each mistake in a call.

use std::path::Path;
use std::process::{Command, Output};

/// The program, started where the repository's own data lie.
pub fn lowbit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
    command.arg("--quiet").current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command
}

/// Exit code and sentence of a command that must fail in one sentence, warnings before it aside.
pub fn sentence(output: Output) -> (i32, String) {
    let text = String::from_utf8(output.stderr).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("lowbit: warning: "));
    let text = lines.map(|line| format!("{line}\n")).collect::<String>();
    assert!(text.starts_with("lowbit: ") && text.lines().count() == 1, "{text}");
    // A second path or a bare code is no sentence for a user.
    assert!(!text.contains("os error") && !text.contains("  "), "{text}");
    (output.status.code().unwrap(), text)
}

/// Runs a command that must fail; returns its exit code and its one sentence.
pub fn refused(args: &[&str]) -> (i32, String) {
    sentence(lowbit().args(args).output().unwrap())
}

#[test]
fn a_mistake_in_the_flags_gets_one_sentence() {
    for (args, parts) in [
        (&["ppl", "--seq-len", "x"][..], &["invalid value 'x' for '--seq-len <SEQ_LEN>'", "--help"][..]),
        (
            &["ppl", "--seqlen", "8"],
            &["unexpected argument '--seqlen'", "'--seq-len'", "see lowbit ppl --help"],
        ),
        (&["passkey", "--lengths", "256,long"], &["invalid value 'long' for '--lengths <LENGTHS>'"]),
        (&["reproduce", "phase0"], &["invalid value 'phase0'", "phase1"]),
        (&["train"], &["not provided: --out <FOLDER>", "see lowbit train --help"]),
        (&["measure"], &["unrecognized subcommand 'measure'", "see lowbit --help"]),
        (&["info", "--dtype", "int5"], &["unknown dtype \"int5\"", "f32, bf16 and f16"]),
        (&["info", "--device", "gpu"], &["unknown device \"gpu\"", "cuda:N"]),
        (&["info", "random:mamba3"], &["unknown shape \"mamba3\"", "mamba2-130m"]),
    ] {
        let (code, sentence) = refused(args);
        assert_eq!(code, 2, "{sentence}");
        parts.iter().for_each(|part| assert!(sentence.contains(part), "{part}: {sentence}"));
    }
}

#[test]
fn help_is_no_mistake() {
    let output = lowbit().args(["ppl", "--help"]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(String::from_utf8(output.stdout).unwrap().contains("--seq-len"));
}
