//! Whole files of every kind, and how each kind is read.

use crate::{mutate, pickled};
use lowbit::error::Kind;
use lowbit::family::{Config, mamba2};
use lowbit::model::checkpoint::{Checkpoint, Wanted};
use lowbit::model::tokenizer::Tokenizer;
use lowbit::model::{Loading, Model, Positions};
use lowbit::{Frame, Scheme, Study, Training};
use rand::{Rng, RngExt};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

/// How a file is damaged.
#[derive(Clone, Copy)]
enum Damage {
    Bytes,
    Text,
    /// The header of a safetensors file, whose length stays right.
    Header,
    /// The pickle in a file of torch.save, whose checksums stay right.
    Pickle,
}

/// How the files are read.
#[derive(Clone, Copy)]
enum Read {
    Model,
    /// Every tensor, and the tokenizer inside.
    Checkpoint,
    Tokenizer,
    Study,
    Training,
    Records,
}

/// A folder of whole files, one of which is to be damaged.
struct Seed {
    kind: &'static str,
    files: BTreeMap<String, Vec<u8>>,
    damaged: &'static str,
    damage: &'static [Damage],
    read: Read,
    /// The parts of a file of torch.save.
    parts: Vec<(String, Vec<u8>)>,
}

/// A folder with a damaged file.
pub struct Input {
    pub kind: &'static str,
    files: BTreeMap<String, Vec<u8>>,
    read: Read,
}

impl Input {
    pub fn bytes(&self) -> usize {
        self.files.values().map(Vec::len).sum()
    }
}

/// All seeds, and the folder that inputs are written to.
pub struct Seeds {
    seeds: Vec<Seed>,
    folder: tempfile::TempDir,
}

const TOKENIZERS: [&str; 2] = [
    r#"{"version": "1.0", "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": 4, "pad_id": 0, "pad_type_id": 0, "pad_token": "[unk]"},
    "added_tokens": [{"id": 0, "content": "[unk]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}]},
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"[unk]": 0, "pass": 1, "key": 7}, "unk_token": "[unk]"}}"#,
    r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
    "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
    "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "Ġ": 5}, "merges": ["a b", "ab c"]}}"#,
];

const STUDY: &str = "name: recall\nmodels: [data/models/bard, \"random:mamba2-tiny\"]\nschemes: [f32, w4a8-g64]\n\
    quantizing:\n  calibration: {samples: 8, length: 64}\nmeasures:\n- passkey: {lengths: [256, 512], trials: 5, seed: 7}\n\
    - perplexity: {seq_len: 128}\n";

