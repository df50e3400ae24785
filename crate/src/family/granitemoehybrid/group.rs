//! What can be left out of a Granite hybrid: heads of its mixers, key heads of attention with the query heads that share them, whole
//! experts, channels of experts and of the layer beside them. Of every layer as many, since its config has one size for all.

use super::super::group::{Group, Kind, Slice, left_out_of};
use super::config::{Config, Layer};

impl Config {
    pub(super) fn all_groups(&self) -> Vec<Group> {
        (0..self.layer_types.len()).flat_map(|layer| self.groups_of(layer)).collect()
    }

    fn groups_of(&self, layer: usize) -> Vec<Group> {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let (kind, path) = (self.layer_types[layer], at(self.layer_types[layer].place()));
        let mut all = match kind {
            Layer::Mamba => self.mixer().groups(&path, layer, "mamba_n_heads"),
            Layer::Attention => self.heads.groups(&path, layer),
        };
        for (place, expert) in self.feeds() {
            let path = at(&place);
            let (width, setting) = match expert {
                Some(_) => (self.intermediate_size, "intermediate_size"),
                None => (self.shared_intermediate_size, "shared_intermediate_size"),
            };
            let output = format!("{path}.output_linear");
            if let Some(e) = expert {
                let slices = vec![Slice::row(at("block_sparse_moe.router.layer.weight"), e)];
                let whole = Some(at("block_sparse_moe.experts."));
                let read = (output.clone(), 0..width);
                let group = Group::new((Kind::Expert, "num_local_experts"), (layer, e), slices, read);
                all.push(Group { expert, whole, ..group });
            }
            all.extend((0..width).map(|c| {
                let input = format!("{path}.input_linear.weight");
                let slices = vec![
                    Slice::row(&input, c),
                    Slice::row(&input, width + c),
                    Slice::column(format!("{output}.weight"), c),
                ];
                let group =
                    Group::new((Kind::Channel, setting), (layer, c), slices, (output.clone(), c..c + 1));
                Group { expert, ..group }
            }));
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
