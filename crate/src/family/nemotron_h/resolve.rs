//! What a checkpoint tells of its config: in `config.json`, and by the names and shapes of its tensors.

use super::super::hybrid::{self, Heads, Mamba, Reading, same_list};
use super::super::setting::{before_layers, dims, find, flag, known, layers, size};
use super::super::{Shapes, Stated};
use super::config::{Config, Experts, KEYS, Layer, layers_of, letters};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// What stands before the body: `backbone.`, in transformers 5 `model.`, or nothing, with whatever a program put in front. Layers of
/// the heads that predict several tokens at once are none of it.
pub(super) fn before_body(name: &str) -> Option<&str> {
    let place = before_layers(name, ".norm.weight")?;
    (!place.ends_with("mtp.")).then_some(place)
}

/// The Hugging Face name of a tensor, from what follows the place of the body in a checkpoint's.
pub(super) fn name_in_body(name: &str) -> Option<String> {
    let of_body = ["layers.", "embeddings.", "norm_f."].iter().any(|start| name.starts_with(start));
    of_body.then(|| format!("backbone.{name}"))
}

/// Settings that change the architecture, with the values, in JSON, of the one that is here.
const KNOWN: [(&str, &[&str]); 5] = [
    ("/mamba_hidden_act", &["\"silu\"", "\"swish\""]),
    ("/mlp_hidden_act", &["\"relu2\""]),
    ("/moe_latent_size", &[]),
    ("/n_shared_experts", &["1"]),
    ("/sliding_window", &[]),
];

/// The tensors that only layers of a kind have.
const MARKS: [(Layer, &str); 4] = [
    (Layer::Mamba, "A_log"),
    (Layer::Attention, "q_proj.weight"),
    (Layer::Moe, "gate.weight"),
    (Layer::Mlp, "up_proj.weight"),
];

/// What a layer is, by its tensors.
fn layer(shapes: &Shapes, i: usize) -> Option<Layer> {
    let has = |(_, mark): &&(Layer, &str)| shapes.contains_key(&format!("backbone.layers.{i}.mixer.{mark}"));
    MARKS.iter().find(has).map(|(layer, _)| *layer)
}

