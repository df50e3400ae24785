//! The shape of a Llama, and the tensors that it calls for.

use super::super::Config as AnyConfig;
use super::super::group::Group;
use super::super::setting::check_sizes;
use super::super::site::{Fed, Residual, Site};
use super::super::source::{fields, kept, read_by};
use super::super::spec;
use super::super::{Ends, Family, Init, Parts, Sizes, Stack, TensorSpec};
use super::rope::{Rope, Scaling};
use crate::error::{Error, Result};
use crate::layer::attention;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The shape of a Llama-type model. Field names are those of a Hugging Face `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of a feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads H.
    pub num_attention_heads: usize,
    /// Key heads KV.
    pub num_key_value_heads: usize,
    /// Values per head D.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Tokens of the longest sequence.
    pub max_position_embeddings: usize,
    /// ε of every norm.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: Rope,
    /// Biases on q_proj, k_proj and v_proj.
    pub attention_bias: bool,
    /// A bias on o_proj.
    pub attention_out_bias: bool,
    /// Biases on the feed-forward layers.
    pub mlp_bias: bool,
    /// Head and embedding are one matrix.
    pub tie_word_embeddings: bool,
}

/// A byte-level model of 5.1 M parameters.
impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            intermediate_size: 688,
            num_hidden_layers: 7,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 64,
            vocab_size: 256,
            max_position_embeddings: 16_384,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: Scaling::Default },
            attention_bias: false,
            attention_out_bias: false,
            mlp_bias: false,
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    /// The shape of SmolLM2-135M.
    pub fn smollm2_135m() -> Self {
        Self {
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            vocab_size: 49_152,
            max_position_embeddings: 8192,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 100_000.0, scaling: Scaling::Default },
            ..Self::default()
        }
    }

    pub(super) fn attention(&self) -> attention::Sizes {
        attention::Sizes {
            heads: self.num_attention_heads,
            shared: self.num_key_value_heads,
            dim: self.head_dim,
            longest: self.max_position_embeddings,
        }
    }

    /// The matrices of a block in the order in which they are used: path within the block, rows, columns, bias.
    fn matrices(&self) -> [(&'static str, usize, usize, bool); 7] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let (bias, out_bias, mlp_bias) = (self.attention_bias, self.attention_out_bias, self.mlp_bias);
        [
            ("self_attn.q_proj", q, hidden, bias),
            ("self_attn.k_proj", kv, hidden, bias),
            ("self_attn.v_proj", kv, hidden, bias),
            ("self_attn.o_proj", hidden, q, out_bias),
            ("mlp.gate_proj", inner, hidden, mlp_bias),
            ("mlp.up_proj", inner, hidden, mlp_bias),
            ("mlp.down_proj", hidden, inner, mlp_bias),
        ]
    }
}

impl Family for Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let (heads, shared) = (self.num_attention_heads, self.num_key_value_heads);
            let what =
                format!("num_key_value_heads = {shared} does not divide num_attention_heads = {heads}");
            return Err(Error::input(what));
        }
        if !self.head_dim.is_multiple_of(2) {
            let what = format!("head_dim = {} is odd: rotary positions turn pairs", self.head_dim);
            return Err(Error::input(what));
        }
        if let Scaling::Factors { rope_freqs } = &self.rope.scaling
            && rope_freqs.len() != self.head_dim / 2
        {
            let (found, expected) = (rope_freqs.len(), self.head_dim / 2);
            return Err(Error::input(format!("rope_freqs has {found} factors for {expected} frequencies")));
        }
        Ok(())
    }

    /// With the initialization of GPT-2: what writes to the residual stream starts smaller by √(2 · layers).
    fn tensors(&self) -> Vec<TensorSpec> {
        let out = 0.02 / (2.0 * self.num_hidden_layers as f32).sqrt();
        spec::network(self, |i| {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let norms = ["input_layernorm", "post_attention_layernorm"];
            let mut specs = norms.map(|norm| spec::norm(&at(norm), self.hidden_size)).to_vec();
            for (path, rows, cols, bias) in self.matrices() {
                let writes = ["self_attn.o_proj", "mlp.down_proj"].contains(&path);
                let init = Init::Normal(if writes { out } else { 0.02 });
                specs.extend(spec::linear(&at(path), (rows, cols), init, bias));
            }
            specs
        })
    }

    fn sites(&self) -> Vec<Site> {
        let shared = self.num_attention_heads / self.num_key_value_heads.max(1);
        Site::of_network(self, |i| {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let site = |(path, rows, cols, _): (&'static str, usize, usize, bool)| {
                let role = path.rsplit('.').next().unwrap_or(path);
                let read = |norm: &str| (Some(at(norm)), None, Residual::Reads);
                let fed = |path: &str, head: usize, shared: usize| {
                    (None, Some(Fed { path: at(path), head, shared, first: 0 }), Residual::Writes)
                };
                let (norm, fed, residual) = match role {
                    "o_proj" => fed("self_attn.v_proj", self.head_dim, shared),
                    "down_proj" => fed("mlp.up_proj", self.intermediate_size, 1),
                    "gate_proj" | "up_proj" => read("post_attention_layernorm.weight"),
                    _ => read("input_layernorm.weight"),
                };
                Site { layer: Some(i), norm, fed, ..Site::new(at(path), (rows, cols), role, residual) }
            };
            self.matrices().into_iter().map(site).collect()
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
        Sizes { vocabulary: self.vocab_size, layers: self.num_hidden_layers, hidden: self.hidden_size }
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

    fn groups(&self, layer: usize) -> Vec<Group> {
        self.groups_of(layer)
    }

    fn without(&self, left_out: &[&Group]) -> Option<AnyConfig> {
        Some(AnyConfig::Llama(self.without_groups(left_out)))
    }

    fn hugging_face(&self, source: Option<&Value>) -> Result<Map<String, Value>> {
        let mut all = kept(source, "llama", self.vocab_size);
        let mut own = fields(self)?;
        own.remove("rope");
        if self.attention_out_bias == self.attention_bias {
            own.remove("attention_out_bias");
        }
        all.extend(own);
        all.extend(self.rope.written());
        all.insert("hidden_act".into(), json!("silu"));
        read_by("LlamaForCausalLM", "llama", &mut all);
        Ok(all)
    }

    fn foreign_to_transformers(&self) -> Option<String> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if !hidden.is_multiple_of(heads) {
            return Some(format!("hidden_size = {hidden} is no multiple of num_attention_heads = {heads}"));
        }
        if self.attention_out_bias != self.attention_bias {
            return Some("biases are on q, k and v or on o_proj alone".to_string());
        }
        match self.rope.scaling {
            Scaling::Factors { .. } => Some("frequencies have factors of their own".to_string()),
            _ => None,
        }
    }
}
