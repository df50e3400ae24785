//! What can be left out of a Mamba2: heads, as many of every layer, since its config has one size for all.

use super::super::group::{Group, left_out_of};
use super::config::Config;

impl Config {
    pub(super) fn groups_of(&self, layer: usize) -> Vec<Group> {
        self.mixer().groups(&format!("backbone.layers.{layer}.mixer"), layer, "num_heads")
    }

    /// The config of what is left, where of every layer as many heads are left out.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        Self { num_heads: self.num_heads - left_out_of("num_heads", left_out), ..self.clone() }
    }
}
