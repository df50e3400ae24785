//! Massive activations and attention sinks: single tokens whose values dwarf all others, and how much attention the first
//! token gets.
//!
//! A few tokens, mostly the first of a text, carry values in a few channels that are hundreds of times those of any other
//! token (M. Sun et al., "Massive Activations in Large Language Models", 2024); they go with attention that rests on the first
//! token where it has nowhere to go (G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023). Looked
//! at are the residual stream that enters each block and the inputs of the matrices as they meet them, rotated where the
//! scheme rotates: where the largest value of each stands (token, position in the window, channel), and how far it is beyond
//! the median token's largest. `first_share` is the attention that later tokens pay to the first of the window, by the
//! definition, in the mean; `first_share_even` what it would be if each looked at all tokens alike.

use super::instrument::{Listed, Table};
use super::watch::Watched;
use super::window::Window;
use super::{Measure, finite, subject, work};
use crate::error::{Error, Result};
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Reading, fingerprint};
use crate::stats::{largest, quantile};
use candle_core::{Device, Tensor};
use std::cmp::Ordering;
use std::path::PathBuf;
use std::time::Instant;

settings! {
    /// Massive activations and attention sinks: which token and channel hold the largest values, and how much attention the
    /// first token gets.
    pub struct Sinks(pieces) {}
}

impl Default for Sinks {
    fn default() -> Self {
        let split = Some("test".to_string());
        Self { corpus: PathBuf::from("data/corpus"), split, seq_len: 1024, max_tokens: Some(4096) }
    }
}

/// The role of the residual stream in records, beside those of the matrices.
const STREAM: &str = "stream";

/// The largest values of one input of one layer, token by token.
struct Peaks {
    role: &'static str,
    layer: Option<usize>,
    channels: usize,
    /// Largest magnitude of each token.
    maxima: Vec<f64>,
    most: Option<Most>,
}

/// The largest value of all, where it stands, and in which token.
#[derive(Clone, Copy)]
struct Most {
    size: f32,
    channel: usize,
    position: usize,
    token: u32,
}

impl Peaks {
    fn new(role: &'static str, layer: Option<usize>, channels: usize) -> Self {
        Self { role, layer, channels, maxima: vec![], most: None }
    }

    /// Adds a window: `x` [T, channels] of these T tokens. Of equal values the first counts, and NaN is larger than any.
    fn add(&mut self, x: &[f32], tokens: &[u32]) {
        for (position, (values, token)) in x.chunks(self.channels).zip(tokens).enumerate() {
            let sizes = values.iter().map(|x| x.abs()).enumerate();
            let Some((channel, size)) = sizes.reduce(|a, b| if b.1.total_cmp(&a.1).is_gt() { b } else { a })
            else {
                continue;
            };
            self.maxima.push(f64::from(size));
            if self.most.is_none_or(|most| size.total_cmp(&most.size).is_gt()) {
                self.most = Some(Most { size, channel, position, token: *token });
            }
        }
    }

    fn median(&self) -> Option<f64> {
        let mut maxima = self.maxima.clone();
        maxima.sort_by(f64::total_cmp);
        quantile(&maxima, 0.5)
    }

    /// The largest value over the median token's largest.
    fn ratio(&self) -> Option<f64> {
        Some(f64::from(self.most?.size) / self.median().filter(|median| *median != 0.0)?)
    }

    fn describe(&self, row: Reading, model: &Model) -> Result<Reading> {
        let token = self.most.map(|most| model.tokenizer.decode(&[most.token])).transpose()?;
        Ok(row
            .value("role", self.role)
            .value("layer", self.layer)
            .value("channels", self.channels)
            .value("absmax", self.most.map(|most| most.size))
            .value("absmax_median", self.median())
            .value("absmax_ratio", self.ratio())
            .value("absmax_token", token)
            .value("absmax_position", self.most.map(|most| most.position))
            .value("absmax_channel", self.most.map(|most| most.channel)))
    }
}

/// Attention to the first token in one layer: what each head pays, summed over windows, and how many tokens pay it.
struct Attended {
    layer: usize,
    heads: Vec<f64>,
    even: f64,
    tokens: f64,
}

impl Attended {
    /// Adds a window's shares [H, T]; the first token has nobody else to look at and does not count.
    fn add(&mut self, shares: &[f32], time: usize) {
        for (sum, shares) in self.heads.iter_mut().zip(shares.chunks(time)) {
            *sum += shares[1..].iter().map(|share| f64::from(*share)).sum::<f64>();
        }
        self.even += (1..time).map(|t| 1.0 / (t + 1) as f64).sum::<f64>();
        self.tokens += (time - 1) as f64;
    }

