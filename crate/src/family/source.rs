//! What the `config.json` that a model came with says beside its sizes, and what of it still holds when it is saved.

use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Keys that speak of its files or its quantization, and no longer of what is saved.
const OUTDATED: [&str; 4] = ["_name_or_path", "auto_map", "quantization_config", "transformers_version"];

/// Numbers of tokens, which a vocabulary may be too small for.
const TOKENS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// The settings of a source of this `model_type` that still hold for a vocabulary of this size.
pub(super) fn kept(source: Option<&Value>, model_type: &str, vocabulary: usize) -> Map<String, Value> {
    let is_token = |id: &Value| id.as_u64().is_some_and(|id| id < vocabulary as u64);
    let holds = |key: &str, value: &Value| match value {
        Value::Null => false,
        value if TOKENS.contains(&key) => match value.as_array() {
            Some(ids) => ids.iter().all(is_token),
            None => is_token(value),
        },
        _ => !OUTDATED.contains(&key),
    };
    match source {
        Some(Value::Object(fields)) if fields.get("model_type").is_some_and(|name| name == model_type) => {
            let held = fields.iter().filter(|(key, value)| holds(key, value));
            held.map(|(key, value)| (key.clone(), value.clone())).collect()
        }
        // Another spelling shares no names with this one.
        _ => Map::new(),
    }
}

/// Settings by their names.
///
/// # Errors
/// They are no object.
pub(super) fn fields(settings: &impl Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(settings).map_err(Error::internal)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(Error::internal("settings are an object")),
    }
}

/// Names the class of transformers that reads such a config. The dtype is f32, whatever matrices are stored in: other tensors are f32,
/// and a reader that took the matrices' dtype for all would round them.
pub(super) fn read_by(class: &str, model_type: &str, settings: &mut Map<String, Value>) {
    let named = [
        ("architectures", json!([class])),
        ("dtype", json!("float32")),
        ("model_type", json!(model_type)),
        ("torch_dtype", json!("float32")), // the name before transformers 5
    ];
    settings.extend(named.map(|(key, value)| (key.to_string(), value)));
    tokens_unknown(settings);
}

/// Says that there are no special tokens where nothing is known of them: a reader's defaults are those of another vocabulary.
fn tokens_unknown(settings: &mut Map<String, Value>) {
    for key in TOKENS {
        settings.entry(key).or_insert(Value::Null);
    }
}
