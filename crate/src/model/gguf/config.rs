//! The settings of a network of architecture `llama`, in the spelling of a Hugging Face `config.json`.

use super::super::stored::Stored;
use super::metadata::{Metadata, required};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The sizes by which tensors are read.
pub(super) struct Network {
    pub layers: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
}

/// The one architecture that is read.
const LLAMA: &str = "llama";

/// Its settings that are read, held to one value, or say nothing of what is computed.
const KNOWN: [&str; 22] = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

/// The version of the blocks' layouts that is read.
const QUANTIZATION: usize = 2;

/// Refuses what is no whole model of the known architecture.
pub(super) fn check_kind(metadata: &Metadata) -> Result<()> {
    let kind = metadata.text("general.type")?.unwrap_or("model");
    if kind != "model" {
        return Err(Error::input(format!("this file holds no model, but what it calls {kind:?}"))
            .hint("give the model's own file"));
    }
    let architecture = required(metadata.text("general.architecture")?, "general.architecture")?;
    if architecture != LLAMA {
        return Err(Error::input(format!("GGUF files of architecture {architecture:?} are not read"))
            .hint("known is llama"));
    }
    match metadata.count("split.count")? {
        Some(parts) if parts > 1 => Err(Error::input(format!("this is one part of {parts} of a model"))
            .hint("join them with llama.cpp's llama-gguf-split --merge")),
        _ => Ok(()),
    }
}

/// Refuses blocks of other layouts than those of today.
pub(super) fn check_version(metadata: &Metadata, coded: bool) -> Result<()> {
    match metadata.count("general.quantization_version")? {
        Some(version) if coded && version != QUANTIZATION => {
            let what =
                format!("its blocks have layouts of version {version}, and those of {QUANTIZATION} are read");
            Err(Error::input(what).at("general.quantization_version").hint("quantize the model again"))
        }
        _ => Ok(()),
    }
}

/// The whole name of a setting of the architecture.
fn key(name: &str) -> String {
    format!("{LLAMA}.{name}")
}

impl Network {
    /// Reads the sizes.
    ///
    /// # Errors
    /// A setting is missing, contradicts another, or is of a network that is not known here.
    pub fn read(metadata: &Metadata) -> Result<Self> {
        refuse(metadata)?;
        let count = |name: &str| metadata.count(&key(name));
        let must = |name: &str| required(count(name)?, &key(name));
        let heads = must("attention.head_count")?;
        let key_heads = count("attention.head_count_kv")?.unwrap_or(heads);
        let rotated = count("rope.dimension_count")?;
        let hidden = must("embedding_length")?;
        if heads == 0 || key_heads == 0 {
            let name = if heads == 0 { "attention.head_count" } else { "attention.head_count_kv" };
            return Err(Error::input("a model has at least one head").at(key(name)));
        }
        let head_dim = count("attention.key_length")?.or(rotated).unwrap_or(hidden / heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(Error::input(format!("heads of {head_dim} have no pairs to rotate"))
                .at(key("attention.key_length")));
        }
        for (name, told) in
            [("rope.dimension_count", rotated), ("attention.value_length", count("attention.value_length")?)]
        {
            if told.is_some_and(|told| told != head_dim) {
                let what =
                    format!("expected {head_dim}, as wide as a head's keys, found {}", told.unwrap_or(0));
                return Err(Error::input(what).at(key(name)).hint("other widths are not known here"));
            }
        }
        Ok(Self { layers: must("block_count")?, heads, key_heads, head_dim })
    }

    /// The `config.json` of a network with these tensors.
    ///
    /// # Errors
    /// As [`read`](Self::read); or some layers have biases that others lack.
    pub fn hugging_face(
        &self,
        metadata: &Metadata,
        tensors: &BTreeMap<String, Stored>,
        rope_freqs: Option<Vec<f32>>,
    ) -> Result<Value> {
        let count = |name: &str| required(metadata.count(&key(name))?, &key(name));
        let number = |name: &str| metadata.number(&key(name));
        let rows = tensors.get("model.embed_tokens.weight").and_then(|own| own.shape.first().copied());
        let vocabulary = metadata.count(&key("vocab_size"))?.or(rows);
        let eps = "attention.layer_norm_rms_epsilon";
        let mut json = Map::from_iter(
            [
                ("architectures", json!(["LlamaForCausalLM"])),
                ("model_type", json!(LLAMA)),
                ("hidden_size", count("embedding_length")?.into()),
                ("intermediate_size", count("feed_forward_length")?.into()),
                ("num_hidden_layers", self.layers.into()),
                ("num_attention_heads", self.heads.into()),
                ("num_key_value_heads", self.key_heads.into()),
                ("head_dim", self.head_dim.into()),
                ("hidden_act", "silu".into()),
                ("rms_norm_eps", required(number(eps)?, &key(eps))?.into()),
                ("rope_theta", number("rope.freq_base")?.unwrap_or(10_000.0).into()),
                ("max_position_embeddings", count("context_length")?.into()),
                ("vocab_size", required(vocabulary, &key("vocab_size"))?.into()),
                ("tie_word_embeddings", (!tensors.contains_key("lm_head.weight")).into()),
                ("mlp_bias", false.into()),
            ]
            .map(|(name, value)| (name.to_string(), value)),
        );
        let mut put = |name: &str, value: Value| drop(json.insert(name.to_string(), value));
        if let Some(factor) = factor(metadata)? {
            put("rope_scaling", json!({"rope_type": "linear", "factor": factor}));
        }
        if let Some(divisors) = rope_freqs {
            put("rope_freqs", divisors.into_iter().map(f64::from).collect());
        }
        let biased = self.biased(tensors)?;
        put("attention_bias", (biased != Biased::None).into());
        if biased == Biased::Inputs {
            put("attention_out_bias", false.into());
        }
        for name in ["bos_token_id", "eos_token_id"] {
            if let Some(id) = metadata.count(&format!("tokenizer.ggml.{name}"))? {
                put(name, id.into());
            }
        }
        Ok(Value::Object(json))
    }

