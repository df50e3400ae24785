//! What a checkpoint tells of its config: in `config.json`, and by the names and shapes of its tensors.

use super::super::setting::{
    NO_HEAD, before_layers, dims, find, flag, known, layers, number, same_layers, size,
};
use super::super::{Family, Shapes, Stated};
use super::config::Config;
use super::rope::Rope;
use crate::error::{Error, Result};
use serde_json::Value;

/// What stands before the body: `model.` or nothing, with whatever a program put in front.
pub(super) fn before_body(name: &str) -> Option<&str> {
    before_layers(name, ".post_attention_layernorm.weight")
}

/// The Hugging Face name of a tensor, from what follows the place of the body in a checkpoint's.
pub(super) fn name_in_body(name: &str) -> Option<String> {
    let of_body = ["layers.", "embed_tokens.", "norm."].iter().any(|start| name.starts_with(start));
    // Old files carry the frequencies, which are computed.
    let is_computed = name.ends_with("rotary_emb.inv_freq");
    (of_body && !is_computed).then(|| format!("model.{name}"))
}

const HEAD_DIM: &[&str] = &["/head_dim"];
const KEY_HEADS: &[&str] = &["/num_key_value_heads"];
const EPSILON: &[&str] = &["/rms_norm_eps"];
const LONGEST: &[&str] = &["/max_position_embeddings"];
const TIED: &[&str] = &["/tie_word_embeddings"];

/// Settings that change the architecture, with the values, in JSON, of the one that is here.
const KNOWN: [(&str, &[&str]); 6] = [
    ("/hidden_act", &["\"silu\"", "\"swish\""]),
    ("/rope_interleaved", &["false"]),
    ("/sliding_window", &[]),
    ("/num_local_experts", &["0", "1"]),
    ("/partial_rotary_factor", &["1", "1.0"]),
    ("/rope_parameters/partial_rotary_factor", &["1", "1.0"]),
];

impl Config {
    /// Whether tensors of these names are a Llama.
    pub(super) fn recognizes(shapes: &Shapes) -> bool {
        ["post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj"]
            .iter()
            .all(|name| shapes.contains_key(&format!("model.layers.0.{name}.weight")))
    }

    /// Whether head and embedding are said to be one matrix.
    pub(super) fn states_tied(json: &Value) -> Option<bool> {
        find(json, TIED)?.as_bool()
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`].
    pub(super) fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        let Some(Stated { file, json }) = stated else {
            return Err(Error::input(
                "the heads of a llama are in no tensor's shape, and there is no config.json",
            )
            .hint("put the model's config.json beside its weights"));
        };
        let mut config = Self::infer(shapes)?;
        let (layers, mut assumed) = (config.num_hidden_layers, vec![]);
        config.read(json, &mut assumed).map_err(|error| error.at(file))?;
        same_layers(config.num_hidden_layers, layers, file)?;
        if find(json, TIED).is_none() {
            config.tie_word_embeddings = !shapes.contains_key("lm_head.weight");
            if config.tie_word_embeddings {
                assumed.push(NO_HEAD.to_string());
            }
        }
        config.check().map_err(|error| error.at(file))?;
        Ok((config, assumed))
    }

    /// Everything that shapes tell.
    fn infer(shapes: &Shapes) -> Result<Self> {
        let dims = |name: &str| dims(shapes, name, 2, "Llama");
        let embedding = dims("model.embed_tokens.weight")?;
        let has = |name: &str| shapes.contains_key(&format!("model.layers.0.{name}.bias"));
        Ok(Self {
            hidden_size: embedding[1],
            vocab_size: embedding[0],
            intermediate_size: dims("model.layers.0.mlp.gate_proj.weight")?[0],
            num_hidden_layers: layers(shapes.keys(), "model.layers.")?,
            attention_bias: has("self_attn.q_proj"),
            attention_out_bias: has("self_attn.o_proj"),
            mlp_bias: has("mlp.gate_proj"),
            ..Self::default()
        })
    }

    /// Takes what a `config.json` states, and what transformers takes where it does not.
    fn read(&mut self, json: &Value, assumed: &mut Vec<String>) -> Result<()> {
        known(json, &KNOWN)?;
        size(json, &["/hidden_size"], &mut self.hidden_size)?;
        size(json, &["/intermediate_size"], &mut self.intermediate_size)?;
        size(json, &["/num_hidden_layers"], &mut self.num_hidden_layers)?;
        size(json, &["/vocab_size"], &mut self.vocab_size)?;
        let mut heads = 0;
        size(json, &["/num_attention_heads"], &mut heads)?;
        if heads == 0 {
            return Err(Error::input("num_attention_heads is not stated, and no tensor's shape tells it"));
        }
        (self.num_attention_heads, self.num_key_value_heads) = (heads, heads);
        size(json, KEY_HEADS, &mut self.num_key_value_heads)?;
        self.head_dim = (self.hidden_size / heads).max(1);
        size(json, HEAD_DIM, &mut self.head_dim)?;
        if find(json, LONGEST).is_none() {
            assumed.push("max_position_embeddings = 2048".to_string());
        }
        self.max_position_embeddings = 2048;
        size(json, LONGEST, &mut self.max_position_embeddings)?;
        if find(json, EPSILON).is_none() {
            assumed.push("rms_norm_eps = 1e-6".to_string());
        }
        self.rms_norm_eps = 1e-6;
        number(json, EPSILON, &mut self.rms_norm_eps)?;
        let (rope, told) = Rope::stated(json, self.max_position_embeddings)?;
        self.rope = rope;
        assumed.extend(told);
        let mut bias = self.attention_bias;
        flag(json, &["/attention_bias"], &mut bias)?;
        if find(json, &["/attention_bias"]).is_some() {
            (self.attention_bias, self.attention_out_bias) = (bias, bias);
        }
        flag(json, &["/attention_out_bias"], &mut self.attention_out_bias)?;
        flag(json, &["/mlp_bias"], &mut self.mlp_bias)?;
        flag(json, TIED, &mut self.tie_word_embeddings)
    }
}
