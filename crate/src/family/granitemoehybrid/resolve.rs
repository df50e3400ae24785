//! What a checkpoint tells of its config: in `config.json`, and by the names and shapes of its tensors.

use super::super::hybrid::{self, Heads, Mamba, Reading, SHORT, same_list};
use super::super::llama::Rope;
use super::super::setting::{before_layers, dims, find, flag, known, layers, size};
use super::super::{Shapes, Stated};
use super::config::{Config, Layer};
use crate::error::{Error, Result};
use serde_json::json;

/// What stands before the body: `model.` or nothing, with whatever a program put in front.
pub(super) fn before_body(name: &str) -> Option<&str> {
    before_layers(name, ".shared_mlp.input_linear.weight")
}

/// The Hugging Face name of a tensor, from what follows the place of the body in a checkpoint's.
pub(super) fn name_in_body(name: &str) -> Option<String> {
    let of_body = ["layers.", "embed_tokens.", "norm."].iter().any(|start| name.starts_with(start));
    (of_body && !name.ends_with("rotary_emb.inv_freq")).then(|| format!("model.{name}"))
}

/// Settings that change the architecture, with the values, in JSON, of the one that is here.
const KNOWN: [(&str, &[&str]); 7] = [
    ("/hidden_act", &["\"silu\"", "\"swish\""]),
    ("/position_embedding_type", &["\"rope\"", "\"nope\""]),
    ("/normalization_function", &["\"rmsnorm\""]),
    ("/sliding_window", &[]),
    ("/partial_rotary_factor", &["1", "1.0"]),
    ("/rope_parameters/partial_rotary_factor", &["1", "1.0"]),
    ("/rope_interleaved", &["false"]),
];

impl Config {
    /// Whether tensors of these names are a Granite hybrid.
    pub(super) fn recognizes(shapes: &Shapes) -> bool {
        let has = |name: &str| shapes.contains_key(&format!("model.layers.0.{name}"));
        has("shared_mlp.input_linear.weight") && (has("mamba.A_log") || has("self_attn.q_proj.weight"))
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`].
    pub(super) fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        hybrid::resolved("granitemoehybrid", stated, shapes, Self::infer, Self::read, |config| {
            &mut config.tie_word_embeddings
        })
    }

    /// Everything that shapes tell.
    fn infer(shapes: &Shapes) -> Result<Self> {
        let family = "granitemoehybrid";
        let dims = |name: &str| dims(shapes, name, 2, family);
        let embedding = dims("model.embed_tokens.weight")?;
        let is = |i: usize| match shapes.contains_key(&format!("model.layers.{i}.mamba.A_log")) {
            true => Layer::Mamba,
            false => Layer::Attention,
        };
        let layer_types: Vec<Layer> = (0..layers(shapes.keys(), "model.layers.")?).map(is).collect();
        let expert = |name: &str| format!("model.layers.0.block_sparse_moe.{name}.weight");
        let base = Self { layer_types, ..Self::default() };
        let (num_local_experts, intermediate_size) = match shapes.contains_key(&expert("router.layer")) {
            true => (dims(&expert("router.layer"))?[0], dims(&expert("experts.0.output_linear"))?[1]),
            false => (0, base.intermediate_size),
        };
        Ok(Self {
            hidden_size: embedding[1],
            vocab_size: embedding[0],
            mamba: Mamba::infer(shapes, base.first(Layer::Mamba).as_deref(), family)?,
            num_local_experts,
            num_experts_per_tok: 0,
            intermediate_size,
            shared_intermediate_size: dims("model.layers.0.shared_mlp.output_linear.weight")?[1],
            ..base
        })
    }

    /// The path of the first mixer of a kind.
    fn first(&self, kind: Layer) -> Option<String> {
        let at = self.layer_types.iter().position(|layer| *layer == kind)?;
        Some(format!("model.layers.{at}.{}", kind.place()))
    }

    /// Takes what a `config.json` states, and what transformers takes where it does not.
    fn read(&mut self, from: &mut Reading<'_>, shapes: &Shapes) -> Result<()> {
        let json = from.json;
        known(json, &KNOWN)?;
        if let Some(found) = find(json, &["/layer_types"]) {
            let stated: Vec<Layer> = serde_json::from_value(found.clone())
                .map_err(|error| Error::input(format!("layer_types: {error}")))?;
            same_list(json, "/layer_types", Some(json!(stated)), &json!(self.layer_types))?;
        }
        for (key, to) in [
            ("/hidden_size", &mut self.hidden_size),
            ("/vocab_size", &mut self.vocab_size),
            ("/shared_intermediate_size", &mut self.shared_intermediate_size),
        ] {
            size(json, &[key], to)?;
        }
        let experts = find(json, &["/num_local_experts"]).filter(|value| *value != self.num_local_experts);
        if let Some(stated) = experts {
            let what =
                format!("num_local_experts is {stated}, and the checkpoint has {}", self.num_local_experts);
            return Err(Error::input(what).hint("are config and checkpoint of the same model?"));
        }
        if self.num_local_experts > 0 {
            size(json, &["/intermediate_size"], &mut self.intermediate_size)?;
            size(json, &["/num_experts_per_tok"], &mut self.num_experts_per_tok)?;
            if self.num_experts_per_tok == 0 {
                return Err(Error::input(
                    "num_experts_per_tok is not stated, and no tensor's shape tells it",
                ));
            }
        }
        self.mamba.read(from, SHORT)?;
        if find(json, SHORT.bias).is_some() {
            self.mamba.mamba_out_bias = self.mamba.mamba_proj_bias;
        }
        let first = self.first(Layer::Attention);
        let mut heads = Heads::default();
        heads.read(from, shapes, first.as_deref(), &["/head_dim"])?;
        self.heads = heads;
        from.number_or("/rms_norm_eps", 1e-6, &mut self.rms_norm_eps)?;
        let is_rope = find(json, &["/position_embedding_type"]).is_some_and(|value| value == "rope");
        self.rope = None;
        if is_rope {
            from.size_or("/max_position_embeddings", 2048, &mut self.max_position_embeddings)?;
            let (rope, told) = Rope::stated(json, self.max_position_embeddings)?;
            self.rope = Some(rope);
            from.assumed.extend(told);
        } else {
            size(json, &["/max_position_embeddings"], &mut self.max_position_embeddings)?;
        }
        for (key, to) in [
            ("/embedding_multiplier", &mut self.embedding_multiplier),
            ("/residual_multiplier", &mut self.residual_multiplier),
            ("/attention_multiplier", &mut self.attention_multiplier),
            ("/logits_scaling", &mut self.logits_scaling),
        ] {
            from.factor(key, to)?;
        }
        flag(json, hybrid::TIED, &mut self.tie_word_embeddings)
    }
}
