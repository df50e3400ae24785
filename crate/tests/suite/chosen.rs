//! Which tokenizer reads a text: the model's, a chosen one, or none.

use super::command_line::lowbit;
use super::fixture::Folder;
use super::readers::{ASKED, byte_level, checkpoint, complaint, measured, on, summaries};
use lowbit::family::{Config, mamba2};
use lowbit::measure::Measure;
use lowbit::prelude::*;
use serde_json::json;
use std::fs;

#[test]
fn a_missing_tokenizer_is_not_made_up() {
    for (vocab_size, bytes) in [(1024, true), (65, false)] {
        let folder = checkpoint(vocab_size, None);
        let corpus = folder.write("text.txt", "To be, or not to be: that is the question. ".repeat(30));
        for (command, args) in [
            ("ppl", &["--corpus", corpus.as_str()][..]),
            ("divergence", &["--corpus", &corpus]),
            ("outliers", &["--corpus", &corpus]),
            ("stability", &["--corpus", &corpus]),
            ("sensitivity", &["--corpus", &corpus]),
            ("context", &["--corpus", &corpus, "--lengths", "64"]),
            ("passkey", &ASKED),
            ("ppl", &["--corpus", &corpus, "--scheme", "w8a8-static"]),
        ] {
            let output = on(&folder, command, args);
            let told = complaint(&output);
            assert_eq!((output.status.code(), told.lines().count()), (Some(2), 1), "{command}: {told}");
            for part in
                ["text cannot be measured", &vocab_size.to_string(), "tokenizer.json there", "--tokenizer"]
            {
                assert!(told.contains(part), "{command}: {told}");
            }
            assert_eq!(told.contains("--tokenizer bytes"), bytes, "{told}");
            assert!(!folder.at("runs").exists(), "{command}");
        }
        // Token ids can be measured, and weights can be packed and saved.
        let cost = on(&folder, "cost", &["--lengths", "16", "--gen-len", "2", "--repetitions", "1"]);
        assert!(cost.status.success() && summaries(&folder).len() == 2, "{}", complaint(&cost));
        let model = folder.load();
        assert_eq!((model.tokenizer.name(), model.continue_greedily(&[1, 2], 3).unwrap().len()), ("none", 3));
        let out = folder.text("packed");
        assert!(
            lowbit()
                .arg("quantize")
                .arg(folder.path())
                .args(["--scheme", "w8a8", "--out", &out])
                .output()
                .unwrap()
                .status
                .success()
        );
        assert!(lowbit().args(["info", &out]).output().unwrap().status.success());
    }
}

#[test]
fn a_tokenizer_can_be_chosen() {
    let folder = checkpoint(1024, None);
    let corpus = folder.write("text.txt", "To be, or not to be: that is the question. ".repeat(30));
    let other = Folder::new();
    other.write("tokenizer.json", byte_level(&[("t", "h")]).to_string());
    for (chosen, tokens) in
        [("bytes".to_string(), 1289), (other.text(""), 1229), (other.text("tokenizer.json"), 1229)]
    {
        let args = ["--corpus", &corpus, "--tokenizer", &chosen];
        for command in ["ppl", "divergence"] {
            let (summary, _) = measured(&folder, command, &args);
            assert_eq!(
                (&summary["n_tokens"], &summary["n_bytes"]),
                (&json!(tokens), &json!(1289)),
                "{chosen}"
            );
        }
        measured(&folder, "passkey", &[&ASKED[..], &["--tokenizer", &chosen]].concat());
        // A recorded choice is measured again by itself, and a saved one needs no repetition.
        let run = fs::read_dir(folder.at("runs")).unwrap().next().unwrap().unwrap().path();
        let check = lowbit().args(["reproduce", "--check"]).arg(&run).output().unwrap();
        assert!(check.status.success(), "{}", complaint(&check));
        let out = folder.text("packed");
        let _ = fs::remove_dir_all(&out);
        let quantize = ["quantize", "--scheme", "w8a8", "--tokenizer", &chosen, "--out", &out];
        assert!(lowbit().args(quantize).arg(folder.path()).output().unwrap().status.success());
        assert_eq!(
            lowbit::Model::load(&out).unwrap().tokenizer.vocab_size(),
            if chosen == "bytes" { 256 } else { 257 }
        );
    }
    let told = complaint(&on(&folder, "ppl", &["--corpus", &corpus, "--tokenizer", "none.json"]));
    assert!(told.contains("none.json: no such file") && told.contains("give bytes, or the path"), "{told}");
    let small = checkpoint(65, None);
    let told = complaint(&on(&small, "ppl", &["--corpus", &corpus, "--tokenizer", "bytes"]));
    assert!(told.contains("'bytes' has 256 tokens") && told.contains("embeddings for 65"), "{told}");
    // Seeded random models have no tokenizer that could be missing.
    let how = lowbit::Loading::default();
    let config = Config::Mamba2(mamba2::Config { vocab_size: 700, ..mamba2::Config::default() });
    let model = Model::random("large", config, 1, &how).unwrap();
    assert!(Perplexity::of(&corpus).max_tokens(64).measure(&model).is_ok());
}

#[test]
fn what_is_assumed_is_told_where_it_is_measured() {
    let folder = checkpoint(288, None);
    let corpus = folder.write("text.txt", "To be, or not to be: that is the question.");
    let (_, told) = measured(&folder, "ppl", &["--corpus", &corpus]);
    assert!(
        told.contains("warning: ") && told.contains("text is bytes, though the vocabulary has 288"),
        "{told}"
    );
    assert_eq!(told.matches("text is bytes").count(), 1, "{told}");
    let (_, told) = measured(&folder, "ppl", &["--corpus", &corpus, "--tokenizer", "bytes"]);
    assert!(!told.contains("text is bytes"), "{told}");
}
