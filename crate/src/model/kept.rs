//! The blocks of a GGUF file that a model was read from, for those who want its weights as they are there.

use super::Model;
use super::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::format::{Coding, Encoded};
use std::collections::BTreeMap;

/// What a matrix was read in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadIn {
    /// The type of its blocks, in the words of GGUF.
    pub name: &'static str,
    /// The format in which they can stay, if kernels have it.
    pub coding: Option<Coding>,
}

impl Model {
    /// What was read in blocks of more than one number, by the names of tensors.
    pub(crate) fn read_in(&self) -> BTreeMap<&str, ReadIn> {
        let blocks = self.origin.iter().flat_map(|origin| &origin.blocks);
        let blocks = blocks.filter(|(_, block)| block.dtype().is_none());
        blocks.map(|(name, block)| (&**name, ReadIn { name: block.name(), coding: block.coding() })).collect()
    }

    /// The matrices whose blocks can stay as they are, read again, by the names of tensors.
    ///
    /// # Errors
    /// The file is gone, damaged, or not the one that the model was read from.
    pub(crate) fn kept_blocks(&self) -> Result<BTreeMap<String, Encoded>> {
        let can_stay = self.read_in();
        let found = Checkpoint::open(&self.source, self.revision.as_deref())?;
        let stays = |name: &str| can_stay.get(name).is_some_and(|own| own.coding.is_some());
        if self.origin.as_ref().is_some_and(|origin| origin.blocks == found.blocks()) {
            let (blocks, hash) = found.read_blocks(stays)?;
            if self.hash.starts_with(&hash) {
                return Ok(blocks);
            }
        }
        Err(Error::input("this file is not the one any more that the model was read from")
            .at(&self.source)
            .hint("load the model again"))
    }
}