impl Config {
    /// Whether tensors of these names are a Nemotron-H. One of mixers of Mamba2 alone is a Mamba2, unless something names it.
    pub(super) fn recognizes(shapes: &Shapes) -> bool {
        layer(shapes, 0).is_some()
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`].
    pub(super) fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        hybrid::resolved("nemotron_h", stated, shapes, Self::infer, Self::read, |config| {
            &mut config.tie_word_embeddings
        })
    }

    /// Everything that shapes tell.
    fn infer(shapes: &Shapes) -> Result<Self> {
        let dims = |name: &str| dims(shapes, name, 2, "nemotron_h");
        let embedding = dims("backbone.embeddings.weight")?;
        let kind = |i: usize| {
            let told = "no tensor tells whether it is Mamba2, attention, a feed-forward layer or experts";
            layer(shapes, i).ok_or_else(|| Error::input(told).at(format!("backbone.layers.{i}")))
        };
        let layers = (0..layers(shapes.keys(), "backbone.layers.")?).map(kind).collect::<Result<Vec<_>>>()?;
        let base = Self { hybrid_override_pattern: layers, ..Self::default() };
        let [mixer, mlp, moe] = [Layer::Mamba, Layer::Mlp, Layer::Moe].map(|kind| base.first(kind));
        let (mut experts, mut intermediate_size) = (Experts::default(), base.intermediate_size);
        let width = |path: &str| Ok::<_, Error>(dims(&format!("{path}.up_proj.weight"))?[0]);
        if let Some(mlp) = &mlp {
            intermediate_size = width(mlp)?;
        }
        if let Some(moe) = &moe {
            experts = Experts {
                n_routed_experts: dims(&format!("{moe}.gate.weight"))?[0],
                num_experts_per_tok: 0,
                moe_intermediate_size: width(&format!("{moe}.experts.0"))?,
                moe_shared_expert_intermediate_size: width(&format!("{moe}.shared_experts"))?,
                ..experts
            };
        }
        let feed = mlp.or_else(|| Some(format!("{}.shared_experts", moe?)));
        let bias = feed.is_some_and(|path| shapes.contains_key(&format!("{path}.up_proj.bias")));
        Ok(Self {
            hidden_size: embedding[1],
            vocab_size: embedding[0],
            mamba: Mamba::infer(shapes, mixer.as_deref(), "nemotron_h")?,
            intermediate_size,
            experts,
            mlp_bias: bias,
            ..base
        })
    }

    /// The path of the first layer of a kind.
    fn first(&self, kind: Layer) -> Option<String> {
        let at = self.layers().iter().position(|layer| *layer == kind)?;
        Some(format!("backbone.layers.{at}.mixer"))
    }

    /// Takes what a `config.json` states, and what transformers takes where it does not.
    fn read(&mut self, from: &mut Reading<'_>, shapes: &Shapes) -> Result<()> {
        let json = from.json;
        known(json, &KNOWN)?;
        let found = json!(letters(self.layers()));
        for place in ["/hybrid_override_pattern", "/layers_block_type"] {
            let stated = find(json, &[place]).map(stated_layers).transpose()?;
            same_list(json, place, stated.map(|layers| json!(letters(&layers))), &found)?;
        }
        size(json, &["/hidden_size"], &mut self.hidden_size)?;
        size(json, &["/vocab_size"], &mut self.vocab_size)?;
        if self.layers().contains(&Layer::Mlp) {
            size(json, &["/intermediate_size"], &mut self.intermediate_size)?;
        }
        self.mamba.read(from, KEYS)?;
        if find(json, KEYS.bias).is_some() {
            self.mamba.mamba_out_bias = self.mamba.mamba_proj_bias;
        }
        let attention = self.first(Layer::Attention);
        let mut heads = Heads::default();
        heads.read(from, shapes, attention.as_deref(), &["/head_dim"])?;
        // transformers reads no `attention_bias` here.
        let bias = attention.is_some_and(|path| shapes.contains_key(&format!("{path}.q_proj.bias")));
        self.heads = Heads { attention_bias: bias, ..heads };
        from.number_or("/layer_norm_epsilon", 1e-5, &mut self.layer_norm_epsilon)?;
        flag(json, &["/mlp_bias"], &mut self.mlp_bias)?;
        if self.layers().contains(&Layer::Moe) {
            self.read_experts(from)?;
        }
        flag(json, hybrid::TIED, &mut self.tie_word_embeddings)
    }

    /// Takes what is stated of experts.
    fn read_experts(&mut self, from: &mut Reading<'_>) -> Result<()> {
        let (json, e) = (from.json, &mut self.experts);
        for (key, to) in [
            ("/n_routed_experts", &mut e.n_routed_experts),
            ("/moe_intermediate_size", &mut e.moe_intermediate_size),
            ("/moe_shared_expert_intermediate_size", &mut e.moe_shared_expert_intermediate_size),
            ("/num_experts_per_tok", &mut e.num_experts_per_tok),
        ] {
            size(json, &[key], to)?;
        }
        if e.num_experts_per_tok == 0 {
            return Err(Error::input("num_experts_per_tok is not stated, and no tensor's shape tells it"));
        }
        from.size_or("/n_group", 1, &mut e.n_group)?;
        from.size_or("/topk_group", 1, &mut e.topk_group)?;
        from.number_or("/routed_scaling_factor", 1.0, &mut e.routed_scaling_factor)?;
        if find(json, &["/norm_topk_prob"]).is_none() {
            from.assumed.push("norm_topk_prob = true".to_string());
        }
        e.norm_topk_prob = true;
        flag(json, &["/norm_topk_prob"], &mut e.norm_topk_prob)
    }
}

/// The layers that a pattern of letters or a list of names states.
fn stated_layers(stated: &Value) -> Result<Vec<Layer>> {
    let named = |name: &Value| {
        let layer = match name.as_str() {
            Some("mamba" | "linear_attention") => Layer::Mamba,
            Some("attention" | "full_attention") => Layer::Attention,
            Some("mlp") => Layer::Mlp,
            Some("moe") => Layer::Moe,
            _ => {
                return Err(Error::input(format!("layers_block_type has a layer {name}, which this version does not have"))
                    .hint("known are mamba, attention, mlp and moe, in transformers 5 linear_attention and full_attention"));
            }
        };
        Ok(layer)
    };
    match stated {
        Value::String(pattern) => layers_of(pattern),
        Value::Array(names) => names.iter().map(named).collect(),
        other => Err(Error::input(format!("the kinds of layers must be letters or names, found {other}"))),
    }
}
