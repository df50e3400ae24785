//! The shape of a gated linear attention, and the tensors that it calls for.

use super::super::group::Group;
use super::super::llama::{Rope, Scaling};
use super::super::setting::check_sizes;
use super::super::site::{Fed, Residual, Segment, Site};
use super::super::source::{fields, kept, read_by};
use super::super::spec;
use super::super::{Config as AnyConfig, Ends, Family, Init, Parts, Sizes, Stack, TensorSpec};
use crate::error::{Error, Result};
use crate::layer::{attention, gla as mixer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The shape of a gated linear attention. Field names are those of flash-linear-attention's `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Channels of all keys together, as a share of `hidden_size`.
    pub expand_k: f64,
    /// Channels of all values together, as a share of `hidden_size`.
    pub expand_v: f64,
    /// Width of a feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads H.
    pub num_heads: usize,
    /// Groups G of heads that share keys, values and decays.
    pub num_kv_heads: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// ε of every norm.
    pub norm_eps: f64,
    /// The least logarithm of a decay, if there is one.
    pub clamp_min: Option<f64>,
    /// Whether SiLU(g) gates what the heads give.
    pub use_output_gate: bool,
    /// Whether the norm of the heads is named as one with its gate; it computes the same.
    pub fuse_norm: bool,
    /// Width R between the two matrices of the gates.
    pub gate_low_rank_dim: usize,
    /// Blocks with softmax attention, if there are some.
    pub attn: Option<Hybrid>,
    /// Tokens of the longest sequence that attention reads; without attention there is no limit.
    pub max_position_embeddings: usize,
    /// Head and embedding are one matrix.
    pub tie_word_embeddings: bool,
}

/// The blocks with softmax attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hybrid {
    /// Their numbers.
    pub layers: Vec<usize>,
    /// Query heads.
    pub num_heads: usize,
    /// Key heads.
    pub num_kv_heads: usize,
    /// Biases on q_proj, k_proj and v_proj.
    pub qkv_bias: bool,
    /// θ of the rotary positions.
    pub rope_theta: f64,
}

impl Hybrid {
    pub(super) fn rope(&self) -> Rope {
        Rope { theta: self.rope_theta, scaling: Scaling::Default }
    }
}

/// A byte-level model of 1.1 M parameters.
impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            expand_k: 0.5,
            expand_v: 1.0,
            intermediate_size: 512,
            num_hidden_layers: 4,
            num_heads: 2,
            num_kv_heads: 2,
            vocab_size: 256,
            norm_eps: 1e-6,
            clamp_min: None,
            use_output_gate: true,
            fuse_norm: true,
            gate_low_rank_dim: 16,
            attn: None,
            max_position_embeddings: 2048,
            tie_word_embeddings: true,
        }
    }
}

/// The sum of all channels, as flash-linear-attention has it.
pub(super) fn expanded(hidden: usize, by: f64) -> usize {
    (hidden as f64 * by) as usize
}

impl Config {
    /// Two small layers: for trying things out.
    pub fn tiny() -> Self {
        Self { hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, ..Self::default() }
    }

