//! What holds of the config of any family: how it is found for a checkpoint, and what follows from it.

use super::group::Group;
use super::{
    About, Config, Ends, FAMILIES, Gradients, Matrices, Parts, Shapes, Site, Stack, Stated, TensorSpec,
    Tensors, known,
};
use crate::error::{Error, Result};
use serde_json::Value;

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

    /// The layers of such a model, of tensors that [`check()`](super::check()) has passed; of `matrices` those in few bits.
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
        (0..self.layers()).flat_map(|layer| self.recipe().groups(layer)).collect()
    }

    /// Whether of every layer as many groups of a setting must be left out.
    pub fn is_even(&self, setting: &str) -> bool {
        self.recipe().is_even(setting)
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
    pub(super) fn is_of_block(&self, name: &str) -> bool {
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
