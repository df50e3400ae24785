//! Model families: each a file or folder with its config, its checkpoint's names, how to infer the one from the other, and the
//! recipe that turns tensors into the one [`Stack`].
//!
//! To add a family: a module with a `Config` that is a [`Family`] and a constant [`About`] named `ABOUT`, and its line in
//! `families!` below. What its blocks do beside the branches that are there is a [`Branch`](crate::layer::branch::Branch).
//! `toy.rs` does it in one file, as a test.
//!
//! | file | holds |
//! |---|---|
//! | [`mamba2`], [`llama`], [`gla`], [`lowrankq`], [`itera`], [`granitemoehybrid`], [`bamba`], [`falcon_h1`], [`nemotron_h`] | a family each |
//! | [`hybrid`] | what families of Mamba2 and attention have in common |
//! | `mixer` | Mamba2's mixer in a block of any family |
//! | [`stack`] | the decoder that all share |
//! | [`site`] | the matrices that can be quantized |
//! | [`group`] | what can be left out whole |
//! | `config` | what holds of the config of any family |
//! | `about` | what tells a family from others |
//! | `names` | a network among the names of a checkpoint |
//! | `check` | a checkpoint's shapes held to a config |
//! | `spec` | the tensors that a config calls for |
//! | `setting` | settings in a `config.json`, by all their spellings |
//! | `stacked` | tensors that hold the matrices of all experts, cut and joined |
//! | `source` | what of a model's own `config.json` still holds when it is saved |

mod about;
pub mod bamba;
mod check;
mod config;
pub mod falcon_h1;
pub mod gla;
pub mod granitemoehybrid;
pub mod group;
pub mod hybrid;
pub mod itera;
pub mod llama;
pub mod lowrankq;
pub mod mamba2;
mod mixer;
mod names;
pub mod nemotron_h;
mod setting;
pub mod site;
mod source;
mod spec;
pub mod stack;
mod stacked;
#[cfg(test)]
mod toy;

use crate::error::Result;
use crate::layer::quantized::Quantized;
pub use about::{About, NamedShape, Resolve};
use candle_core::Tensor;
pub use check::{check, shapes, some_of};
use group::Group;
pub use names::Names;
use serde::{Deserialize, Serialize};
use serde_json::Value;
pub use site::Site;
pub use spec::{Init, TensorSpec};
pub use stack::{Parts, Stack};
pub use stacked::Stacked;
pub(crate) use stacked::{cut, cut_shapes, join, parts_of};
use std::collections::BTreeMap;
use std::fmt;

/// The tensors of a checkpoint by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The shapes of a checkpoint's tensors by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// What a file beside the weights states of a model: `config.json`, or `params.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Stated {
    /// The file's name.
    pub file: String,
    /// What it says.
    pub json: Value,
}

/// Matrices in few bits by the name that their tensor would have.
pub type Matrices = BTreeMap<String, Quantized>;

/// The gradient of a loss with respect to every tensor of a checkpoint, by name, each in the order of its tensor.
pub type Gradients = BTreeMap<String, Vec<f32>>;

/// The config of a family: the shape of a model, and what follows from it.
pub trait Family: fmt::Debug {
    /// Refuses sizes that no network can have.
    ///
    /// # Errors
    /// The first setting that is none of such a model's.
    fn check(&self) -> Result<()>;

    /// Every tensor of such a model.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// Every matrix that can be quantized, in the order of [`Stack::linears`].
    fn sites(&self) -> Vec<Site>;

