//! The shape of an Itera-Lite, and the tensors that it calls for.

use super::super::Config as AnyConfig;
use super::super::group::Group;
use super::super::setting::check_sizes;
use super::super::site::{Residual, Site};
use super::super::source::{fields, kept};
use super::super::{Ends, Family, Init, Parts, Sizes, Stack, TensorSpec};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The shape of an Itera-Lite. Field names are those of its own configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Values of the state N.
    pub ssm_state_size: usize,
    /// Conv taps K.
    pub ssm_conv_kernel: usize,
    /// Inner channels of the mixer, in times of `hidden_size`.
    pub ssm_expand_factor: usize,
    /// Experts of a layer that has any.
    pub num_experts: usize,
    /// Width of a feed-forward layer, of an expert too.
    pub expert_size: usize,
    /// Experts that see a token.
    pub top_k_experts: usize,
    /// Numbers of the layers that have experts.
    pub moe_layers: Vec<usize>,
    /// Weight of the loss of experts that are used unequally, in training.
    pub load_balance_loss_weight: f64,
    /// Rows of the table of positions: tokens of the longest sequence.
    pub max_seq_length: usize,
    /// ε of every norm.
    pub layer_norm_eps: f64,
    /// Head and embedding are one matrix.
    pub tie_word_embeddings: bool,
    /// The sizes of each layer, where they are not those above: of a model that was pruned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layer_sizes: Vec<Layer>,
}

/// The sizes of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Inner channels of its mixer.
    pub inner: usize,
    /// Widths of its experts; of the only feed-forward layer where it has none.
    pub widths: Vec<usize>,
}

/// The shape that was published, of 1.9 M parameters.
impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 8000,
            hidden_size: 128,
            num_layers: 4,
            ssm_state_size: 8,
            ssm_conv_kernel: 4,
            ssm_expand_factor: 2,
            num_experts: 4,
            expert_size: 64,
            top_k_experts: 2,
            moe_layers: vec![1, 3],
            load_balance_loss_weight: 0.01,
            max_seq_length: 128,
            layer_norm_eps: 1e-5,
            tie_word_embeddings: true,
            layer_sizes: vec![],
        }
    }
}

impl Config {
    /// Whether a layer has experts.
    pub(super) fn has_experts(&self, layer: usize) -> bool {
        self.moe_layers.contains(&layer)
    }

    /// The sizes of a layer.
    pub fn layer(&self, layer: usize) -> Layer {
        self.layer_sizes.get(layer).cloned().unwrap_or_else(|| self.usual_layer(layer))
    }

    /// Those of a layer that was not pruned.
    pub(super) fn usual_layer(&self, layer: usize) -> Layer {
        let count = if self.has_experts(layer) { self.num_experts } else { 1 };
        Layer { inner: self.ssm_expand_factor * self.hidden_size, widths: vec![self.expert_size; count] }
    }

    /// What the names in the feed-forward part of a layer begin with.
    pub(super) fn feed(&self, layer: usize) -> String {
        match self.has_experts(layer) {
            true => format!("layers.{layer}.moe.layer"),
            false => format!("layers.{layer}.moe.ffn"),
        }
    }

    /// What the name of the norm before it begins with.
    pub(super) fn feed_norm(&self, layer: usize) -> String {
        match self.has_experts(layer) {
            true => format!("layers.{layer}.moe.layer.norm"),
            false => format!("layers.{layer}.moe.norm"),
        }
    }

