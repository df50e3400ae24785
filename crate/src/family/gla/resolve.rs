//! What a checkpoint tells of its config: in `config.json`, and by the names and shapes of its tensors.

use super::super::setting::{
    NO_HEAD, before_layers, dims, find, flag, known, layers, name, number, same_layers, size,
};
use super::super::{Family, Shapes, Stated};
use super::config::{Config, Hybrid, expanded};
use crate::error::{Error, Result};
use serde_json::Value;

/// What stands before the body: `model.` or nothing, with whatever a program put in front.
pub(super) fn before_body(name: &str) -> Option<&str> {
    before_layers(name, ".mlp_norm.weight")
}

/// The name of a tensor in flash-linear-attention, from what follows the place of the body in a checkpoint's.
pub(super) fn name_in_body(name: &str) -> Option<String> {
    let of_body = ["layers.", "embeddings.", "norm."].iter().any(|start| name.starts_with(start));
    // Frequencies are computed.
    let is_computed = name.ends_with("rotary.inv_freq");
    (of_body && !is_computed).then(|| format!("model.{name}"))
}

const EPSILON: &[&str] = &["/norm_eps"];
const TIED: &[&str] = &["/tie_word_embeddings"];

/// Settings that change the architecture, with the values, in JSON, of the one that is here.
const KNOWN: [(&str, &[&str]); 12] = [
    ("/hidden_act", &["\"swish\"", "\"silu\""]),
    ("/use_short_conv", &["false"]),
    ("/feature_map", &[]),
    ("/attnres_block_size", &[]),
    ("/elementwise_affine", &["true"]),
    ("/use_gk", &["true"]),
    ("/use_gv", &["false"]),
    ("/gate_logit_normalizer", &["16", "16.0"]),
    ("/norm_first", &["true"]),
    ("/attn/window_size", &[]),
    ("/attn/qk_norm", &["false"]),
    ("/attn/rope_scaling", &[]),
];

/// What `attn` may say.
const HYBRID: [&str; 8] = [
    "layers",
    "num_heads",
    "num_kv_heads",
    "qkv_bias",
    "qk_norm",
    "rope_theta",
    "rope_scaling",
    "window_size",
];

impl Config {
    /// Whether tensors of these names are a gated linear attention.
    pub(super) fn recognizes(shapes: &Shapes) -> bool {
        let has = |name: &str| shapes.contains_key(&format!("model.layers.0.{name}.weight"));
        has("attn_norm") && has("mlp_norm") && shapes.keys().any(|name| name.ends_with(GATE))
    }

