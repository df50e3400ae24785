//! Attention in a hybrid: its settings, tensors, sites and branch.

use super::super::group::{Group, key_heads};
use super::super::llama::Rope;
use super::super::setting::{check_sizes, dims, find, flag, size};
use super::super::site::{Fed, Residual, Site};
use super::super::{Init, Parts, Shapes, TensorSpec};
use super::Reading;
use crate::error::{Error, Result};
use crate::layer::attention::{Attention, Rotary, Sizes};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The settings of attention, by the names of a Hugging Face `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heads {
    /// Query heads H.
    pub num_attention_heads: usize,
    /// Key heads KV.
    pub num_key_value_heads: usize,
    /// Values per head D.
    pub head_dim: usize,
    /// Biases on all four projections.
    pub attention_bias: bool,
}

impl Default for Heads {
    fn default() -> Self {
        Self { num_attention_heads: 4, num_key_value_heads: 2, head_dim: 64, attention_bias: false }
    }
}

/// Where attention is, and how wide what it reads.
#[derive(Clone, Copy)]
pub(in crate::family) struct Place<'a> {
    /// What the names of its parameters begin with.
    pub path: &'a str,
    /// Number of its block.
    pub layer: usize,
    /// Width of the residual stream.
    pub hidden: usize,
}

impl Heads {
    /// Takes what a `config.json` states; how wide a head is, the shapes of attention at `path` tell where it does not. Nothing is
    /// asked where there is no attention.
    pub(in crate::family) fn read(
        &mut self,
        from: &Reading<'_>,
        shapes: &Shapes,
        path: Option<&str>,
        width: &[&str],
    ) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let (json, mut heads) = (from.json, 0);
        size(json, &["/num_attention_heads"], &mut heads)?;
        if heads == 0 {
            return Err(Error::input("num_attention_heads is not stated, and no tensor's shape tells it"));
        }
        (self.num_attention_heads, self.num_key_value_heads) = (heads, heads);
        size(json, &["/num_key_value_heads"], &mut self.num_key_value_heads)?;
        let rows = dims(shapes, &format!("{path}.q_proj.weight"), 2, "hybrid")?[0];
        self.head_dim = (rows / heads).max(1);
        if find(json, width).is_some() {
            size(json, width, &mut self.head_dim)?;
        }
        self.attention_bias = shapes.contains_key(&format!("{path}.q_proj.bias"));
        flag(json, &["/attention_bias"], &mut self.attention_bias)
    }

    /// As a `config.json` states them.
    pub(in crate::family) fn written(&self) -> Map<String, Value> {
        let Self { num_attention_heads: heads, num_key_value_heads: shared, head_dim, attention_bias } = self;
        let all = json!({
            "num_attention_heads": heads, "num_key_value_heads": shared, "head_dim": head_dim,
            "attention_bias": attention_bias,
        });
        all.as_object().cloned().unwrap_or_default()
    }

    /// Refuses sizes that no attention has; `turned` values of each head are turned by positions.
    pub(in crate::family) fn check(&self, turned: Option<usize>) -> Result<()> {
        let (heads, shared) = (self.num_attention_heads, self.num_key_value_heads);
        check_sizes(&[
            ("num_attention_heads", heads),
            ("num_key_value_heads", shared),
            ("head_dim", self.head_dim),
        ])?;
        if !heads.is_multiple_of(shared) {
            let what =
                format!("num_key_value_heads = {shared} does not divide num_attention_heads = {heads}");
            return Err(Error::input(what));
        }
        match turned.filter(|turned| !turned.is_multiple_of(2) || *turned > self.head_dim) {
            Some(turned) => {
                let what =
                    format!("{turned} of head_dim = {} values cannot be turned in pairs", self.head_dim);
                Err(Error::input(what))
            }
            None => Ok(()),
        }
    }

    /// Its matrices: name, rows, columns.
    fn matrices(&self, hidden: usize) -> [(&'static str, usize, usize); 4] {
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        [("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)]
    }

    /// Its tensors, whose names begin with `path`; o_proj starts with the deviation `out`.
    pub(in crate::family) fn tensors(&self, path: &str, hidden: usize, out: f32) -> Vec<TensorSpec> {
        let of_matrix = |(name, rows, cols): (&str, usize, usize)| {
            let init = Init::Normal(if name == "o_proj" { out } else { 0.02 });
            super::super::spec::linear(&format!("{path}.{name}"), (rows, cols), init, self.attention_bias)
        };
        self.matrices(hidden).into_iter().flat_map(of_matrix).collect()
    }

    /// Its matrices; `norm` is the weight of the norm that they read.
    pub(in crate::family) fn sites(&self, at: Place<'_>, norm: &str) -> Vec<Site> {
        let of_matrix = |(name, rows, cols): (&'static str, usize, usize)| {
            let writes = name == "o_proj";
            let residual = if writes { Residual::Writes } else { Residual::Reads };
            let shared = self.num_attention_heads / self.num_key_value_heads.max(1);
            let fed = Fed { path: format!("{}.v_proj", at.path), head: self.head_dim, shared, first: 0 };
            Site {
                layer: Some(at.layer),
                norm: (!writes).then(|| norm.to_string()),
                fed: writes.then_some(fed),
                ..Site::new(format!("{}.{name}", at.path), (rows, cols), name, residual)
            }
        };
        self.matrices(at.hidden).into_iter().map(of_matrix).collect()
    }

    /// Its key heads as parts of block `layer` that can be left out, each with the query heads that share it.
    pub(in crate::family) fn groups(&self, path: &str, layer: usize) -> Vec<Group> {
        let sizes = (self.num_attention_heads, self.num_key_value_heads, self.head_dim);
        key_heads(layer, path, sizes, self.attention_bias).collect()
    }

    /// What is left of it without so many key heads.
    pub(in crate::family) fn without(&self, key_heads: usize) -> Self {
        let each = self.num_attention_heads / self.num_key_value_heads.max(1);
        Self {
            num_attention_heads: self.num_attention_heads - each * key_heads,
            num_key_value_heads: self.num_key_value_heads - key_heads,
            ..self.clone()
        }
    }

    /// Rotary positions up to `longest`, by which the first `turned` values of each head are turned.
    pub(in crate::family) fn rotary(&self, rope: &Rope, turned: usize, longest: usize) -> Arc<Rotary> {
        let rotary = Rotary::new(rope.frequencies(turned), longest).within(self.head_dim);
        Arc::new(rotary.times(rope.attention_factor()))
    }

    /// The branch; without positions it reads any number of tokens.
    pub(in crate::family) fn branch(
        &self,
        parts: &Parts<'_>,
        path: &str,
        positions: Option<(Arc<Rotary>, usize)>,
    ) -> candle_core::Result<Attention> {
        let longest = positions.as_ref().map_or(usize::MAX, |(_, longest)| *longest);
        let sizes = Sizes {
            heads: self.num_attention_heads,
            shared: self.num_key_value_heads,
            dim: self.head_dim,
            longest,
        };
        let [q, k, v, o] = ["q_proj", "k_proj", "v_proj", "o_proj"]
            .map(|name| parts.linear(&format!("{path}.{name}"), self.attention_bias));
        Ok(Attention::new(sizes, [q?, k?, v?, o?], positions.map(|(rotary, _)| rotary)))
    }
}
