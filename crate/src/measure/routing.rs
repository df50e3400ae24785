//! Which experts see which tokens: how evenly a mixture of experts uses them, and how close its choices are.
//!
//! A router chooses k of E experts for each token, by its logits or by scores made of them. The **load** of an expert is its share of all choices times E: 1 where all
//! are used alike, 0 where no token goes to it. The **entropy** of the shares is given as a part of ln E, its most. The **gap** of a
//! token is how far the last chosen logit (or score) is above the first that is not: what rounding must move before the token goes
//! elsewhere; none where the choice is within groups and leaves a larger one out.

use super::instrument::{Listed, Table};
use super::window::Window;
use super::{Measure, finite, subject, work};
use crate::error::{Error, Result};
use crate::layer::moe::Routed;
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Reading, fingerprint};
use crate::stats::{largest, quantile};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

settings! {
    /// Which experts see which tokens, by layer: how evenly they are used, and how close the choices are.
    pub struct Routing(pieces) {}
}

impl Default for Routing {
    fn default() -> Self {
        let split = Some("test".to_string());
        Self { corpus: PathBuf::from("data/corpus"), split, seq_len: 1024, max_tokens: Some(8192) }
    }
}

/// What is gathered of one layer.
#[derive(Debug, Default)]
struct Layer {
    experts: usize,
    chosen: usize,
    tokens: usize,
    /// Of each expert: choices, the sum of their weights, and that of its probabilities over all tokens.
    each: Vec<(usize, f64, f64)>,
    gaps: Vec<f64>,
}

impl Layer {
    /// Adds the tokens from `first` on.
    fn add(&mut self, routed: &Routed, first: usize) {
        let Routed { experts, chosen, picks, likely, ranks } = routed;
        (self.experts, self.chosen) = (*experts, *chosen);
        self.each.resize(*experts, (0, 0.0, 0.0));
        let mut of_token = vec![vec![]; ranks.len() / experts];
        for pick in picks {
            of_token[pick.row as usize].push(pick.expert as usize);
            if pick.row as usize >= first {
                let each = &mut self.each[pick.expert as usize];
                (each.0, each.1) = (each.0 + 1, each.1 + f64::from(pick.weight));
            }
        }
        let tokens = likely.chunks(*experts).zip(ranks.chunks(*experts)).zip(of_token);
        for ((likely, ranks), taken) in tokens.skip(first) {
            self.tokens += 1;
            self.each.iter_mut().zip(likely).for_each(|(each, p)| each.2 += f64::from(*p));
            let last = taken.iter().map(|expert| ranks[*expert]).reduce(f32::min);
            let others = (0..*experts).filter(|expert| !taken.contains(expert));
            let next = others.map(|expert| ranks[expert]).reduce(f32::max);
            self.gaps
                .extend(last.zip(next).map(|(last, next)| f64::from(last - next)).filter(|gap| *gap >= 0.0));
        }
    }

    /// The load of each expert.
    fn loads(&self) -> Vec<f64> {
        let all = (self.tokens * self.chosen).max(1) as f64;
        self.each.iter().map(|each| each.0 as f64 / all * self.experts as f64).collect()
    }

    /// Of the shares, as a part of its most; 1 of a single expert.
    fn entropy(&self) -> f64 {
        let count = self.experts as f64;
        let shares = self.loads().into_iter().map(|load| load / count).filter(|share| *share > 0.0);
        let entropy: f64 = shares.map(|share| -share * share.ln()).sum();
        if self.experts > 1 { entropy / count.ln() } else { 1.0 }
    }

    fn unused(&self) -> usize {
        self.each.iter().filter(|each| each.0 == 0).count()
    }
}

