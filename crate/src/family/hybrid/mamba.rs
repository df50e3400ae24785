//! The settings of Mamba2's mixer in a hybrid.

use super::super::Shapes;
use super::super::mixer::{self, Mixer, check_limit, dt_limit, stated_limit};
use super::super::setting::{check_sizes, dims, find, flag, size};
use super::Reading;
use crate::error::{Error, Result};
use crate::json;
use crate::layer::mamba2::{End, Sizes};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The settings of the mixer, by the names that most hybrids have for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mamba {
    /// Heads H.
    pub mamba_n_heads: usize,
    /// Values per head P.
    pub mamba_d_head: usize,
    /// Groups G that share B and C.
    pub mamba_n_groups: usize,
    /// State size N.
    pub mamba_d_state: usize,
    /// Conv taps K.
    pub mamba_d_conv: usize,
    /// A bias on the convolution.
    pub mamba_conv_bias: bool,
    /// A bias on in_proj.
    pub mamba_proj_bias: bool,
    /// A bias on out_proj.
    pub mamba_out_bias: bool,
    /// Range that Δ is clamped to; `null` is infinity.
    #[serde(with = "mixer::limit")]
    pub time_step_limit: (f64, f64),
}

impl Default for Mamba {
    fn default() -> Self {
        Self {
            mamba_n_heads: 8,
            mamba_d_head: 64,
            mamba_n_groups: 1,
            mamba_d_state: 64,
            mamba_d_conv: 4,
            mamba_conv_bias: true,
            mamba_proj_bias: false,
            mamba_out_bias: false,
            time_step_limit: (0.0, f64::INFINITY),
        }
    }
}

/// Where a family's `config.json` states the settings: the first place is where they are written.
#[derive(Clone, Copy)]
pub(in crate::family) struct Keys {
    pub heads: &'static [&'static str],
    pub head: &'static [&'static str],
    pub groups: &'static [&'static str],
    pub state: &'static [&'static str],
    pub taps: &'static [&'static str],
    pub conv_bias: &'static [&'static str],
    pub bias: &'static [&'static str],
    pub limit: &'static [&'static str],
}

/// Those of most families.
pub(in crate::family) const SHORT: Keys = Keys {
    heads: &["/mamba_n_heads"],
    head: &["/mamba_d_head"],
    groups: &["/mamba_n_groups"],
    state: &["/mamba_d_state"],
    taps: &["/mamba_d_conv"],
    conv_bias: &["/mamba_conv_bias"],
    bias: &["/mamba_proj_bias"],
    limit: &["/time_step_limit"],
};

