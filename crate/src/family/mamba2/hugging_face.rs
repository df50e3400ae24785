//! The `config.json` that transformers reads, and the one of a model that was saved here.

use super::super::source::{fields, kept, read_by};
use super::config::Config;
use crate::error::Result;
use crate::json;
use serde_json::{Map, Value, json};

impl Config {
    /// The settings as transformers reads them. What a `source` in the same spelling says beside them is kept: numbers of
    /// special tokens, how training began, names of the owner's own.
    pub(super) fn written(&self, source: Option<&Value>) -> Result<Map<String, Value>> {
        let mut all = kept(source, "mamba2", self.vocab_size);
        let own = fields(self)?;
        all.extend(own);
        let (low, high) = self.time_step_limit;
        let fixed = json!({
            "expand": self.expand().map_or_else(
                || json!(self.inner() as f64 / self.hidden_size as f64), |whole| json!(whole)
            ),
            "hidden_act": "silu",
            "rms_norm": true,
            "time_step_limit": [json::number(low), json::number(high)],
        });
        all.extend(fields(&fixed)?);
        let usual = json!({
            "chunk_size": 256, "residual_in_fp32": true, "time_step_floor": 1e-4, "time_step_max": 0.1,
            "time_step_min": 0.001,
        });
        for (key, value) in usual.as_object().into_iter().flatten() {
            all.entry(key.clone()).or_insert_with(|| value.clone());
        }
        read_by("Mamba2ForCausalLM", "mamba2", &mut all);
        Ok(all)
    }

    /// How many times as wide as the residual stream a block is inside; none where it is no whole number, which
    /// transformers cannot read.
    pub fn expand(&self) -> Option<usize> {
        self.inner().is_multiple_of(self.hidden_size).then(|| self.inner() / self.hidden_size)
    }

    fn inner(&self) -> usize {
        self.num_heads * self.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Family, Stated};
    use super::*;

    #[test]
    fn a_config_is_read_again_with_what_its_source_said_beside() {
        let config = Config { time_step_limit: (0.001, f64::INFINITY), n_groups: 2, ..Config::default() };
        let source = json!({
            "model_type": "mamba2", "eos_token_id": [3, 7], "bos_token_id": 50_256, "chunk_size": 64, "mine": {"a": 1},
            "torch_dtype": "bfloat16", "hidden_size": 1, "initializer_range": null,
        });
        let written = Value::Object(config.written(Some(&source)).unwrap());
        let read = json::parse(&json::text(&written)).unwrap();
        let shapes = config.tensors().into_iter().map(|spec| (spec.name, spec.shape)).collect();
        let stated = Stated { file: "config.json".to_string(), json: read.clone() };
        assert_eq!(Config::resolve(Some(&stated), &shapes).unwrap(), (config, vec![]));
        for (key, value) in [
            ("eos_token_id", json!([3, 7])),
            ("bos_token_id", Value::Null),
            ("chunk_size", json!(64)),
            ("mine", json!({"a": 1})),
            ("torch_dtype", json!("float32")),
            ("expand", json!(2)),
        ] {
            assert_eq!(read[key], value, "{key}");
        }
        assert!(read.get("initializer_range").is_none());
    }

    #[test]
    fn a_width_that_is_no_multiple_is_told() {
        let config = Config { hidden_size: 80, head_dim: 8, num_heads: 1, ..Config::default() };
        assert_eq!((config.expand(), &config.written(None).unwrap()["expand"]), (None, &json!(0.1)));
    }
}
