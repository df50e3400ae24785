//! What a checkpoint tells of its config: by the names and shapes of its tensors, and in `config.json` if there is one.

use super::super::setting::{NO_HEAD, before_blocks, dims, find, flag, layers, number, size};
use super::super::{Family, Shapes, Stated};
use super::config::{Config, Rank};
use crate::error::{Error, Result};
use serde_json::Value;

/// What stands before the names of the scripts: nothing, with whatever a program put in front.
pub(super) fn before_body(name: &str) -> Option<&str> {
    before_blocks(name, "blocks", ".resid_mix")
}

/// The name of a tensor, which is the scripts' own.
pub(super) fn name_in_body(name: &str) -> Option<String> {
    let starts = ["blocks.", "tok_emb.", "bigram.", "smear.", "skip_weights"];
    // The frequencies are computed.
    let of_body = starts.iter().any(|start| name.starts_with(start)) && !name.ends_with(".inv_freq");
    of_body.then(|| name.to_string())
}

const TIED: &[&str] = &["/tie_embeddings", "/tie_word_embeddings"];
const LONGEST: &[&str] = &["/max_position_embeddings"];

impl Config {
    /// Whether tensors of these names are such a transformer.
    pub(super) fn recognizes(shapes: &Shapes) -> bool {
        ["attn.q_gain", "attn.c_k.weight", "mlp.fc.weight", "resid_mix"]
            .iter()
            .all(|name| shapes.contains_key(&format!("blocks.0.{name}")))
    }

    /// Whether head and embedding are said to be one matrix.
    pub(super) fn states_tied(json: &Value) -> Option<bool> {
        find(json, TIED)?.as_bool()
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`]. The scripts save no config: what shapes do not tell
    /// is what their defaults are.
    pub(super) fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        let (mut config, mut assumed) = (Self::infer(shapes)?, vec![]);
        let empty = Value::Object(Default::default());
        let (json, file) = stated.map_or((&empty, ""), |Stated { file, json }| (json, file.as_str()));
        config
            .read(json, &mut assumed)
            .map_err(|error| if file.is_empty() { error } else { error.at(file) })?;
        if find(json, TIED).is_none() && config.tie_embeddings {
            assumed.push(NO_HEAD.to_string());
        }
        config.check().map_err(|error| if file.is_empty() { error } else { error.at(file) })?;
        Ok((config, assumed))
    }

    /// Everything that shapes tell.
    fn infer(shapes: &Shapes) -> Result<Self> {
        let dims = |name: &str, rank: usize| dims(shapes, name, rank, "low-rank-Q transformer");
        let embedding = dims("tok_emb.weight", 2)?;
        let heads = dims("blocks.0.attn.q_gain", 1)?[0];
        let head = embedding[1] / heads.max(1);
        let num_layers = layers(shapes.keys(), "blocks.")?;
        let rank = |i: usize| {
            let down = shapes.get(&format!("blocks.{i}.attn.c_q_down.weight"));
            down.and_then(|shape| shape.first()).copied().unwrap_or(0)
        };
        let table = shapes.get("bigram.embed.weight").filter(|shape| shape.len() == 2);
        Ok(Self {
            vocab_size: embedding[0],
            num_layers,
            model_dim: embedding[1],
            num_heads: heads,
            num_kv_heads: dims("blocks.0.attn.c_k.weight", 2)?[0] / head.max(1),
            mlp_hidden: dims("blocks.0.mlp.fc.weight", 2)?[0],
            q_rank: Rank::of_layers((0..num_layers).map(rank).collect()),
            bigram_vocab_size: table.map_or(0, |shape| shape[0]),
            bigram_dim: table.map_or(0, |shape| shape[1]),
            smear_gate: shapes.contains_key("smear.gate"),
            tie_embeddings: !shapes.contains_key("lm_head.weight"),
            ..Self::default()
        })
    }

    /// Takes what a config states, and the scripts' defaults where it does not; what contradicts the shapes is refused when
    /// they are held to it.
    fn read(&mut self, json: &Value, assumed: &mut Vec<String>) -> Result<()> {
        for (key, to) in [
            ("/vocab_size", &mut self.vocab_size),
            ("/num_layers", &mut self.num_layers),
            ("/iterations", &mut self.iterations),
            ("/model_dim", &mut self.model_dim),
            ("/num_heads", &mut self.num_heads),
            ("/num_kv_heads", &mut self.num_kv_heads),
        ] {
            size(json, &[key], to)?;
        }
        let mut mult = self.mlp_hidden as f64 / self.model_dim.max(1) as f64;
        if find(json, &["/mlp_mult"]).is_some() {
            number(json, &["/mlp_mult"], &mut mult)?;
            self.mlp_hidden = (mult * self.model_dim as f64) as usize;
        }
        size(json, &["/mlp_hidden"], &mut self.mlp_hidden)?;
        if let Some(rank) = find(json, &["/q_rank"]) {
            self.q_rank = serde_json::from_value(rank.clone()).map_err(|_| {
                Error::input(format!("q_rank must be a number or a list of one for each layer, found {rank}"))
            })?;
            if let Rank::Layers(ranks) = &self.q_rank
                && ranks.len() == self.num_layers
            {
                self.q_rank = Rank::of_layers(ranks.clone());
            }
        }
        if find(json, &["/bigram_vocab_size"]).is_some_and(|buckets| *buckets != 0) {
            size(json, &["/bigram_vocab_size"], &mut self.bigram_vocab_size)?;
            size(json, &["/bigram_dim"], &mut self.bigram_dim)?;
        }
        flag(json, &["/smear_gate"], &mut self.smear_gate)?;
        flag(json, TIED, &mut self.tie_embeddings)?;
        for (key, to) in [
            ("logit_softcap", &mut self.logit_softcap),
            ("rope_base", &mut self.rope_base),
            ("norm_eps", &mut self.norm_eps),
        ] {
            let place = format!("/{key}");
            if find(json, &[&place]).is_none() {
                assumed.push(format!("{key} = {to}"));
            }
            number(json, &[&place], to)?;
        }
        if find(json, &["/train_seq_len"]).is_none() {
            assumed.push(format!("train_seq_len = {}", self.train_seq_len));
        }
        size(json, &["/train_seq_len"], &mut self.train_seq_len)?;
        if find(json, LONGEST).is_none() {
            assumed.push(format!("max_position_embeddings = {} (train_seq_len)", self.train_seq_len));
        }
        self.max_position_embeddings = self.train_seq_len;
        size(json, LONGEST, &mut self.max_position_embeddings)
    }
}
