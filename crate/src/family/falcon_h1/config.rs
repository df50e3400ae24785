//! The shape of a Falcon-H1, and the tensors that it calls for.

use super::super::group::Group;
use super::super::hybrid::{
    ENDS, Feed, Heads, Mamba, Matrix, NORMS, Place, SHORT, check_factors, check_positive,
};
use super::super::llama::{Rope, Scaling};
use super::super::mixer::Mixer;
use super::super::setting::check_sizes;
use super::super::site::Site;
use super::super::source::{fields, kept, read_by};
use super::super::spec;
use super::super::{Config as AnyConfig, Ends, Family, Parts, Sizes, Stack, TensorSpec};
use crate::error::Result;
use crate::layer::mamba2::End;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The shape of a Falcon-H1. Field names are those of a Hugging Face `config.json`, those of the two mixers in groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Mamba2's mixer.
    pub mamba: Mamba,
    /// Whether the mixer ends with a norm.
    pub mamba_rms_norm: bool,
    /// Whether that norm comes before the gate.
    pub mamba_norm_before_gate: bool,
    /// Attention.
    pub heads: Heads,
    /// Rotary positions.
    pub rope: Rope,
    /// Tokens of the longest sequence.
    pub max_position_embeddings: usize,
    /// Width of a feed-forward layer.
    pub intermediate_size: usize,
    /// Biases on the feed-forward layers.
    pub mlp_bias: bool,
    /// ε of every norm.
    pub rms_norm_eps: f64,
    /// A factor on the embedding.
    pub embedding_multiplier: f64,
    /// A factor on logits.
    pub lm_head_multiplier: f64,
    /// A factor on keys.
    pub key_multiplier: f64,
    /// A factor on what attention reads.
    pub attention_in_multiplier: f64,
    /// A factor on what attention gives.
    pub attention_out_multiplier: f64,
    /// A factor on what the mixer reads.
    pub ssm_in_multiplier: f64,
    /// A factor on what the mixer gives.
    pub ssm_out_multiplier: f64,
    /// Factors on z, x, B, C and dt as in_proj gives them.
    pub ssm_multipliers: [f64; 5],
    /// Factors on the gate of a feed-forward layer, and on what it gives.
    pub mlp_multipliers: [f64; 2],
    /// Head and embedding are one matrix.
    pub tie_word_embeddings: bool,
}

/// A byte-level model of 2.9 M parameters.
impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            vocab_size: 256,
            num_hidden_layers: 3,
            mamba: Mamba::default(),
            mamba_rms_norm: true,
            mamba_norm_before_gate: true,
            heads: Heads::default(),
            rope: Rope { theta: 10_000.0, scaling: Scaling::Default },
            max_position_embeddings: 16_384,
            intermediate_size: 512,
            mlp_bias: false,
            rms_norm_eps: 1e-5,
            embedding_multiplier: 1.0,
            lm_head_multiplier: 1.0,
            key_multiplier: 1.0,
            attention_in_multiplier: 1.0,
            attention_out_multiplier: 1.0,
            ssm_in_multiplier: 1.0,
            ssm_out_multiplier: 1.0,
            ssm_multipliers: [1.0; 5],
            mlp_multipliers: [1.0; 2],
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    /// The mixer of Mamba2.
    pub(super) fn mixer(&self) -> Mixer {
        let end = match (self.mamba_rms_norm, self.mamba_norm_before_gate) {
            (false, _) => End::Gate,
            (true, true) => End::NormThenGate,
            (true, false) => End::GateThenNorm,
        };
        let mixer = self.mamba.mixer(self.hidden_size, self.rms_norm_eps, end);
        Mixer { factors: Some(self.ssm_multipliers), ..mixer }
    }

    pub(super) fn feed<'a>(&self, path: &'a str, matrices: &'a [Matrix]) -> Feed<'a> {
        Feed { path, hidden: self.hidden_size, matrices, bias: self.mlp_bias }
    }
}

