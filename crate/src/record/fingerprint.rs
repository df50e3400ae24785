//! What identifies a unit of work, independent of the run and of the machine.

use super::Subject;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Identifies one unit of work: 16 hex digits of the SHA-256 of what decides its result.
///
/// That is: the measurement and its version, its configuration, the [identity](Subject::identity) of the subject, and
/// `extra`, which tells units of one measurement apart (the context length of a sweep) and holds what else decides:
/// texts and references. Paths, names, threads and machine are left out, so that work done elsewhere counts.
///
/// # Errors
/// If `config` or `extra` cannot be written as JSON.
pub fn fingerprint(
    measure: &str,
    measure_version: u32,
    config: &impl Serialize,
    subject: &Subject,
    extra: &impl Serialize,
) -> Result<String> {
    let mut identity = subject.identity();
    identity["measure"] = measure.into();
    identity["measure_version"] = measure_version.into();
    identity["config"] = to_json(config)?;
    identity["extra"] = to_json(extra)?;
    Ok(hash(&identity, 16))
}

impl Subject {
    /// Everything of a subject that can change a reading: weights, config, tokenizer, what was assumed, dtype, scheme with
    /// its calibration text and its arithmetic, kind of device. What is not known (of older records) or does not apply is
    /// left out.
    pub fn identity(&self) -> Value {
        let mut identity = json!({
            "model_hash": self.model_hash,
            "dtype": self.dtype,
            "scheme": self.scheme,
            "device": self.device.split(':').next().unwrap_or_default(),
        });
        for (name, value) in [
            ("config_hash", &self.config_hash),
            ("tokenizer_hash", &self.tokenizer_hash),
            ("assumed", &self.assumed),
            ("calibration", &self.calibration),
            ("quant_backend", &self.quant_backend),
        ] {
            if let Some(value) = value {
                identity[name] = value.as_str().into();
            }
        }
        if let Some(version) = self.quantizing_version {
            identity["quantizing_version"] = version.into();
        }
        identity
    }
}

/// The first 16 hex digits of the SHA-256 of plain data.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn content_hash(data: &impl Serialize) -> Result<String> {
    Ok(hash(&to_json(data)?, 16))
}

/// The first six hex digits of the SHA-256 of a configuration, as they stand in a run id.
///
/// # Errors
/// If `config` cannot be written as JSON.
pub fn config_hash(config: &impl Serialize) -> Result<String> {
    Ok(hash(&to_json(config)?, 6))
}

fn to_json(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|e| Error::internal(format!("configuration cannot be written as JSON: {e}")))
}

fn hash(value: &Value, digits: usize) -> String {
    let mut text = String::new();
    canonical(value, &mut text);
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex[..digits].to_string()
}

// Sorted keys, no spaces: the same text whichever map type serde_json was built with.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_what_decides_the_result_and_on_nothing_else() {
        let subject = Subject {
            model_hash: "abc".into(),
            dtype: "f32".into(),
            device: "cuda:0".into(),
            ..Subject::default()
        };
        let base = fingerprint("ppl", 1, &json!({"b": 1, "a": [1, 2]}), &subject, &256).unwrap();
        assert_eq!(base.len(), 16);
        let elsewhere = Subject { model: "other name".into(), device: "cuda:1".into(), ..subject.clone() };
        assert_eq!(base, fingerprint("ppl", 1, &json!({"a": [1, 2], "b": 1}), &elsewhere, &256).unwrap());
        let bf16 = Subject { dtype: "bf16".into(), ..subject.clone() };
        let text = |text: &str| Some(text.to_string());
        let of = |subject: Subject| fingerprint("ppl", 1, &json!({"b": 1, "a": [1, 2]}), &subject, &256);
        let others = [
            of(Subject { config_hash: text("1"), ..subject.clone() }),
            of(Subject { tokenizer_hash: text("1"), ..subject.clone() }),
            of(Subject { assumed: text("1"), ..subject.clone() }),
            of(Subject { calibration: text("1"), ..subject.clone() }),
            of(Subject { quantizing_version: Some(2), ..subject.clone() }),
            fingerprint("ppl", 2, &json!({"b": 1, "a": [1, 2]}), &subject, &256),
            fingerprint("ppl", 1, &json!({"b": 2, "a": [1, 2]}), &subject, &256),
            fingerprint("ppl", 1, &json!({"b": 1, "a": [1, 2]}), &bf16, &256),
            fingerprint("ppl", 1, &json!({"b": 1, "a": [1, 2]}), &subject, &512),
        ];
        for other in others {
            assert_ne!(base, other.unwrap());
        }
    }

    #[test]
    fn the_hash_is_that_of_the_canonical_text() {
        // sha256 of {"a":1,"b":null}
        let digest = Sha256::digest(br#"{"a":1,"b":null}"#);
        let hex: String = digest.iter().take(3).map(|b| format!("{b:02x}")).collect();
        assert_eq!(config_hash(&json!({"b": null, "a": 1})).unwrap(), hex);
    }
}
