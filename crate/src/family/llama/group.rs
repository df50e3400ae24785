//! What can be left out of a Llama-type transformer: channels of its feed-forward layers, and key heads with the query heads that
//! share them. Of every layer as many, since its config has one size for all.

use super::super::group::{Group, Kind, Slice};
use super::config::Config;

impl Config {
    pub(super) fn all_groups(&self) -> Vec<Group> {
        (0..self.num_hidden_layers).flat_map(|layer| self.groups_of(layer)).collect()
    }

    fn groups_of(&self, layer: usize) -> Vec<Group> {
        let at = |name: String| format!("model.layers.{layer}.{name}");
        let (dim, shared) = (self.head_dim, self.num_attention_heads / self.num_key_value_heads.max(1));
        let heads = (0..self.num_key_value_heads).map(|head| {
            let (keys, queries) =
                (head * dim..(head + 1) * dim, head * shared * dim..(head + 1) * shared * dim);
            let mut slices = vec![];
            for (name, rows) in [("q_proj", &queries), ("k_proj", &keys), ("v_proj", &keys)] {
                slices.push(Slice::new(at(format!("self_attn.{name}.weight")), 0, rows.clone()));
                if self.attention_bias {
                    slices.push(Slice::new(at(format!("self_attn.{name}.bias")), 0, rows.clone()));
                }
            }
            slices.push(Slice::new(at("self_attn.o_proj.weight".into()), 1, queries.clone()));
            let read = vec![(at("self_attn.o_proj".into()), queries)];
            Group { kind: Kind::Head, layer, expert: None, at: head, slices, whole: None, read }
        });
        let channels = (0..self.intermediate_size).map(|c| {
            let mut slices = vec![];
            for name in ["gate_proj", "up_proj"] {
                slices.push(Slice::row(at(format!("mlp.{name}.weight")), c));
                if self.mlp_bias {
                    slices.push(Slice::row(at(format!("mlp.{name}.bias")), c));
                }
            }
            slices.push(Slice::column(at("mlp.down_proj.weight".into()), c));
            let read = vec![(at("mlp.down_proj".into()), c..c + 1)];
            Group { kind: Kind::Channel, layer, expert: None, at: c, slices, whole: None, read }
        });
        heads.chain(channels).collect()
    }

    /// The config of what is left, where of every layer as many are left out.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        let of = |kind: Kind| left_out.iter().filter(|group| group.kind == kind && group.layer == 0).count();
        let shared = self.num_attention_heads / self.num_key_value_heads.max(1);
        Self {
            num_attention_heads: self.num_attention_heads - shared * of(Kind::Head),
            num_key_value_heads: self.num_key_value_heads - of(Kind::Head),
            intermediate_size: self.intermediate_size - of(Kind::Channel),
            ..self.clone()
        }
    }
}