    /// The matrices of a layer in the order in which they are used: path, roles, rows, columns, and whether they read the norm of
    /// the mixer or of what follows it.
    fn matrices(&self, layer: usize) -> Vec<Matrix> {
        let (hidden, Layer { inner, widths }) = (self.hidden_size, self.layer(layer));
        let ssm = format!("layers.{layer}.ssm");
        let of_ssm = |name: &str, role, rows, cols, norm: bool| Matrix {
            path: format!("{ssm}.{name}"),
            roles: vec![role, "ssm"],
            rows,
            cols,
            norm: norm.then(|| format!("{ssm}.norm.weight")),
            expert: None,
        };
        let mut all = vec![
            of_ssm("in_proj", "in_proj", 2 * inner, hidden, true),
            of_ssm("ssm.delta_proj", "delta_proj", inner, inner, false),
            of_ssm("out_proj", "out_proj", hidden, inner, false),
        ];
        let (feed, norm) = (self.feed(layer), Some(format!("{}.weight", self.feed_norm(layer))));
        let experts = self.has_experts(layer);
        let [first, second, kind] =
            if experts { ["expert_w1", "expert_w2", "expert"] } else { ["ffn_w1", "ffn_w2", "ffn"] };
        let mut add = |path, roles, rows, cols, norm: Option<&String>, expert| {
            all.push(Matrix { path, roles, rows, cols, norm: norm.cloned(), expert });
        };
        if experts {
            add(format!("{feed}.router.gate"), vec!["router"], widths.len(), hidden, norm.as_ref(), None);
        }
        for (e, width) in widths.into_iter().enumerate() {
            let at = if experts { format!("{feed}.experts.{e}") } else { feed.clone() };
            let expert = experts.then_some(e);
            add(format!("{at}.w1"), vec![first, "w1", kind], width, hidden, norm.as_ref(), expert);
            add(format!("{at}.w2"), vec![second, "w2", kind], hidden, width, None, expert);
        }
        all
    }
}

/// A matrix of a layer.
struct Matrix {
    path: String,
    roles: Vec<&'static str>,
    rows: usize,
    cols: usize,
    /// The weight of the norm that it reads.
    norm: Option<String>,
    expert: Option<usize>,
}