impl Measure for Routing {
    const NAME: &'static str = "routing";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        let settings = self.reads().identity();
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &self.reads().text()?.sha256)
    }

    fn applies(&self, model: &Model) -> Result<(), String> {
        match model.config.sites().iter().any(|site| site.expert.is_some()) {
            true => Ok(()),
            false => Err("it has no experts".to_string()),
        }
    }

    fn check(&self, model: &Model) -> Result<()> {
        self.applies(model).map_err(|why| Error::input(why).at(&model.name))?;
        self.reads().cut(model).map(drop)
    }

    /// A row for each expert of each layer that has any, one for each such layer, and a summary.
    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let (text, clock) = (self.reads().cut(model)?, Instant::now());
        let mut layers: BTreeMap<usize, Layer> = BTreeMap::new();
        let progress = Progress::new("routing", text.scored(), "tokens");
        for Window { scored, start } in &text.windows {
            let mut stream = model.embed(&model.tokens(&text.ids[*start..scored.end - 1])?)?;
            for block in 0..model.config.layers() {
                if let Some(routed) = model.routed(&stream, block)? {
                    // Tokens that a window shares with the one before it count there.
                    let read = routed.ranks.len() / routed.experts;
                    layers.entry(block).or_default().add(&routed, read - scored.len());
                }
                stream = model.through(stream, block..block + 1)?;
            }
            progress.tick(scored.len() as u64)?;
        }
        let identity = self.fingerprint(model)?;
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.reads().conditions())
                .fingerprint(&identity)
        };
        let mut rows = vec![];
        for (number, layer) in &layers {
            for (expert, (load, each)) in layer.loads().into_iter().zip(&layer.each).enumerate() {
                let row = row().row("expert").value("layer", *number).value("expert", expert);
                rows.push(
                    row.value("load", load)
                        .value("choices", each.0)
                        .value("weight", (each.0 > 0).then(|| each.1 / each.0 as f64))
                        .value("probability", each.2 / layer.tokens.max(1) as f64),
                );
            }
        }
        for (number, layer) in &mut layers {
            layer.gaps.sort_by(f64::total_cmp);
            rows.push(
                row()
                    .row("layer")
                    .value("layer", *number)
                    .value("experts", layer.experts)
                    .value("chosen", layer.chosen)
                    .value("load_max", largest(layer.loads()))
                    .value("entropy", layer.entropy())
                    .value("unused", layer.unused())
                    .value("gap_min", layer.gaps.first().copied())
                    .value("gap_q01", quantile(&layer.gaps, 0.01))
                    .value("gap_median", quantile(&layer.gaps, 0.5)),
            );
        }
        let all = || layers.values();
        let least =
            |of: &dyn Fn(&Layer) -> Option<f64>| largest(all().filter_map(of).map(|x| -x)).map(|x| -x);
        let unused: usize = all().map(Layer::unused).sum();
        let mut summary = row()
            .value("expert_layers", layers.len())
            .value("load_max", largest(all().flat_map(Layer::loads)))
            .value("entropy_min", least(&|layer| Some(layer.entropy())))
            .value("unused", unused)
            .value("gap_min", least(&|layer| layer.gaps.first().copied()));
        if unused > 0 {
            summary.warn(&format!("no token of the text goes to {unused} of the experts"));
        }
        rows.push(text.describe(summary, clock.elapsed().as_secs_f64()));
        finite::told(rows, &[("", model)], finite::windows(&text))
    }
}

impl Listed for Routing {
    const TABLES: &'static [Table] = &[Table {
        measure: "routing",
        row: "layer",
        columns: &[
            "model",
            "scheme",
            "layer",
            "experts",
            "chosen",
            "load_max",
            "entropy",
            "unused",
            "gap_median",
        ],
    }];

    fn work(&self, model: &Model) -> f64 {
        work::text(&self.reads(), model)
    }

    fn small(&mut self) {
        self.max_tokens = Some(1024);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::moe::choose;

    #[test]
    fn every_choice_is_counted_and_only_experts_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "Each token knows its expert, and each expert its tokens. ".repeat(8)).unwrap();
        let model = Model::load("random:itera-lite-tiny").unwrap();
        let routing = Routing { seq_len: 64, ..Routing::default() }.on(file);
        let rows = routing.measure(&model).unwrap();
        let of = |kind: &str| rows.iter().filter(|row| row.row == kind).collect::<Vec<_>>();
        assert_eq!((of("expert").len(), of("layer").len()), (2 * 4, 2));
        let tokens = rows.last().unwrap().number("n_tokens").unwrap();
        for layer in of("layer") {
            let own: Vec<_> =
                of("expert").into_iter().filter(|row| row.values["layer"] == layer.values["layer"]).collect();
            let sum = |column: &str| own.iter().map(|row| row.number(column).unwrap()).sum::<f64>();
            assert_eq!(sum("choices"), 2.0 * tokens);
            assert!((sum("load") - 4.0).abs() < 1e-9 && (sum("probability") - 1.0).abs() < 1e-5);
            let weights: f64 =
                own.iter().map(|row| row.number("weight").unwrap() * row.number("choices").unwrap()).sum();
            assert!((weights - tokens).abs() < 1e-3 * tokens);
            let entropy = layer.number("entropy").unwrap();
            assert!((0.5..=1.0).contains(&entropy) && layer.number("gap_min").unwrap() >= 0.0);
        }
        let none = routing.measure(&Model::load("random:mamba2-tiny").unwrap()).unwrap_err().to_string();
        assert!(none.contains("it has no experts"), "{none}");
    }

    #[test]
    fn loads_and_gaps_are_those_of_the_choices() {
        let mut layer = Layer::default();
        // Two tokens to expert 2, one to expert 0; one before them counts elsewhere.
        let ranks = vec![9.0, 8.0, 7.0, 0.0, -1.0, 2.0, 3.0, 1.0, 0.5, 0.0, 0.0, 0.25];
        let routed = |experts: usize, ranks: Vec<f32>| Routed {
            experts,
            chosen: 1,
            picks: choose(&ranks, experts, 1),
            likely: ranks.clone(),
            ranks,
        };
        layer.add(&routed(3, ranks), 1);
        assert_eq!(layer.loads(), [1.0, 0.0, 2.0]);
        assert_eq!((layer.gaps.clone(), layer.unused()), (vec![2.0, 2.0, 0.25], 1));
        let entropy = -(f64::ln(1.0 / 3.0) / 3.0 + 2.0 / 3.0 * f64::ln(2.0 / 3.0)) / 3f64.ln();
        assert!((layer.entropy() - entropy).abs() < 1e-12);
        let mut one = Layer::default();
        one.add(&routed(1, vec![5.0]), 0);
        assert_eq!((one.entropy(), one.gaps.len()), (1.0, 0));
    }
}
