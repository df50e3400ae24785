//! What lies beside the weights at the top of a file: their model's configuration, and what is told of quantization.

use super::super::claim::Claim;
use super::machine::{Machine, Told};
use super::settings::settings;
use super::values::{Thing, Value};
use std::collections::BTreeSet;

/// Keys and values, as they stand in the pickle.
pub(super) type Fields = Vec<(Value, Value)>;

/// What was found.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Beside {
    /// What is under the key `config`, as an object of plain values, if there are any.
    pub config: Option<serde_json::Value>,
    /// What is told of quantization.
    pub claim: Option<Claim>,
}

/// Looks among the keys of the value that the pickle is of.
///
/// # Errors
/// It would take more memory than the machine may.
pub(super) fn beside(machine: &mut Machine, top: Value) -> Told<Beside> {
    let Some(top) = fields(machine, top) else { return Ok(Beside::default()) };
    machine.take_room(size_of_val(&*top))?;
    let config = under(machine, &top, "config").and_then(|config| fields(machine, config));
    let config = config.map(|fields| settings(machine, fields)).transpose()?;
    let config = config.filter(|settings| !settings.is_empty()).map(Into::into);
    Ok(Beside { config, claim: claim(machine, &top) })
}

/// The items of a dict, or the attributes and items of an object; none of what is neither.
pub(super) fn fields(machine: &Machine, value: Value) -> Option<Fields> {
    match machine.thing(value)? {
        Thing::Dict(items) => Some(items.clone()),
        Thing::Object(object) => {
            // The second part of a state of two holds the attributes in slots.
            let parts = match machine.thing(object.state) {
                Some(Thing::Tuple(parts)) => &parts[..parts.len().min(2)],
                _ => &[object.state],
            };
            let of_part = |part: &Value| match machine.thing(*part) {
                Some(Thing::Dict(items)) => items.clone(),
                _ => vec![],
            };
            let attributes = parts.iter().flat_map(of_part);
            Some(attributes.chain(object.items.iter().copied()).collect())
        }
        _ => None,
    }
}

/// The value under a key, the last one if it comes twice.
fn under(machine: &Machine, fields: &[(Value, Value)], key: &str) -> Option<Value> {
    let found = fields.iter().rev().find(|(own, _)| machine.text(*own).is_some_and(|own| own == key));
    found.map(|(_, value)| *value)
}

fn claim(machine: &Machine, top: &[(Value, Value)]) -> Option<Claim> {
    let inside = |key: &str| under(machine, top, key).and_then(|value| fields(machine, value));
    let scales = inside("quantization_info").and_then(|info| under(machine, &info, "scales"));
    let scales = scales.and_then(|scales| fields(machine, scales)).unwrap_or_default();
    let scaled: BTreeSet<String> = scales.iter().filter_map(|(name, _)| machine.key(*name)).collect();
    if !scaled.is_empty() {
        return Some(Claim::FakeQuantized(scaled.len()));
    }
    let settings = inside("quantization_config").filter(|settings| !settings.is_empty())?;
    let kinds = settings.iter().filter(|(key, _)| machine.text(*key).is_some_and(|key| key.ends_with(KIND)));
    let mut kinds = kinds.filter_map(|(_, kind)| machine.text(*kind)).filter(|kind| is_word(kind));
    Some(Claim::Configured(kinds.next().map_or("quantized".to_string(), |kind| kind.to_uppercase())))
}

/// How the names of the setting end that says which format weights are quantized to.
const KIND: &str = "quant_type";

/// Whether a text can be the name of a format.
fn is_word(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(pickle: &[u8]) -> Beside {
        let (mut machine, top) = Machine::run(pickle, 1 << 20).unwrap();
        beside(&mut machine, top).unwrap()
    }

    #[test]
    fn a_configuration_is_read_from_a_dict_and_from_an_object_of_any_class() {
        // As protocols 0, 2 and 4 write an object; one with slots; one of a subclass of dict with an attribute; a dict.
        let state = b"(dU\x03topK\x01s";
        let made =
            [b"ccopyreg\n_reconstructor\n(cm\nC\nc__builtin__\nobject\nNtR", &state[..], b"b"].concat();
        let new = [b"cm\nC\n)\x81", &state[..], b"b"].concat();
        let named = [b"\x8c\x01m\x8c\x01C\x93)\x81", &state[..], b"b"].concat();
        let slots = [b"cm\nC\n)\x81N", &state[..], b"\x86b"].concat();
        let both = [b"cm\nC\n)\x81", &state[..], b"bU\x04wideK\x02s"].concat();
        for (config, wide) in [
            (made, false),
            (new, false),
            (named, false),
            (slots, false),
            (both, true),
            (state.to_vec(), false),
        ] {
            let expected = if wide { json!({"top": 1, "wide": 2}) } else { json!({"top": 1}) };
            let pickle = [b"}U\x06config", &config[..], b"s."].concat();
            assert_eq!(read(&pickle).config, Some(expected), "{}", config.escape_ascii());
            // Under another key, and deeper, it is none.
            assert_eq!(read(&[b"}U\x06kernel", &config[..], b"s."].concat()), Beside::default());
            assert_eq!(read(&[b"}U\x01a}U\x06config", &config[..], b"ss."].concat()), Beside::default());
        }
        for none in [&b"K\x01"[..], b"N", b"}", b"](K\x01e", b"cm\nC\n", b"}U\x01aC\x01xs"] {
            assert_eq!(read(&[b"}U\x06config", none, b"s."].concat()), Beside::default());
        }
        assert_eq!(read(b"](K\x01e."), Beside::default());
    }

    #[test]
    fn tensors_with_scales_are_counted_once_each() {
        let info = |scales: &[u8]| {
            let pickle = [b"}U\x11quantization_info}U\x06scales}(", scales, b"uss."].concat();
            read(&pickle).claim
        };
        assert_eq!(info(b"U\x01aF0.1\nU\x01bF0.2\nU\x01aF0.3\n"), Some(Claim::FakeQuantized(2)));
        assert_eq!(info(b""), None);
        assert_eq!(read(b"}U\x11quantization_info}U\x04bitsK\x04ss.").claim, None);
    }

    #[test]
    fn a_configured_quantization_is_called_by_its_type_where_it_has_one() {
        let claimed = |settings: &[u8]| {
            let claim = read(&[b"}U\x13quantization_config", settings, b"s."].concat()).claim;
            claim.map(|claim| if let Claim::Configured(kind) = claim { kind } else { String::new() })
        };
        assert_eq!(claimed(b"}(U\x04bitsK\x04U\x0aquant_typeU\x03nf4u").as_deref(), Some("NF4"));
        assert_eq!(claimed(b"cm\nC\n)\x81}U\x13bnb_4bit_quant_typeU\x03fp4sb").as_deref(), Some("FP4"));
        assert_eq!(claimed(b"}U\x04bitsK\x04s").as_deref(), Some("quantized"));
        assert_eq!(claimed(b"}U\x0aquant_typeU\x05a\nb;ss").as_deref(), Some("quantized"));
        assert_eq!((claimed(b"}"), claimed(b"N")), (None, None));
    }
}
