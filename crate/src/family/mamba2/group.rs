//! What can be left out of a Mamba2: heads, as many of every layer, since its config has one size for all. Of a model whose heads
//! are in several groups nothing is: a group would be left with fewer heads than another.

use super::super::group::{Group, Kind, Slice};
use super::config::Config;

impl Config {
    pub(super) fn all_groups(&self) -> Vec<Group> {
        match self.n_groups {
            1 => (0..self.num_hidden_layers).flat_map(|layer| self.groups_of(layer)).collect(),
            _ => vec![],
        }
    }

    fn groups_of(&self, layer: usize) -> Vec<Group> {
        let s = self.mixer().sizes;
        let at = |name: &str| format!("backbone.layers.{layer}.mixer.{name}");
        let (inner, channels) = (s.inner(), s.channels());
        (0..s.heads)
            .map(|head| {
                let own = head * s.head_dim..(head + 1) * s.head_dim;
                let moved = |by: usize| own.start + by..own.end + by;
                let mut slices = vec![];
                let mut rows = |name: &str, range: std::ops::Range<usize>| {
                    slices.push(Slice::new(at(name), 0, range));
                };
                // z, x and dt of it; B and C are its group's.
                let of_projection =
                    [moved(0), moved(inner), inner + channels + head..inner + channels + head + 1];
                for range in of_projection {
                    rows("in_proj.weight", range.clone());
                    if self.use_bias {
                        rows("in_proj.bias", range);
                    }
                }
                rows("conv1d.weight", own.clone());
                if self.use_conv_bias {
                    rows("conv1d.bias", own.clone());
                }
                for name in ["dt_bias", "A_log", "D"] {
                    rows(name, head..head + 1);
                }
                rows("norm.weight", own.clone());
                slices.push(Slice::new(at("out_proj.weight"), 1, own.clone()));
                let read = vec![(at("out_proj"), own)];
                Group { kind: Kind::Head, layer, expert: None, at: head, slices, whole: None, read }
            })
            .collect()
    }

    /// The config of what is left, where of every layer as many heads are left out.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        let gone = left_out.iter().filter(|group| group.layer == 0).count();
        Self { num_heads: self.num_heads - gone, ..self.clone() }
    }
}
