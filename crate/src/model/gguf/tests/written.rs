//! Small files, made as a test needs them.

use std::path::PathBuf;
use tempfile::TempDir;

/// A tensor's name, sizes with the fastest first, type, and offset.
pub(super) type Tensor = (String, Vec<u64>, u32, u64);

/// A file before it is written.
#[derive(Clone)]
pub(super) struct File {
    pub version: u32,
    /// Keys with their values, types included.
    pub settings: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub data: Vec<u8>,
}

pub(super) fn text(text: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &bytes(text)].concat()
}

pub(super) fn count(n: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), n.to_le_bytes()].concat()
}

pub(super) fn number(x: f32) -> Vec<u8> {
    [6u32.to_le_bytes(), x.to_le_bytes()].concat()
}

pub(super) fn texts(texts: &[&str]) -> Vec<u8> {
    let all: Vec<u8> = texts.iter().flat_map(|text| bytes(text)).collect();
    [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &(texts.len() as u64).to_le_bytes(), &all].concat()
}

pub(super) fn numbers(numbers: &[f32]) -> Vec<u8> {
    let all: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    [&9u32.to_le_bytes()[..], &6u32.to_le_bytes(), &(numbers.len() as u64).to_le_bytes(), &all].concat()
}

pub(super) fn integers(numbers: &[i32]) -> Vec<u8> {
    let all: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    [&9u32.to_le_bytes()[..], &5u32.to_le_bytes(), &(numbers.len() as u64).to_le_bytes(), &all].concat()
}

fn bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl File {
    /// A model of one layer, 8 wide, with two query heads and one key head of 4, and four tokens.
    pub fn whole() -> Self {
        let mut file = Self { version: 3, settings: vec![], tensors: vec![], data: vec![] };
        file.set("general.architecture", text("llama"));
        for (key, n) in [
            ("block_count", 1),
            ("context_length", 32),
            ("embedding_length", 8),
            ("feed_forward_length", 8),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            file.set(&format!("llama.{key}"), count(n));
        }
        file.set("llama.attention.layer_norm_rms_epsilon", number(1e-5));
        file.set("tokenizer.ggml.model", text("gpt2"));
        file.set("tokenizer.ggml.pre", text("gpt-2"));
        file.set("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "c"]));
        file.set("tokenizer.ggml.merges", texts(&["a b"]));
        file.add("token_embd.weight", &[8, 4]);
        file.add("output_norm.weight", &[8]);
        for (name, sizes) in [
            ("attn_norm", &[8][..]),
            ("attn_q", &[8, 8]),
            ("attn_k", &[8, 4]),
            ("attn_v", &[8, 4]),
            ("attn_output", &[8, 8]),
            ("ffn_norm", &[8]),
            ("ffn_gate", &[8, 8]),
            ("ffn_up", &[8, 8]),
            ("ffn_down", &[8, 8]),
        ] {
            file.add(&format!("blk.0.{name}.weight"), sizes);
        }
        file
    }

    /// Puts a setting in the place of another of its key, or behind all.
    pub fn set(&mut self, key: &str, value: Vec<u8>) {
        match self.settings.iter_mut().find(|(own, _)| own == key) {
            Some((_, own)) => *own = value,
            None => self.settings.push((key.to_string(), value)),
        }
    }

    /// Adds a tensor of f32, each element another.
    pub fn add(&mut self, name: &str, sizes: &[u64]) {
        let offset = self.data.len() as u64;
        let elements = sizes.iter().product::<u64>();
        self.data.extend((0..elements).flat_map(|i| ((offset + i) as f32 / 64.0).to_le_bytes()));
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors.push((name.to_string(), sizes.to_vec(), 0, offset));
    }

    /// The tensor of this name, to be changed.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|(own, ..)| own == name).unwrap()
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.settings.len() as u64).to_le_bytes());
        for (key, value) in &self.settings {
            out.extend([bytes(key), value.clone()].concat());
        }
        for (name, sizes, code, offset) in &self.tensors {
            out.extend(bytes(name));
            out.extend((sizes.len() as u32).to_le_bytes());
            sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(code.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    /// Writes the file as `x.gguf` of a folder.
    pub fn save(&self, folder: &TempDir) -> PathBuf {
        let path = folder.path().join("x.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}
