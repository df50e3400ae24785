//! Mamba2's mixer in a block of any family: its tensors, its sites, and the branch.

use super::group::{Group, Kind, Slice};
use super::setting::check_sizes;
use super::site::{Residual, Segment, Site};
use super::{Init, Parts, TensorSpec};
use crate::error::{Error, Result};
use crate::json;
use crate::layer::mamba2::{End, Mamba2, Parts as Small, Sizes};
use candle_core::{DType, Tensor};
use serde_json::Value;
use std::ops::Range;

/// The shape of a mixer, and what of it is optional.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixer {
    /// Width of the residual stream.
    pub hidden: usize,
    pub sizes: Sizes,
    pub in_bias: bool,
    pub out_bias: bool,
    pub conv_bias: bool,
    /// Constant factors on what in_proj gives for z, x, B, C and dt.
    pub factors: Option<[f64; 5]>,
}

impl Mixer {
    /// Refuses groups that heads cannot share, by the names of the two settings.
    pub fn check_groups(&self, names: [&str; 2]) -> Result<()> {
        let (groups, heads) = (self.sizes.groups, self.sizes.heads);
        check_sizes(&[(names[0], groups), (names[1], heads)])?;
        match heads.is_multiple_of(groups) {
            true => Ok(()),
            false => {
                Err(Error::input(format!("{} = {groups} does not divide {} = {heads}", names[0], names[1])))
            }
        }
    }

    /// Its tensors, whose names begin with `path` and a dot, with the initialization of the reference implementation; its last
    /// matrix is one of `writers` that add to the residual stream, and starts smaller by their root (GPT-2).
    pub fn tensors(&self, path: &str, writers: usize) -> Vec<TensorSpec> {
        let s = self.sizes;
        let (hidden, heads, inner, channels) = (self.hidden, s.heads, s.inner(), s.channels());
        let uniform = |inputs: usize| Init::Uniform((inputs as f32).sqrt().recip());
        let conv = uniform(s.conv_width);
        let mut specs = vec![];
        let mut add = |name: &str, shape: &[usize], init: Init, matrix: bool| {
            specs.push(TensorSpec { name: format!("{path}.{name}"), shape: shape.to_vec(), init, matrix });
        };
        add("in_proj.weight", &[s.rows(), hidden], uniform(hidden), true);
        if self.in_bias {
            add("in_proj.bias", &[s.rows()], Init::Constant(0.0), false);
        }
        add("conv1d.weight", &[channels, 1, s.conv_width], conv, false);
        if self.conv_bias {
            add("conv1d.bias", &[channels], conv, false);
        }
        add("dt_bias", &[heads], Init::InverseSoftplus(0.001, 0.1), false);
        add("A_log", &[heads], Init::LogUniform(1.0, 16.0), false);
        add("D", &[heads], Init::Constant(1.0), false);
        if s.end != End::Gate {
            add("norm.weight", &[inner], Init::Constant(1.0), false);
        }
        add("out_proj.weight", &[hidden, inner], uniform(inner * writers), true);
        if self.out_bias {
            add("out_proj.bias", &[hidden], Init::Constant(0.0), false);
        }
        specs
    }

    /// Its matrices in block `layer`; `norm` is the weight of the norm that it reads.
    pub fn sites(&self, path: &str, layer: usize, norm: &str) -> Vec<Site> {
        let (s, hidden) = (self.sizes, self.hidden);
        let shared = s.groups * s.state;
        let parts = [("z", s.inner()), ("x", s.inner()), ("B", shared), ("C", shared), ("dt", s.heads)];
        let at = |name: &str| format!("{path}.{name}");
        vec![
            Site {
                layer: Some(layer),
                segments: parts.map(|(name, rows)| Segment { name, rows }).to_vec(),
                norm: Some(norm.to_string()),
                ..Site::new(at("in_proj"), (s.rows(), hidden), "in_proj", Residual::Reads)
            },
            Site {
                layer: Some(layer),
                norm: (s.end != End::Gate).then(|| at("norm.weight")),
                ..Site::new(at("out_proj"), (hidden, s.inner()), "out_proj", Residual::Writes)
            },
        ]
    }

