//! The frequencies of rotary positions, and their scalings for longer texts than those of the training.

use super::super::setting::find;
use super::yarn::Yarn;
use crate::error::{Error, Result};
use crate::json::float;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::f64::consts::TAU;

/// Rotary positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// θ: frequency c of D/2 is θ^(−2c/D).
    pub theta: f64,
    /// What becomes of the frequencies.
    #[serde(default)]
    pub scaling: Scaling,
}

/// What becomes of the frequencies of rotary positions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Scaling {
    /// Nothing.
    #[default]
    Default,
    /// All are divided (Chen et al. 2023).
    Linear {
        /// By this.
        factor: f64,
    },
    /// Long wavelengths are divided, short ones stay, and between the two they blend: that of Llama 3.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original` over this are long.
        low_freq_factor: f64,
        /// Wavelengths below `original` over this are short.
        high_freq_factor: f64,
        /// Longest sequence of the training before.
        original: usize,
    },
    /// Slow ones are divided, fast ones stay, and queries and keys grow.
    Yarn(Yarn),
    /// Each is divided by its own factor, as GGUF files state them.
    Factors {
        /// A factor for each frequency.
        rope_freqs: Vec<f32>,
    },
}

impl Rope {
    /// The frequencies [D/2], in radians a position.
    pub fn frequencies(&self, dim: usize) -> Vec<f32> {
        // Powers in f64: the nearest f32 of each is what other programs come within an ulp of.
        let plain = (0..dim / 2).map(|c| self.theta.powf(-2.0 * c as f64 / dim as f64));
        if let Scaling::Yarn(yarn) = &self.scaling {
            let plain: Vec<f64> = plain.collect();
            return yarn.scaled(self.theta, &plain).into_iter().map(|f| f as f32).collect();
        }
        let scaled = |(c, f): (usize, f64)| match &self.scaling {
            Scaling::Default | Scaling::Yarn(_) => f,
            Scaling::Linear { factor } => f / factor,
            Scaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original } => {
                let (wavelength, length) = (TAU / f, *original as f64);
                if wavelength < length / high {
                    f
                } else if wavelength > length / low {
                    f / factor
                } else {
                    let share = (length / wavelength - low) / (high - low);
                    (1.0 - share) * f / factor + share * f
                }
            }
            Scaling::Factors { rope_freqs } => f / rope_freqs.get(c).map_or(1.0, |by| f64::from(*by)),
        };
        plain.enumerate().map(|(c, f)| scaled((c, f)) as f32).collect()
    }

    /// The factor on cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            Scaling::Yarn(yarn) => yarn.attention_factor,
            _ => 1.0,
        }
    }

    /// What a `config.json` states, in the spelling of transformers 4 or 5, and what is assumed because it does not; `longest`
    /// are its max_position_embeddings.
    ///
    /// # Errors
    /// A type that is not here, or a number that is none.
    pub(in crate::family) fn stated(json: &Value, longest: usize) -> Result<(Self, Option<String>)> {
        // The old key replaces the new one as a whole: what it leaves out stands at the top.
        let old = find(json, &["/rope_scaling"]);
        let inside = old.or_else(|| find(json, &["/rope_parameters"]));
        let of_new = inside.filter(|_| old.is_none()).and_then(|inside| inside.get("rope_theta"));
        let theta = of_new.filter(|theta| !theta.is_null()).or_else(|| find(json, &["/rope_theta"]));
        let mut assumed = None;
        let theta = match theta {
            Some(value) => positive("rope_theta", Some(value))?,
            None => {
                assumed = Some("rope_theta = 10000".to_string());
                10_000.0
            }
        };
        let get = |name: &str| inside.and_then(|inside| inside.get(name)).filter(|value| !value.is_null());
        let number = |name: &str| positive(name, get(name));
        let original = || {
            let stated = find(json, &["/original_max_position_embeddings"]);
            let whole = |value: &Value| {
                let wrong = "original_max_position_embeddings must be a positive integer";
                let found = value.as_u64().filter(|n| *n > 0).map(|n| n as usize);
                found.ok_or_else(|| Error::input(format!("{wrong}, found {value}")))
            };
            stated.or_else(|| get("original_max_position_embeddings")).map(whole).transpose()
        };
        let scaling = match get("rope_type").or_else(|| get("type")) {
            None => Scaling::Default,
            Some(Value::String(name)) => match name.as_str() {
                "default" => Scaling::Default,
                // It differs from the default beyond max_position_embeddings alone, which are refused.
                "dynamic" => Scaling::Default,
                "linear" => Scaling::Linear { factor: number("factor")? },
                "llama3" => Scaling::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original: original()?.unwrap_or(longest),
                },
                "yarn" => {
                    if theta <= 1.0 {
                        let what = format!("rope_theta of yarn must be greater than 1, found {theta}");
                        return Err(Error::input(what));
                    }
                    let original = original()?;
                    // Some state the two lengths alone.
                    let of_lengths = original.filter(|_| get("factor").is_none());
                    let factor = of_lengths.map(|original| longest as f64 / original as f64);
                    let factor = factor.map_or_else(|| number("factor"), Ok)?;
                    let or = |name: &str, default: f64| get(name).map_or(Ok(default), |_| number(name));
                    let weight = |name: &str| get(name).map(|_| number(name)).transpose();
                    let mscales = weight("mscale")?.zip(weight("mscale_all_dim")?);
                    Scaling::Yarn(Yarn {
                        factor,
                        original: original.unwrap_or(longest),
                        attention_factor: or("attention_factor", Yarn::attention(factor, mscales))?,
                        beta_fast: or("beta_fast", 32.0)?,
                        beta_slow: or("beta_slow", 1.0)?,
                        truncate: match get("truncate") {
                            None => true,
                            Some(Value::Bool(truncate)) => *truncate,
                            Some(other) => {
                                let what = format!("truncate must be true or false, found {other}");
                                return Err(Error::input(what));
                            }
                        },
                    })
                }
                other => {
                    return Err(Error::input(format!("unknown rope_type {other:?}"))
                        .hint("known are default, linear, dynamic, llama3 and yarn"));
                }
            },
            Some(other) => {
                return Err(Error::input(format!(
                    "rope_type must be a name such as \"llama3\", found {other}"
                )));
            }
        };
        let freqs = find(json, &["/rope_freqs"]);
        let scaling = match (freqs, scaling) {
            (None, scaling) => scaling,
            (Some(freqs), Scaling::Default) => {
                let number = |value: &Value| Some(value.as_f64()? as f32).filter(|by| *by > 0.0);
                let all = freqs.as_array().and_then(|all| all.iter().map(number).collect());
                let wrong = || Error::input("rope_freqs must be a list of positive numbers");
                Scaling::Factors { rope_freqs: all.ok_or_else(wrong)? }
            }
            (Some(_), _) => {
                return Err(Error::input("rope_freqs and another scaling of the frequencies are stated"));
            }
        };
        Ok((Self { theta, scaling }, assumed))
    }

    /// As transformers reads it: by the keys of version 5, and by those of version 4.
    pub(in crate::family) fn written(&self) -> Map<String, Value> {
        let mut scaling = match &self.scaling {
            Scaling::Default | Scaling::Factors { .. } => json!({"rope_type": "default"}),
            Scaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original,
            }),
            Scaling::Yarn(yarn) => json!({
                "rope_type": "yarn", "factor": yarn.factor, "original_max_position_embeddings": yarn.original,
                "attention_factor": yarn.attention_factor, "beta_fast": yarn.beta_fast, "beta_slow": yarn.beta_slow,
                "truncate": yarn.truncate,
            }),
        };
        let old = if scaling["rope_type"] == "default" { Value::Null } else { scaling.clone() };
        scaling["rope_theta"] = json!(self.theta);
        let mut all = json!({"rope_theta": self.theta, "rope_scaling": old, "rope_parameters": scaling});
        if let Scaling::Factors { rope_freqs } = &self.scaling {
            all["rope_freqs"] = json!(rope_freqs);
        }
        all.as_object().cloned().unwrap_or_default()
    }
}