    /// A shape of 130 M parameters with the vocabulary of Llama 2.
    pub fn gla_130m() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 2048,
            num_hidden_layers: 15,
            num_heads: 4,
            num_kv_heads: 4,
            vocab_size: 32_000,
            ..Self::default()
        }
    }

    /// The sizes of a mixer.
    pub(super) fn mixer(&self) -> mixer::Sizes {
        let each = |by: f64| expanded(self.hidden_size, by) / self.num_heads.max(1);
        mixer::Sizes {
            heads: self.num_heads,
            groups: self.num_kv_heads,
            key: each(self.expand_k),
            value: each(self.expand_v),
            eps: self.norm_eps as f32,
            clamp_min: self.clamp_min.map_or(f32::NEG_INFINITY, |least| least as f32),
        }
    }

    /// The sizes of attention where there is some.
    pub(super) fn attention(&self) -> Option<(attention::Sizes, &Hybrid)> {
        let hybrid = self.attn.as_ref()?;
        let sizes = attention::Sizes {
            heads: hybrid.num_heads,
            shared: hybrid.num_kv_heads,
            dim: self.hidden_size / hybrid.num_heads.max(1),
            longest: self.max_position_embeddings,
        };
        Some((sizes, hybrid))
    }

    /// Path of the norm of the heads within a block.
    pub(super) fn norm_of_heads(&self) -> &'static str {
        match self.fuse_norm && self.use_output_gate {
            true => "attn.g_norm_swish_gate",
            false => "attn.g_norm",
        }
    }

    /// The matrices of a block in the order in which they are used.
    fn matrices(&self, layer: usize) -> Vec<Matrix> {
        let (hidden, inner, s) = (self.hidden_size, self.intermediate_size, self.mixer());
        let matrix = |path, role, rows, cols| Matrix { path, role, rows, cols, bias: false };
        let mut all = match self.attention() {
            Some((a, hybrid)) if hybrid.layers.contains(&layer) => {
                let bias = hybrid.qkv_bias;
                vec![
                    Matrix { bias, ..matrix("attn.q_proj", "q_proj", a.heads * a.dim, hidden) },
                    Matrix { bias, ..matrix("attn.k_proj", "k_proj", a.shared * a.dim, hidden) },
                    Matrix { bias, ..matrix("attn.v_proj", "v_proj", a.shared * a.dim, hidden) },
                    matrix("attn.o_proj", "o_proj", hidden, a.heads * a.dim),
                ]
            }
            _ => {
                let (keys, low) = (s.groups * s.key, self.gate_low_rank_dim);
                let mut all = vec![
                    matrix("attn.q_proj", "q_proj", s.heads * s.key, hidden),
                    matrix("attn.k_proj", "k_proj", keys, hidden),
                    matrix("attn.v_proj", "v_proj", s.groups * s.value, hidden),
                ];
                if self.use_output_gate {
                    all.push(matrix("attn.g_proj", "g_proj", s.heads * s.value, hidden));
                }
                all.push(matrix("attn.gk_proj.0", "gk_proj", low, hidden));
                all.push(Matrix { bias: true, ..matrix("attn.gk_proj.1", "gk_out", keys, low) });
                all.push(matrix("attn.o_proj", "o_proj", hidden, s.heads * s.value));
                all
            }
        };
        all.extend([
            matrix("mlp.gate_proj", "gate_proj", inner, hidden),
            matrix("mlp.up_proj", "up_proj", inner, hidden),
            matrix("mlp.down_proj", "down_proj", hidden, inner),
        ]);
        all
    }

    pub(super) fn is_attention(&self, layer: usize) -> bool {
        self.attn.as_ref().is_some_and(|hybrid| hybrid.layers.contains(&layer))
    }

    fn site(&self, layer: usize, Matrix { path, role, rows, cols, .. }: Matrix) -> Site {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let site =
            |residual| Site { layer: Some(layer), ..Site::new(at(path), (rows, cols), role, residual) };
        let read = |norm: &str| Site { norm: Some(at(norm)), ..site(Residual::Reads) };
        let fed =
            |path: &str, head: usize, shared: usize| Some(Fed { path: at(path), head, shared, first: 0 });
        let segment = |name| vec![Segment { name, rows }];
        match (role, self.attention()) {
            ("gate_proj" | "up_proj", _) => read("mlp_norm.weight"),
            ("down_proj", _) => {
                Site { fed: fed("mlp.up_proj", self.intermediate_size, 1), ..site(Residual::Writes) }
            }
            ("o_proj", Some((a, _))) if self.is_attention(layer) => {
                Site { fed: fed("attn.v_proj", a.dim, a.heads / a.shared.max(1)), ..site(Residual::Writes) }
            }
            // The norm of the heads stands between it and the values, with one weight for all heads.
            ("o_proj", _) => site(Residual::Writes),
            // Too few columns for groups of customary sizes, and too few values to matter in bytes.
            ("gk_out", _) => {
                let fed = fed("attn.gk_proj.0", self.gate_low_rank_dim, 1);
                Site { fed, by_default: false, ..site(Residual::Apart) }
            }
            _ if self.is_attention(layer) => read("attn_norm.weight"),
            ("q_proj", _) => Site { segments: segment("q"), ..read("attn_norm.weight") },
            ("k_proj", _) => Site { segments: segment("k"), ..read("attn_norm.weight") },
            ("v_proj", _) => Site { segments: segment("v"), ..read("attn_norm.weight") },
            ("g_proj", _) => Site { segments: segment("g"), ..read("attn_norm.weight") },
            _ => Site { segments: segment("gk"), ..read("attn_norm.weight") },
        }
    }
}

/// A matrix of a block.
#[derive(Clone, Copy)]
struct Matrix {
    /// Path within the block.
    path: &'static str,
    role: &'static str,
    rows: usize,
    cols: usize,
    bias: bool,
}

