//! What a checkpoint tells of its config: in `config.json`, and by the names and shapes of its tensors.

use super::super::hybrid::{self, Heads, Mamba, Reading, SHORT};
use super::super::llama::Rope;
use super::super::setting::{dims, flag, known, layers, size};
use super::super::{Shapes, Stated};
use super::config::Config;
use crate::error::{Error, Result};

/// Settings that change the architecture, with the values, in JSON, of the one that is here.
const KNOWN: [(&str, &[&str]); 6] = [
    ("/hidden_act", &["\"silu\"", "\"swish\""]),
    ("/sliding_window", &[]),
    ("/partial_rotary_factor", &["1", "1.0"]),
    ("/rope_parameters/partial_rotary_factor", &["1", "1.0"]),
    ("/rope_interleaved", &["false"]),
    ("/mamba_use_mlp", &["true"]),
];

impl Config {
    /// Whether tensors of these names are a Falcon-H1: a layer has both mixers.
    pub(super) fn recognizes(shapes: &Shapes) -> bool {
        hybrid::is_gated(shapes) && hybrid::has_both(shapes)
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`].
    pub(super) fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        hybrid::resolved("falcon_h1", stated, shapes, Self::infer, Self::read, |config| {
            &mut config.tie_word_embeddings
        })
    }

    /// Everything that shapes tell.
    fn infer(shapes: &Shapes) -> Result<Self> {
        let embedding = dims(shapes, "model.embed_tokens.weight", 2, "falcon_h1")?;
        let down = "model.layers.0.feed_forward.down_proj";
        Ok(Self {
            hidden_size: embedding[1],
            vocab_size: embedding[0],
            num_hidden_layers: layers(shapes.keys(), "model.layers.")?,
            mamba: Mamba::infer(shapes, Some("model.layers.0.mamba"), "falcon_h1")?,
            mamba_rms_norm: shapes.contains_key("model.layers.0.mamba.norm.weight"),
            intermediate_size: dims(shapes, &format!("{down}.weight"), 2, "falcon_h1")?[1],
            mlp_bias: shapes.contains_key(&format!("{down}.bias")),
            ..Self::default()
        })
    }

    /// Takes what a `config.json` states, and what transformers takes where it does not.
    fn read(&mut self, from: &mut Reading<'_>, shapes: &Shapes) -> Result<()> {
        let json = from.json;
        known(json, &KNOWN)?;
        for (key, to) in [
            ("/hidden_size", &mut self.hidden_size),
            ("/vocab_size", &mut self.vocab_size),
            ("/intermediate_size", &mut self.intermediate_size),
            ("/num_hidden_layers", &mut self.num_hidden_layers),
        ] {
            size(json, &[key], to)?;
        }
        self.mamba.read(from, SHORT)?;
        let (mut inner, found) = (self.mamba.inner(), self.mamba.inner());
        size(json, &["/mamba_d_ssm"], &mut inner)?;
        if inner != found {
            let what = format!("mamba_d_ssm is {inner}, and mamba_n_heads × mamba_d_head is {found}");
            return Err(Error::input(what).hint("are config and checkpoint of the same model?"));
        }
        flag(json, &["/projectors_bias"], &mut self.mamba.mamba_out_bias)?;
        flag(json, &["/mamba_rms_norm"], &mut self.mamba_rms_norm)?;
        if self.mamba_rms_norm && json.get("mamba_norm_before_gate").is_none_or(serde_json::Value::is_null) {
            from.assumed.push("mamba_norm_before_gate = true".to_string());
        }
        self.mamba_norm_before_gate = true;
        flag(json, &["/mamba_norm_before_gate"], &mut self.mamba_norm_before_gate)?;
        let mut heads = Heads::default();
        heads.read(from, shapes, Some("model.layers.0.self_attn"), &["/head_dim"])?;
        self.heads = heads;
        from.number_or("/rms_norm_eps", 1e-5, &mut self.rms_norm_eps)?;
        from.size_or("/max_position_embeddings", 8192, &mut self.max_position_embeddings)?;
        let (rope, told) = Rope::stated(json, self.max_position_embeddings)?;
        self.rope = rope;
        from.assumed.extend(told);
        flag(json, &["/mlp_bias"], &mut self.mlp_bias)?;
        for (key, to) in [
            ("/embedding_multiplier", &mut self.embedding_multiplier),
            ("/lm_head_multiplier", &mut self.lm_head_multiplier),
            ("/key_multiplier", &mut self.key_multiplier),
            ("/attention_in_multiplier", &mut self.attention_in_multiplier),
            ("/attention_out_multiplier", &mut self.attention_out_multiplier),
            ("/ssm_in_multiplier", &mut self.ssm_in_multiplier),
            ("/ssm_out_multiplier", &mut self.ssm_out_multiplier),
        ] {
            from.factor(key, to)?;
        }
        from.factors("/ssm_multipliers", &mut self.ssm_multipliers)?;
        from.factors("/mlp_multipliers", &mut self.mlp_multipliers)?;
        flag(json, hybrid::TIED, &mut self.tie_word_embeddings)
    }
}
