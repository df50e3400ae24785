//! The shape of a Mamba2, and the tensors that it calls for.

use super::super::Config as AnyConfig;
use super::super::group::Group;
use super::super::setting::check_sizes;
use super::super::site::{Residual, Segment, Site};
use super::super::{Ends, Family, Init, Parts, Sizes, Stack, TensorSpec};
use crate::error::{Error, Result};
use crate::json;
use crate::layer::mamba2 as mixer;
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
    #[serde(with = "limit")]
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

/// JSON and YAML have no infinity: it is written as null, and read in every spelling that is found in the wild.
mod limit {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(limit: &(f64, f64), out: S) -> Result<S::Ok, S::Error> {
        [limit.0, limit.1].map(|x| x.is_finite().then_some(x)).serialize(out)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<(f64, f64), D::Error> {
        let value = serde_json::Value::deserialize(from)?;
        super::time_step_limit(&value).ok_or_else(|| {
            serde::de::Error::custom(format!("time_step_limit must be a pair of numbers, found {value}"))
        })
    }
}

/// A pair of numbers, where the second may be infinite: `null`, or a spelling that [`json::float`] reads.
pub(super) fn time_step_limit(value: &Value) -> Option<(f64, f64)> {
    let number = |value: &Value, null: f64| if value.is_null() { Some(null) } else { json::float(value) };
    match value {
        Value::Null => Some((0.0, f64::INFINITY)),
        Value::Array(pair) if pair.len() == 2 => {
            Some((number(&pair[0], 0.0)?, number(&pair[1], f64::INFINITY)?))
        }
        _ => None,
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

    /// The sizes of a mixer.
    pub(super) fn mixer(&self) -> mixer::Sizes {
        mixer::Sizes {
            heads: self.num_heads,
            head_dim: self.head_dim,
            groups: self.n_groups,
            state: self.state_size,
            conv_width: self.conv_kernel,
            eps: self.layer_norm_epsilon as f32,
            dt_limit: (self.time_step_limit.0 as f32, self.time_step_limit.1 as f32),
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
        if !self.num_heads.is_multiple_of(self.n_groups) {
            let (groups, heads) = (self.n_groups, self.num_heads);
            return Err(Error::input(format!("n_groups = {groups} does not divide num_heads = {heads}")));
        }
        let (low, high) = self.time_step_limit;
        if low.is_nan() || high.is_nan() || low > high {
            return Err(Error::input(format!("time_step_limit must be a range, found [{low}, {high}]")));
        }
        Ok(())
    }

    fn sites(&self) -> Vec<Site> {
        let (s, hidden) = (self.mixer(), self.hidden_size);
        let shared = s.groups * s.state;
        let parts = [("z", s.inner()), ("x", s.inner()), ("B", shared), ("C", shared), ("dt", s.heads)];
        let mut sites = vec![];
        for i in 0..self.num_hidden_layers {
            let at = |name: &str| format!("backbone.layers.{i}.{name}");
            sites.push(Site {
                layer: Some(i),
                segments: parts.map(|(name, rows)| Segment { name, rows }).to_vec(),
                norm: Some(at("norm.weight")),
                ..Site::new(at("mixer.in_proj"), (s.rows(), hidden), "in_proj", Residual::Reads)
            });
            sites.push(Site {
                layer: Some(i),
                norm: Some(at("mixer.norm.weight")),
                ..Site::new(at("mixer.out_proj"), (hidden, s.inner()), "out_proj", Residual::Writes)
            });
        }
        sites.extend(Site::of_ends(self.ends(), Family::sizes(self), self.tie_word_embeddings));
        sites
    }

    /// With the initialization of the reference implementation.
    fn tensors(&self) -> Vec<TensorSpec> {
        let s = self.mixer();
        let (hidden, heads, inner, channels) = (self.hidden_size, s.heads, s.inner(), s.channels());
        let mut specs = vec![];
        let mut add = |name: String, shape: &[usize], init: Init, matrix: bool| {
            specs.push(TensorSpec { name, shape: shape.to_vec(), init, matrix });
        };
        // Each block adds one branch to the residual stream: its last matrix starts smaller by √layers (GPT-2).
        let linear = |inputs: usize| Init::Uniform((inputs as f32).sqrt().recip());
        let out = Init::Uniform(((inner * self.num_hidden_layers) as f32).sqrt().recip());
        let conv = Init::Uniform((self.conv_kernel as f32).sqrt().recip());
        add("backbone.embeddings.weight".into(), &[self.vocab_size, hidden], Init::Normal(0.02), true);
        for i in 0..self.num_hidden_layers {
            let at = |name: &str| format!("backbone.layers.{i}.{name}");
            add(at("norm.weight"), &[hidden], Init::Constant(1.0), false);
            add(at("mixer.in_proj.weight"), &[s.rows(), hidden], linear(hidden), true);
            if self.use_bias {
                add(at("mixer.in_proj.bias"), &[s.rows()], Init::Constant(0.0), false);
            }
            add(at("mixer.conv1d.weight"), &[channels, 1, self.conv_kernel], conv, false);
            if self.use_conv_bias {
                add(at("mixer.conv1d.bias"), &[channels], conv, false);
            }
            add(at("mixer.dt_bias"), &[heads], Init::InverseSoftplus(0.001, 0.1), false);
            add(at("mixer.A_log"), &[heads], Init::LogUniform(1.0, 16.0), false);
            add(at("mixer.D"), &[heads], Init::Constant(1.0), false);
            add(at("mixer.norm.weight"), &[inner], Init::Constant(1.0), false);
            add(at("mixer.out_proj.weight"), &[hidden, inner], out, true);
            if self.use_bias {
                add(at("mixer.out_proj.bias"), &[hidden], Init::Constant(0.0), false);
            }
        }
        add("backbone.norm_f.weight".into(), &[hidden], Init::Constant(1.0), false);
        if !self.tie_word_embeddings {
            add("lm_head.weight".into(), &[self.vocab_size, hidden], Init::Normal(0.02), true);
        }
        specs
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

    fn groups(&self) -> Vec<Group> {
        self.all_groups()
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