impl Family for Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("vocab_size", self.vocab_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        self.mamba.check(SHORT)?;
        self.heads.check(Some(self.heads.head_dim))?;
        check_positive(&[("rms_norm_eps", self.rms_norm_eps)])?;
        check_factors(&[
            ("embedding_multiplier", self.embedding_multiplier),
            ("lm_head_multiplier", self.lm_head_multiplier),
            ("key_multiplier", self.key_multiplier),
            ("attention_in_multiplier", self.attention_in_multiplier),
            ("attention_out_multiplier", self.attention_out_multiplier),
            ("ssm_in_multiplier", self.ssm_in_multiplier),
            ("ssm_out_multiplier", self.ssm_out_multiplier),
        ])?;
        check_factors(&self.ssm_multipliers.map(|by| ("ssm_multipliers", by)))?;
        check_factors(&self.mlp_multipliers.map(|by| ("mlp_multipliers", by)))
    }

    /// With the initialization of GPT-2: what writes to the residual stream starts smaller by √(3 · layers).
    fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, writers) = (self.hidden_size, 3 * self.num_hidden_layers);
        let out = 0.02 / (writers as f32).sqrt();
        spec::network(self, |i| {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let mut specs = NORMS.map(|norm| spec::norm(&at(norm), hidden)).to_vec();
            specs.extend(self.mixer().tensors(&at("mamba"), writers));
            specs.extend(self.heads.tensors(&at("self_attn"), hidden, out));
            let matrices = Matrix::gated(self.intermediate_size);
            specs.extend(self.feed(&at("feed_forward"), &matrices).tensors(out));
            specs
        })
    }

    fn sites(&self) -> Vec<Site> {
        let hidden = self.hidden_size;
        Site::of_network(self, |i| {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let norm = at("input_layernorm.weight");
            let mut sites = self.mixer().sites(&at("mamba"), i, &norm);
            sites.extend(self.heads.sites(Place { path: &at("self_attn"), layer: i, hidden }, &norm));
            let (path, matrices) = (at("feed_forward"), Matrix::gated(self.intermediate_size));
            sites.extend(self.feed(&path, &matrices).sites(i, &at("pre_ff_layernorm.weight"), None, None));
            sites
        })
    }

    fn stack(&self, parts: &Parts<'_>) -> candle_core::Result<Stack> {
        super::stack(self, parts)
    }

    fn ends(&self) -> Ends {
        ENDS
    }

    fn sizes(&self) -> Sizes {
        Sizes { vocabulary: self.vocab_size, layers: self.num_hidden_layers, hidden: self.hidden_size }
    }

    fn groups(&self, layer: usize) -> Vec<Group> {
        self.groups_of(layer)
    }

    fn without(&self, left_out: &[&Group]) -> Option<AnyConfig> {
        Some(AnyConfig::FalconH1(self.without_groups(left_out)))
    }

    fn longest(&self) -> Option<usize> {
        Some(self.max_position_embeddings)
    }

    fn tied(&self) -> bool {
        self.tie_word_embeddings
    }

    fn untie(&mut self) {
        self.tie_word_embeddings = false;
    }

    fn hugging_face(&self, source: Option<&Value>) -> Result<Map<String, Value>> {
        let mut all = kept(source, "falcon_h1", self.vocab_size);
        let mut own = fields(self)?;
        for group in ["mamba", "heads", "rope"] {
            own.remove(group);
        }
        all.extend(own);
        all.extend(self.mamba.written(SHORT));
        all.extend(self.heads.written());
        all.extend(self.rope.written());
        let fixed = json!({
            "hidden_act": "silu",
            "mamba_d_ssm": self.mamba.inner(),
            "projectors_bias": self.mamba.mamba_out_bias,
        });
        all.extend(fields(&fixed)?);
        read_by("FalconH1ForCausalLM", "falcon_h1", &mut all);
        Ok(all)
    }
}
