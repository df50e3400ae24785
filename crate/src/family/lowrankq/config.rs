//! The shape of a low-rank-Q transformer, and the tensors that it calls for.

use super::super::group::Group;
use super::super::setting::check_sizes;
use super::super::site::{Fed, Residual, Site};
use super::super::source::{fields, kept};
use super::super::{Config as AnyConfig, Ends, Family, Init, Parts, Sizes, Stack, TensorSpec};
use super::group::RANK;
use crate::error::{Error, Result};
use crate::layer::attention;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The shape of a low-rank-Q transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// How many times the stream passes each block before the next, by the same weights (layer sharing).
    #[serde(skip_serializing_if = "is_one")]
    pub iterations: usize,
    /// Width of the residual stream.
    pub model_dim: usize,
    /// Query heads H, of `model_dim` / H values each.
    pub num_heads: usize,
    /// Key heads KV.
    pub num_kv_heads: usize,
    /// Width of a feed-forward layer.
    pub mlp_hidden: usize,
    /// Rank of the projection of queries.
    pub q_rank: Rank,
    /// Buckets of the hash of token pairs; 0: there is none.
    pub bigram_vocab_size: usize,
    /// Width of its table.
    pub bigram_dim: usize,
    /// Each token is mixed with the one before it at the entry.
    pub smear_gate: bool,
    /// Head and embedding are one matrix.
    pub tie_embeddings: bool,
    /// Logits are c · tanh(x / c); 0: as they are.
    pub logit_softcap: f64,
    /// Base of the rotary positions.
    pub rope_base: f64,
    /// Tokens of the sequences of its training.
    pub train_seq_len: usize,
    /// Tokens of the longest sequence. Where they are more than those of training, the base is
    /// `rope_base` · (this / `train_seq_len`)^(D / (D − 2)).
    pub max_position_embeddings: usize,
    /// ε of every norm.
    pub norm_eps: f64,
}

/// The rank of the projections of queries: 0 is one matrix of full rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Rank {
    /// The same in all layers.
    All(usize),
    /// Of each layer.
    Layers(Vec<usize>),
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

impl Rank {
    /// That of a layer.
    pub fn of(&self, layer: usize) -> usize {
        match self {
            Self::All(rank) => *rank,
            Self::Layers(ranks) => ranks.get(layer).copied().unwrap_or(0),
        }
    }

    /// Of all layers, in the shortest form.
    pub fn of_layers(ranks: Vec<usize>) -> Self {
        match ranks.as_slice() {
            [first, others @ ..] if others.iter().all(|rank| rank == first) => Self::All(*first),
            _ => Self::Layers(ranks),
        }
    }
}

/// A byte-level model of 1.5 M parameters.
impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 256,
            num_layers: 6,
            iterations: 1,
            model_dim: 192,
            num_heads: 6,
            num_kv_heads: 3,
            mlp_hidden: 576,
            q_rank: Rank::All(48),
            bigram_vocab_size: 2048,
            bigram_dim: 48,
            smear_gate: true,
            tie_embeddings: true,
            logit_softcap: 30.0,
            rope_base: 10_000.0,
            train_seq_len: 1024,
            max_position_embeddings: 1024,
            norm_eps: f64::from(f32::EPSILON),
        }
    }
}

impl Config {
    pub(super) fn attention(&self) -> attention::Sizes {
        attention::Sizes {
            heads: self.num_heads,
            shared: self.num_kv_heads,
            dim: self.model_dim / self.num_heads.max(1),
            longest: self.max_position_embeddings,
        }
    }

    /// Blocks that hand a copy of their stream to one of the second half.
    pub(super) fn skips(&self) -> usize {
        self.num_layers / 2
    }

    /// Radians a position [D/2]. Queries and keys are turned the other way than in Llama-type models.
    pub(super) fn frequencies(&self) -> Vec<f32> {
        let dim = (self.model_dim / self.num_heads.max(1)) as f64;
        let beyond = self.max_position_embeddings as f64 / self.train_seq_len.max(1) as f64;
        let base = match beyond > 1.0 {
            true => self.rope_base * beyond.powf(dim / (dim - 2.0)),
            false => self.rope_base,
        };
        (0..dim as usize / 2).map(|c| -base.powf(-2.0 * c as f64 / dim) as f32).collect()
    }