impl Mamba {
    /// What the shapes of a mixer whose names begin with `path` tell, with one group; nothing is known where there is none.
    pub(in crate::family) fn infer(shapes: &Shapes, path: Option<&str>, family: &str) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let dims = |name: &str, rank| dims(shapes, &format!("{path}.{name}"), rank, family);
        let has = |name: &str| shapes.contains_key(&format!("{path}.{name}"));
        let heads = dims("A_log", 1)?[0];
        let (inner, conv) = (dims("out_proj.weight", 2)?[1], dims("conv1d.weight", 3)?);
        if heads == 0 || inner % heads != 0 || conv[0] < inner {
            return Err(Error::input(format!(
                "{heads} heads (A_log), {inner} inner channels (out_proj) and {} conv channels do not fit together",
                conv[0]
            ))
            .at(path));
        }
        Ok(Self {
            mamba_n_heads: heads,
            mamba_d_head: inner / heads,
            mamba_n_groups: 1,
            mamba_d_state: (conv[0] - inner) / 2,
            mamba_d_conv: conv[2],
            mamba_conv_bias: has("conv1d.bias"),
            mamba_proj_bias: has("in_proj.bias"),
            mamba_out_bias: has("out_proj.bias"),
            time_step_limit: (0.0, f64::INFINITY),
        })
    }

    /// Takes what a `config.json` states. Where a bias on out_proj has a key of its own, that is the caller's.
    pub(in crate::family) fn read(&mut self, from: &mut Reading<'_>, keys: Keys) -> Result<()> {
        let (json, product) = (from.json, self.mamba_n_groups * self.mamba_d_state);
        size(json, keys.heads, &mut self.mamba_n_heads)?;
        if find(json, keys.head).is_none_or(|value| value != "auto") {
            size(json, keys.head, &mut self.mamba_d_head)?;
        }
        let [groups, state] = [keys.groups, keys.state].map(|key| find(json, key).is_some());
        size(json, keys.groups, &mut self.mamba_n_groups)?;
        size(json, keys.state, &mut self.mamba_d_state)?;
        // Shapes fix G·N only.
        match (groups, state) {
            (_, false) => self.mamba_d_state = product / self.mamba_n_groups,
            (false, true) if product.is_multiple_of(self.mamba_d_state) => {
                self.mamba_n_groups = product / self.mamba_d_state;
            }
            _ => {}
        }
        if !groups && !state {
            from.assumed.push(format!("{} = 1", &keys.groups[0][1..]));
        }
        size(json, keys.taps, &mut self.mamba_d_conv)?;
        flag(json, keys.conv_bias, &mut self.mamba_conv_bias)?;
        flag(json, keys.bias, &mut self.mamba_proj_bias)?;
        match find(json, keys.limit) {
            Some(value) => self.time_step_limit = stated_limit(value)?,
            None => from.assumed.push(format!("{} = [0, inf]", &keys.limit[0][1..])),
        }
        Ok(())
    }

    /// As a `config.json` states them, but for a bias on out_proj.
    pub(in crate::family) fn written(&self, keys: Keys) -> Map<String, Value> {
        let (low, high) = self.time_step_limit;
        let all = [
            (keys.heads, json!(self.mamba_n_heads)),
            (keys.head, json!(self.mamba_d_head)),
            (keys.groups, json!(self.mamba_n_groups)),
            (keys.state, json!(self.mamba_d_state)),
            (keys.taps, json!(self.mamba_d_conv)),
            (keys.conv_bias, json!(self.mamba_conv_bias)),
            (keys.bias, json!(self.mamba_proj_bias)),
            (keys.limit, json!([json::number(low), json::number(high)])),
        ];
        all.into_iter().map(|(key, value)| (key[0][1..].to_string(), value)).collect()
    }

    /// How many times as wide as the residual stream it is inside, as a number of JSON: whole if it can be.
    pub(in crate::family) fn expand(&self, hidden: usize) -> Value {
        match self.inner().is_multiple_of(hidden) {
            true => json!(self.inner() / hidden),
            false => json!(self.inner() as f64 / hidden as f64),
        }
    }

    /// Inner channels I.
    pub(in crate::family) fn inner(&self) -> usize {
        self.mamba_n_heads * self.mamba_d_head
    }

    /// Refuses sizes that no mixer can have.
    pub(in crate::family) fn check(&self, keys: Keys) -> Result<()> {
        let name = |key: &'static [&'static str]| &key[0][1..];
        check_sizes(&[
            (name(keys.head), self.mamba_d_head),
            (name(keys.state), self.mamba_d_state),
            (name(keys.taps), self.mamba_d_conv),
        ])?;
        check_limit(self.time_step_limit)?;
        self.mixer(1, 1.0, End::GateThenNorm).check_groups([name(keys.groups), name(keys.heads)])
    }

    /// The mixer.
    pub(in crate::family) fn mixer(&self, hidden: usize, eps: f64, end: End) -> Mixer {
        let sizes = Sizes {
            heads: self.mamba_n_heads,
            head_dim: self.mamba_d_head,
            groups: self.mamba_n_groups,
            state: self.mamba_d_state,
            conv_width: self.mamba_d_conv,
            eps: eps as f32,
            dt_limit: dt_limit(self.time_step_limit),
            end,
        };
        Mixer {
            hidden,
            sizes,
            in_bias: self.mamba_proj_bias,
            out_bias: self.mamba_out_bias,
            conv_bias: self.mamba_conv_bias,
            factors: None,
        }
    }
}
