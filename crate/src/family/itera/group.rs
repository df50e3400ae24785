//! What can be left out of an Itera-Lite: experts, channels of feed-forward layers, inner channels of mixers. Layers may be left of
//! different sizes: [`Config::layer_sizes`] says them.

use super::super::group::{Group, Kind, Slice};
use super::config::Config;

impl Config {
    pub(super) fn groups_of(&self, layer: usize) -> Vec<Group> {
        let (sizes, feed, ssm) = (self.layer(layer), self.feed(layer), format!("layers.{layer}.ssm"));
        let at = |name: &str| format!("{ssm}.{name}");
        let inner = (0..sizes.inner).map(|i| {
            let slices = vec![
                Slice::row(at("in_proj.weight"), i),
                Slice::row(at("in_proj.weight"), sizes.inner + i),
                Slice::row(at("conv1d.weight"), i),
                Slice::row(at("conv1d.bias"), i),
                Slice::row(at("ssm.delta_proj.weight"), i),
                Slice::column(at("ssm.delta_proj.weight"), i),
                Slice::row(at("ssm.delta_proj.bias"), i),
                Slice::column(at("ssm.B"), i),
                Slice::row(at("ssm.C"), i),
                Slice::row(at("ssm.D"), i),
                Slice::column(at("out_proj.weight"), i),
            ];
            Group::new((Kind::Inner, "layer_sizes"), (layer, i), slices, (at("out_proj"), i..i + 1))
        });
        let mut all: Vec<Group> = inner.collect();
        let experts = self.has_experts(layer);
        for (e, width) in sizes.widths.iter().enumerate() {
            let path = if experts { format!("{feed}.experts.{e}") } else { feed.clone() };
            let expert = experts.then_some(e);
            if experts {
                let slices = vec![Slice::row(format!("{feed}.router.gate.weight"), e)];
                let read = (format!("{path}.w2"), 0..*width);
                let group = Group::new((Kind::Expert, "layer_sizes"), (layer, e), slices, read);
                all.push(Group { expert, whole: Some(format!("{feed}.experts.")), ..group });
            }
            all.extend((0..*width).map(|c| {
                let slices = vec![
                    Slice::row(format!("{path}.w1.weight"), c),
                    Slice::column(format!("{path}.w2.weight"), c),
                ];
                let read = (format!("{path}.w2"), c..c + 1);
                let group = Group::new((Kind::Channel, "layer_sizes"), (layer, c), slices, read);
                Group { expert, ..group }
            }));
        }
        all
    }

    /// The config of what is left.
    pub(super) fn without_groups(&self, left_out: &[&Group]) -> Self {
        let of = |kind: Kind, layer: usize| {
            left_out.iter().filter(move |group| group.kind == kind && group.layer == layer)
        };
        let mut layers = vec![];
        for i in 0..self.num_layers {
            let mut sizes = self.layer(i);
            sizes.inner -= of(Kind::Inner, i).count();
            for (e, width) in sizes.widths.iter_mut().enumerate() {
                let mine = |group: &&&Group| group.expert.unwrap_or(0) == e;
                *width -= of(Kind::Channel, i).filter(mine).count();
            }
            let mut number = 0..;
            let gone = |e: usize| of(Kind::Expert, i).any(|group| group.at == e);
            sizes.widths.retain(|_| !number.next().is_some_and(gone));
            layers.push(sizes);
        }
        let most =
            self.moe_layers.iter().filter_map(|i| layers.get(*i)).map(|layer| layer.widths.len()).max();
        let config =
            Self { num_experts: most.unwrap_or(self.num_experts), layer_sizes: vec![], ..self.clone() };
        // Where all layers agree, the plain sizes say it.
        let first = layers.first().cloned();
        let width =
            first.as_ref().and_then(|layer| layer.widths.first().copied()).unwrap_or(self.expert_size);
        let plain = Self { expert_size: width, ..config.clone() };
        match layers.iter().enumerate().all(|(i, layer)| *layer == plain.usual_layer(i)) {
            true => plain,
            false => Self { layer_sizes: layers, ..config },
        }
    }
}
