//! What can be left out of a Falcon-H1: heads of its mixers, key heads of attention with the query heads that share them, channels of
//! feed-forward layers. Of every layer as many, since its config has one size for all.

use super::super::group::{Group, left_out_of};
use super::super::hybrid::Matrix;
use super::config::Config;

impl Config {
    pub(super) fn groups_of(&self, layer: usize) -> Vec<Group> {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let mut all = self.mixer().groups(&at("mamba"), layer, "mamba_n_heads");
        all.extend(self.heads.groups(&at("self_attn"), layer));
        let (path, matrices) = (at("feed_forward"), Matrix::gated(self.intermediate_size));
        all.extend(self.feed(&path, &matrices).channels(layer, "intermediate_size", None));
        all
    }

    /// The config of what is left, where of every layer as many are left out.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        let of = |setting: &str| left_out_of(setting, left_out);
        let mut left = self.clone();
        left.mamba.mamba_n_heads -= of("mamba_n_heads");
        left.heads = self.heads.without(of("num_key_value_heads"));
        left.intermediate_size -= of("intermediate_size");
        left
    }
}