impl Family for Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_layers", self.num_layers),
            ("ssm_state_size", self.ssm_state_size),
            ("ssm_conv_kernel", self.ssm_conv_kernel),
            ("ssm_expand_factor", self.ssm_expand_factor),
            ("expert_size", self.expert_size),
            ("max_seq_length", self.max_seq_length),
        ])?;
        if let Some(layer) = self.moe_layers.iter().find(|layer| **layer >= self.num_layers) {
            let what = format!("moe_layers has a layer {layer}, and num_layers is {}", self.num_layers);
            return Err(Error::input(what).hint("layers are numbered from 0"));
        }
        if !self.moe_layers.is_empty() {
            check_sizes(&[("num_experts", self.num_experts), ("top_k_experts", self.top_k_experts)])?;
            if self.top_k_experts > self.num_experts {
                let (k, experts) = (self.top_k_experts, self.num_experts);
                return Err(Error::input(format!(
                    "top_k_experts = {k} is more than num_experts = {experts}"
                )));
            }
        }
        if !self.layer_sizes.is_empty() && self.layer_sizes.len() != self.num_layers {
            let (found, layers) = (self.layer_sizes.len(), self.num_layers);
            return Err(Error::input(format!("layer_sizes has {found} entries for {layers} layers")));
        }
        for (i, Layer { inner, widths }) in self.layer_sizes.iter().enumerate() {
            let least = if self.has_experts(i) { self.top_k_experts } else { 1 };
            let most = if self.has_experts(i) { usize::MAX } else { 1 };
            if *inner == 0 || widths.contains(&0) || widths.len() < least || widths.len() > most {
                let what = format!(
                    "layer_sizes: layer {i} has {inner} inner channels and feed-forward widths {widths:?}"
                );
                return Err(Error::input(what).hint(
                    "a layer has channels, as many experts as a token sees or more, and none of width 0",
                ));
            }
        }
        for (name, value, positive) in [
            ("layer_norm_eps", self.layer_norm_eps, true),
            ("load_balance_loss_weight", self.load_balance_loss_weight, false),
        ] {
            if !value.is_finite() || value < 0.0 || (positive && value == 0.0) {
                return Err(Error::input(format!("{name} must be a positive number, found {value}")));
            }
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, n) = (self.hidden_size, self.ssm_state_size);
        let mut specs = vec![];
        let mut add = |name: String, shape: &[usize], init: Init, matrix: bool| {
            specs.push(TensorSpec { name, shape: shape.to_vec(), init, matrix });
        };
        let uniform = |inputs: usize| Init::Uniform((inputs as f32).sqrt().recip());
        add("embedding.weight".into(), &[self.vocab_size, hidden], Init::Normal(0.02), true);
        add("position_embedding.weight".into(), &[self.max_seq_length, hidden], Init::Normal(0.02), true);
        for i in 0..self.num_layers {
            let at = |name: &str| format!("layers.{i}.ssm.{name}");
            let inner = self.layer(i).inner;
            for Matrix { path, rows, cols, .. } in self.matrices(i) {
                // What is added to the stream starts smaller, by the number of branches that add (GPT-2).
                let adds = path.ends_with(".out_proj") || path.ends_with(".w2");
                let init = if adds { uniform(2 * self.num_layers * cols) } else { uniform(cols) };
                add(format!("{path}.weight"), &[rows, cols], init, true);
            }
            let conv = uniform(self.ssm_conv_kernel);
            add(at("conv1d.weight"), &[inner, 1, self.ssm_conv_kernel], conv, false);
            add(at("conv1d.bias"), &[inner], conv, false);
            add(at("ssm.A_log"), &[n], Init::LogUniform(1.0, 16.0), false);
            add(at("ssm.B"), &[n, inner], uniform(inner), false);
            add(at("ssm.C"), &[inner, n], uniform(n), false);
            add(at("ssm.D"), &[inner], Init::Constant(1.0), false);
            add(at("ssm.delta_proj.bias"), &[inner], Init::InverseSoftplus(0.001, 0.1), false);
            for norm in [at("norm"), self.feed_norm(i)] {
                add(format!("{norm}.weight"), &[hidden], Init::Constant(1.0), false);
                add(format!("{norm}.bias"), &[hidden], Init::Constant(0.0), false);
            }
        }
        add("norm.weight".into(), &[hidden], Init::Constant(1.0), false);
        add("norm.bias".into(), &[hidden], Init::Constant(0.0), false);
        if !self.tie_word_embeddings {
            add("lm_head.weight".into(), &[self.vocab_size, hidden], Init::Normal(0.02), true);
        }
        specs
    }

    /// The router stays as it is unless a scheme names it: rounded, it would send tokens elsewhere. No rotation passes a LayerNorm.
    fn sites(&self) -> Vec<Site> {
        let of_layer = |i: usize| {
            self.matrices(i).into_iter().map(move |Matrix { path, roles, rows, cols, norm, expert }| Site {
                expert,
                layer: Some(i),
                by_default: roles != ["router"],
                norm,
                ..Site { roles, ..Site::new(path, (rows, cols), "", Residual::Apart) }
            })
        };
        let mut sites: Vec<Site> = (0..self.num_layers).flat_map(of_layer).collect();
        let table = (self.max_seq_length, self.hidden_size);
        let positions = Site::new("position_embedding".to_string(), table, "positions", Residual::Ends);
        sites.push(Site { roles: vec!["positions", "embedding"], ..positions });
        sites.extend(Site::of_ends(self.ends(), Family::sizes(self), self.tie_word_embeddings));
        sites
    }

    fn stack(&self, parts: &Parts<'_>) -> candle_core::Result<Stack> {
        super::stack(self, parts)
    }

    fn ends(&self) -> Ends {
        Ends { embedding: "embedding", blocks: "layers.", norm: Some("norm"), head: "lm_head" }
    }

    fn sizes(&self) -> Sizes {
        Sizes { vocabulary: self.vocab_size, layers: self.num_layers, hidden: self.hidden_size }
    }

    fn longest(&self) -> Option<usize> {
        Some(self.max_seq_length)
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

    fn is_even(&self, _setting: &str) -> bool {
        false
    }

    fn without(&self, left_out: &[&Group]) -> Option<AnyConfig> {
        Some(AnyConfig::IteraLite(self.without_groups(left_out)))
    }

    fn chosen_experts(&self) -> usize {
        if self.moe_layers.is_empty() { 0 } else { self.top_k_experts }
    }

    fn hugging_face(&self, source: Option<&Value>) -> Result<Map<String, Value>> {
        let mut all = kept(source, "itera_lite", self.vocab_size);
        let own = fields(self)?;
        all.extend(own);
        all.insert("model_type".into(), json!("itera_lite"));
        Ok(all)
    }
}
