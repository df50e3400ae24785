//! The shape of a Bamba, and the tensors that it calls for.

use super::super::group::Group;
use super::super::hybrid::{ENDS, Feed, Heads, Mamba, Matrix, NORMS, Place, SHORT, check_positive};
use super::super::llama::{Rope, Scaling};
use super::super::mixer::Mixer;
use super::super::setting::check_sizes;
use super::super::site::Site;
use super::super::source::{fields, kept, read_by};
use super::super::spec;
use super::super::{Config as AnyConfig, Ends, Family, Parts, Sizes, Stack, TensorSpec};
use crate::error::{Error, Result};
use crate::layer::mamba2::End;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The shape of a Bamba. Field names are those of a Hugging Face `config.json`, those of the two mixers in groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Numbers of the layers that have attention; the others have a mixer of Mamba2.
    pub attn_layer_indices: Vec<usize>,
    /// Mamba2's mixer.
    pub mamba: Mamba,
    /// Attention.
    pub heads: Heads,
    /// Rotary positions.
    pub rope: Rope,
    /// The share of each head's values that positions turn.
    pub partial_rotary_factor: f64,
    /// Tokens of the longest sequence.
    pub max_position_embeddings: usize,
    /// Width of a feed-forward layer.
    pub intermediate_size: usize,
    /// Biases on the feed-forward layers.
    pub mlp_bias: bool,
    /// ε of every norm.
    pub rms_norm_eps: f64,
    /// Head and embedding are one matrix.
    pub tie_word_embeddings: bool,
}

/// A byte-level model of 2.8 M parameters.
impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            vocab_size: 256,
            num_hidden_layers: 4,
            attn_layer_indices: vec![2],
            mamba: Mamba::default(),
            heads: Heads::default(),
            rope: Rope { theta: 10_000.0, scaling: Scaling::Default },
            partial_rotary_factor: 0.5,
            max_position_embeddings: 16_384,
            intermediate_size: 512,
            mlp_bias: false,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    /// The mixer of Mamba2.
    pub(super) fn mixer(&self) -> Mixer {
        self.mamba.mixer(self.hidden_size, self.rms_norm_eps, End::GateThenNorm)
    }

    /// Whether a layer has attention.
    pub(super) fn attends(&self, layer: usize) -> bool {
        self.attn_layer_indices.contains(&layer)
    }

    /// Where the parameters of its mixer are in a layer.
    pub(super) fn place(&self, layer: usize) -> &'static str {
        if self.attends(layer) { "self_attn" } else { "mamba" }
    }

    /// Values of each head that positions turn.
    pub(super) fn turned(&self) -> usize {
        (self.heads.head_dim as f64 * self.partial_rotary_factor) as usize
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
        check_positive(&[
            ("rms_norm_eps", self.rms_norm_eps),
            ("partial_rotary_factor", self.partial_rotary_factor),
        ])?;
        self.heads.check(Some(self.turned()))?;
        match self.attn_layer_indices.iter().find(|layer| **layer >= self.num_hidden_layers) {
            Some(layer) => {
                let layers = self.num_hidden_layers;
                let what =
                    format!("attn_layer_indices has a layer {layer}, and num_hidden_layers is {layers}");
                Err(Error::input(what).hint("layers are numbered from 0"))
            }
            None => Ok(()),
        }
    }

    /// With the initialization of GPT-2: what writes to the residual stream starts smaller by √(2 · layers).
    fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, writers) = (self.hidden_size, 2 * self.num_hidden_layers);
        let out = 0.02 / (writers as f32).sqrt();
        spec::network(self, |i| {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let mut specs = NORMS.map(|norm| spec::norm(&at(norm), hidden)).to_vec();
            let path = at(self.place(i));
            specs.extend(match self.attends(i) {
                true => self.heads.tensors(&path, hidden, out),
                false => self.mixer().tensors(&path, writers),
            });
            let matrices = Matrix::gated(self.intermediate_size);
            specs.extend(self.feed(&at("feed_forward"), &matrices).tensors(out));
            specs
        })
    }

    fn sites(&self) -> Vec<Site> {
        let hidden = self.hidden_size;
        Site::of_network(self, |i| {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let (path, norm) = (at(self.place(i)), at("input_layernorm.weight"));
            let mut sites = match self.attends(i) {
                true => self.heads.sites(Place { path: &path, layer: i, hidden }, &norm),
                false => self.mixer().sites(&path, i, &norm),
            };
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
        Some(AnyConfig::Bamba(self.without_groups(left_out)))
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
        let mut all = kept(source, "bamba", self.vocab_size);
        let mut own = fields(self)?;
        for group in ["mamba", "heads", "rope", "partial_rotary_factor"] {
            own.remove(group);
        }
        all.extend(own);
        all.extend(self.mamba.written(SHORT));
        all.extend(self.heads.written());
        let mut rope = self.rope.written();
        rope["rope_parameters"]["partial_rotary_factor"] = json!(self.partial_rotary_factor);
        all.extend(rope);
        let fixed = json!({
            "hidden_act": "silu",
            "mamba_expand": self.mamba.expand(self.hidden_size),
        });
        all.extend(fields(&fixed)?);
        read_by("BambaForCausalLM", "bamba", &mut all);
        Ok(all)
    }

    fn foreign_to_transformers(&self) -> Option<String> {
        let (inner, hidden) = (self.mamba.inner(), self.hidden_size);
        if !inner.is_multiple_of(hidden) {
            return Some(format!(
                "mamba_n_heads × mamba_d_head = {inner} is no multiple of hidden_size = {hidden}"
            ));
        }
        let differ = self.mamba.mamba_proj_bias != self.mamba.mamba_out_bias;
        differ.then(|| "a bias is on in_proj or out_proj alone".to_string())
    }
}
