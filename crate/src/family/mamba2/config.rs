//! The shape of a Mamba2, and the tensors that it calls for.

use super::super::Config as AnyConfig;
use super::super::group::Group;
use super::super::mixer::{Mixer, check_limit, dt_limit};
use super::super::setting::check_sizes;
use super::super::site::Site;
use super::super::spec;
use super::super::{Ends, Family, Parts, Sizes, Stack, TensorSpec};
use crate::error::Result;
use crate::layer::mamba2;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The shape of a Mamba2 model. Field names are those of a Hugging Face `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// State size N.
    pub state_size: usize,
    /// Values per head P.
    pub head_dim: usize,
    /// Heads H.
    pub num_heads: usize,
    /// Groups G that share B and C.
    pub n_groups: usize,
    /// Conv taps K.
    pub conv_kernel: usize,
    /// ε of every norm.
    pub layer_norm_epsilon: f64,
    /// Biases on in_proj and out_proj.
    pub use_bias: bool,
    /// Bias on the convolution.
    pub use_conv_bias: bool,
    /// Range that Δ is clamped to; `null` is infinity.
    #[serde(with = "super::super::mixer::limit")]
    pub time_step_limit: (f64, f64),
    /// Head and embedding are one matrix.
    pub tie_word_embeddings: bool,
}

/// A byte-level model of 3.5 M parameters: the shape of the default model.
impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            num_hidden_layers: 8,
            vocab_size: 256,
            state_size: 64,
            head_dim: 64,
            num_heads: 8,
            n_groups: 1,
            conv_kernel: 4,
            layer_norm_epsilon: 1e-5,
            use_bias: false,
            use_conv_bias: true,
            time_step_limit: (0.0, f64::INFINITY),
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    /// The published 130M shape.
    pub fn mamba2_130m() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 24,
            vocab_size: 50288,
            state_size: 128,
            head_dim: 64,
            num_heads: 24,
            ..Self::default()
        }
    }

    /// The mixer of a block.
    pub(super) fn mixer(&self) -> Mixer {
        let sizes = mamba2::Sizes {
            heads: self.num_heads,
            head_dim: self.head_dim,
            groups: self.n_groups,
            state: self.state_size,
            conv_width: self.conv_kernel,
            eps: self.layer_norm_epsilon as f32,
            dt_limit: dt_limit(self.time_step_limit),
            end: mamba2::End::GateThenNorm,
        };
        let (in_bias, out_bias) = (self.use_bias, self.use_bias);
        Mixer {
            hidden: self.hidden_size,
            sizes,
            in_bias,
            out_bias,
            conv_bias: self.use_conv_bias,
            factors: None,
        }
    }
}

impl Family for Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("vocab_size", self.vocab_size),
            ("state_size", self.state_size),
            ("head_dim", self.head_dim),
            ("num_heads", self.num_heads),
            ("n_groups", self.n_groups),
            ("conv_kernel", self.conv_kernel),
        ])?;
        self.mixer().check_groups(["n_groups", "num_heads"])?;
        check_limit(self.time_step_limit)
    }

    fn sites(&self) -> Vec<Site> {
        Site::of_network(self, |i| {
            let at = |name: &str| format!("backbone.layers.{i}.{name}");
            self.mixer().sites(&at("mixer"), i, &at("norm.weight"))
        })
    }

    /// With the initialization of the reference implementation.
    fn tensors(&self) -> Vec<TensorSpec> {
        spec::network(self, |i| {
            let at = |name: &str| format!("backbone.layers.{i}.{name}");
            let mut specs = vec![spec::norm(&at("norm"), self.hidden_size)];
            specs.extend(self.mixer().tensors(&at("mixer"), self.num_hidden_layers));
            specs
        })
    }

    fn stack(&self, parts: &Parts<'_>) -> candle_core::Result<Stack> {
        super::stack(self, parts)
    }

    fn ends(&self) -> Ends {
        Ends {
            embedding: "backbone.embeddings",
            blocks: "backbone.layers.",
            norm: Some("backbone.norm_f"),
            head: "lm_head",
        }
    }

    fn sizes(&self) -> Sizes {
        Sizes { vocabulary: self.vocab_size, layers: self.num_hidden_layers, hidden: self.hidden_size }
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
        Some(AnyConfig::Mamba2(self.without_groups(left_out)))
    }

    fn hugging_face(&self, source: Option<&Value>) -> Result<Map<String, Value>> {
        self.written(source)
    }

    fn foreign_to_transformers(&self) -> Option<String> {
        let (inner, hidden) = (self.num_heads * self.head_dim, self.hidden_size);
        let fits = inner.is_multiple_of(hidden);
        (!fits).then(|| format!("num_heads × head_dim = {inner} is no multiple of hidden_size = {hidden}"))
    }
}