    /// The mean over heads and tokens; none where no window has a second token.
    fn share(&self) -> Option<f64> {
        let all = self.heads.iter().sum::<f64>() / self.heads.len() as f64;
        (self.tokens > 0.0).then(|| all / self.tokens)
    }

    fn describe(&self, row: Reading) -> Reading {
        let some = |sum: f64| (self.tokens > 0.0).then(|| sum / self.tokens);
        row.row("attention")
            .value("layer", self.layer)
            .value("heads", self.heads.len())
            .value("first_share", self.share())
            .value("first_share_max", largest(self.heads.iter().copied()).and_then(some))
            .value("first_share_even", some(self.even))
    }
}

impl Measure for Sinks {
    const NAME: &'static str = "sinks";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        let settings = self.reads().identity();
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &self.reads().text()?.sha256)
    }

    fn check(&self, model: &Model) -> Result<()> {
        if !model.device().is_cpu() {
            return Err(Error::input("activations are looked at on the CPU").hint("use --device cpu"));
        }
        self.reads().cut(model).map(drop)
    }

    /// A row for each input of each layer, one for each role (its layer with the largest ratio), one for the attention of
    /// each layer, and a summary.
    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let (text, clock) = (self.reads().cut(model)?, Instant::now());
        let (mut peaks, mut attended): (Vec<Peaks>, Vec<Attended>) = (vec![], vec![]);
        let watched = Watched::new(model);
        let progress = Progress::new("sinks", text.scored(), "tokens");
        for Window { scored, start } in &text.windows {
            let ids = &text.ids[*start..scored.end - 1];
            let (streams, inputs) = watched.blocks(ids)?;
            let seen = named(model, &streams, &inputs)?;
            if peaks.is_empty() {
                peaks = seen.iter().map(|(role, layer, x)| Peaks::new(role, *layer, x.dims()[1])).collect();
            }
            for (peaks, (_, _, x)) in peaks.iter_mut().zip(&seen) {
                with_floats([x], |[x]| peaks.add(x, ids))?;
            }
            for (layer, stream) in streams.iter().enumerate().take(model.config.layers()) {
                let Some(shares) = model.first_shares(stream, layer)? else { continue }; // [1, H, T]
                let (_, heads, time) = shares.dims3()?;
                let own = attended.iter().position(|attended| attended.layer == layer).unwrap_or_else(|| {
                    attended.push(Attended { layer, heads: vec![0.0; heads], even: 0.0, tokens: 0.0 });
                    attended.len() - 1
                });
                with_floats([&shares.contiguous()?], |[shares]| attended[own].add(shares, time))?;
            }
            progress.tick(scored.len() as u64)?;
        }
        let identity = self.fingerprint(model)?;
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.reads().conditions())
                .fingerprint(&identity)
        };
        let mut rows = peaks
            .iter()
            .map(|peaks| peaks.describe(row().row("layer"), model))
            .collect::<Result<Vec<_>>>()?;
        for own in by_role(&peaks) {
            let worst = own.iter().copied().reduce(|a, b| if beyond(b, a).is_gt() { b } else { a });
            if let Some(worst) = worst {
                rows.push(worst.describe(row().row("role").value("at_first", at_first(&own)), model)?);
            }
        }
        rows.extend(attended.iter().map(|attended| attended.describe(row())));
        let shares = attended.iter().filter_map(Attended::share);
        let streams: Vec<&Peaks> = peaks.iter().filter(|peaks| peaks.role == STREAM).collect();
        let mut summary = row()
            .value("absmax_stream", largest(streams.iter().filter_map(|own| Some(own.most?.size.into()))))
            .value("absmax_stream_ratio", largest(streams.iter().filter_map(|own| own.ratio())))
            .value("stream_at_first", at_first(&streams))
            .value(
                "first_share",
                (!attended.is_empty()).then(|| shares.sum::<f64>() / attended.len() as f64),
            );
        if attended.is_empty() {
            summary.warn("the model has no attention that could rest on the first token");
        }
        rows.push(text.describe(summary, clock.elapsed().as_secs_f64()));
        finite::told(rows, &[("", model)], finite::windows(&text))
    }
}

impl Listed for Sinks {
    const TABLES: &'static [Table] = &[Table {
        measure: "sinks",
        row: "role",
        columns: &[
            "model",
            "scheme",
            "role",
            "layer",
            "absmax",
            "absmax_ratio",
            "absmax_token",
            "absmax_position",
            "absmax_channel",
            "at_first",
        ],
    }];

    fn work(&self, model: &Model) -> f64 {
        2.0 * work::text(&self.reads(), model)
    }

    fn small(&mut self) {
        (self.seq_len, self.max_tokens) = (self.seq_len.min(256), Some(512));
    }
}

