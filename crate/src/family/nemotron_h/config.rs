//! The shape of a Nemotron-H, and the tensors that it calls for.

use super::super::group::Group;
use super::super::hybrid::{self, Feed, Heads, Keys, Matrix, Place, check_factors, check_positive};
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

/// The shape of a Nemotron-H. Field names are those of a Hugging Face `config.json`, those of the two mixers and of experts in groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// What each layer is, as a letter: `M`, `*`, `-` or `E`.
    #[serde(with = "pattern")]
    pub hybrid_override_pattern: Vec<Layer>,
    /// Mamba2's mixer.
    pub mamba: hybrid::Mamba,
    /// Attention.
    pub heads: Heads,
    /// Width of a feed-forward layer.
    pub intermediate_size: usize,
    /// Biases on feed-forward layers and experts.
    pub mlp_bias: bool,
    /// Routed experts, where a layer has any.
    pub experts: Experts,
    /// ε of every norm.
    pub layer_norm_epsilon: f64,
    /// Head and embedding are one matrix.
    pub tie_word_embeddings: bool,
}

/// Routed experts, and the one that all tokens see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Experts {
    /// How many are routed.
    pub n_routed_experts: usize,
    /// Experts that see a token.
    pub num_experts_per_tok: usize,
    /// Groups of experts.
    pub n_group: usize,
    /// Groups that a token's experts are of.
    pub topk_group: usize,
    /// Whether the weights of a token add to 1 before the factor.
    pub norm_topk_prob: bool,
    /// A factor on all weights.
    pub routed_scaling_factor: f64,
    /// Width of an expert.
    pub moe_intermediate_size: usize,
    /// Width of the shared one.
    pub moe_shared_expert_intermediate_size: usize,
}

impl Default for Experts {
    fn default() -> Self {
        Self {
            n_routed_experts: 4,
            num_experts_per_tok: 2,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
            moe_intermediate_size: 128,
            moe_shared_expert_intermediate_size: 256,
        }
    }
}

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A mixer of Mamba2, `M`.
    Mamba,
    /// Attention, `*`.
    Attention,
    /// A feed-forward layer, `-`.
    Mlp,
    /// Experts, `E`.
    Moe,
}

impl Layer {
    /// By its letter in a pattern.
    pub(super) fn of_letter(letter: char) -> Option<Self> {
        [Self::Mamba, Self::Attention, Self::Mlp, Self::Moe]
            .into_iter()
            .find(|layer| layer.letter() == letter)
    }

    fn letter(self) -> char {
        match self {
            Self::Mamba => 'M',
            Self::Attention => '*',
            Self::Mlp => '-',
            Self::Moe => 'E',
        }
    }
}

/// The letters of layers.
pub(super) fn letters(layers: &[Layer]) -> String {
    layers.iter().map(|layer| layer.letter()).collect()
}

/// A pattern of letters; an error if one is none.
pub(super) fn layers_of(pattern: &str) -> Result<Vec<Layer>> {
    let layer = |letter: char| {
        let what =
            || format!("hybrid_override_pattern has a layer {letter:?}, which this version does not have");
        let hint = "known are M (Mamba2), * (attention), - (feed-forward) and E (experts)";
        Layer::of_letter(letter).ok_or_else(|| Error::input(what()).hint(hint))
    };
    pattern.chars().map(layer).collect()
}

