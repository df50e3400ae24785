//! The tensors in what a pickle is of, each under its path: the keys on the way to it, joined by dots.

use super::machine::{Machine, Told};
use super::values::{Thing, Value};
use crate::json;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How deep dicts may lie in dicts; weights lie in the first few.
const DEEPEST: usize = 64;

/// What was found, by path.
#[derive(Default)]
pub(super) struct Leaves {
    /// Tensors, and what other calls of PyTorch and NumPy would give.
    pub tensors: BTreeMap<String, Value>,
    /// Numbers of layers that stand beside them.
    pub layers: Vec<(String, u64)>,
}

/// Walks through dicts, lists and objects, those nearest to the top first and none twice.
pub(super) fn leaves(machine: &mut Machine, top: Value) -> Told<Leaves> {
    let mut leaves = Leaves::default();
    let mut seen = BTreeSet::new();
    let mut waiting = VecDeque::from([(String::new(), top, 0)]);
    while let Some((path, value, depth)) = waiting.pop_front() {
        let Value::Thing(number) = value else { continue };
        if depth > DEEPEST || !seen.insert(number) {
            continue;
        }
        machine.take_room(64)?;
        for (key, value) in children(machine, value) {
            let path = if path.is_empty() { key } else { format!("{path}.{key}") };
            let leaf = match value {
                Value::Int(layers)
                    if layers >= 0 && json::LAYERS.iter().any(|name| ends_with(&path, name)) =>
                {
                    leaves.layers.push((path, layers as u64));
                    continue;
                }
                Value::Thing(_) => is_leaf(machine, value),
                _ => continue,
            };
            machine.take_room(path.len() + 256)?;
            if !leaf {
                waiting.push_back((path, value, depth + 1));
            } else if leaves.tensors.insert(path.clone(), value).is_some() {
                return Err(format!("two tensors are called {path}"));
            }
        }
    }
    Ok(leaves)
}

fn ends_with(path: &str, name: &str) -> bool {
    path.rsplit('.').next() == Some(name)
}

/// The values that a thing holds, by key; of keys that come twice the last value counts, as in Python.
fn children(machine: &Machine, value: Value) -> BTreeMap<String, Value> {
    let key = |value: Value| machine.key(value);
    let of_items = |items: &[(Value, Value)]| -> BTreeMap<String, Value> {
        let relevant = |value: &Value| matches!(value, Value::Thing(_) | Value::Int(_));
        let items = items.iter().filter(|(_, value)| relevant(value));
        items.filter_map(|(name, value)| Some((key(*name)?, *value))).collect()
    };
    let of_list = |values: &[Value]| -> BTreeMap<String, Value> {
        let things = values.iter().enumerate().filter(|(_, value)| matches!(value, Value::Thing(_)));
        things.map(|(i, value)| (i.to_string(), *value)).collect()
    };
    match machine.thing(value) {
        Some(Thing::Dict(items)) => of_items(items),
        Some(Thing::List(values) | Thing::Tuple(values)) => of_list(values),
        Some(Thing::Object(object)) => {
            // What an object was made of, its attributes (a second element of the state are those in slots), and what
            // it holds as a dict or list.
            let mut all = machine.values(object.args).map_or_else(BTreeMap::new, &of_list);
            all.extend(of_list(&object.list));
            match machine.thing(object.state) {
                Some(Thing::Dict(items)) => all.extend(of_items(items)),
                Some(Thing::Tuple(parts)) => {
                    for part in parts {
                        if let Some(Thing::Dict(items)) = machine.thing(*part) {
                            all.extend(of_items(items));
                        }
                    }
                }
                _ => {}
            }
            all.extend(of_items(&object.items));
            all
        }
        _ => BTreeMap::new(),
    }
}

/// Whether a thing is a tensor, or what PyTorch or NumPy would put together again in a way that is not known.
fn is_leaf(machine: &Machine, value: Value) -> bool {
    match machine.thing(value) {
        Some(Thing::Tensor(_)) => true,
        Some(Thing::Object(object)) if object.called => {
            machine.global(object.class).is_some_and(|(module, name)| {
                let library = module.split('.').next().unwrap_or_default();
                ["torch", "numpy"].contains(&library)
                    && ["_rebuild", "_reconstruct"].iter().any(|start| name.starts_with(start))
            })
        }
        _ => false,
    }
}
