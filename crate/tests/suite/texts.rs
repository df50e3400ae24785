//! Texts as people have them: what is measured is the text that was given, and what is not is told.

use super::fixture::Folder;
use super::readers::{ASKED, byte_level, characters, checkpoint, complaint, dropping, measured, on};
use serde_json::{Value, json};
use std::fs;

#[test]
fn a_text_is_measured_whole() {
    let text = "All happy models are alike. ".repeat(150);
    let plain = checkpoint(256, Some(&byte_level(&[])));
    let file = plain.write("text.txt", &text);
    let ppl = |folder: &Folder| measured(folder, "ppl", &["--corpus", &file]).0;
    let whole = ppl(&plain);
    assert_eq!((&whole["n_tokens"], &whole["n_bytes"]), (&json!(4199), &json!(4199)));
    for (name, setting) in [
        (
            "truncation",
            json!({"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}),
        ),
        (
            "padding",
            json!({"strategy": {"Fixed": 9000}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}),
        ),
    ] {
        let mut set = byte_level(&[]);
        set[name] = setting;
        let folder = checkpoint(256, Some(&set));
        folder.write("tokenizer_config.json", r#"{"model_max_length": 512, "truncation_side": "left"}"#);
        let found = ppl(&folder);
        assert_eq!((&found["n_tokens"], &found["ppl"]), (&json!(4199), &whole["ppl"]), "{name}");
        let (passkey, _) = measured(&folder, "passkey", &["--lengths", "1024", "--trials", "1"]);
        assert_eq!(passkey["context_length"], json!(1024));
        // Saved again, the file is what it was.
        let model = folder.load();
        model.save(&folder.at("saved")).unwrap();
        let saved = fs::read(folder.at("saved/tokenizer.json")).unwrap();
        assert_eq!(saved, fs::read(folder.at("tokenizer.json")).unwrap());
    }
}

#[test]
fn bytes_are_those_of_the_text() {
    let text = "All happy models are alike. ".repeat(150);
    for decoder in
        [Value::Null, json!({"type": "Fuse"}), json!({"type": "WordPiece", "prefix": "##", "cleanup": true})]
    {
        let folder = checkpoint(100, Some(&characters("", decoder)));
        let file = folder.write("text.txt", &text);
        let (ppl, _) = measured(&folder, "ppl", &["--corpus", &file]);
        assert_eq!((&ppl["n_tokens"], &ppl["n_bytes"]), (&json!(4199), &json!(4199)));
        let (divergence, _) = measured(&folder, "divergence", &["--corpus", &file, "--max-tokens", "500"]);
        assert_eq!(divergence["n_bytes"], json!(499));
    }
    // Parts of characters at either end, with and without a file for the tokenizer.
    for file in [None, Some(byte_level(&[]))] {
        let folder = checkpoint(256, file.as_ref());
        let text = folder.write("cjk.txt", "\u{65e5}\u{672c}\u{8a9e}");
        for (most, expected) in [(9, 8), (5, 4), (2, 1)] {
            let (ppl, _) = measured(&folder, "ppl", &["--corpus", &text, "--max-tokens", &most.to_string()]);
            assert_eq!((&ppl["n_tokens"], &ppl["n_bytes"]), (&json!(expected), &json!(expected)));
            let bits = ppl["nll"].as_f64().unwrap() / std::f64::consts::LN_2;
            assert!((ppl["bits_per_byte"].as_f64().unwrap() - bits).abs() < 1e-12);
        }
    }
}

#[test]
fn what_a_tokenizer_leaves_out_is_told_wherever_text_is_read() {
    let text = "Caf\u{e9} au lait, s'il vous pla\u{ee}t. ".repeat(40);
    for (file, column, count, sentence) in [
        (dropping(""), "dropped_bytes", 160, "leaves out 160 of 1320 bytes"),
        (characters("", Value::Null), "unknown_tokens", 80, "token for the unknown for 80 of 1240 tokens"),
    ] {
        let folder = checkpoint(100, Some(&file));
        let corpus = folder.write("text.txt", &text);
        let at = ["--corpus", corpus.as_str()];
        for (command, args) in [
            ("ppl", &[][..]),
            ("divergence", &[]),
            ("sqnr", &[]),
            ("drift", &["--length", "64"]),
            ("stability", &["--lengths", "16", "--prompts", "2", "--gen-len", "4"]),
            ("context", &["--lengths", "64,256"]),
        ] {
            let (summary, told) = measured(&folder, command, &[&at, args].concat());
            let cut = command == "drift"; // reads the first 256 tokens
            assert!(told.contains(sentence) || cut && told.contains(&sentence[..8]), "{command}: {told}");
            assert!(
                summary[column] == json!(count) || cut && summary[column].is_u64(),
                "{command}: {summary:?}"
            );
        }
    }
    // Of prompts too: their letters are known here but for capitals.
    let folder = checkpoint(100, Some(&dropping("TI")));
    let (passkey, told) = measured(&folder, "passkey", &ASKED);
    assert!(
        told.contains("passkey prompt of 400 tokens: the tokenizer") && passkey["dropped_bytes"].is_u64()
    );
    // Nothing is told where nothing is lost.
    let folder = checkpoint(256, None);
    let corpus = folder.write("text.txt", text);
    let (summary, told) = measured(&folder, "ppl", &["--corpus", &corpus]);
    assert!(
        !told.contains("the tokenizer")
            && summary["dropped_bytes"].is_null()
            && summary["unknown_tokens"].is_null()
    );
}

#[test]
fn marks_and_capitals_of_other_systems_change_nothing() {
    let folder = checkpoint(256, None);
    let n_tokens =
        |corpus: &str| measured(&folder, "ppl", &["--corpus", corpus]).0["n_tokens"].as_u64().unwrap();
    let text = "a text of some length. ".repeat(20);
    let plain = n_tokens(&folder.write("plain.txt", &text));
    assert_eq!(plain, 459);
    assert_eq!(n_tokens(&folder.write("marked.txt", format!("\u{feff}{text}"))), plain);
    let lines = "{\"text\": \"one two\"}\r\n{\"text\": \"three\"}\r\n";
    for (name, mark) in
        [("set.jsonl", ""), ("SET.JSONL", ""), ("marked.jsonl", "\u{feff}"), ("MARKED.Jsonl", "\u{feff}")]
    {
        assert_eq!(n_tokens(&folder.write(name, format!("{mark}{lines}"))), 13, "{name}");
    }
    fs::create_dir(folder.at("set")).unwrap();
    folder.write("set/a.txt", "x".repeat(300));
    folder.write("set/B.TXT", "y".repeat(500));
    assert_eq!(n_tokens(&folder.text("set")), 801);
    let utf16: Vec<u8> = "\u{feff}wide".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let told = complaint(&on(&folder, "ppl", &["--corpus", &folder.write("wide.txt", utf16)]));
    assert!(told.contains("wide.txt: UTF-16 text") && told.lines().count() == 1, "{told}");
}