/// A positive, finite number.
fn positive(name: &str, value: Option<&Value>) -> Result<f64> {
    let found = value.and_then(float).filter(|x| *x > 0.0 && x.is_finite());
    found.ok_or_else(|| {
        let found = value.map_or("nothing".to_string(), ToString::to_string);
        Error::input(format!("{name} of the rotary positions must be a positive number, found {found}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Value) -> Result<(Rope, Option<String>)> {
        Rope::stated(&json, 2048)
    }

    #[test]
    fn every_spelling_is_read() {
        let linear = |theta: f64, factor: f64| Rope { theta, scaling: Scaling::Linear { factor } };
        let plain = |theta: f64| Rope { theta, scaling: Scaling::Default };
        for (json, expected) in [
            (json!({"rope_theta": 500.0}), plain(500.0)),
            (json!({"rope_parameters": {"rope_theta": 500, "rope_type": "default"}}), plain(500.0)),
            (json!({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 500.0}}), plain(500.0)),
            (json!({"rope_theta": 7.0, "rope_scaling": null}), plain(7.0)),
            (json!({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2}}), linear(7.0, 2.0)),
            (
                json!({"rope_theta": 7.0, "rope_scaling": {"type": "x", "rope_type": "linear", "factor": 2.0},
                    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
                linear(7.0, 2.0),
            ),
        ] {
            assert_eq!(read(json.clone()).unwrap(), (expected.clone(), None), "{json}");
            let written = Value::Object(expected.written());
            assert_eq!(read(written).unwrap().0, expected);
        }
        let (rope, assumed) = read(json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "rope_parameters": {"rope_theta": 500.0}}))
        .unwrap();
        assert_eq!((rope, assumed.as_deref()), (linear(10_000.0, 4.0), Some("rope_theta = 10000")));
    }

    #[test]
    fn llama3_scales_by_wavelength() {
        let json = json!({"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0}});
        let (rope, _) = read(json).unwrap();
        let Scaling::Llama3 { original, .. } = rope.scaling else { panic!("{rope:?}") };
        assert_eq!(original, 2048, "the longest takes its place");
        let plain = Rope { scaling: Scaling::Default, ..rope.clone() }.frequencies(64);
        let found = rope.frequencies(64);
        assert_eq!(found[0], plain[0]);
        assert_eq!(found[31], plain[31] / 8.0);
        assert!(found.iter().zip(&plain).any(|(f, p)| *f < 0.99 * p && *f > 1.01 * p / 8.0));
        let written = Value::Object(rope.written());
        assert_eq!(read(written).unwrap().0, rope);
    }

    #[test]
    fn factors_divide_one_by_one() {
        let (rope, _) = read(json!({"rope_theta": 100.0, "rope_freqs": [1.0, 4.0]})).unwrap();
        assert_eq!(rope.frequencies(4), [1.0, 0.1 / 4.0]);
        let written = Value::Object(rope.written());
        assert_eq!(read(written).unwrap().0, rope);
    }

    #[test]
    fn what_is_not_here_is_refused_by_name() {
        for (json, part) in [
            (
                json!({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}),
                "unknown rope_type \"longrope\"; known are default, linear, dynamic, llama3 and yarn",
            ),
            (
                json!({"rope_scaling": {"type": "linear"}}),
                "factor of the rotary positions must be a positive number",
            ),
            (json!({"rope_theta": -1.0}), "rope_theta of the rotary"),
            (json!({"rope_parameters": {"rope_type": 3}}), "must be a name"),
            (json!({"rope_freqs": [1.0, 0.0]}), "list of positive numbers"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
