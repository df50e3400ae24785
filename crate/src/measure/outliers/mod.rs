//! Activation outliers: how large they are, and whether they stay in their channels.
//!
//! What is looked at are the inputs of the matrices, as they meet them (rotated, where the scheme rotates), and those of a
//! recurrence (x, B and C in Mamba2). Large values cost bits twice: a token's largest value sets the scale of all its values
//! (its crest), and a method that scales channels apart, as SmoothQuant does, helps only while the large values stay in
//! the same channels. So each token's largest channels are compared with those of a token `lag` tokens later. Chance
//! would have k of n channels in common k / n of the time; **persistence** is how far beyond that they agree:
//! (overlap − chance) / (1 − chance), 1 if the same channels are large in both, 0 if they have nothing to do with each
//! other.

mod stream;

use super::instrument::{Listed, Table};
use super::watch::{Watched, given};
use super::window::Window;
use super::{Measure, finite, subject, work};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Reading, fingerprint};
use crate::stats::{largest, quantile};
use crate::threads::install;
use candle_core::{Device, Tensor};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;
use stream::{Stream, middle};

settings! {
    /// How large activations get, and whether large values stay in their channels from token to token.
    pub struct Outliers(pieces) {
        /// Share of the channels that count as a token's largest; at least one channel.
        #[arg(long, allow_negative_numbers = true)]
        pub top_share: f64,
    }
}

impl Default for Outliers {
    fn default() -> Self {
        let split = Some("test".to_string());
        Self {
            corpus: PathBuf::from("data/corpus"),
            split,
            seq_len: 1024,
            max_tokens: Some(8192),
            top_share: 0.02,
        }
    }
}

impl Outliers {
    fn identity(&self, model: &Model, corpus: &Corpus) -> Result<String> {
        let settings = json!([self.reads().identity(), self.top_share]);
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &corpus.sha256)
    }
}

impl Measure for Outliers {
    const NAME: &'static str = "outliers";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        self.identity(model, &self.reads().text()?)
    }

    fn check(&self, model: &Model) -> Result<()> {
        if !(self.top_share > 0.0 && self.top_share < 1.0) {
            return Err(Error::input(format!(
                "top_share is a share between 0 and 1, found {}",
                self.top_share
            )));
        }
        if !model.device().is_cpu() {
            return Err(Error::input("activations are looked at on the CPU").hint("use --device cpu"));
        }
        self.reads().cut(model).map(drop)
    }

    /// A row for each input of each layer, one for each role, one for each role and lag, and a summary.
    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let text = self.reads().cut(model)?;
        let clock = Instant::now();
        let mut streams: BTreeMap<(usize, usize), Stream> = BTreeMap::new();
        let watched = Watched::new(model);
        let progress = Progress::new("outliers", text.scored(), "tokens");
        for Window { scored, start } in &text.windows {
            let seen = inputs(model, &watched, &text.ids[*start..scored.end - 1])?;
            for Seen { at, role, layer, sparse, x } in seen {
                let stream = || Stream::new(role, layer, x.dims()[1], self, sparse);
                let stream = streams.entry(at).or_insert_with(stream);
                with_floats([&x], |[x]| stream.add(x))?;
            }
            progress.tick(scored.len() as u64)?;
        }
        let streams: Vec<Stream> = streams.into_values().collect();
        let identity = self.identity(model, &text.corpus)?;
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.reads().conditions())
                .fingerprint(&identity)
        };
        let mut rows: Vec<Reading> = streams.iter().map(|stream| stream.describe(row())).collect();
        rows.extend(by_role(&streams, &row));
        let most = largest(streams.iter().map(Stream::kurtosis));
        let is_most = |stream: &&Stream| most.is_some_and(|most| stream.kurtosis().total_cmp(&most).is_eq());
        let worst = streams.iter().rev().find(is_most);
        let mut summary = row()
            .value("kurtosis_max", most)
            .value("worst_role", worst.map(|stream| stream.role))
            .value("worst_layer", worst.and_then(|stream| stream.layer))
            .value("top_share", self.top_share);
        if !model.is_recurrent() {
            summary.warn("what a recurrence gets is not among the inputs: the model has none");
        }
        rows.push(text.describe(summary, clock.elapsed().as_secs_f64()));
        finite::told(rows, &[("", model)], finite::windows(&text))
    }
}

impl Listed for Outliers {
    // The roles say more than the summary.
    const TABLES: &'static [Table] = &[Table {
        measure: "outliers",
        row: "role",
        columns: &[
            "model",
            "scheme",
            "role",
            "kurtosis",
            "crest",
            "channel_ratio",
            "persistence_near",
            "persistence_far",
            "persistence_fixed",
        ],
    }];

    fn work(&self, model: &Model) -> f64 {
        work::text(&self.reads(), model)
    }

    fn small(&mut self) {
        self.max_tokens = Some(1024);
    }
}

