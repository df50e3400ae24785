//! The shape of a Granite hybrid, and the tensors that it calls for.

use super::super::group::Group;
use super::super::hybrid::{Feed, Heads, Mamba, Matrix, Place, SHORT, check_factors, check_positive};
use super::super::llama::{Rope, Scaling};
use super::super::mixer::Mixer;
use super::super::setting::check_sizes;
use super::super::site::{Residual, Site};
use super::super::source::{fields, kept, read_by};
use super::super::spec;
use super::super::{Config as AnyConfig, Ends, Family, Init, Parts, Sizes, Stack, TensorSpec};
use crate::error::{Error, Result};
use crate::layer::mamba2::End;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The shape of a Granite hybrid. Field names are those of a Hugging Face `config.json`, those of the two mixers in groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The mixer of each layer.
    pub layer_types: Vec<Layer>,
    /// Mamba2's mixer.
    pub mamba: Mamba,
    /// Attention.
    pub heads: Heads,
    /// Rotary positions; none: no positions.
    pub rope: Option<Rope>,
    /// Tokens of the longest sequence, where there are positions.
    pub max_position_embeddings: usize,
    /// ε of every norm.
    pub rms_norm_eps: f64,
    /// Experts of a layer; 0: none.
    pub num_local_experts: usize,
    /// Experts that see a token.
    pub num_experts_per_tok: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Width of the layer that all tokens see.
    pub shared_intermediate_size: usize,
    /// A factor on the embedding.
    pub embedding_multiplier: f64,
    /// A factor on what joins the residual stream.
    pub residual_multiplier: f64,
    /// The factor on scores of attention.
    pub attention_multiplier: f64,
    /// What logits are divided by.
    pub logits_scaling: f64,
    /// Head and embedding are one matrix.
    pub tie_word_embeddings: bool,
}

/// The mixer of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// Mamba2's; `linear_attention` in transformers 5.
    #[serde(alias = "linear_attention")]
    Mamba,
    /// Attention; `full_attention` in transformers 5.
    #[serde(alias = "full_attention")]
    Attention,
}

impl Layer {
    /// Where its parameters are in the layer.
    pub(super) fn place(self) -> &'static str {
        match self {
            Self::Mamba => "mamba",
            Self::Attention => "self_attn",
        }
    }
}