    /// The recipe: tensors that [`check()`] has passed → the layers.
    ///
    /// # Errors
    /// If a tensor is not there.
    fn stack(&self, parts: &Parts<'_>) -> candle_core::Result<Stack>;

    /// What the ends of such a network are called in a checkpoint.
    fn ends(&self) -> Ends;

    /// Rows of the embedding, blocks, and the width of the residual stream.
    fn sizes(&self) -> Sizes;

    /// Tokens of the longest sequence that it reads; none if there is no limit.
    fn longest(&self) -> Option<usize> {
        None
    }

    /// Whether the head's matrix is the embedding too.
    fn tied(&self) -> bool;

    /// Gives the head a matrix of its own.
    fn untie(&mut self);

    /// What can be left out of a block whole, for a smaller network of the family; empty where nothing can.
    fn groups(&self, _layer: usize) -> Vec<Group> {
        vec![]
    }

    /// Whether a setting is one size for all layers, so that of every layer as many of its groups must be left out.
    fn is_even(&self, _setting: &str) -> bool {
        true
    }

    /// The config of what is left without these groups; none where nothing can be left out.
    fn without(&self, _left_out: &[&Group]) -> Option<Config> {
        None
    }

    /// Experts that see a token; 0 where there are none.
    fn chosen_experts(&self) -> usize {
        0
    }

    /// Its `config.json` as transformers reads it; see [`Config::hugging_face`].
    ///
    /// # Errors
    /// If a setting cannot be written.
    fn hugging_face(&self, source: Option<&Value>) -> Result<serde_json::Map<String, Value>>;

    /// Why transformers cannot read a model of this shape, if it cannot.
    fn foreign_to_transformers(&self) -> Option<String> {
        None
    }
}

/// What the ends of a network are called in a checkpoint, without `.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The embedding.
    pub embedding: &'static str,
    /// What the names of the blocks begin with, the dot included.
    pub blocks: &'static str,
    /// The last norm; none where it has no weight.
    pub norm: Option<&'static str>,
    /// The head.
    pub head: &'static str,
}

/// How large a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
}

macro_rules! families {
    ($($(#[$doc:meta])* $variant:ident = $module:ident),* $(,)?) => {
        /// The config of a model of any family.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "model_type", rename_all = "snake_case")]
        pub enum Config {
            $($(#[$doc])* $variant($module::Config)),*
        }

        impl Config {
            /// The config of its family.
            pub fn recipe(&self) -> &dyn Family {
                match self {
                    $(Self::$variant(config) => config),*
                }
            }

            fn recipe_mut(&mut self) -> &mut dyn Family {
                match self {
                    $(Self::$variant(config) => config),*
                }
            }

            fn about(&self) -> &'static About {
                match self {
                    $(Self::$variant(_) => &$module::ABOUT),*
                }
            }
        }

        /// All families.
        const FAMILIES: &[&About] = &[$(&$module::ABOUT),*];
    };
}

families! {
    /// Mamba2.
    Mamba2 = mamba2,
    /// Llama-type transformers.
    Llama = llama,
    /// Gated linear attention.
    Gla = gla,
    /// Transformers with queries of low rank.
    LowrankQ = lowrankq,
    /// State spaces with experts, as in Itera-Lite.
    IteraLite = itera,
    /// Granite 4: Mamba2 or attention, and experts.
    Granitemoehybrid = granitemoehybrid,
    /// Bamba: Mamba2 or attention.
    Bamba = bamba,
    /// Falcon-H1: Mamba2 and attention side by side.
    FalconH1 = falcon_h1,
    /// Nemotron-H: Mamba2, attention, feed-forward layers or experts.
    NemotronH = nemotron_h,
}

/// Whether tensors of these names and shapes are of a family whose files hold the configuration in the pickle of the weights.
pub fn pickles_config(shapes: &Shapes) -> bool {
    FAMILIES.iter().any(|about| about.pickled_config && (about.recognizes)(shapes))
}

/// The names of all families, as a hint.
fn known() -> String {
    let names: Vec<&str> = FAMILIES.iter().map(|about| about.name).collect();
    format!("this version knows: {}", names.join(", "))
}

/// The names of all families, each with that of a tensor which it has, as a hint.
pub(crate) fn known_by_tensors() -> String {
    let each = FAMILIES.iter().filter_map(|about| {
        let config = (about.shapes.first()?.1)();
        let blocks = config.recipe().ends().blocks;
        let tensor =
            config.tensors().into_iter().find(|spec| spec.matrix && spec.name.starts_with(blocks))?;
        Some(format!("{} (tensors such as {})", about.name, tensor.name))
    });
    format!("this version knows: {}", each.collect::<Vec<_>>().join(", "))
}