impl Seeds {
    pub fn new(only: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shape = mamba2::Config {
            hidden_size: 16,
            num_hidden_layers: 2,
            state_size: 4,
            head_dim: 16,
            num_heads: 2,
            tie_word_embeddings: false,
            ..mamba2::Config::default()
        };
        let model = Model::random("seed", Config::Mamba2(shape), 1, &Loading::default()).expect("a model");
        let saved = |model: &Model, name: &str| {
            let folder = folder.path().join(name);
            model.save(&folder).expect("a saved model");
            files(&folder)
        };
        let whole = saved(&model, "whole");
        let mut seeds = vec![];
        let mut add = |kind, files: &BTreeMap<String, Vec<u8>>, damaged, damage, read| {
            seeds.push(Seed { kind, files: files.clone(), damaged, damage, read, parts: vec![] });
        };
        use Damage::{Bytes, Header, Pickle, Text};
        add("safetensors", &whole, "model.safetensors", &[Bytes, Header, Header], Read::Model);
        add("config", &whole, "config.json", &[Text], Read::Model);
        let with = |files: &BTreeMap<String, Vec<u8>>, without: &str, more: &[(&str, Vec<u8>)]| {
            let mut files = files.clone();
            files.remove(without);
            files.extend(more.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())));
            files
        };
        let params = br#"{"dim": 16, "n_layers": 2, "vocab_size": 256, "n_groups": 1, "tie_embeddings": false, "model_type": "mamba"}"#;
        add(
            "params",
            &with(&whole, "config.json", &[("params.json", params.to_vec())]),
            "params.json",
            &[Text],
            Read::Model,
        );
        let names: Vec<String> =
            model.tensors().keys().map(|name| format!("\"{name}\": \"s-1.safetensors\"")).collect();
        let index =
            format!("{{\"metadata\": {{\"total_size\": 7}}, \"weight_map\": {{{}}}}}", names.join(", "));
        let sharded = with(
            &whole,
            "model.safetensors",
            &[
                ("s-1.safetensors", whole["model.safetensors"].clone()),
                ("model.safetensors.index.json", index.into_bytes()),
            ],
        );
        add("index", &sharded, "model.safetensors.index.json", &[Text], Read::Model);
        for (name, scheme) in [("w4", "w4a8-g8"), ("nf4", "nf4-g8"), ("lossless", "lossless")] {
            let quantized = scheme.parse::<Scheme>().and_then(|scheme| model.quantized(&scheme));
            match quantized {
                Ok(quantized) => {
                    let files = saved(&quantized, name);
                    add(
                        "quantized",
                        &files,
                        "model.safetensors",
                        &[Bytes, Header, Header, Header],
                        Read::Model,
                    );
                    add("quantized", &files, "config.json", &[Text], Read::Model);
                }
                Err(error) => panic!("{scheme}: {error}"),
            }
        }
        let one = |name: &str, bytes: &[u8]| BTreeMap::from([(name.to_string(), bytes.to_vec())]);
        for tokenizer in TOKENIZERS {
            add(
                "tokenizer",
                &one("tokenizer.json", tokenizer.as_bytes()),
                "tokenizer.json",
                &[Text],
                Read::Tokenizer,
            );
        }
        for name in ["q4_1.gguf", "q5_1.gguf"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf-tiny").join(name);
            let file = std::fs::read(path).expect("a file of the tests");
            add("gguf", &one("x.gguf", &file), "x.gguf", &[Bytes], Read::Checkpoint);
        }
        add("settings", &one("study.yaml", STUDY.as_bytes()), "study.yaml", &[Text, Bytes], Read::Study);
        let training = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/models/bard/training-1-text.yaml");
        let training = std::fs::read(training).expect("the settings of a training");
        add("settings", &one("train.yaml", &training), "train.yaml", &[Text, Bytes], Read::Training);
        let records = RECORDS.join("\n") + "\n";
        add(
            "records",
            &one("metrics.jsonl", records.as_bytes()),
            "metrics.jsonl",
            &[Text, Bytes],
            Read::Records,
        );
        for protocol in [2, 4] {
            let mut file = pickled::File::new(protocol);
            let weights = file.weights(model.tensors(), &[]);
            let settings = file.subclass(&[("n_layers", pickled::int(2)), ("name", b"N".to_vec())]);
            let step = file.storage("LongStorage", 1, vec![7; 8]);
            let step = file.view(&step, 0, &[], &[]);
            let parts = file.entries(&file.dict(&[("model", weights), ("config", settings), ("step", step)]));
            let files = with(&whole, "model.safetensors", &[("x.pt", pickled::zip(&parts))]);
            let damage = &[Bytes, Pickle, Pickle, Pickle];
            seeds.push(Seed { kind: "pickle", files, damaged: "x.pt", damage, read: Read::Model, parts });
        }
        seeds.retain(|seed| seed.kind.contains(only));
        Self { seeds, folder }
    }

    /// Reads every whole file once: what stays allocated afterwards is not an input's.
    pub fn warm_up(&self) {
        for seed in &self.seeds {
            let input = Input { kind: seed.kind, files: seed.files.clone(), read: seed.read };
            let outcome = self.read(&input);
            assert!(outcome == "fine", "a whole {} ({}): {outcome}", seed.kind, seed.damaged);
        }
    }

    /// A damaged folder.
    pub fn input(&self, rng: &mut impl Rng) -> Input {
        let seed = &self.seeds[rng.random_range(0..self.seeds.len())];
        let mut files = seed.files.clone();
        let damage = seed.damage[rng.random_range(0..seed.damage.len())];
        if let Some(bytes) = files.get_mut(seed.damaged) {
            match damage {
                Damage::Bytes => mutate::bytes(bytes, rng),
                Damage::Text => mutate::text(bytes, rng),
                Damage::Header => {
                    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
                    let mut header = bytes[8..end].to_vec();
                    mutate::text(&mut header, rng);
                    *bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[end..]].concat();
                }
                Damage::Pickle => {
                    let mut parts = seed.parts.clone();
                    mutate::pickle(&mut parts[0].1, rng);
                    *bytes = pickled::zip(&parts);
                }
            }
        }
        Input { kind: seed.kind, files, read: seed.read }
    }

    /// Writes and reads an input: `fine`, `refused: …`, `internal: …` or `panicked: …`.
    pub fn read(&self, input: &Input) -> String {
        let folder = self.folder.path().join("input");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (name, bytes) in &input.files {
            std::fs::write(folder.join(name), bytes).expect("a file");
        }
        static PANIC: Mutex<String> = Mutex::new(String::new());
        std::panic::set_hook(Box::new(|panic| {
            *PANIC.lock().unwrap_or_else(|e| e.into_inner()) = panic.to_string().replace('\n', " ");
        }));
        match catch_unwind(AssertUnwindSafe(|| read(&folder, input.read))) {
            Ok(Ok(())) => "fine".to_string(),
            Ok(Err(error)) if error.kind() == Kind::Internal => format!("internal: {error}"),
            Ok(Err(error)) => format!("refused: {error}"),
            Err(_) => format!("panicked: {}", PANIC.lock().unwrap_or_else(|e| e.into_inner())),
        }
    }
}