/// A byte-level model of 3.0 M parameters.
impl Default for Config {
    fn default() -> Self {
        let rope = Rope { theta: 10_000.0, scaling: Scaling::Default };
        Self {
            hidden_size: 256,
            vocab_size: 256,
            layer_types: vec![Layer::Mamba, Layer::Mamba, Layer::Attention, Layer::Mamba],
            mamba: Mamba::default(),
            heads: Heads::default(),
            rope: Some(rope),
            max_position_embeddings: 16_384,
            rms_norm_eps: 1e-5,
            num_local_experts: 4,
            num_experts_per_tok: 2,
            intermediate_size: 128,
            shared_intermediate_size: 256,
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            attention_multiplier: 0.125,
            logits_scaling: 1.0,
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    /// The mixer of Mamba2.
    pub(super) fn mixer(&self) -> Mixer {
        self.mamba.mixer(self.hidden_size, self.rms_norm_eps, End::GateThenNorm)
    }

    /// The feed-forward layers of a layer in the order in which they are used, after the router: where they are in it, and the
    /// number of those that are experts.
    pub(super) fn feeds(&self) -> impl Iterator<Item = (String, Option<usize>)> {
        let experts = (0..self.num_local_experts).map(|e| (format!("block_sparse_moe.experts.{e}"), Some(e)));
        experts.chain([("shared_mlp".to_string(), None)])
    }

    /// The matrices of one of them.
    pub(super) fn matrices(&self, expert: Option<usize>) -> [Matrix; 2] {
        let (width, [input, output]) = match expert {
            Some(_) => (self.intermediate_size, ["expert_input_linear", "expert_output_linear"]),
            None => (self.shared_intermediate_size, ["shared_input_linear", "shared_output_linear"]),
        };
        [
            Matrix::reads("input_linear", 2 * width).called(input).parted(&["gate", "up"]),
            Matrix::writes("output_linear", width, Some(("input_linear", width))).called(output),
        ]
    }

    pub(super) fn feed<'a>(&self, path: &'a str, matrices: &'a [Matrix]) -> Feed<'a> {
        Feed { path, hidden: self.hidden_size, matrices, bias: false }
    }
}

impl Family for Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("vocab_size", self.vocab_size),
            ("layer_types", self.layer_types.len()),
            ("shared_intermediate_size", self.shared_intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        self.mamba.check(SHORT)?;
        self.heads.check(self.rope.as_ref().map(|_| self.heads.head_dim))?;
        if self.num_local_experts > 0 {
            let (k, experts) = (self.num_experts_per_tok, self.num_local_experts);
            check_sizes(&[("num_experts_per_tok", k), ("intermediate_size", self.intermediate_size)])?;
            if k > experts {
                let what = format!("num_experts_per_tok = {k} is more than num_local_experts = {experts}");
                return Err(Error::input(what));
            }
        }
        check_positive(&[("rms_norm_eps", self.rms_norm_eps)])?;
        check_factors(&[
            ("embedding_multiplier", self.embedding_multiplier),
            ("residual_multiplier", self.residual_multiplier),
            ("attention_multiplier", self.attention_multiplier),
        ])?;
        match self.logits_scaling.is_finite() && self.logits_scaling != 0.0 {
            true => Ok(()),
            false => {
                let what =
                    format!("logits_scaling must be a number other than 0, found {}", self.logits_scaling);
                Err(Error::input(what))
            }
        }
    }

    /// With the initialization of GPT-2: what writes to the residual stream starts smaller by √(2 · layers).
    fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, writers) = (self.hidden_size, 2 * self.layer_types.len());
        let (normal, out) = (Init::Normal(0.02), 0.02 / (writers as f32).sqrt());
        spec::network(self, |i| {
            let (at, layer) = (|name: &str| format!("model.layers.{i}.{name}"), self.layer_types[i]);
            let norms = ["input_layernorm", "post_attention_layernorm"];
            let mut specs = norms.map(|norm| spec::norm(&at(norm), hidden)).to_vec();
            specs.extend(match layer {
                Layer::Mamba => self.mixer().tensors(&at(layer.place()), writers),
                Layer::Attention => self.heads.tensors(&at(layer.place()), hidden, out),
            });
            if self.num_local_experts > 0 {
                let shape = (self.num_local_experts, hidden);
                specs.extend(spec::linear(&at("block_sparse_moe.router.layer"), shape, normal, false));
            }
            for (place, expert) in self.feeds() {
                specs.extend(self.feed(&at(&place), &self.matrices(expert)).tensors(out));
            }
            specs
        })
    }

    /// The router stays as it is unless a scheme names it: rounded, it would send tokens elsewhere.
    fn sites(&self) -> Vec<Site> {
        let hidden = self.hidden_size;
        Site::of_network(self, |i| {
            let (at, layer) = (|name: &str| format!("model.layers.{i}.{name}"), self.layer_types[i]);
            let (path, norm) = (at(layer.place()), at("input_layernorm.weight"));
            let mut sites = match layer {
                Layer::Mamba => self.mixer().sites(&path, i, &norm),
                Layer::Attention => self.heads.sites(Place { path: &path, layer: i, hidden }, &norm),
            };
            let norm = at("post_attention_layernorm.weight");
            if self.num_local_experts > 0 {
                let (path, shape) = (at("block_sparse_moe.router.layer"), (self.num_local_experts, hidden));
                let site = Site::new(path, shape, "router", Residual::Reads);
                sites.push(Site { layer: Some(i), by_default: false, norm: Some(norm.clone()), ..site });
            }
            for (place, expert) in self.feeds() {
                let kind = if expert.is_some() { "expert" } else { "shared" };
                let (path, matrices) = (at(&place), self.matrices(expert));
                sites.extend(self.feed(&path, &matrices).sites(i, &norm, Some(kind), expert));
            }
            sites
        })
    }

    fn stack(&self, parts: &Parts<'_>) -> candle_core::Result<Stack> {
        super::stack(self, parts)
    }

    fn ends(&self) -> Ends {
        Ends {
            embedding: "model.embed_tokens",
            blocks: "model.layers.",
            norm: Some("model.norm"),
            head: "lm_head",
        }
    }

    fn sizes(&self) -> Sizes {
        Sizes { vocabulary: self.vocab_size, layers: self.layer_types.len(), hidden: self.hidden_size }
    }

    fn groups(&self, layer: usize) -> Vec<Group> {
        self.groups_of(layer)
    }

    fn without(&self, left_out: &[&Group]) -> Option<AnyConfig> {
        Some(AnyConfig::Granitemoehybrid(self.without_groups(left_out)))
    }

    fn chosen_experts(&self) -> usize {
        if self.num_local_experts > 0 { self.num_experts_per_tok } else { 0 }
    }

    fn longest(&self) -> Option<usize> {
        self.rope.as_ref().map(|_| self.max_position_embeddings)
    }

    fn tied(&self) -> bool {
        self.tie_word_embeddings
    }

    fn untie(&mut self) {
        self.tie_word_embeddings = false;
    }

    fn hugging_face(&self, source: Option<&Value>) -> Result<Map<String, Value>> {
        let mut all = kept(source, "granitemoehybrid", self.vocab_size);
        let mut own = fields(self)?;
        for group in ["mamba", "heads", "rope"] {
            own.remove(group);
        }
        if self.num_local_experts == 0 {
            // What it would be with experts is what its source says.
            own.remove("intermediate_size");
        }
        all.extend(own);
        all.extend(self.mamba.written(SHORT));
        all.extend(self.heads.written());
        all.extend(self.rope.iter().flat_map(Rope::written));
        let fixed = json!({
            "hidden_act": "silu",
            "mamba_expand": self.mamba.expand(self.hidden_size),
            "num_hidden_layers": self.layer_types.len(),
            "position_embedding_type": self.rope.as_ref().map(|_| "rope"),
        });
        all.extend(fields(&fixed)?);
        read_by("GraniteMoeHybridForCausalLM", "granitemoehybrid", &mut all);
        Ok(all)
    }

    fn foreign_to_transformers(&self) -> Option<String> {
        let (inner, hidden) = (self.mamba.inner(), self.hidden_size);
        if !inner.is_multiple_of(hidden) {
            return Some(format!(
                "mamba_n_heads × mamba_d_head = {inner} is no multiple of hidden_size = {hidden}"
            ));
        }
        if self.heads.head_dim * self.heads.num_attention_heads != hidden {
            return Some(format!("its heads are not as wide as hidden_size = {hidden} together"));
        }
        let differ = self.mamba.mamba_proj_bias != self.mamba.mamba_out_bias;
        differ.then(|| "a bias is on in_proj or out_proj alone".to_string())
    }
}
