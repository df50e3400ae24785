//! What can be left out of a low-rank-Q transformer: channels of its feed-forward layers, of every layer as many, and directions of its
//! queries, whose rank is each layer's own. Heads stay: their width is the stream's by their number.

use super::super::group::{Group, Kind, Slice, left_out_of};
use super::config::{Config, Rank};

/// The setting that says the rank of queries.
pub(super) const RANK: &str = "q_rank";

impl Config {
    pub(super) fn groups_of(&self, layer: usize) -> Vec<Group> {
        let at = |name: &str| format!("blocks.{layer}.{name}");
        let directions = (0..self.q_rank.of(layer)).map(|r| {
            let slices =
                vec![Slice::row(at("attn.c_q_down.weight"), r), Slice::column(at("attn.c_q_up.weight"), r)];
            Group::new((Kind::Inner, RANK), (layer, r), slices, (at("attn.c_q_up"), r..r + 1))
        });
        let channels = (0..self.mlp_hidden).map(|c| {
            let slices = vec![Slice::row(at("mlp.fc.weight"), c), Slice::column(at("mlp.proj.weight"), c)];
            Group::new((Kind::Channel, "mlp_hidden"), (layer, c), slices, (at("mlp.proj"), c..c + 1))
        });
        directions.chain(channels).collect()
    }

    /// The config of what is left.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        let gone = |layer: usize| {
            left_out.iter().filter(|group| group.setting == RANK && group.layer == layer).count()
        };
        let ranks = (0..self.num_layers).map(|layer| self.q_rank.of(layer) - gone(layer)).collect();
        Self {
            q_rank: Rank::of_layers(ranks),
            mlp_hidden: self.mlp_hidden - left_out_of("mlp_hidden", left_out),
            ..self.clone()
        }
    }
}
