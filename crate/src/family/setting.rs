//! Settings of a `config.json`, each by every place and spelling in which it is found in the wild.

use crate::error::{Error, Result};
use serde_json::Value;

/// No size of a network is larger: products of two of them must be numbers too.
const LARGEST: usize = 1 << 28;

/// The first of several places in a `config.json`, as JSON pointers, that holds something.
pub(super) fn find<'a>(json: &'a Value, places: &[&str]) -> Option<&'a Value> {
    places.iter().filter_map(|place| json.pointer(place)).find(|value| !value.is_null())
}

/// Sets a positive whole number if it is stated.
pub(super) fn size(json: &Value, places: &[&str], to: &mut usize) -> Result<()> {
    let whole = |value: &Value| value.as_u64().filter(|n| *n > 0).map(|n| n as usize);
    set(json, places, "a positive integer", whole, to)
}

/// Sets a switch if it is stated.
pub(super) fn flag(json: &Value, places: &[&str], to: &mut bool) -> Result<()> {
    set(json, places, "true or false", Value::as_bool, to)
}

/// Sets a number if it is stated.
pub(super) fn number(json: &Value, places: &[&str], to: &mut f64) -> Result<()> {
    set(json, places, "a number", Value::as_f64, to)
}

fn set<T>(
    json: &Value,
    places: &[&str],
    expected: &str,
    parse: impl FnOnce(&Value) -> Option<T>,
    to: &mut T,
) -> Result<()> {
    if let Some(value) = find(json, places) {
        let wrong = || Error::input(format!("{} must be {expected}, found {value}", name(places[0])));
        *to = parse(value).ok_or_else(wrong)?;
    }
    Ok(())
}

/// A place as a reader of the file knows it.
pub(super) fn name(place: &str) -> String {
    place[1..].replace('/', ".")
}

/// Refuses settings that change the architecture to one that is not here: each with the values, in JSON, of those that are.
pub(super) fn known(json: &Value, settings: &[(&str, &[&str])]) -> Result<()> {
    for (place, known) in settings {
        let other = |value: &&Value| !known.contains(&value.to_string().as_str());
        if let Some(value) = find(json, &[place]).filter(other) {
            let key = name(place);
            return Err(Error::input(format!(
                "{key} = {value} calls for an architecture that this version does not have"
            )));
        }
    }
    Ok(())
}

/// Refuses sizes that no network has.
pub(super) fn check_sizes(sizes: &[(&str, usize)]) -> Result<()> {
    for (name, size) in sizes {
        if *size == 0 {
            return Err(Error::input(format!("{name} must be a positive integer, found 0")));
        }
        if *size > LARGEST {
            return Err(Error::input(format!("{name} must be at most {LARGEST}, found {size}")));
        }
    }
    Ok(())
}

/// How many layers tensors are numbered for, by names that begin with `blocks`. The highest number counts: a tensor that is
/// missing below it is told by its name later.
///
/// # Errors
/// If most of those before the highest are missing.
pub(super) fn layers<'a>(names: impl ExactSizeIterator<Item = &'a String>, blocks: &str) -> Result<usize> {
    let tensors = names.len();
    let number = |name: &String| name.strip_prefix(blocks)?.split('.').next()?.parse().ok();
    let layers = names.filter_map(number).max().map_or(0, |last: usize| last.saturating_add(1));
    if layers > tensors {
        let what = format!("layer {} is there, and most of those before it are missing", layers - 1);
        return Err(Error::input(what).hint("copy or download the checkpoint again"));
    }
    Ok(layers)
}

/// The dimensions of a tensor that sizes are read from.
///
/// # Errors
/// It is not there, or has another number of them.
pub(super) fn dims(shapes: &super::Shapes, name: &str, rank: usize, family: &str) -> Result<Vec<usize>> {
    let missing = || Error::input(format!("missing: a {family}'s sizes are read from it")).at(name);
    let found = shapes.get(name).ok_or_else(missing)?;
    match found.len() == rank {
        true => Ok(found.clone()),
        false => Err(Error::input(format!("expected {rank} dimensions, found shape {found:?}")).at(name)),
    }
}

/// What stands before the body of a network in the name of a tensor that every one of its layers has: its name is
/// `layers.N` and then `tensor`.
pub(super) fn before_layers<'a>(name: &'a str, tensor: &str) -> Option<&'a str> {
    before_blocks(name, "layers", tensor)
}

/// The same where the layers have another name.
pub(super) fn before_blocks<'a>(name: &'a str, layers: &str, tensor: &str) -> Option<&'a str> {
    let (before, layer) = name.strip_suffix(tensor)?.rsplit_once('.')?;
    let place = before.strip_suffix(layers)?;
    let is_number = !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_digit());
    Some(place).filter(|place| is_number && (place.is_empty() || place.ends_with('.')))
}

/// What is assumed where neither a config nor a tensor tells of a head.
pub(super) const NO_HEAD: &str = "the head is the embedding (there is no lm_head.weight)";

/// Refuses a number of layers in `file` other than that of the checkpoint.
pub(super) fn same_layers(stated: usize, found: usize, file: impl std::fmt::Display) -> Result<()> {
    if stated == found {
        return Ok(());
    }
    let what = format!("num_hidden_layers is {stated}, and the checkpoint has {found}");
    Err(Error::input(what).at(file).hint("are they of the same model?"))
}
