//! YaRN (Peng et al. 2023): fast frequencies stay, slow ones are divided, and between the two they blend; queries and keys
//! grow with the factor. As transformers computes it (`_compute_yarn_parameters`).

use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// The constants of YaRN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Yarn {
    /// The divisor of slow frequencies.
    pub factor: f64,
    /// Longest sequence of the training before.
    pub original: usize,
    /// Factor on the cosines and sines, and so on queries and keys alike.
    pub attention_factor: f64,
    /// What turns more often than this within `original` positions stays.
    pub beta_fast: f64,
    /// What turns less often than this is divided.
    pub beta_slow: f64,
    /// Whether the frequencies between which they blend are whole numbers.
    pub truncate: bool,
}

impl Yarn {
    /// The attention factor where none is stated: 1 + ln(factor) / 10, or the ratio of two such with the weights that
    /// `mscales` (mscale, mscale_all_dim) give the logarithm.
    pub fn attention(factor: f64, mscales: Option<(f64, f64)>) -> f64 {
        let of = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        mscales.map_or(of(1.0), |(over, under)| of(over) / of(under))
    }

    /// What becomes of the plain frequencies [D/2] of base θ.
    pub fn scaled(&self, theta: f64, plain: &[f64]) -> Vec<f64> {
        let dim = 2.0 * plain.len() as f64;
        // The number of the frequency that turns so often within `original` positions.
        let turning = |turns: f64| dim * (self.original as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (turning(self.beta_fast), turning(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001; // as there: nothing is divided by 0
        }
        let slow = |c: usize| ((c as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let blend = |(c, f): (usize, &f64)| f / self.factor * slow(c) + f * (1.0 - slow(c));
        plain.iter().enumerate().map(blend).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rope;
    use serde_json::{Value, json};

    /// What transformers 5.24 gives for heads of 16: frequencies, and the factor.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let golden = [
            (
                json!({"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                    "original_max_position_embeddings": 512}}),
                2048,
                [
                    1.0,
                    0.25693506,
                    0.0625,
                    0.0138349654,
                    0.00249999994,
                    0.000790569466,
                    0.000250000012,
                    7.90569466e-05,
                ],
                1.138629436111989,
            ),
            (
                json!({"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 40, "beta_fast": 32,
                    "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}}),
                163_840,
                [
                    1.0,
                    0.316227764,
                    0.100000001,
                    0.0239147246,
                    0.00512499968,
                    0.000849862176,
                    2.49999994e-05,
                    7.90569447e-06,
                ],
                0.9210423553163399,
            ),
            (
                json!({"rope_parameters": {"rope_theta": 150_000.0, "rope_type": "yarn", "factor": 32.0,
                    "truncate": false, "beta_fast": 24.0, "beta_slow": 2.0, "original_max_position_embeddings": 4096}}),
                131_072,
                [
                    1.0,
                    0.225418001,
                    0.0508132726,
                    0.00624051318,
                    8.0687154e-05,
                    1.8188337e-05,
                    4.09997847e-06,
                    9.24208962e-07,
                ],
                1.3465735902799727,
            ),
            (
                json!({"rope_theta": 1e3, "rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.25,
                    "original_max_position_embeddings": 64}}),
                128,
                [
                    1.0,
                    0.351413757,
                    0.118551955,
                    0.0374947079,
                    0.0158113893,
                    0.00666760746,
                    0.00281170662,
                    0.00118568691,
                ],
                1.25,
            ),
        ];
        for (json, longest, frequencies, factor) in golden {
            let rope = Rope::stated(&json, longest).unwrap().0;
            for (found, expected) in rope.frequencies(16).into_iter().zip(frequencies) {
                assert!((f64::from(found) / expected - 1.0).abs() < 1e-6, "{json}: {found} for {expected}");
            }
            assert!((rope.attention_factor() - factor).abs() < 1e-12, "{json}");
            let written = Value::Object(rope.written());
            assert_eq!(Rope::stated(&written, longest).unwrap().0, rope, "{written}");
        }
    }

    #[test]
    fn what_is_left_out_is_as_by_default() {
        let read = |scaling: Value| {
            Rope::stated(&json!({"rope_theta": 1e4, "rope_scaling": scaling}), 1024).map(|(rope, _)| rope)
        };
        let whole = read(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256,
            "beta_fast": 32.0, "beta_slow": 1.0, "truncate": true, "attention_factor": null}))
        .unwrap();
        // The factor is that of the lengths where it is not stated.
        let short =
            read(json!({"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 256}));
        assert_eq!(short.unwrap(), whole);
        for (scaling, part) in [
            (json!({"rope_type": "yarn"}), "factor of the rotary positions must be a positive number"),
            (json!({"rope_type": "yarn", "factor": 2, "truncate": 1}), "truncate must be true or false"),
            (json!({"rope_type": "yarn", "factor": 2, "beta_fast": -1}), "beta_fast of the rotary"),
        ] {
            let error = read(scaling).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
