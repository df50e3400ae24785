//! What hybrids of Mamba2 and attention have in common, whatever their names: the settings of the two mixers, how they are read and
//! written, their tensors, sites and branches.
//!
//! | file | holds |
//! |---|---|
//! | `mamba` | the settings of Mamba2's mixer |
//! | `heads` | attention: settings, tensors, sites, branch |
//! | `feed` | feed-forward matrices |

mod feed;
mod heads;
mod mamba;

use super::setting::{NO_HEAD, before_layers, find, layers, number, same_layers, size};
use super::{Ends, Family, Shapes, Stated};
use crate::error::{Error, Result};
pub(super) use feed::{Feed, Matrix};
pub use heads::Heads;
pub(super) use heads::Place;
pub use mamba::Mamba;
pub(super) use mamba::{Keys, SHORT};
use serde_json::Value;

/// A `config.json` on its way in, and what is assumed where it says nothing.
pub(super) struct Reading<'a> {
    pub json: &'a Value,
    pub assumed: Vec<String>,
}

impl<'a> Reading<'a> {
    pub fn new(json: &'a Value) -> Self {
        Self { json, assumed: vec![] }
    }

    /// Takes what transformers does where nothing is stated, and says so.
    pub fn size_or(&mut self, place: &str, default: usize, to: &mut usize) -> Result<()> {
        self.or(place, default, to)?;
        size(self.json, &[place], to)
    }

    /// As [`size_or`](Self::size_or), of a number.
    pub fn number_or(&mut self, place: &str, default: f64, to: &mut f64) -> Result<()> {
        self.or(place, default, to)?;
        number(self.json, &[place], to)
    }

    fn or<T: Copy + std::fmt::Display>(&mut self, place: &str, default: T, to: &mut T) -> Result<()> {
        if find(self.json, &[place]).is_none() {
            self.assumed.push(format!("{} = {default}", &place[1..]));
            *to = default;
        }
        Ok(())
    }

    /// A constant factor: 1 where nothing is stated.
    pub fn factor(&self, place: &str, to: &mut f64) -> Result<()> {
        *to = 1.0;
        number(self.json, &[place], to)
    }

    /// As [`factor`](Self::factor), of so many in a list; of a list that is null they are 1.
    pub fn factors<const N: usize>(&self, place: &str, to: &mut [f64; N]) -> Result<()> {
        *to = [1.0; N];
        let Some(found) = find(self.json, &[place]) else { return Ok(()) };
        let all = found.as_array().and_then(|all| all.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        *to = all.and_then(|all| all.try_into().ok()).ok_or_else(|| {
            Error::input(format!("{} must be a list of {N} numbers, found {found}", &place[1..]))
        })?;
        Ok(())
    }
}

/// Refuses constants that are no positive, finite numbers.
pub(super) fn check_positive(numbers: &[(&str, f64)]) -> Result<()> {
    match numbers.iter().find(|(_, value)| !value.is_finite() || *value <= 0.0) {
        Some((name, value)) => Err(Error::input(format!("{name} must be a positive number, found {value}"))),
        None => Ok(()),
    }
}

/// Refuses constant factors that are no finite numbers.
pub(super) fn check_factors(numbers: &[(&str, f64)]) -> Result<()> {
    match numbers.iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(Error::input(format!("{name} must be a number, found {value}"))),
        None => Ok(()),
    }
}

/// A stated list that shapes tell too.
///
/// # Errors
/// The two differ.
pub(super) fn same_list(json: &Value, place: &str, stated: Option<Value>, found: &Value) -> Result<()> {
    match stated {
        Some(stated) if stated != *found => {
            let raw = json.pointer(place).unwrap_or(&Value::Null);
            let what = format!("{} is {raw}, and the tensors are those of {found}", &place[1..]);
            Err(Error::input(what).hint("are config and checkpoint of the same model?"))
        }
        _ => Ok(()),
    }
}

/// Whether head and embedding are one matrix.
pub(super) const TIED: &[&str] = &["/tie_word_embeddings"];

/// Whether head and embedding are said to be one matrix.
pub(super) fn states_tied(json: &Value) -> Option<bool> {
    find(json, TIED)?.as_bool()
}

/// The ends of a network whose layers have a norm `pre_ff_layernorm`.
pub(super) const ENDS: Ends = Ends {
    embedding: "model.embed_tokens",
    blocks: "model.layers.",
    norm: Some("model.final_layernorm"),
    head: "lm_head",
};

/// The norms of its layers.
pub(super) const NORMS: [&str; 2] = ["input_layernorm", "pre_ff_layernorm"];

/// What stands before the body of such a network: `model.` or nothing, with whatever a program put in front.
pub(super) fn before_body(name: &str) -> Option<&str> {
    before_layers(name, ".pre_ff_layernorm.weight")
}

/// The Hugging Face name of one of its tensors, from what follows the place of the body in a checkpoint's.
pub(super) fn name_in_body(name: &str) -> Option<String> {
    let of_body =
        ["layers.", "embed_tokens.", "final_layernorm."].iter().any(|start| name.starts_with(start));
    // Some files carry the frequencies, which are computed.
    (of_body && !name.ends_with("rotary_emb.inv_freq")).then(|| format!("model.{name}"))
}

/// Whether tensors are those of such a network.
pub(super) fn is_gated(shapes: &Shapes) -> bool {
    ["pre_ff_layernorm.weight", "feed_forward.gate_proj.weight", "feed_forward.down_proj.weight"]
        .iter()
        .all(|name| shapes.contains_key(&format!("model.layers.0.{name}")))
}

/// Whether its first layer has both mixers.
pub(super) fn has_both(shapes: &Shapes) -> bool {
    ["mamba.A_log", "self_attn.q_proj.weight"]
        .iter()
        .all(|name| shapes.contains_key(&format!("model.layers.0.{name}")))
}

/// The config of a checkpoint, checked, with what is assumed: as `infer` finds it in shapes, and `read` in what is stated; `tied` of it
/// says whether its head is the embedding.
///
/// # Errors
/// There is no `config.json`, or it contradicts the shapes or itself.
pub(super) fn resolved<C: Family>(
    family: &str,
    stated: Option<&Stated>,
    shapes: &Shapes,
    infer: impl FnOnce(&Shapes) -> Result<C>,
    read: impl FnOnce(&mut C, &mut Reading<'_>, &Shapes) -> Result<()>,
    tied: impl FnOnce(&mut C) -> &mut bool,
) -> Result<(C, Vec<String>)> {
    let Some(Stated { file, json }) = stated else {
        let what = format!(
            "the heads and multipliers of a {family} are in no tensor's shape, and there is no config.json"
        );
        return Err(Error::input(what).hint("put the model's config.json beside its weights"));
    };
    let mut from = Reading::new(json);
    let read = || {
        let mut config = infer(shapes)?;
        read(&mut config, &mut from, shapes)?;
        Ok(config)
    };
    let mut config = read().map_err(|error: Error| error.at(file))?;
    let found = layers(shapes.keys(), config.ends().blocks)?;
    let mut said = config.sizes().layers;
    size(json, &["/num_hidden_layers"], &mut said).map_err(|error| error.at(file))?;
    same_layers(said, found, file)?;
    if find(json, TIED).is_none() {
        let alone = !shapes.contains_key("lm_head.weight");
        *tied(&mut config) = alone;
        if alone {
            from.assumed.push(NO_HEAD.to_string());
        }
    }
    config.check().map_err(|error| error.at(file))?;
    Ok((config, from.assumed))
}