    /// Which projections of the attention have biases, the same ones in every layer.
    fn biased(&self, tensors: &BTreeMap<String, Stored>) -> Result<Biased> {
        let name = |layer: usize, part: &str| format!("model.layers.{layer}.self_attn.{part}_proj.bias");
        let has = |layer: usize| ["q", "k", "v", "o"].map(|part| tensors.contains_key(&name(layer, part)));
        // Before anything is done for each layer: a damaged number of them could be any.
        let norm = |layer: &usize| format!("model.layers.{layer}.input_layernorm.weight");
        if let Some(missing) = (0..self.layers).find(|layer| !tensors.contains_key(&norm(layer))) {
            let what =
                format!("the model is said to have {} layers, and this tensor is missing", self.layers);
            return Err(Error::input(what)
                .at(format!("blk.{missing}.attn_norm.weight"))
                .hint("copy or download the file again"));
        }
        let first = has(0);
        let biased = match first {
            [false, false, false, false] => Some(Biased::None),
            [true, true, true, false] => Some(Biased::Inputs),
            [true, true, true, true] => Some(Biased::All),
            _ => None,
        };
        let alike = (1..self.layers).all(|layer| has(layer) == first);
        biased.filter(|_| alike).ok_or_else(|| {
            Error::input("biases must be those of q, k and v, or also of the output, in every layer alike")
                .at("blk.N.attn_q.bias")
        })
    }
}

/// Projections of the attention that have biases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Biased {
    None,
    /// q, k and v.
    Inputs,
    All,
}

/// Refuses settings by which a network computes something else than is known here.
fn refuse(metadata: &Metadata) -> Result<()> {
    let prefix = key("");
    if let Some(name) = metadata.names(&prefix).find(|name| !KNOWN.contains(name)) {
        return Err(Error::input("this setting is not known here, and what it changes would be missing")
            .at(key(name)));
    }
    let zero = |name: &str, what: &str| match metadata.number(&key(name))? {
        Some(x) if x != 0.0 => Err(Error::input(format!("{what} (it is {x})")).at(key(name))),
        _ => Ok(()),
    };
    zero("attention.sliding_window", "attention in a sliding window is not known here")?;
    zero("expert_count", "a mixture of experts is not known here")?;
    if metadata.flag(&key("attention.causal"))? == Some(false) {
        return Err(Error::input("attention to later tokens is not known here").at(key("attention.causal")));
    }
    // Both are the layout that is undone here.
    match metadata.text(&key("tensor_data_layout"))? {
        None | Some("Meta AI original pth" | "reference") => Ok(()),
        Some(layout) => Err(Error::input(format!("the layout {layout:?} of tensors is not known here"))
            .at(key("tensor_data_layout"))),
    }
}

/// What positions are divided by, if they are.
fn factor(metadata: &Metadata) -> Result<Option<f64>> {
    let place = key("rope.scaling.type");
    // llama.cpp takes a factor for a linear one where nothing says its type, and leaves it out where there is none.
    match metadata.text(&place)? {
        None | Some("linear") => {}
        Some("none") => return Ok(None),
        Some(other) => {
            return Err(Error::input(format!("positions scaled by {other:?} are not known here"))
                .at(place)
                .hint("known are none and linear"));
        }
    }
    let told = |name: &str| metadata.number(&key(name));
    let factor = told("rope.scaling.factor")?.or(told("rope.scale_linear")?).filter(|factor| *factor != 0.0);
    match factor {
        Some(factor) if factor < 0.0 => {
            Err(Error::input(format!("positions cannot be divided by {factor}"))
                .at(key("rope.scaling.factor")))
        }
        factor => Ok(factor),
    }
}
