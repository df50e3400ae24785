//! What a model's family lets it do: how far it reads, and whether it carries a recurrent state.

use super::Model;
use crate::error::{Error, Result};
use crate::layer::attention::Width;
use crate::layer::recurrence::Recurrence;

impl Model {
    /// The longest sequence that the model can read, in tokens; none where nothing bounds it. What reads more is refused
    /// before it is measured.
    pub fn max_length(&self) -> Option<usize> {
        self.config.longest()
    }

    /// Refuses a sequence that is longer than the model can read; `name` is the setting that asks for it.
    ///
    /// # Errors
    /// It is longer; the sentence names both lengths.
    pub fn fits(&self, name: &str, length: usize) -> Result<()> {
        self.bounded(length, || format!("{name}: "))
    }

    /// Refuses a sequence that is longer than the model can read.
    pub(super) fn admit_length(&self, length: usize) -> Result<()> {
        self.bounded(length, String::new)
    }

    fn bounded(&self, length: usize, setting: impl Fn() -> String) -> Result<()> {
        match self.max_length().filter(|most| length > *most) {
            Some(most) => Err(Error::input(format!(
                "{}a sequence of {length} tokens is longer than the model can read, which is {most}",
                setting()
            ))
            .at(&self.name)
            .hint(format!("ask for at most {most} tokens"))),
            None => Ok(()),
        }
    }

    /// Refuses bits for what no branch of the model has: a recurrence, or a cache of keys and values.
    ///
    /// # Errors
    /// There is none, or it cannot have such bits.
    pub(crate) fn keeps(&self, recurrence: Recurrence, cache: Width) -> Result<()> {
        let mut stack = self.stack.clone(); // shares the weights
        stack.set_recurrence(recurrence)?;
        stack.set_cache(cache)
    }

    /// Whether a recurrent state goes from token to token, in any of its layers.
    pub fn is_recurrent(&self) -> bool {
        !self.recurrences().is_empty()
    }

    /// A Llama with seeded weights that reads so many tokens.
    #[cfg(test)]
    pub(crate) fn that_reads(tokens: usize) -> Self {
        use crate::family::{Config, llama};
        let shape = llama::Config {
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            head_dim: 8,
            max_position_embeddings: tokens,
            ..llama::Config::default()
        };
        Self::random("short", Config::Llama(shape), 0, &super::Loading::default()).unwrap()
    }
}