/// Role, layer and values [T, channels] of the stream that enters each block, of that which leaves the last, and of the
/// inputs of the matrices: of those that read one norm, the first.
fn named(
    model: &Model,
    streams: &[Tensor],
    inputs: &[Option<Tensor>],
) -> Result<Vec<(&'static str, Option<usize>, Tensor)>> {
    let rows = |x: &Tensor| -> Result<Tensor> { Ok(x.to_device(&Device::Cpu)?.squeeze(0)?.contiguous()?) };
    let mut all = vec![];
    for (layer, stream) in streams.iter().enumerate() {
        let stream = rows(&model.residual(stream)?)?;
        all.push((STREAM, Some(layer).filter(|layer| *layer < model.config.layers()), stream));
    }
    let mut norms: Vec<String> = vec![];
    for (site, input) in model.config.sites().into_iter().zip(inputs) {
        // Rows of what an expert reads are no positions.
        let Some(input) = input.as_ref().filter(|_| site.expert.is_none()) else { continue };
        if let Some(norm) = site.norm {
            if norms.contains(&norm) {
                continue;
            }
            norms.push(norm);
        }
        all.push((site.roles[0], site.layer, rows(input)?));
    }
    Ok(all)
}

/// The inputs of each role, the roles in their order.
fn by_role(peaks: &[Peaks]) -> Vec<Vec<&Peaks>> {
    let mut all: Vec<Vec<&Peaks>> = vec![];
    for peaks in peaks {
        match all.iter_mut().find(|own| own[0].role == peaks.role) {
            Some(own) => own.push(peaks),
            None => all.push(vec![peaks]),
        }
    }
    all
}

/// By how far the largest values are beyond the median token's.
fn beyond(a: &Peaks, b: &Peaks) -> Ordering {
    let ratio = |peaks: &Peaks| peaks.ratio().unwrap_or(0.0);
    ratio(a).total_cmp(&ratio(b))
}

/// Of how many of these the largest value stands in the first token of a window, as a share.
fn at_first(peaks: &[&Peaks]) -> f64 {
    let first = peaks.iter().filter(|own| own.most.is_some_and(|most| most.position == 0)).count();
    first as f64 / peaks.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_is_found_where_it_stands() {
        let mut peaks = Peaks::new(STREAM, Some(0), 2);
        peaks.add(&[1.0, -2.0, 3.0, 1.0], &[7, 8]);
        peaks.add(&[0.5, 0.5, 2.0, -90.0, 90.0, 0.0], &[1, 2, 3]);
        let most = peaks.most.unwrap();
        assert_eq!((most.size, most.channel, most.position, most.token), (90.0, 1, 1, 2));
        assert_eq!((peaks.median(), peaks.ratio()), (Some(3.0), Some(30.0)));
        peaks.add(&[f32::NAN, 0.0], &[4]);
        assert!(peaks.most.unwrap().size.is_nan() && peaks.ratio().unwrap().is_nan());
    }

    #[test]
    fn streams_inputs_and_attention_have_rows_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "The first word gets what nobody wants. ".repeat(20)).unwrap();
        let sinks = Sinks { seq_len: 128, ..Sinks::default() }.on(file).max_tokens(300);
        for (source, roles, attends) in [
            (
                "random:llama-tiny",
                &["stream", "q_proj", "o_proj", "gate_proj", "down_proj", "head"][..],
                true,
            ),
            ("random:mamba2-tiny", &["stream", "in_proj", "out_proj", "head"], false),
        ] {
            let model = Model::load(source).unwrap();
            let rows = sinks.measure(&model).unwrap();
            let of = |kind: &str| rows.iter().filter(|row| row.row == kind).collect::<Vec<_>>();
            let found: Vec<_> =
                of("role").iter().map(|row| row.values["role"].as_str().unwrap().to_string()).collect();
            assert_eq!(found, roles);
            let layers = model.config.layers();
            assert_eq!(of("layer").len(), layers * (roles.len() - 1) + 2, "{source}");
            assert_eq!(of("attention").len(), if attends { layers } else { 0 });
            for row in of("attention") {
                // Random keys are looked at about alike.
                let [mean, most, even] =
                    ["first_share", "first_share_max", "first_share_even"].map(|n| row.number(n).unwrap());
                assert!(0.5 * even < mean && mean < 2.0 * even && mean <= most && most < 1.0, "{row:?}");
            }
            assert_eq!(of("summary")[0].values.contains_key("warning"), !attends);
        }
    }
}
