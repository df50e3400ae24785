//! What can be left out of a gated linear attention: channels of its feed-forward layers, and groups of heads that share keys. Of every
//! layer as many, since its config has one size for all. Heads of softmax attention stay: their width is the stream's by their number.

use super::super::group::{Group, Kind, Slice, left_out_of};
use super::config::{Config, expanded};

/// The setting that counts groups of heads.
const HEADS: &str = "num_kv_heads";

impl Config {
    pub(super) fn groups_of(&self, layer: usize) -> Vec<Group> {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let s = self.mixer();
        let each = s.heads / s.groups.max(1);
        let heads = (0..s.groups).map(|group| {
            let of = |values: usize| group * values..(group + 1) * values;
            let (keys, values) = (of(s.key), of(each * s.value));
            let mut slices = vec![];
            let mut rows = |name: &str, range: &std::ops::Range<usize>| {
                slices.push(Slice::new(at(name), 0, range.clone()));
            };
            rows("attn.q_proj.weight", &of(each * s.key));
            rows("attn.k_proj.weight", &keys);
            rows("attn.v_proj.weight", &of(s.value));
            rows("attn.gk_proj.1.weight", &keys);
            rows("attn.gk_proj.1.bias", &keys);
            if self.use_output_gate {
                rows("attn.g_proj.weight", &values);
            }
            slices.push(Slice::new(at("attn.o_proj.weight"), 1, values.clone()));
            Group::new((Kind::Head, HEADS), (layer, group), slices, (at("attn.o_proj"), values))
        });
        let channels = (0..self.intermediate_size).map(|c| {
            let mut slices: Vec<Slice> =
                ["gate_proj", "up_proj"].map(|name| Slice::row(at(&format!("mlp.{name}.weight")), c)).into();
            slices.push(Slice::column(at("mlp.down_proj.weight"), c));
            let read = (at("mlp.down_proj"), c..c + 1);
            Group::new((Kind::Channel, "intermediate_size"), (layer, c), slices, read)
        });
        let heads = heads.filter(|_| !self.is_attention(layer));
        heads.chain(channels).collect()
    }

    /// The config of what is left, where of every layer as many are left out.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        let (s, gone) = (self.mixer(), left_out_of(HEADS, left_out));
        let groups = self.num_kv_heads - gone;
        let heads = groups * (self.num_heads / self.num_kv_heads.max(1));
        // Heads keep their width, which the config has as a share of the stream for all heads together.
        let (expand_k, expand_v) = match gone {
            0 => (self.expand_k, self.expand_v),
            _ => (share(heads * s.key, self.hidden_size), share(heads * s.value, self.hidden_size)),
        };
        let intermediate_size = self.intermediate_size - left_out_of("intermediate_size", left_out);
        Self { num_heads: heads, num_kv_heads: groups, expand_k, expand_v, intermediate_size, ..self.clone() }
    }
}

/// The share of `hidden` that so many channels are, as flash-linear-attention reads it, which cuts the product off.
fn share(channels: usize, hidden: usize) -> f64 {
    let by = channels as f64 / hidden as f64;
    if expanded(hidden, by) < channels { by.next_up() } else { by }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_of_channels_is_read_again_as_it_was() {
        for hidden in [7, 49, 64, 96, 160, 768, 1000, 2048] {
            for channels in 1..=2 * hidden {
                assert_eq!(expanded(hidden, share(channels, hidden)), channels, "{channels} of {hidden}");
            }
        }
    }
}
