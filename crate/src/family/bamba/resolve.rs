//! What a checkpoint tells of its config: in `config.json`, and by the names and shapes of its tensors.

use super::super::hybrid::{self, Heads, Mamba, Reading, SHORT, same_list};
use super::super::llama::Rope;
use super::super::setting::{dims, find, flag, known, layers, number, size};
use super::super::{Shapes, Stated};
use super::config::Config;
use crate::error::{Error, Result};
use serde_json::json;

/// Settings that change the architecture, with the values, in JSON, of the one that is here. (A `partial_rotary_factor` at the top
/// and `attn_rotary_emb` are read by no program.)
const KNOWN: [(&str, &[&str]); 4] = [
    ("/hidden_act", &["\"silu\"", "\"swish\""]),
    ("/sliding_window", &[]),
    ("/rope_interleaved", &["false"]),
    ("/num_local_experts", &["0", "1"]),
];

impl Config {
    /// Whether tensors of these names are a Bamba: no layer has both mixers.
    pub(super) fn recognizes(shapes: &Shapes) -> bool {
        hybrid::is_gated(shapes) && !hybrid::has_both(shapes)
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`].
    pub(super) fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        hybrid::resolved("bamba", stated, shapes, Self::infer, Self::read, |config| {
            &mut config.tie_word_embeddings
        })
    }

    /// Everything that shapes tell.
    fn infer(shapes: &Shapes) -> Result<Self> {
        let embedding = dims(shapes, "model.embed_tokens.weight", 2, "bamba")?;
        let layers = layers(shapes.keys(), "model.layers.")?;
        let attends = |i: &usize| shapes.contains_key(&format!("model.layers.{i}.self_attn.q_proj.weight"));
        let attn_layer_indices: Vec<usize> = (0..layers).filter(attends).collect();
        let mixer = (0..layers).find(|i| !attends(i)).map(|i| format!("model.layers.{i}.mamba"));
        let down = "model.layers.0.feed_forward.down_proj";
        Ok(Self {
            hidden_size: embedding[1],
            vocab_size: embedding[0],
            num_hidden_layers: layers,
            attn_layer_indices,
            mamba: Mamba::infer(shapes, mixer.as_deref(), "bamba")?,
            intermediate_size: dims(shapes, &format!("{down}.weight"), 2, "bamba")?[1],
            mlp_bias: shapes.contains_key(&format!("{down}.bias")),
            ..Self::default()
        })
    }

    /// Takes what a `config.json` states, and what transformers takes where it does not.
    fn read(&mut self, from: &mut Reading<'_>, shapes: &Shapes) -> Result<()> {
        let json = from.json;
        known(json, &KNOWN)?;
        if let Some(found) = find(json, &["/attn_layer_indices"]) {
            let mut stated: Vec<usize> = serde_json::from_value(found.clone())
                .map_err(|error| Error::input(format!("attn_layer_indices: {error}")))?;
            stated.sort_unstable();
            same_list(json, "/attn_layer_indices", Some(json!(stated)), &json!(self.attn_layer_indices))?;
        }
        for (key, to) in [
            ("/hidden_size", &mut self.hidden_size),
            ("/vocab_size", &mut self.vocab_size),
            ("/intermediate_size", &mut self.intermediate_size),
            ("/num_hidden_layers", &mut self.num_hidden_layers),
        ] {
            size(json, &[key], to)?;
        }
        self.mamba.read(from, SHORT)?;
        if find(json, SHORT.bias).is_some() {
            self.mamba.mamba_out_bias = self.mamba.mamba_proj_bias;
        }
        let attention = self.attn_layer_indices.first().map(|i| format!("model.layers.{i}.self_attn"));
        let mut heads = Heads::default();
        heads.read(from, shapes, attention.as_deref(), &["/head_dim"])?;
        self.heads = heads;
        from.number_or("/rms_norm_eps", 1e-5, &mut self.rms_norm_eps)?;
        from.size_or("/max_position_embeddings", 262_144, &mut self.max_position_embeddings)?;
        let (rope, told) = Rope::stated(json, self.max_position_embeddings)?;
        self.rope = rope;
        from.assumed.extend(told);
        // Half of each head, unless the new spelling says otherwise.
        self.partial_rotary_factor = 0.5;
        number(json, &["/rope_parameters/partial_rotary_factor"], &mut self.partial_rotary_factor)?;
        flag(json, &["/mlp_bias"], &mut self.mlp_bias)?;
        flag(json, hybrid::TIED, &mut self.tie_word_embeddings)
    }
}