    /// Whether head and embedding are said to be one matrix.
    pub(super) fn states_tied(json: &Value) -> Option<bool> {
        find(json, TIED)?.as_bool()
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`].
    pub(super) fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        let mut config = Self::infer(shapes)?;
        let (layers, mut assumed) = (config.num_hidden_layers, vec![]);
        let json = stated.map(|stated| &stated.json);
        if let Some(Stated { file, json }) = stated {
            config.read(json).map_err(|error| error.at(file))?;
            same_layers(config.num_hidden_layers, layers, file)?;
        } else {
            assumed.push("no clamp_min".to_string());
        }
        let states = |names: &[&str]| json.is_some_and(|json| find(json, names).is_some());
        if !states(EPSILON) {
            assumed.push("norm_eps = 1e-6".to_string());
        }
        if !states(TIED) && !shapes.contains_key("lm_head.weight") {
            assumed.push(NO_HEAD.to_string());
        }
        config.check().map_err(|error| match stated {
            Some(stated) => error.at(&stated.file),
            None => error,
        })?;
        Ok((config, assumed))
    }

    /// Everything that shapes tell: of attention only that it is there.
    fn infer(shapes: &Shapes) -> Result<Self> {
        let dims = |name: &str, rank: usize| dims(shapes, name, rank, "gated linear attention");
        let gate = shapes.keys().find(|name| name.ends_with(GATE));
        let first = gate.and_then(|name| name.strip_suffix(GATE)).unwrap_or("model.layers.0");
        let of = |name: &str| dims(&format!("{first}.{name}.weight"), 2);
        let embedding = dims("model.embeddings.weight", 2)?;
        let fused = format!("{first}.attn.g_norm_swish_gate.weight");
        let fuse_norm = shapes.contains_key(&fused);
        let norm = if fuse_norm { fused } else { format!("{first}.attn.g_norm.weight") };
        let (value, values, hidden) = (dims(&norm, 1)?[0], of("attn.o_proj")?[1], embedding[1]);
        if value == 0 || hidden == 0 || !values.is_multiple_of(value) {
            return Err(Error::input(format!(
                "a norm of {value} values (attn.g_norm) and {values} channels (attn.o_proj) do not fit together"
            )));
        }
        let (heads, keys) = (values / value, of("attn.q_proj")?[0]);
        // Channels are the whole part of a product: it must not fall below.
        let share = |channels: usize| match channels as f64 / hidden as f64 {
            by if expanded(hidden, by) < channels => by.next_up(),
            by => by,
        };
        Ok(Self {
            hidden_size: hidden,
            expand_k: share(keys),
            expand_v: share(values),
            intermediate_size: of("mlp.gate_proj")?[0],
            num_hidden_layers: layers(shapes.keys(), "model.layers.")?,
            num_heads: heads,
            num_kv_heads: of("attn.v_proj")?[0] / value,
            vocab_size: embedding[0],
            use_output_gate: shapes.contains_key(&format!("{first}.attn.g_proj.weight")),
            fuse_norm,
            gate_low_rank_dim: of("attn.gk_proj.0")?[0],
            tie_word_embeddings: !shapes.contains_key("lm_head.weight"),
            ..Self::default()
        })
    }

    /// Takes what a `config.json` states. How the norm of the heads is named, the tensors tell: `fuse_norm` computes the same.
    fn read(&mut self, json: &Value) -> Result<()> {
        known(json, &KNOWN)?;
        size(json, &["/hidden_size"], &mut self.hidden_size)?;
        number(json, &["/expand_k"], &mut self.expand_k)?;
        number(json, &["/expand_v"], &mut self.expand_v)?;
        size(json, &["/num_hidden_layers"], &mut self.num_hidden_layers)?;
        size(json, &["/num_heads"], &mut self.num_heads)?;
        size(json, &["/num_kv_heads"], &mut self.num_kv_heads)?;
        size(json, &["/vocab_size"], &mut self.vocab_size)?;
        size(json, &["/gate_low_rank_dim"], &mut self.gate_low_rank_dim)?;
        size(json, &["/max_position_embeddings"], &mut self.max_position_embeddings)?;
        // Where its key is there and null, the width follows from a ratio.
        match json.get("intermediate_size") {
            Some(Value::Null) => {
                let mut ratio = 4.0;
                number(json, &["/hidden_ratio"], &mut ratio)?;
                let inner = (self.hidden_size as f64 * ratio * 2.0 / 3.0) as usize;
                self.intermediate_size = inner.next_multiple_of(256);
            }
            _ => size(json, &["/intermediate_size"], &mut self.intermediate_size)?,
        }
        number(json, EPSILON, &mut self.norm_eps)?;
        if find(json, &["/clamp_min"]).is_some() {
            let mut least = 0.0;
            number(json, &["/clamp_min"], &mut least)?;
            self.clamp_min = Some(least);
        }
        flag(json, &["/use_output_gate"], &mut self.use_output_gate)?;
        flag(json, TIED, &mut self.tie_word_embeddings)?;
        self.attn = json.get("attn").filter(|attn| !attn.is_null()).map(hybrid).transpose()?;
        Ok(())
    }
}

/// How the name ends of a tensor that every mixer has.
const GATE: &str = ".attn.gk_proj.0.weight";

/// What `attn` states, with the values that flash-linear-attention takes where it does not.
fn hybrid(attn: &Value) -> Result<Hybrid> {
    let wrong = |what: &str| Error::input(format!("attn must {what}, found {attn}"));
    let settings = attn.as_object().ok_or_else(|| wrong("be an object of settings"))?;
    if let Some(other) = settings.keys().find(|key| !HYBRID.contains(&key.as_str())) {
        let other = name(&format!("/attn/{other}"));
        return Err(Error::input(format!(
            "{other} calls for an architecture that this version does not have"
        )));
    }
    let number_of = |layer: &Value| layer.as_u64().map(|layer| layer as usize);
    let layers = settings.get("layers").and_then(Value::as_array);
    let layers = layers.and_then(|layers| layers.iter().map(number_of).collect::<Option<Vec<usize>>>());
    let mut hybrid = Hybrid {
        layers: layers.ok_or_else(|| wrong("list the numbers of its layers"))?,
        num_heads: 0,
        num_kv_heads: 0,
        qkv_bias: false,
        rope_theta: 10_000.0,
    };
    size(attn, &["/num_heads"], &mut hybrid.num_heads)?;
    if hybrid.num_heads == 0 {
        return Err(wrong("state num_heads"));
    }
    hybrid.num_kv_heads = hybrid.num_heads;
    size(attn, &["/num_kv_heads"], &mut hybrid.num_kv_heads)?;
    flag(attn, &["/qkv_bias"], &mut hybrid.qkv_bias)?;
    number(attn, &["/rope_theta"], &mut hybrid.rope_theta)?;
    Ok(hybrid)
}
