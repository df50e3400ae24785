//! What can be left out of a Nemotron-H: heads of its mixers, key heads of attention with the query heads that share them, channels of
//! feed-forward layers and experts, whole experts where they are in one group. Of every layer of a kind as many, since its config has one
//! size for all.

use super::super::group::{Group, left_out_of};
use super::config::{Config, Layer};

impl Config {
    pub(super) fn groups_of(&self, layer: usize) -> Vec<Group> {
        let path = format!("backbone.layers.{layer}.mixer");
        match self.layers()[layer] {
            Layer::Mamba => self.mixer().groups(&path, layer, "mamba_num_heads"),
            Layer::Attention => self.heads.groups(&path, layer),
            Layer::Mlp => {
                let matrices = Self::matrices(self.intermediate_size, super::NAMES);
                self.feed(&path, &matrices).channels(layer, "intermediate_size", None)
            }
            Layer::Moe => {
                let mut all = vec![];
                for (place, matrices, expert) in self.feeds(&path) {
                    let feed = self.feed(&place, &matrices);
                    let Some(e) = expert else {
                        all.extend(feed.channels(layer, "moe_shared_expert_intermediate_size", None));
                        continue;
                    };
                    if self.experts.n_group == 1 {
                        let routed =
                            ["weight", "e_score_correction_bias"].map(|kind| format!("{path}.gate.{kind}"));
                        let parent = format!("{path}.experts.");
                        all.push(feed.whole(layer, "n_routed_experts", e, parent, routed.to_vec()));
                    }
                    all.extend(feed.channels(layer, "moe_intermediate_size", expert));
                }
                all
            }
        }
    }

    /// The config of what is left, where of every layer of a kind as many are left out.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        let of = |setting: &str| left_out_of(setting, left_out);
        let mut left = self.clone();
        left.mamba.mamba_n_heads -= of("mamba_num_heads");
        left.heads = self.heads.without(of("num_key_value_heads"));
        left.intermediate_size -= of("intermediate_size");
        left.experts.n_routed_experts -= of("n_routed_experts");
        left.experts.moe_intermediate_size -= of("moe_intermediate_size");
        left.experts.moe_shared_expert_intermediate_size -= of("moe_shared_expert_intermediate_size");
        left
    }
}