mod pattern {
    use super::{Layer, layers_of, letters};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(layers: &[Layer], out: S) -> Result<S::Ok, S::Error> {
        letters(layers).serialize(out)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Layer>, D::Error> {
        layers_of(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// Where its `config.json` states the settings of Mamba2's mixer.
pub(super) const KEYS: Keys = Keys {
    heads: &["/mamba_num_heads"],
    head: &["/mamba_head_dim"],
    groups: &["/n_groups", "/mamba_n_groups"],
    state: &["/ssm_state_size"],
    taps: &["/conv_kernel", "/mamba_d_conv"],
    conv_bias: &["/use_conv_bias", "/mamba_conv_bias"],
    bias: &["/use_bias"],
    limit: &["/time_step_limit", "/mamba_dt_limit"],
};

/// A byte-level model of 1.9 M parameters.
impl Default for Config {
    fn default() -> Self {
        use Layer::{Attention, Mamba, Mlp, Moe};
        Self {
            hidden_size: 256,
            vocab_size: 256,
            hybrid_override_pattern: vec![Mamba, Mlp, Attention, Moe, Mamba, Mlp],
            mamba: hybrid::Mamba::default(),
            heads: Heads::default(),
            intermediate_size: 512,
            mlp_bias: false,
            experts: Experts::default(),
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: false,
        }
    }
}

impl Config {
    /// What each layer is.
    pub(super) fn layers(&self) -> &[Layer] {
        &self.hybrid_override_pattern
    }

    /// The mixer of Mamba2.
    pub(super) fn mixer(&self) -> Mixer {
        self.mamba.mixer(self.hidden_size, self.layer_norm_epsilon, End::GateThenNorm)
    }

    /// The matrices of a feed-forward layer, by their roles. Between them nothing is linear.
    pub(super) fn matrices(width: usize, [up, down]: [&'static str; 2]) -> [Matrix; 2] {
        [Matrix::reads("up_proj", width).called(up), Matrix::writes("down_proj", width, None).called(down)]
    }

    pub(super) fn feed<'a>(&self, path: &'a str, matrices: &'a [Matrix]) -> Feed<'a> {
        Feed { path, hidden: self.hidden_size, matrices, bias: self.mlp_bias }
    }

    /// The feed-forward layers of a layer of experts at `path`, in the order in which they are used after the router.
    pub(super) fn feeds(&self, path: &str) -> impl Iterator<Item = (String, [Matrix; 2], Option<usize>)> {
        let Experts { n_routed_experts, moe_intermediate_size, .. } = self.experts;
        let of_expert = Self::matrices(moe_intermediate_size, ["expert_up_proj", "expert_down_proj"]);
        let shared = self.experts.moe_shared_expert_intermediate_size;
        let shared = Self::matrices(shared, ["shared_up_proj", "shared_down_proj"]);
        let places: Vec<String> = (0..n_routed_experts).map(|e| format!("{path}.experts.{e}")).collect();
        let experts = places.into_iter().enumerate().map(move |(e, place)| (place, of_expert, Some(e)));
        experts.chain([(format!("{path}.shared_experts"), shared, None)])
    }
}

impl Family for Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("vocab_size", self.vocab_size),
            ("hybrid_override_pattern", self.layers().len()),
            ("intermediate_size", self.intermediate_size),
        ])?;
        self.mamba.check(KEYS)?;
        self.heads.check(None)?;
        check_positive(&[("layer_norm_epsilon", self.layer_norm_epsilon)])?;
        if !self.layers().contains(&Layer::Moe) {
            return Ok(());
        }
        let e = &self.experts;
        check_sizes(&[
            ("n_routed_experts", e.n_routed_experts),
            ("num_experts_per_tok", e.num_experts_per_tok),
            ("n_group", e.n_group),
            ("topk_group", e.topk_group),
            ("moe_intermediate_size", e.moe_intermediate_size),
            ("moe_shared_expert_intermediate_size", e.moe_shared_expert_intermediate_size),
        ])?;
        check_factors(&[("routed_scaling_factor", e.routed_scaling_factor)])?;
        let (all, groups, of_groups, k) =
            (e.n_routed_experts, e.n_group, e.topk_group, e.num_experts_per_tok);
        if !all.is_multiple_of(groups) || of_groups > groups {
            let what = format!(
                "n_group = {groups} and topk_group = {of_groups} do not fit n_routed_experts = {all}"
            );
            return Err(Error::input(what));
        }
        match k > all / groups * of_groups {
            true => {
                let most = all / groups * of_groups;
                let what =
                    format!("num_experts_per_tok = {k} is more than the {most} experts of topk_group groups");
                Err(Error::input(what))
            }
            false => Ok(()),
        }
    }

    /// With the initialization of GPT-2: what writes to the residual stream starts smaller by √layers.
    fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, writers, normal) = (self.hidden_size, self.layers().len(), Init::Normal(0.02));
        let out = 0.02 / (writers as f32).sqrt();
        spec::network(self, |i| {
            let path = format!("backbone.layers.{i}.mixer");
            let mut specs = vec![spec::norm(&format!("backbone.layers.{i}.norm"), hidden)];
            match self.layers()[i] {
                Layer::Mamba => specs.extend(self.mixer().tensors(&path, writers)),
                Layer::Attention => specs.extend(self.heads.tensors(&path, hidden, out)),
                Layer::Mlp => {
                    let matrices = Self::matrices(self.intermediate_size, super::NAMES);
                    specs.extend(self.feed(&path, &matrices).tensors(out));
                }
                Layer::Moe => {
                    let count = self.experts.n_routed_experts;
                    specs.extend(spec::linear(&format!("{path}.gate"), (count, hidden), normal, false));
                    specs.push(TensorSpec {
                        name: format!("{path}.gate.e_score_correction_bias"),
                        shape: vec![count],
                        init: Init::Constant(0.0),
                        matrix: false,
                    });
                    for (place, matrices, _) in self.feeds(&path) {
                        specs.extend(self.feed(&place, &matrices).tensors(out));
                    }
                }
            }
            specs
        })
    }

    /// The router stays as it is unless a scheme names it: rounded, it would send tokens elsewhere.
    fn sites(&self) -> Vec<Site> {
        let hidden = self.hidden_size;
        Site::of_network(self, |i| {
            let mut sites = vec![];
            let path = format!("backbone.layers.{i}.mixer");
            let norm = format!("backbone.layers.{i}.norm.weight");
            match self.layers()[i] {
                Layer::Mamba => sites.extend(self.mixer().sites(&path, i, &norm)),
                Layer::Attention => {
                    sites.extend(self.heads.sites(Place { path: &path, layer: i, hidden }, &norm));
                }
                Layer::Mlp => {
                    let matrices = Self::matrices(self.intermediate_size, super::NAMES);
                    sites.extend(self.feed(&path, &matrices).sites(i, &norm, None, None));
                }
                Layer::Moe => {
                    let shape = (self.experts.n_routed_experts, hidden);
                    let site = Site::new(format!("{path}.gate"), shape, "router", Residual::Reads);
                    sites.push(Site { layer: Some(i), by_default: false, norm: Some(norm.clone()), ..site });
                    for (place, matrices, expert) in self.feeds(&path) {
                        let kind = if expert.is_some() { "expert" } else { "shared" };
                        sites.extend(self.feed(&place, &matrices).sites(i, &norm, Some(kind), expert));
                    }
                }
            }
            sites
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
        Sizes { vocabulary: self.vocab_size, layers: self.layers().len(), hidden: self.hidden_size }
    }

    fn groups(&self, layer: usize) -> Vec<Group> {
        self.groups_of(layer)
    }

    fn without(&self, left_out: &[&Group]) -> Option<AnyConfig> {
        Some(AnyConfig::NemotronH(self.without_groups(left_out)))
    }

    fn chosen_experts(&self) -> usize {
        if self.layers().contains(&Layer::Moe) { self.experts.num_experts_per_tok } else { 0 }
    }

    fn tied(&self) -> bool {
        self.tie_word_embeddings
    }

    fn untie(&mut self) {
        self.tie_word_embeddings = false;
    }

    fn hugging_face(&self, source: Option<&Value>) -> Result<Map<String, Value>> {
        let mut all = kept(source, "nemotron_h", self.vocab_size);
        let mut own = fields(self)?;
        for group in ["mamba", "heads"] {
            own.remove(group);
        }
        if let Some(Value::Object(experts)) = own.remove("experts")
            && self.layers().contains(&Layer::Moe)
        {
            all.extend(experts);
        }
        if !self.layers().contains(&Layer::Mlp) {
            own.remove("intermediate_size");
        }
        // The other spelling of the pattern, and what is no part of this model.
        for key in ["layers_block_type", "mtp_layers_block_type", "num_nextn_predict_layers"] {
            all.remove(key);
        }
        all.extend(own);
        all.extend(self.mamba.written(KEYS));
        all.extend(self.heads.written());
        let fixed = json!({
            "mamba_hidden_act": "silu",
            "mlp_hidden_act": "relu2",
            "n_shared_experts": 1,
            "num_hidden_layers": self.layers().len(),
        });
        all.extend(fields(&fixed)?);
        // Read by no part of the network, but it must be whole.
        let expand = (self.mamba.inner() / self.hidden_size).max(1);
        all.entry("expand").or_insert_with(|| json!(expand));
        read_by("NemotronHForCausalLM", "nemotron_h", &mut all);
        Ok(all)
    }

    fn foreign_to_transformers(&self) -> Option<String> {
        if self.mamba.time_step_limit != (0.0, f64::INFINITY) {
            return Some("it does not clamp time steps to time_step_limit".to_string());
        }
        if self.tie_word_embeddings {
            return Some("its head and embedding are never one matrix".to_string());
        }
        let differ = self.mamba.mamba_proj_bias != self.mamba.mamba_out_bias;
        let why = "a bias is on in_proj or out_proj, or on the projections of attention, alone";
        (differ || self.heads.attention_bias).then(|| why.to_string())
    }
}
