//! A checkpoint's shapes held to a config.

use super::{Config, Matrices, Shapes, Tensors};
use crate::error::{Error, Result};

/// What to try when config and tensors contradict each other.
const DISAGREE: &str = "the config and the checkpoint disagree: are they of the same model?";

/// The shapes of tensors and matrices by name.
pub fn shapes(tensors: &Tensors, matrices: &Matrices) -> Shapes {
    let of_matrices = matrices.iter().map(|(name, m)| (name.clone(), vec![m.shape().0, m.shape().1]));
    let of_tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()));
    of_matrices.chain(of_tensors).collect()
}

/// Holds the shapes of a checkpoint to the config; returns the names that do not belong to the network.
///
/// # Errors
/// A tensor is missing or has a wrong shape, or a block has a tensor that the config does not call for: a network
/// without it would compute something else.
pub fn check(config: &Config, shapes: &Shapes) -> Result<Vec<String>> {
    config.recipe().check()?;
    let specs: Shapes = config.tensors().into_iter().map(|spec| (spec.name, spec.shape)).collect();
    let missing: Vec<&str> =
        specs.keys().filter(|name| !shapes.contains_key(*name)).map(String::as_str).collect();
    let head = format!("{}.weight", config.recipe().ends().head);
    if missing == [&head] {
        return Err(Error::input(format!("the checkpoint lacks {head}, which the config calls for")).hint(
            "set tie_word_embeddings to true if the embedding is the head too; a head of random numbers is not made",
        ));
    }
    if !missing.is_empty() {
        let what = format!("the checkpoint lacks what the config calls for: {}", some_of(&missing));
        return Err(Error::input(what).hint(DISAGREE));
    }
    for (name, shape) in &specs {
        let found = &shapes[name];
        if found != shape {
            let what = format!("expected shape {shape:?}, found {found:?}");
            return Err(Error::input(what).at(name).hint(DISAGREE));
        }
    }
    let unused: Vec<&str> =
        shapes.keys().filter(|name| !specs.contains_key(*name)).map(String::as_str).collect();
    let of_blocks: Vec<&str> = unused.iter().copied().filter(|name| config.is_of_block(name)).collect();
    if !of_blocks.is_empty() {
        let what = format!("the checkpoint has what the config does not call for: {}", some_of(&of_blocks));
        return Err(Error::input(what).hint(DISAGREE));
    }
    Ok(unused.into_iter().map(String::from).collect())
}

/// A few names, and how many more there are.
pub fn some_of<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(4).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(4) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
