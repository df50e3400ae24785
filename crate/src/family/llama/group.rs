//! What can be left out of a Llama-type transformer: channels of its feed-forward layers, and key heads with the query heads that
//! share them. Of every layer as many, since its config has one size for all.

use super::super::group::{Group, Kind, Slice, key_heads, left_out_of};
use super::config::Config;

impl Config {
    pub(super) fn groups_of(&self, layer: usize) -> Vec<Group> {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let sizes = (self.num_attention_heads, self.num_key_value_heads, self.head_dim);
        let path = at("self_attn");
        let heads = key_heads(layer, &path, sizes, self.attention_bias);
        let channels = (0..self.intermediate_size).map(|c| {
            let mut slices = vec![];
            for name in ["gate_proj", "up_proj"] {
                slices.push(Slice::row(at(&format!("mlp.{name}.weight")), c));
                if self.mlp_bias {
                    slices.push(Slice::row(at(&format!("mlp.{name}.bias")), c));
                }
            }
            slices.push(Slice::column(at("mlp.down_proj.weight"), c));
            let read = (at("mlp.down_proj"), c..c + 1);
            Group::new((Kind::Channel, "intermediate_size"), (layer, c), slices, read)
        });
        heads.chain(channels).collect()
    }

    /// The config of what is left, where of every layer as many are left out.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        let of = |setting: &str| left_out_of(setting, left_out);
        let shared = self.num_attention_heads / self.num_key_value_heads.max(1);
        Self {
            num_attention_heads: self.num_attention_heads - shared * of("num_key_value_heads"),
            num_key_value_heads: self.num_key_value_heads - of("num_key_value_heads"),
            intermediate_size: self.intermediate_size - of("intermediate_size"),
            ..self.clone()
        }
    }
}