fn read(folder: &Path, how: Read) -> lowbit::Result<()> {
    match how {
        Read::Model => {
            let model = Model::load(&folder.to_string_lossy())?;
            let tokens = model.tokens(&[1, 2, 3])?;
            model.forward(&tokens, None, Positions::Last).map(|_| ())
        }
        Read::Checkpoint => {
            let checkpoint = Checkpoint::open(&folder.join("x.gguf").to_string_lossy(), None)?;
            checkpoint.read(|_| Some(Wanted::Weights))?;
            match checkpoint.own_tokenizer().transpose()? {
                Some((tokenizer, _)) => tokenizer.encode("pass the key, aab").map(|_| ()),
                None => Ok(()),
            }
        }
        Read::Tokenizer => {
            let tokenizer = Tokenizer::load(folder.join("tokenizer.json"))?;
            let tokens = tokenizer.encode("pass the key, aab")?;
            tokenizer.decode(&tokens).map(|_| ())
        }
        Read::Study => lowbit::settings::read::<Study>(&folder.join("study.yaml")).map(|_| ()),
        Read::Training => lowbit::settings::read::<Training>(&folder.join("train.yaml")).map(|_| ()),
        Read::Records => Frame::load(folder).map(|frame| drop(frame.columns())),
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    entries.map(|path| (name(&path), std::fs::read(&path).expect("a file"))).collect()
}

const RECORDS: [&str; 3] = [
    r#"{"schema_version": 1, "run_id": "r", "timestamp": "2026-11-21T23:29:58.879Z", "measure": "perplexity", "measure_version": 1, "row": "corpus", "fingerprint": "91b9", "model": "bard", "model_revision": null, "model_hash": "0d3e", "family": "mamba2", "parameters": 3521984, "weight_bytes": 0, "dtype": "bf16", "device": "cpu", "scheme": "w4", "w_bits": 4, "group_size": 64, "seed": 7, "nll": 1.25, "curve": [0.5, 1.5, null]}"#,
    r#"{"schema_version": 1, "run_id": "r", "timestamp": "2026-11-21T23:29:59.879Z", "measure": "perplexity", "measure_version": 1, "row": "summary", "fingerprint": "91b9", "model": "bard", "scheme": "w4", "w_bits": 4, "ppl": 3.5, "n_tokens": 1000, "ok": true}"#,
    r#"{"schema_version": 1, "run_id": "r", "measure": "passkey", "row": "summary", "fingerprint": "91ba", "model": "bard", "scheme": "f32", "correct": 0.5, "context_length": 256}"#,
];