/// An input in one window.
struct Seen {
    /// Number of the matrix, and of the part of its recurrence's inputs behind it.
    at: (usize, usize),
    role: &'static str,
    layer: Option<usize>,
    /// Whether it is of some tokens alone, those that were sent to an expert.
    sparse: bool,
    /// [T, channels].
    x: Tensor,
}

/// Everything looked at, for one window.
fn inputs(model: &Model, watched: &Watched, ids: &[u32]) -> Result<Vec<Seen>> {
    let (sites, recurrences, mut all) = (model.config.sites(), model.recurrences(), vec![]);
    let read = model.linears().into_iter().zip(watched.inputs(ids)?).zip(&sites).enumerate();
    for (at, (((_, linear), input), site)) in read {
        let Some(input) = input else { continue };
        let (role, layer, sparse) = (site.roles[0], site.layer, site.expert.is_some());
        let x = input.to_device(&Device::Cpu)?.squeeze(0)?.contiguous()?;
        all.push(Seen { at: (at, 0), role, layer, sparse, x });
        if let Some(found) = recurrences.iter().find(|found| found.entry == at) {
            let u = given(linear, &input)?; // [1, T, hidden]
            let parts = install(|| found.recurrence.inputs(&u))?.into_iter().enumerate();
            let layer = Some(found.layer);
            all.extend(parts.map(|(i, (role, x))| Seen { at: (at, 1 + i), role, layer, sparse: false, x }));
        }
    }
    Ok(all)
}

/// A row for each role, and one for each role and lag: medians over the layers, with quartiles over the lags.
fn by_role(streams: &[Stream], row: &impl Fn() -> Reading) -> Vec<Reading> {
    let mut roles: Vec<&'static str> = Vec::new();
    for stream in streams {
        if !roles.contains(&stream.role) {
            roles.push(stream.role);
        }
    }
    let mut rows = vec![];
    for role in roles {
        let own: Vec<&Stream> = streams.iter().filter(|stream| stream.role == role).collect();
        let over = |f: &dyn Fn(&Stream) -> Option<f64>| middle(own.iter().filter_map(|stream| f(stream)));
        let far = |stream: &Stream| stream.persistence().last().copied().flatten();
        rows.push(
            row()
                .row("role")
                .value("role", role)
                .value("kurtosis", over(&|stream| Some(stream.kurtosis())))
                .value("crest", over(&Stream::crest))
                .value("channel_ratio", over(&Stream::channel_ratio))
                .value("persistence_near", over(&|stream| stream.persistence().first().copied().flatten()))
                .value("persistence_far", over(&far))
                .value("persistence_fixed", over(&|stream| Some(stream.fixed()))),
        );
        for (at, lag) in own[0].lags.iter().enumerate() {
            let mut values: Vec<f64> = own.iter().filter_map(|stream| stream.persistence()[at]).collect();
            values.sort_by(f64::total_cmp);
            rows.push(
                row()
                    .row("lag")
                    .value("role", role)
                    .value("lag", *lag)
                    .value("persistence", quantile(&values, 0.5))
                    .value("persistence_q25", quantile(&values, 0.25))
                    .value("persistence_q75", quantile(&values, 0.75)),
            );
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_of_a_model_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "The outlier that moves is no channel's own. ".repeat(20)).unwrap();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let outliers = Outliers { seq_len: 128, ..Outliers::default() }.on(file).max_tokens(500);
        let rows = outliers.measure(&model).unwrap();
        let of = |kind: &str| rows.iter().filter(|row| row.row == kind).collect::<Vec<_>>();
        assert_eq!((of("layer").len(), of("role").len(), of("lag").len()), (8 * 5 + 1, 6, 6 * 7));
        let roles: Vec<_> = of("role").iter().map(|row| row.values["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["in_proj", "x", "B", "C", "out_proj", "head"]);
        // SiLU gives nothing below −.28: what comes after it is x.
        let x = of("layer").into_iter().find(|row| row.values["role"] == "x").unwrap();
        assert_eq!(x.number("channels"), Some(512.0));
        for row in of("layer") {
            assert!(row.number("kurtosis").unwrap() > 1.0 && row.number("crest").unwrap() > 1.0, "{row:?}");
            let far = row.number("persistence_far").unwrap();
            assert!((-0.1..=1.0).contains(&far), "{far}");
        }
        let same = outliers.measure(&model).unwrap();
        assert_eq!(same[0].values, rows[0].values);
        let sentence = Outliers { top_share: 0.0, ..outliers }.check(&model).unwrap_err().to_string();
        assert!(sentence.contains("a share between 0 and 1"), "{sentence}");
    }
}