    /// The matrices of a block in the order in which they are used: path within the block, role, rows, columns.
    fn matrices(&self, layer: usize) -> Vec<(&'static str, &'static str, usize, usize)> {
        let (hidden, inner) = (self.model_dim, self.mlp_hidden);
        let keys = self.num_kv_heads * self.attention().dim;
        let mut all = match self.q_rank.of(layer) {
            0 => vec![("attn.c_q", "c_q", hidden, hidden)],
            rank => {
                vec![("attn.c_q_down", "c_q_down", rank, hidden), ("attn.c_q_up", "c_q_up", hidden, rank)]
            }
        };
        all.extend([
            ("attn.c_k", "c_k", keys, hidden),
            ("attn.c_v", "c_v", keys, hidden),
            ("attn.proj", "attn_proj", hidden, hidden),
            ("mlp.fc", "mlp_fc", inner, hidden),
            ("mlp.proj", "mlp_proj", hidden, inner),
        ]);
        all
    }
}

impl Family for Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("num_layers", self.num_layers),
            ("iterations", self.iterations),
            ("model_dim", self.model_dim),
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("mlp_hidden", self.mlp_hidden),
            ("train_seq_len", self.train_seq_len),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        let (hidden, heads, shared) = (self.model_dim, self.num_heads, self.num_kv_heads);
        if !hidden.is_multiple_of(heads) {
            return Err(Error::input(format!("num_heads = {heads} does not divide model_dim = {hidden}")));
        }
        if !heads.is_multiple_of(shared) {
            return Err(Error::input(format!("num_kv_heads = {shared} does not divide num_heads = {heads}")));
        }
        let dim = hidden / heads;
        if !dim.is_multiple_of(2) || dim < 4 {
            let what = format!("heads have {dim} values: rotary positions turn pairs, two at least");
            return Err(Error::input(what));
        }
        if let Rank::Layers(ranks) = &self.q_rank
            && ranks.len() != self.num_layers
        {
            let (found, expected) = (ranks.len(), self.num_layers);
            return Err(Error::input(format!("q_rank has {found} ranks for {expected} layers")));
        }
        if self.bigram_vocab_size > 0 {
            check_sizes(&[("bigram_vocab_size", self.bigram_vocab_size), ("bigram_dim", self.bigram_dim)])?;
        }
        for (name, value) in [("rope_base", self.rope_base), ("norm_eps", self.norm_eps)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::input(format!("{name} must be a positive number, found {value}")));
            }
        }
        if !(self.logit_softcap.is_finite() && self.logit_softcap >= 0.0) {
            let cap = self.logit_softcap;
            return Err(Error::input(format!("logit_softcap must be 0 or a positive number, found {cap}")));
        }
        Ok(())
    }

    /// With the initialization of the scripts, but for the bigram table, which starts small and not at zero.
    fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, mut specs) = (self.model_dim, vec![]);
        let mut add = |name: String, shape: &[usize], init: Init, matrix: bool| {
            specs.push(TensorSpec { name, shape: shape.to_vec(), init, matrix });
        };
        add("tok_emb.weight".into(), &[self.vocab_size, hidden], Init::Normal(0.005), true);
        if self.bigram_vocab_size > 0 {
            let shape = [self.bigram_vocab_size, self.bigram_dim];
            add("bigram.embed.weight".into(), &shape, Init::Normal(0.02), true);
            if self.bigram_dim != hidden {
                let init = Init::Uniform((self.bigram_dim as f32).sqrt().recip());
                add("bigram.proj.weight".into(), &[hidden, self.bigram_dim], init, true);
            }
            add("bigram.scale".into(), &[], Init::Constant(0.05), false);
        }
        if self.smear_gate {
            add("smear.gate".into(), &[hidden], Init::Constant(0.0), false);
        }
        if self.skips() > 0 {
            add("skip_weights".into(), &[self.skips(), hidden], Init::Constant(1.0), false);
        }
        for i in 0..self.num_layers {
            let at = |name: &str| format!("blocks.{i}.{name}");
            for (path, _, rows, cols) in self.matrices(i) {
                let init = match path.ends_with(".proj") {
                    true => Init::Constant(0.0),
                    false => Init::Uniform((cols as f32).sqrt().recip()),
                };
                add(at(&format!("{path}.weight")), &[rows, cols], init, true);
            }
            add(at("attn.q_gain"), &[self.num_heads], Init::Constant(1.5), false);
            add(at("attn_scale"), &[hidden], Init::Constant(1.0), false);
            add(at("mlp_scale"), &[hidden], Init::Constant(1.0), false);
            add(at("resid_mix"), &[2, hidden], Init::Rows([1.0, 0.0]), false);
        }
        if !self.tie_embeddings {
            add("lm_head.weight".into(), &[self.vocab_size, hidden], Init::Constant(0.0), true);
        }
        specs
    }

    fn sites(&self) -> Vec<Site> {
        let (sizes, mut sites) = (self.attention(), vec![]);
        for i in 0..self.num_layers {
            for (path, role, rows, cols) in self.matrices(i) {
                let fed = |path: &str, head: usize, shared: usize| {
                    Some(Fed { path: format!("blocks.{i}.{path}"), head, shared, first: 0 })
                };
                let fed = match role {
                    "c_q_up" => fed("attn.c_q_down", cols, 1),
                    "attn_proj" => fed("attn.c_v", sizes.dim, sizes.heads / sizes.shared.max(1)),
                    _ => None,
                };
                // Channels of the stream are weighed one by one between blocks: no rotation passes.
                let site = Site::new(format!("blocks.{i}.{path}"), (rows, cols), role, Residual::Apart);
                sites.push(Site { layer: Some(i), fed, ..site });
            }
        }
        if self.bigram_vocab_size > 0 {
            let site = |path: &str, sizes, role| Site::new(path.to_string(), sizes, role, Residual::Ends);
            let table = (self.bigram_vocab_size, self.bigram_dim);
            sites.push(Site { roles: vec!["bigram", "embedding"], ..site("bigram.embed", table, "bigram") });
            if self.bigram_dim != self.model_dim {
                sites.push(site("bigram.proj", (self.model_dim, self.bigram_dim), "bigram_proj"));
            }
        }
        sites.extend(Site::of_ends(self.ends(), Family::sizes(self), self.tie_embeddings));
        sites
    }

    fn stack(&self, parts: &Parts<'_>) -> candle_core::Result<Stack> {
        super::stack(self, parts)
    }

    fn ends(&self) -> Ends {
        Ends { embedding: "tok_emb", blocks: "blocks.", norm: None, head: "lm_head" }
    }

    fn sizes(&self) -> Sizes {
        Sizes { vocabulary: self.vocab_size, layers: self.num_layers, hidden: self.model_dim }
    }

    fn longest(&self) -> Option<usize> {
        Some(self.max_position_embeddings)
    }

    fn tied(&self) -> bool {
        self.tie_embeddings
    }

    fn untie(&mut self) {
        self.tie_embeddings = false;
    }

    fn groups(&self, layer: usize) -> Vec<Group> {
        self.groups_of(layer)
    }

    // Each layer has a rank of its own.
    fn is_even(&self, setting: &str) -> bool {
        setting != RANK
    }

    fn without(&self, left_out: &[&Group]) -> Option<AnyConfig> {
        Some(AnyConfig::LowrankQ(self.without_groups(left_out)))
    }

    fn hugging_face(&self, source: Option<&Value>) -> Result<Map<String, Value>> {
        let mut all = kept(source, "lowrank_q", self.vocab_size);
        let own = fields(self)?;
        all.extend(own);
        all.insert("model_type".into(), json!("lowrank_q"));
        // As the scripts name it: of a width that it does not give, `mlp_hidden` decides.
        all.insert("mlp_mult".into(), json!(self.mlp_hidden as f64 / self.model_dim as f64));
        Ok(all)
    }
}
