//! A pickled configuration as JSON: numbers, words, and lists and dicts of these.

use super::beside::Fields;
use super::machine::{Machine, Told};
use super::values::{Thing, Value};
use crate::json;
use serde_json::{Map, Value as Json};

/// How deep settings may lie in settings.
const DEEPEST: usize = 16;

/// What a JSON value takes of memory, and an object beside its fields.
const EACH: usize = 128;
const OBJECT: usize = 1024;

/// The fields that are plain values, by their names; of a name that comes twice the last field counts.
///
/// # Errors
/// They would take more memory than the machine may.
pub(super) fn settings(machine: &mut Machine, fields: Fields) -> Told<Map<String, Json>> {
    object(machine, fields, 0)
}

fn object(machine: &mut Machine, fields: Fields, depth: usize) -> Told<Map<String, Json>> {
    machine.take_room(OBJECT + size_of_val(&*fields))?;
    let mut object = Map::new();
    for (key, value) in fields {
        let Some(key) = machine.key(key) else { continue };
        machine.take_room(key.len())?;
        match plain(machine, value, depth + 1)? {
            Some(value) => object.insert(key, value),
            None => object.remove(&key),
        };
    }
    Ok(object)
}

/// A value as JSON; none if it is no plain value, or lies too deep. A list is one if all of its elements are.
fn plain(machine: &mut Machine, value: Value, depth: usize) -> Told<Option<Json>> {
    machine.take_room(EACH)?;
    let list = match value {
        Value::None => return Ok(Some(Json::Null)),
        Value::Bool(yes) => return Ok(Some(yes.into())),
        Value::Int(number) => return Ok(Some(number.into())),
        Value::Float(number) => return Ok(Some(json::number(number))),
        Value::Text(span) => {
            machine.take_room(3 * span.len as usize)?; // of what is not UTF-8 each byte becomes three
            return Ok(machine.text(value).map(|text| text.into_owned().into()));
        }
        Value::Thing(_) if depth < DEEPEST => match machine.thing(value) {
            Some(Thing::Dict(items)) => {
                let items = items.clone();
                return Ok(Some(object(machine, items, depth)?.into()));
            }
            Some(Thing::List(values) | Thing::Tuple(values)) => values.clone(),
            _ => return Ok(None),
        },
        Value::Thing(_) | Value::Other => return Ok(None),
    };
    machine.take_room(size_of_val(&*list))?;
    let list = list.into_iter().map(|value| plain(machine, value, depth + 1));
    Ok(list.collect::<Told<Option<Vec<Json>>>>()?.map(Json::Array))
}

#[cfg(test)]
mod tests {
    use super::super::beside::fields;
    use super::*;
    use serde_json::json;

    /// The settings of a pickle of a dict or object.
    fn read(pickle: &[u8]) -> Told<Json> {
        let (mut machine, top) = Machine::run(pickle, 1 << 20)?;
        let fields = fields(&machine, top).ok_or("no fields")?;
        settings(&mut machine, fields).map(Json::Object)
    }

    #[test]
    fn plain_values_become_json_and_others_are_left_out() {
        // {'f': 1e-05, 'g': 0.25, 'inf': inf, 'yes': True, 'no': None, 'n': -2, 'word': 'silu', 'layers': [1, (2.5, 3)],
        //  'inner': {'a': False, 7: 'seven', 'dtype': torch.float32}, 'dtype': torch.float32, 'bytes': b'x',
        //  'mixed': [1, torch.float32], 'gone': 1, 'gone': b'x', 'n': 3}
        let pickle = b"}(U\x01fF1e-05\nU\x01gG\x3f\xd0\0\0\0\0\0\0U\x03infFinf\nU\x03yes\x88U\x02noNU\x01nJ\xfe\xff\xff\xff\
            U\x04wordX\x04\0\0\0siluU\x06layers](K\x01G\x40\x04\0\0\0\0\0\0K\x03\x86eU\x05inner}(U\x01a\x89K\x07U\x05seven\
            U\x05dtypectorch\nfloat32\nuU\x05dtypectorch\nfloat32\nU\x05bytesC\x01xU\x05mixed](K\x01ctorch\nfloat32\ne\
            U\x04goneK\x01U\x04goneC\x01xU\x01nK\x03u.";
        let expected = json!({
            "f": 1e-5, "g": 0.25, "inf": {"__float__": "Infinity"}, "yes": true, "no": null, "n": 3, "word": "silu",
            "layers": [1, [2.5, 3]], "inner": {"a": false, "7": "seven"},
        });
        assert_eq!(read(pickle).unwrap(), expected);
    }

    #[test]
    fn a_list_that_is_there_twice_is_read_twice() {
        let pickle = b"}(U\x01a](K\x01K\x02eq\x00U\x01bh\x00u.";
        assert_eq!(read(pickle).unwrap(), json!({"a": [1, 2], "b": [1, 2]}));
    }

    #[test]
    fn what_lies_too_deep_is_left_out_and_what_grows_is_refused() {
        let nested = |depth: usize| {
            let open = b"}U\x01a".repeat(depth);
            [&open[..], b"K\x05", &b"s".repeat(depth), b"."].concat()
        };
        let mut deepest = &read(&nested(DEEPEST)).unwrap();
        for _ in 0..DEEPEST {
            deepest = &deepest["a"];
        }
        assert_eq!(*deepest, json!(5));
        assert!(!read(&nested(DEEPEST + 1)).unwrap().to_string().contains('5'));
        // A dict that holds itself, and a list of eight times the one before, ten times over.
        let own = read(b"}q\x00U\x01ah\x00s.").unwrap().to_string();
        assert!(own.ends_with(&format!("{{{}", "}".repeat(DEEPEST))), "{own}");
        let eightfold =
            [&b"}U\x01a]"[..], &b"q\x000](h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00e".repeat(10), b"s."]
                .concat();
        assert_eq!(read(&eightfold), Err("it would take many times its size in memory".to_string()));
    }
}
