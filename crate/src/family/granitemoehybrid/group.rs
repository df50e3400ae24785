//! What can be left out of a Granite hybrid: heads of its mixers, key heads of attention with the query heads that share them, whole
//! experts, channels of experts and of the layer beside them. Of every layer as many, since its config has one size for all.

use super::super::group::{Group, left_out_of};
use super::config::{Config, Layer};

impl Config {
    pub(super) fn groups_of(&self, layer: usize) -> Vec<Group> {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let (kind, path) = (self.layer_types[layer], at(self.layer_types[layer].place()));
        let mut all = match kind {
            Layer::Mamba => self.mixer().groups(&path, layer, "mamba_n_heads"),
            Layer::Attention => self.heads.groups(&path, layer),
        };
        for (place, expert) in self.feeds() {
            let (path, matrices) = (at(&place), self.matrices(expert));
            let feed = self.feed(&path, &matrices);
            let Some(e) = expert else {
                all.extend(feed.channels(layer, "shared_intermediate_size", None));
                continue;
            };
            let routed = vec![at("block_sparse_moe.router.layer.weight")];
            all.push(feed.whole(layer, "num_local_experts", e, at("block_sparse_moe.experts."), routed));
            all.extend(feed.channels(layer, "intermediate_size", expert));
        }
        all
    }

    /// The config of what is left, where of every layer as many are left out.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        let of = |setting: &str| left_out_of(setting, left_out);
        let mut left = self.clone();
        left.mamba.mamba_n_heads -= of("mamba_n_heads");
        left.heads = self.heads.without(of("num_key_value_heads"));
        left.num_local_experts -= of("num_local_experts");
        left.intermediate_size -= of("intermediate_size");
        left.shared_intermediate_size -= of("shared_intermediate_size");
        left
    }
}