impl Family for Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("vocab_size", self.vocab_size),
            ("gate_low_rank_dim", self.gate_low_rank_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        let divides = |what: &str, part: usize, whole: &str, of: usize| match of.is_multiple_of(part) {
            true => Ok(()),
            false => Err(Error::input(format!("{what} = {part} does not divide {whole} = {of}"))),
        };
        divides("num_kv_heads", self.num_kv_heads, "num_heads", self.num_heads)?;
        for (name, by) in [("expand_k", self.expand_k), ("expand_v", self.expand_v)] {
            let channels = expanded(self.hidden_size, by);
            if !by.is_finite() || channels == 0 {
                return Err(Error::input(format!("{name} = {by} leaves no channels")));
            }
            check_sizes(&[(name, channels)])?;
            divides("num_heads", self.num_heads, &format!("hidden_size × {name}"), channels)?;
        }
        if let Some(least) = self.clamp_min.filter(|least| least.is_nan()) {
            return Err(Error::input(format!("clamp_min must be a number, found {least}")));
        }
        let Some(hybrid) = &self.attn else { return Ok(()) };
        check_sizes(&[("attn.num_heads", hybrid.num_heads), ("attn.num_kv_heads", hybrid.num_kv_heads)])?;
        divides("attn.num_heads", hybrid.num_heads, "hidden_size", self.hidden_size)?;
        divides("attn.num_kv_heads", hybrid.num_kv_heads, "attn.num_heads", hybrid.num_heads)?;
        if !(self.hidden_size / hybrid.num_heads).is_multiple_of(2) {
            return Err(Error::input("attn.num_heads leaves an odd width: rotary positions turn pairs"));
        }
        match hybrid.layers.iter().find(|layer| **layer >= self.num_hidden_layers) {
            Some(layer) => Err(Error::input(format!("attn.layers names layer {layer}, which is not there"))),
            None => Ok(()),
        }
    }

    /// With the initialization of GPT-2: what writes to the residual stream starts smaller by √(2 · layers).
    fn tensors(&self) -> Vec<TensorSpec> {
        let out = 0.02 / (2.0 * self.num_hidden_layers as f32).sqrt();
        spec::network(self, |i| {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let mut specs =
                ["attn_norm", "mlp_norm"].map(|norm| spec::norm(&at(norm), self.hidden_size)).to_vec();
            for Matrix { path, role, rows, cols, bias } in self.matrices(i) {
                let writes = ["o_proj", "down_proj"].contains(&role);
                let init = Init::Normal(if writes { out } else { 0.02 });
                specs.extend(spec::linear(&at(path), (rows, cols), init, bias));
            }
            if !self.is_attention(i) {
                specs.push(spec::norm(&at(self.norm_of_heads()), self.mixer().value));
            }
            specs
        })
    }

    fn sites(&self) -> Vec<Site> {
        Site::of_network(self, |i| self.matrices(i).into_iter().map(|matrix| self.site(i, matrix)).collect())
    }

    fn stack(&self, parts: &Parts<'_>) -> candle_core::Result<Stack> {
        super::stack(self, parts)
    }

    fn ends(&self) -> Ends {
        Ends {
            embedding: "model.embeddings",
            blocks: "model.layers.",
            norm: Some("model.norm"),
            head: "lm_head",
        }
    }

    fn sizes(&self) -> Sizes {
        Sizes { vocabulary: self.vocab_size, layers: self.num_hidden_layers, hidden: self.hidden_size }
    }

    fn longest(&self) -> Option<usize> {
        self.attn.as_ref().map(|_| self.max_position_embeddings)
    }

    fn tied(&self) -> bool {
        self.tie_word_embeddings
    }

    fn untie(&mut self) {
        self.tie_word_embeddings = false;
    }

    fn groups(&self, layer: usize) -> Vec<Group> {
        self.groups_of(layer)
    }

    fn without(&self, left_out: &[&Group]) -> Option<AnyConfig> {
        Some(AnyConfig::Gla(self.without_groups(left_out)))
    }

    fn hugging_face(&self, source: Option<&Value>) -> Result<Map<String, Value>> {
        let mut all = kept(source, "gla", self.vocab_size);
        let own = fields(self)?;
        all.extend(own);
        all.insert("hidden_act".into(), json!("swish"));
        read_by("GLAForCausalLM", "gla", &mut all);
        Ok(all)
    }

    fn foreign_to_transformers(&self) -> Option<String> {
        let low = self.gate_low_rank_dim;
        (low != 16).then(|| format!("gate_low_rank_dim = {low}, and flash-linear-attention has 16"))
    }
}
