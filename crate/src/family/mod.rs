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

use crate::error::{Error, Result};
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

    /// What can be left out of it whole, for a smaller network of the family; empty where nothing can.
    fn groups(&self) -> Vec<Group> {
        vec![]
    }

    /// Whether the config has one size for all layers, so that of every layer as many groups must be left out.
    fn is_even(&self) -> bool {
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

impl Config {
    /// Takes what a config states, filling what it leaves out from the shapes of the tensors; or infers everything from
    /// the shapes. Also returns what had to be assumed because neither says it.
    ///
    /// A head of the embedding's shape is taken to be the embedding, unless something says otherwise: whether it is,
    /// only its values tell.
    ///
    /// # Errors
    /// The family is unknown, or config and shapes contradict each other.
    pub fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        let named = Self::stated_family(stated)?;
        // Original checkpoints name no type, and some another's; the tensors tell.
        let fits = |about: &&&About| (about.recognizes)(shapes);
        let told = named.iter().find(fits).or_else(|| FAMILIES.iter().find(fits)).copied();
        let Some(about) = told.or(named) else {
            return Err(Error::input("no known model family has tensors of these names").hint(known()));
        };
        if let (Some(Stated { file, .. }), Some(named)) = (stated, named)
            && named.name != about.name
        {
            let what = format!("model_type is {}, and the tensors are those of a {}", named.name, about.name);
            return Err(Error::input(what).at(file).hint("are they of the same model?"));
        }
        (about.resolve)(stated, shapes)
    }

    /// The family that is stated, if one is.
    ///
    /// # Errors
    /// It is not known, or is no name, or what is stated is no object of settings.
    pub fn stated_family(stated: Option<&Stated>) -> Result<Option<&'static About>> {
        let Some(Stated { file, json }) = stated else { return Ok(None) };
        if !json.is_object() {
            let start: String = json.to_string().chars().take(20).collect();
            return Err(Error::input(format!("expected an object of settings, found {start}")).at(file));
        }
        match json.get("model_type") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) => {
                let known = |about: &&&About| about.name == name || about.aliases.contains(&&**name);
                let about = FAMILIES.iter().find(known).copied();
                about.map(Some).ok_or_else(|| unknown(name).at(file))
            }
            Some(named) => {
                Err(Error::input(format!("model_type must be a name, found {named}")).at(file).hint(known()))
            }
        }
    }

    /// Whether what is stated says that head and embedding are one matrix; none if it does not say.
    pub fn states_tied(&self, stated: Option<&Stated>) -> Option<bool> {
        (self.about().states_tied)(&stated?.json)
    }

    /// The `config.json` of such a model, as transformers reads it. `source` is the one that the model came with: what it
    /// says beside is kept where it still holds.
    ///
    /// # Errors
    /// If a setting cannot be written.
    pub fn hugging_face(&self, source: Option<&Value>) -> Result<Value> {
        Ok(Value::Object(self.recipe().hugging_face(source)?))
    }

    /// The names of the head and of the embedding that is the head too, if it is.
    pub fn tied(&self) -> Option<(String, String)> {
        let Ends { embedding, head, .. } = self.recipe().ends();
        self.recipe().tied().then(|| (format!("{head}.weight"), format!("{embedding}.weight")))
    }

    /// Gives the head a matrix of its own.
    pub fn untie(&mut self) {
        self.recipe_mut().untie();
    }

    /// A published or customary shape by name.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn named(shape: &str) -> Result<Self> {
        let all = || FAMILIES.iter().flat_map(|about| about.shapes);
        match all().find(|(name, _)| *name == shape) {
            Some((_, config)) => Ok(config()),
            None => {
                let names: Vec<&str> = all().map(|(name, _)| *name).collect();
                Err(Error::input(format!("unknown shape {shape:?}"))
                    .hint(format!("known are {}", listed(&names))))
            }
        }
    }

    /// The layers of such a model, of tensors that [`check()`] has passed; of `matrices` those that are in few bits.
    ///
    /// # Errors
    /// If a tensor is not there.
    pub fn stack(&self, tensors: &Tensors, matrices: &Matrices) -> Result<Stack> {
        let stack = self.recipe().stack(&Parts::new(tensors, matrices))?;
        // Reports, inputs and schemes go through the two side by side.
        let (linears, sites) = (stack.linears(), self.sites());
        let alike = linears.len() == sites.len()
            && linears.iter().zip(&sites).all(|((path, _), site)| *path == site.path);
        match alike {
            true => Ok(stack),
            false => Err(Error::internal(format!("sites and linears of a {} differ", self.family()))),
        }
    }

    /// The family's name, as records hold it.
    pub fn family(&self) -> &'static str {
        self.about().name
    }

    /// Every tensor of such a model.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.recipe().tensors()
    }

    /// A place for the gradient of every tensor.
    pub fn zero_gradients(&self) -> Gradients {
        let place = |spec: TensorSpec| (spec.name, vec![0.0; spec.shape.iter().product()]);
        self.tensors().into_iter().map(place).collect()
    }

    /// Every matrix that can be quantized, in forward order. A tied head is listed once, as the head.
    pub fn sites(&self) -> Vec<Site> {
        self.recipe().sites()
    }

    /// What can be left out whole; see [`Group`].
    pub fn groups(&self) -> Vec<Group> {
        self.recipe().groups()
    }

    /// Whether of every layer as many groups must be left out.
    pub fn is_even(&self) -> bool {
        self.recipe().is_even()
    }

    /// Experts that see a token; 0 where there are none.
    pub fn chosen_experts(&self) -> usize {
        self.recipe().chosen_experts()
    }

    /// The config of what is left without these groups.
    ///
    /// # Errors
    /// If nothing can be left out of such a network.
    pub fn without(&self, left_out: &[&Group]) -> Result<Self> {
        let none = || Error::input(format!("nothing can be left out of a {} whole", self.family()));
        self.recipe().without(left_out).ok_or_else(none)
    }

    /// Whether a tensor of this name would be part of what a block or the head computes.
    fn is_of_block(&self, name: &str) -> bool {
        let Ends { blocks, head, .. } = self.recipe().ends();
        name.starts_with(blocks) || name.strip_prefix(head) == Some(".bias")
    }

    /// Vocabulary size, rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        self.recipe().sizes().vocabulary
    }

    /// Blocks.
    pub fn layers(&self) -> usize {
        self.recipe().sizes().layers
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.recipe().sizes().hidden
    }

    /// Tokens of the longest sequence that it reads; none if there is no limit.
    pub fn longest(&self) -> Option<usize> {
        self.recipe().longest()
    }
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

/// `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        names => names.concat(),
    }
}

fn unknown(family: &str) -> Error {
    Error::input(format!("unknown model family {family:?}")).hint(known())
}