    /// Its heads, which a setting counts, as parts of block `layer` that can be left out. Of a mixer whose heads are in several groups
    /// nothing can be: a group would be left with fewer heads than another.
    pub fn groups(&self, path: &str, layer: usize, setting: &'static str) -> Vec<Group> {
        let s = self.sizes;
        if s.groups != 1 {
            return vec![];
        }
        let at = |name: &str| format!("{path}.{name}");
        let (inner, channels) = (s.inner(), s.channels());
        let group = |head: usize| {
            let own = head * s.head_dim..(head + 1) * s.head_dim;
            let moved = |by: usize| own.start + by..own.end + by;
            let mut slices = vec![];
            let mut rows = |name: &str, range: Range<usize>| slices.push(Slice::new(at(name), 0, range));
            // z, x and dt of it; B and C are its group's.
            for range in [moved(0), moved(inner), inner + channels + head..inner + channels + head + 1] {
                rows("in_proj.weight", range.clone());
                if self.in_bias {
                    rows("in_proj.bias", range);
                }
            }
            rows("conv1d.weight", own.clone());
            if self.conv_bias {
                rows("conv1d.bias", own.clone());
            }
            for name in ["dt_bias", "A_log", "D"] {
                rows(name, head..head + 1);
            }
            if s.end != End::Gate {
                rows("norm.weight", own.clone());
            }
            slices.push(Slice::new(at("out_proj.weight"), 1, own.clone()));
            Group::new((Kind::Head, setting), (layer, head), slices, (at("out_proj"), own))
        };
        (0..s.heads).map(group).collect()
    }

    /// The branch.
    pub fn branch(&self, parts: &Parts<'_>, path: &str) -> candle_core::Result<Mamba2> {
        let (s, at) = (self.sizes, |name: &str| format!("{path}.{name}"));
        let small = |name: &str| parts.small(&at(name));
        let conv_weight = small("conv1d.weight")?.squeeze(1)?; // [C, K]
        let conv_bias = match self.conv_bias {
            true => small("conv1d.bias")?,
            false => Tensor::zeros(s.channels(), DType::F32, conv_weight.device())?,
        };
        let norm = match s.end {
            End::Gate => Tensor::ones(s.inner(), DType::F32, conv_weight.device())?,
            _ => small("norm.weight")?,
        };
        let own = Small {
            conv_weight,
            conv_bias,
            dt_bias: small("dt_bias")?,
            a_log: small("A_log")?,
            d: small("D")?,
            norm,
        };
        let [in_proj, out_proj] = [("in_proj", self.in_bias), ("out_proj", self.out_bias)]
            .map(|(name, bias)| parts.linear(&at(name), bias));
        let mixer = Mamba2::new(s, in_proj?, &own, out_proj?)?;
        Ok(match self.factors {
            Some(factors) => mixer.with_factors(factors),
            None => mixer,
        })
    }
}

/// A range that Δ is clamped to.
pub(super) type Limit = (f64, f64);

/// That range as [`Sizes`] have it.
pub(super) fn dt_limit((low, high): Limit) -> (f32, f32) {
    (low as f32, high as f32)
}

/// Refuses what is no range.
pub(super) fn check_limit((low, high): Limit) -> Result<()> {
    match low.is_nan() || high.is_nan() || low > high {
        true => Err(Error::input(format!("time_step_limit must be a range, found [{low}, {high}]"))),
        false => Ok(()),
    }
}

/// A pair of numbers, where the second may be infinite: `null`, or a spelling that [`json::float`] reads.
///
/// # Errors
/// It is something else.
pub(super) fn stated_limit(value: &Value) -> Result<Limit> {
    let number = |value: &Value, null: f64| if value.is_null() { Some(null) } else { json::float(value) };
    let pair = match value {
        Value::Null => Some((0.0, f64::INFINITY)),
        Value::Array(pair) if pair.len() == 2 => number(&pair[0], 0.0).zip(number(&pair[1], f64::INFINITY)),
        _ => None,
    };
    pair.ok_or_else(|| Error::input(format!("time_step_limit must be a pair of numbers, found {value}")))
}

/// JSON and YAML have no infinity: it is written as null, and read in every spelling that is found in the wild.
pub(super) mod limit {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(limit: &(f64, f64), out: S) -> Result<S::Ok, S::Error> {
        [limit.0, limit.1].map(|x| x.is_finite().then_some(x)).serialize(out)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<(f64, f64), D::Error> {
        let value = serde_json::Value::deserialize(from)?;
        super::stated_limit(&value).map_err(serde::de::Error::custom)
    }
}
