//! Texts and tokenizers as people have them: what is measured is the text that was given, and what is not is told.

use super::command_line::lowbit;
use super::fixture::Folder;
use candle_core::{DType, Device, Tensor};
use lowbit::family::{Config, mamba2};
use lowbit::measure::Measure;
use lowbit::model::init::initialize;
use lowbit::model::tokenizer::Tokenizer;
use lowbit::prelude::*;
use lowbit::record::Row;
use serde_json::{Map, Value, json};
use std::fs;
use std::process::Output;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A checkpoint of one small layer with random weights, and a tokenizer if there is one.
fn checkpoint(vocab_size: usize, tokenizer: Option<&Value>) -> Folder {
    speaker(vocab_size, tokenizer, &[])
}

/// As [`checkpoint`]; after each token but the last of `chain` the model says the next one.
fn speaker(vocab_size: usize, tokenizer: Option<&Value>, chain: &[u32]) -> Folder {
    let config = Config::Mamba2(mamba2::Config {
        vocab_size,
        hidden_size: vocab_size.next_multiple_of(8),
        num_hidden_layers: 1,
        num_heads: 1,
        head_dim: 16,
        state_size: 8,
        tie_word_embeddings: false,
        ..mamba2::Config::default()
    });
    let mut tensors = initialize(&config, 1).unwrap();
    if !chain.is_empty() {
        let width = config.hidden_size();
        let eye = Tensor::eye(width, DType::F32, &Device::Cpu).unwrap().narrow(0, 0, vocab_size).unwrap();
        let mut next = vec![0.0_f32; vocab_size * width];
        chain.windows(2).for_each(|pair| next[pair[1] as usize * width + pair[0] as usize] = 1.0);
        tensors.insert(
            "lm_head.weight".into(),
            Tensor::from_vec(next, (vocab_size, width), &Device::Cpu).unwrap(),
        );
        tensors.insert("backbone.embeddings.weight".into(), eye.contiguous().unwrap());
        let out = "backbone.layers.0.mixer.out_proj.weight";
        tensors.insert(out.into(), tensors[out].zeros_like().unwrap());
    }
    let folder = Folder::checkpoint(&tensors, Some(&serde_json::to_value(&config).unwrap()));
    if let Some(tokenizer) = tokenizer {
        folder.write("tokenizer.json", tokenizer.to_string());
    }
    folder
}

/// A `tokenizer.json` of these parts.
fn tokenizer(parts: Value) -> Value {
    let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null});
    parts.as_object().unwrap().iter().for_each(|(name, part)| file[name] = part.clone());
    file
}

fn vocab(tokens: impl IntoIterator<Item = String>) -> Value {
    tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect::<Map<_, _>>().into()
}

/// Pieces of bytes, and these merges.
fn byte_level(merges: &[(&str, &str)]) -> Value {
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let mut tokens: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    tokens.sort();
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let merges: Vec<_> = merges.iter().map(|(a, b)| json!([a, b])).collect();
    let model = json!({"type": "BPE", "vocab": vocab(tokens), "merges": merges});
    tokenizer(json!({"pre_tokenizer": level, "post_processor": level, "decoder": level, "model": model}))
}

/// A token for each character of ASCII that is printed but those of `without`, and one for the unknown.
fn characters(without: &str, decoder: Value) -> Value {
    let known = ('\n'..='~').filter(|c| (*c == '\n' || *c >= ' ') && !without.contains(*c));
    let tokens = ["[UNK]".to_string()].into_iter().chain(known.map(String::from));
    let split =
        json!({"type": "Split", "pattern": {"Regex": "(?s)."}, "behavior": "Isolated", "invert": false});
    let model = json!({"type": "WordLevel", "vocab": vocab(tokens), "unk_token": "[UNK]"});
    tokenizer(json!({"pre_tokenizer": split, "decoder": decoder, "model": model}))
}

/// The same with nothing for the unknown.
fn dropping(without: &str) -> Value {
    let mut file = characters(without, Value::Null);
    let vocab = file["model"]["vocab"].clone();
    file["pre_tokenizer"] = Value::Null;
    file["model"] = json!({"type": "BPE", "vocab": vocab, "merges": []});
    file
}

/// Runs a command on the model in a folder.
fn on(folder: &Folder, command: &str, args: &[&str]) -> Output {
    let runs = folder.text("runs");
    lowbit().arg(command).arg(folder.path()).args(["--runs", &runs]).args(args).output().unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The summaries of all runs of a folder's model.
fn summaries(folder: &Folder) -> Vec<Row> {
    let runs = fs::read_dir(folder.at("runs")).unwrap().map(|run| run.unwrap().path());
    let rows = runs.flat_map(|run| lowbit::record::read_lines(run.join("metrics.jsonl")).unwrap().rows);
    rows.filter(|row| row["row"] == "summary").collect()
}

/// The one summary that a command must give.
fn measured(folder: &Folder, command: &str, args: &[&str]) -> (Row, String) {
    let _ = fs::remove_dir_all(folder.at("runs"));
    let output = on(folder, command, args);
    let told = complaint(&output);
    assert!(output.status.success(), "{told}");
    let mut all = summaries(folder);
    assert_eq!(all.len(), 1, "{all:?}");
    (all.remove(0), told)
}

/// The model's folder for a tokenizer, and what it says after a passkey prompt.
fn saying(file: &Value, words: &str) -> Folder {
    let folder = Folder::new();
    folder.write("tokenizer.json", file.to_string());
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let (prompt, said) = tokenizer.continued("The pass key is", words).unwrap();
    let chain = [&prompt[prompt.len() - 1..], &said].concat();
    speaker(tokenizer.vocab_size(), Some(file), &chain)
}

/// The key of the first prompt of 400 tokens is 84627.
const ASKED: [&str; 4] = ["--lengths", "400", "--trials", "1"];

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
