//! Passkeys are read from tokens, however a tokenizer spells them.

use super::fixture::Folder;
use super::readers::{
    ASKED, byte_level, characters, checkpoint, complaint, dropping, measured, on, speaker, vocab,
};
use lowbit::model::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::fs;

/// The model's folder for a tokenizer, and what it says after a passkey prompt.
fn saying(file: &Value, words: &str) -> Folder {
    let folder = Folder::new();
    folder.write("tokenizer.json", file.to_string());
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let (prompt, said) = tokenizer.continued("The pass key is", words).unwrap();
    let chain = [&prompt[prompt.len() - 1..], &said].concat();
    speaker(tokenizer.vocab_size(), Some(file), &chain)
}

#[test]
fn keys_are_read_from_tokens() {
    let metaspace =
        |c: &str| json!({"type": c, "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let mut marked = characters("", metaspace("Metaspace"));
    let mut tokens: Vec<String> =
        marked["model"]["vocab"].as_object().unwrap().keys().filter(|token| *token != " ").cloned().collect();
    tokens.push("\u{2581}".to_string());
    marked["pre_tokenizer"] = metaspace("Metaspace");
    marked["model"] = json!({"type": "BPE", "vocab": vocab(tokens), "merges": []});
    for (name, file) in [
        ("no decoder", characters("", Value::Null)),
        ("fuse", characters("", json!({"type": "Fuse"}))),
        (
            "strip",
            characters(
                "",
                json!({"type": "Sequence", "decoders": [{"type": "Fuse"},
            {"type": "Strip", "content": "8", "start": 9, "stop": 0}]}),
            ),
        ),
        ("word pieces", characters("", json!({"type": "WordPiece", "prefix": "##", "cleanup": true}))),
        ("no unknown", dropping("")),
        ("bytes", byte_level(&[])),
        ("joined digits", byte_level(&[("8", "4"), ("2", "7"), ("6", "27")])),
        ("joined blank", byte_level(&[("\u{120}", "8"), ("\u{120}8", "4")])),
        ("metaspace", marked),
    ] {
        let right = saying(&file, " 84627.");
        let (summary, told) = measured(&right, "passkey", &ASKED);
        assert_eq!((&summary["accuracy"], told.as_str()), (&json!(1.0), ""), "{name}");
        let run = fs::read_dir(right.at("runs")).unwrap().next().unwrap().unwrap().path();
        let rows = lowbit::record::read_lines(run.join("metrics.jsonl")).unwrap().rows;
        assert_eq!((&rows[0]["key"], &rows[0]["answer"]), (&json!("84627"), &json!("84627")), "{name}");
        for wrong in [" 8462.", " 846270", " 94627."] {
            let (summary, _) = measured(&saying(&file, wrong), "passkey", &ASKED);
            assert_eq!(summary["accuracy"], json!(0.0), "{name}: {wrong}");
        }
    }
}

#[test]
fn keys_that_have_no_tokens_are_refused() {
    let folded = |pattern: &str| {
        let mut file = characters("", Value::Null);
        file["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": "0"});
        file
    };
    for (file, part) in [
        (characters("0123456789", Value::Null), "has no tokens for the key"),
        (dropping("0123456789"), "has no tokens for the key"),
        (dropping("4"), "has no tokens for the key"),
        (folded("[0-9]"), "tells only 1 of ten digits apart"),
        (folded("[6-9]"), "tells only 6 of ten digits apart"),
    ] {
        let folder = checkpoint(100, Some(&file));
        let output = on(&folder, "passkey", &ASKED);
        let told = complaint(&output);
        assert!(output.status.code() == Some(2) && told.contains(part), "{told}");
        assert!(told.lines().count() == 1 && !folder.at("runs").exists(), "{told}");
    }
}

#[test]
fn a_prompt_that_filler_does_not_lengthen_ends() {
    let letters: String = ('A'..='z').filter(|c| c.is_ascii_alphabetic()).collect();
    for file in [dropping(&format!("{letters} .,\n?")), {
        let mut file = dropping(&letters);
        file["model"]["vocab"]["[UNK]"] = json!(0);
        file["model"]["unk_token"] = json!("[UNK]");
        file["model"]["fuse_unk"] = json!(true);
        file["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "[^0-9]+"}, "content": "x"});
        file
    }] {
        let folder = checkpoint(100, Some(&file));
        let told = complaint(&on(&folder, "passkey", &ASKED));
        assert!(told.contains("it does not grow to 400") && told.lines().count() == 1, "{told}");
    }
}
