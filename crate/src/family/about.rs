//! What tells a family from others.

use super::{Config, Shapes, Stacked, Stated};
use crate::error::Result;
use serde_json::Value;

/// What tells a family from others, and how its config is found.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its name, as records hold it.
    pub name: &'static str,
    /// Further values of `model_type` that checkpoints of it state.
    pub aliases: &'static [&'static str],
    /// The word for the body of the network that begins the names of its tensors, the dot included.
    pub body: &'static str,
    /// What stands before the body in the name of a tensor that every one of its layers has.
    pub before_body: fn(&str) -> Option<&str>,
    /// The family's own name of a tensor, from what follows the place of the body in a checkpoint's; none if it is not one of
    /// the body's.
    pub name_in_body: fn(&str) -> Option<String>,
    /// Whether tensors of these names and shapes are such a network.
    pub recognizes: fn(&Shapes) -> bool,
    /// The config of a checkpoint; see [`Config::resolve`].
    pub resolve: Resolve,
    /// Whether what is stated says that head and embedding are one matrix.
    pub states_tied: fn(&Value) -> Option<bool>,
    /// Whether its published files hold the configuration beside the weights in one pickle.
    pub pickled_config: bool,
    /// Its tensors that hold the matrices of all experts of a layer.
    pub stacked: &'static [Stacked],
    /// Published or customary shapes by name.
    pub shapes: &'static [NamedShape],
}

/// What is stated and what shapes tell → a config, and what had to be assumed.
pub type Resolve = fn(Option<&Stated>, &Shapes) -> Result<(Config, Vec<String>)>;

/// The name of a shape, and what makes its config.
pub type NamedShape = (&'static str, fn() -> Config);
