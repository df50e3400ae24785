//! Small models with tokenizers of many kinds, and commands on them.

use super::command_line::lowbit;
use super::fixture::Folder;
use candle_core::{DType, Device, Tensor};
use lowbit::family::{Config, mamba2};
use lowbit::model::init::initialize;
use lowbit::record::Row;
use serde_json::{Map, Value, json};
use std::fs;
use std::process::Output;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A checkpoint of one small layer with random weights, and a tokenizer if there is one.
pub fn checkpoint(vocab_size: usize, tokenizer: Option<&Value>) -> Folder {
    speaker(vocab_size, tokenizer, &[])
}

/// As [`checkpoint`]; after each token but the last of `chain` the model says the next one.
pub fn speaker(vocab_size: usize, tokenizer: Option<&Value>, chain: &[u32]) -> Folder {
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
pub fn tokenizer(parts: Value) -> Value {
    let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null});
    parts.as_object().unwrap().iter().for_each(|(name, part)| file[name] = part.clone());
    file
}

/// Numbers for tokens, in their order.
pub fn vocab(tokens: impl IntoIterator<Item = String>) -> Value {
    tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect::<Map<_, _>>().into()
}

/// Pieces of bytes, and these merges.
pub fn byte_level(merges: &[(&str, &str)]) -> Value {
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
pub fn characters(without: &str, decoder: Value) -> Value {
    let known = ('\n'..='~').filter(|c| (*c == '\n' || *c >= ' ') && !without.contains(*c));
    let tokens = ["[UNK]".to_string()].into_iter().chain(known.map(String::from));
    let split =
        json!({"type": "Split", "pattern": {"Regex": "(?s)."}, "behavior": "Isolated", "invert": false});
    let model = json!({"type": "WordLevel", "vocab": vocab(tokens), "unk_token": "[UNK]"});
    tokenizer(json!({"pre_tokenizer": split, "decoder": decoder, "model": model}))
}

/// The same with nothing for the unknown.
pub fn dropping(without: &str) -> Value {
    let mut file = characters(without, Value::Null);
    let vocab = file["model"]["vocab"].clone();
    file["pre_tokenizer"] = Value::Null;
    file["model"] = json!({"type": "BPE", "vocab": vocab, "merges": []});
    file
}

/// Runs a command on the model in a folder.
pub fn on(folder: &Folder, command: &str, args: &[&str]) -> Output {
    let runs = folder.text("runs");
    lowbit().arg(command).arg(folder.path()).args(["--runs", &runs]).args(args).output().unwrap()
}

/// What it said on standard error.
pub fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The summaries of all runs of a folder's model.
pub fn summaries(folder: &Folder) -> Vec<Row> {
    let runs = fs::read_dir(folder.at("runs")).unwrap().map(|run| run.unwrap().path());
    let rows = runs.flat_map(|run| lowbit::record::read_lines(run.join("metrics.jsonl")).unwrap().rows);
    rows.filter(|row| row["row"] == "summary").collect()
}

/// The one summary that a command must give.
pub fn measured(folder: &Folder, command: &str, args: &[&str]) -> (Row, String) {
    let _ = fs::remove_dir_all(folder.at("runs"));
    let output = on(folder, command, args);
    let told = complaint(&output);
    assert!(output.status.success(), "{told}");
    let mut all = summaries(folder);
    assert_eq!(all.len(), 1, "{all:?}");
    (all.remove(0), told)
}

/// The key of the first prompt of 400 tokens is 84627.
pub const ASKED: [&str; 4] = ["--lengths", "400", "--trials", "1"];
