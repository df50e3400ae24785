//! What a model's family lets it do: how far it reads, and whether it carries a recurrent state.

use super::Model;
use crate::error::{Error, Result};
use crate::family::Config;

impl Model {
    /// The longest sequence that the model can read, in tokens; none where nothing bounds it. What reads more is refused
    /// before it is measured.
    pub fn max_length(&self) -> Option<usize> {
        #[cfg(test)]
        if let Some(pretended) = pretended::get() {
            return pretended.max_length;
        }
        match self.config {
            Config::Mamba2(_) => None,
        }
    }

    /// Refuses a sequence that is longer than the model can read; `name` is the setting that asks for it.
    ///
    /// # Errors
    /// It is longer; the sentence names both lengths.
    pub fn fits(&self, name: &str, length: usize) -> Result<()> {
        match self.max_length().filter(|most| length > *most) {
            Some(most) => Err(Error::input(format!(
                "{name}: a sequence of {length} tokens is longer than the model can read, which is {most}"
            ))
            .at(&self.name)
            .hint(format!("ask for at most {most} tokens"))),
            None => Ok(()),
        }
    }

    /// Whether a recurrent state goes from token to token.
    pub fn is_recurrent(&self) -> bool {
        #[cfg(test)]
        if let Some(pretended) = pretended::get() {
            return pretended.recurrent;
        }
        match self.config {
            Config::Mamba2(_) => true,
        }
    }
}

/// Other bounds than a model has, in a test on this thread.
#[cfg(test)]
pub(crate) mod pretended {
    use std::cell::Cell;

    #[derive(Clone, Copy)]
    pub struct Bounds {
        pub max_length: Option<usize>,
        pub recurrent: bool,
    }

    thread_local! {
        static PRETENDED: Cell<Option<Bounds>> = const { Cell::new(None) };
    }

    pub fn get() -> Option<Bounds> {
        PRETENDED.get()
    }

    /// What `f` gives where every model has these bounds.
    pub fn with<R>(bounds: Bounds, f: impl FnOnce() -> R) -> R {
        let before = PRETENDED.replace(Some(bounds));
        let found = f();
        PRETENDED.set(before);
        found
    }
}
