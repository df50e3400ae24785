//! What rounding the products of a chunk takes, and what smoothing gives back: on the queries and keys of a model.
//!
//! Every block's queries meet its keys in chunks of 64 tokens, in full precision and rounded as each of `products` says
//! ([`Products`]): the integers of SageAttention2 (J. Zhang et al., "SageAttention2", 2024), carried over to the chunk form of a
//! recurrence. Cosines and relative errors, head by head, of the scores between sub-chunks (nothing else is rounded), of what a
//! chunk reads by itself, and of what it reads in all. Softmax attention has scores alone here.
//!
//! Smoothing takes means over tokens away, so it helps where channels have any: `key_bias` and `query_bias` are the share of the
//! squared size that is the mean's, over the tokens of a chunk, ‖x̄‖² / mean ‖x‖². Where a decay for each channel of the keys comes before they
//! meet, a constant channel is constant no longer: rows with `gates` false have the same queries and keys without decays.
//!
//! [`Synthetic`] asks the same of made inputs, whose bias is known.

mod apart;
mod synthetic;

use super::instrument::{Listed, Table};
use super::window::Window;
use super::{Measure, finite, subject, work};
use crate::error::{Error, Result};
use crate::kernel::scan::CHUNK;
use crate::kernel::scan::products::Products;
use crate::layer::meeting::{Made, Meeting};
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Reading, fingerprint};
use apart::{Apart, Bias};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;
pub use synthetic::Synthetic;

settings! {
    /// What rounding the products of a chunk takes, and what smoothing gives back.
    pub struct Smoothing {
        /// How products are rounded, such as qk4, qk4-smoothqk or svfp8, as in the names of schemes.
        #[arg(long, value_delimiter = ',')]
        pub products: Vec<String>,
    }
    (pieces) {}
}

/// Each mode of smoothing in 4 bits, the scales of rows, 8 bits, and FP8 for the values.
pub(super) const EACH: [&str; 10] = [
    "qk4",
    "qk4-smoothk",
    "qk4-smoothq",
    "qk4-smoothqk",
    "qk4-smoothqkdrop",
    "qk4row",
    "qk4row-smoothqk",
    "qk8",
    "svfp8",
    "qk4-smoothqk-svfp8",
];

impl Default for Smoothing {
    fn default() -> Self {
        Self {
            products: EACH.map(String::from).to_vec(),
            corpus: PathBuf::from("data/corpus"),
            split: Some("test".to_string()),
            seq_len: 512,
            max_tokens: Some(2048),
        }
    }
}

impl Smoothing {
    fn parsed(&self) -> Result<Vec<Products>> {
        if self.products.is_empty() {
            return Err(Error::input("no products to round").hint("name some, such as qk4,qk4-smoothqk"));
        }
        self.products.iter().map(|name| name.parse()).collect()
    }
}

/// Whether it is looked at with decays, and without, where they come before keys and queries meet.
fn gates(meeting: &Meeting) -> &'static [bool] {
    if meeting.decays() { &[true, false] } else { &[true] }
}

/// What is known of one block.
struct Block {
    layer: usize,
    kind: &'static str,
    heads: usize,
    key: usize,
    queries: Bias,
    keys: Bias,
    /// By products, then with decays and without, where they come before.
    apart: Vec<(usize, bool, Apart)>,
}

impl Block {
    fn new(layer: usize, meeting: &Meeting, products: usize) -> Self {
        let kind = match meeting.made {
            Made::Softmax => "attention",
            Made::Channels { .. } => "decays of channels",
            Made::Heads { .. } => "decays of heads",
        };
        let apart =
            (0..products).flat_map(|i| gates(meeting).iter().map(move |gates| (i, *gates, Apart::default())));
        Self {
            layer,
            kind,
            heads: meeting.heads,
            key: meeting.key,
            queries: Bias::default(),
            keys: Bias::default(),
            apart: apart.collect(),
        }
    }

    fn add(&mut self, meeting: &Meeting, products: &[Products]) {
        self.queries.add(&meeting.q, meeting.heads * meeting.key, CHUNK);
        self.keys.add(&meeting.k, meeting.groups * meeting.key, CHUNK);
        for gates in gates(meeting) {
            let exact = apart::Exact::of(meeting, *gates);
            for (i, own, apart) in &mut self.apart {
                if own == gates {
                    apart.add(meeting, &exact, products[*i], *gates);
                }
            }
        }
    }
}

impl Measure for Smoothing {
    const NAME: &'static str = "smoothing";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        let settings = json!([self.reads().identity(), self.products]);
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &self.reads().text()?.sha256)
    }

    fn check(&self, model: &Model) -> Result<()> {
        if !model.device().is_cpu() {
            return Err(Error::input("queries and keys are looked at on the CPU").hint("use --device cpu"));
        }
        if self.seq_len < CHUNK {
            return Err(Error::input(format!("windows of {} tokens have no chunk of {CHUNK}", self.seq_len))
                .hint("raise the length of the windows"));
        }
        self.parsed()?;
        self.reads().cut(model).map(drop)
    }

    /// A row for each block and each way to round, and a summary for each of these.
    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let (products, text, clock) = (self.parsed()?, self.reads().cut(model)?, Instant::now());
        let mut blocks: Vec<Block> = vec![];
        let progress = Progress::new("smoothing", text.scored(), "tokens");
        let mut tokens = 0;
        for Window { scored, start } in &text.windows {
            let ids = &text.ids[*start..scored.end - 1];
            tokens += ids.len() / CHUNK * CHUNK;
            let mut stream = model.embed(&model.tokens(ids)?)?;
            for layer in 0..model.config.layers() {
                if let Some(meeting) = model.meeting(&stream, layer)? {
                    let own = blocks.iter().position(|block| block.layer == layer).unwrap_or_else(|| {
                        blocks.push(Block::new(layer, &meeting, products.len()));
                        blocks.len() - 1
                    });
                    crate::threads::install(|| blocks[own].add(&meeting, &products));
                }
                stream = model.through(stream, layer..layer + 1)?;
            }
            progress.tick(scored.len() as u64)?;
        }
        if blocks.is_empty() {
            return Err(Error::input(
                "no tokens meet in the blocks of this model, or no window has a whole chunk",
            )
            .at(&model.name)
            .hint(format!("windows of at least {CHUNK} tokens are needed")));
        }
        let identity = self.fingerprint(model)?;
        let row = |i: usize, gates: bool| {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.reads().conditions())
                .fingerprint(&identity)
                .value("products", self.products[i].as_str())
                .value("gates", gates)
        };
        let mut rows = vec![];
        for block in &blocks {
            for (i, gates, apart) in &block.apart {
                let about = row(*i, *gates)
                    .row("layer")
                    .value("layer", block.layer)
                    .value("kind", block.kind)
                    .value("heads", block.heads)
                    .value("key", block.key)
                    .value("query_bias", block.queries.share())
                    .value("key_bias", block.keys.share());
                rows.push(apart.describe(about));
            }
        }
        let biases = |of: fn(&Block) -> Option<f64>| mean(blocks.iter().filter_map(of));
        for i in 0..products.len() {
            for gates in [true, false] {
                let own: Vec<&Apart> = blocks
                    .iter()
                    .flat_map(|block| &block.apart)
                    .filter(|(at, with, _)| (*at, *with) == (i, gates))
                    .map(|(_, _, apart)| apart)
                    .collect();
                if own.is_empty() {
                    continue;
                }
                let summary = row(i, gates)
                    .value("blocks", own.len())
                    .value("tokens_met", tokens)
                    .value("query_bias", biases(|block| block.queries.share()))
                    .value("key_bias", biases(|block| block.keys.share()));
                rows.push(text.describe(apart::summary(summary, &own), clock.elapsed().as_secs_f64()));
            }
        }
        finite::told(rows, &[("", model)], finite::windows(&text))
    }
}

impl Listed for Smoothing {
    const TABLES: &'static [Table] = &[Table::of(
        "smoothing",
        &[
            "model",
            "scheme",
            "products",
            "gates",
            "query_bias",
            "key_bias",
            "cosine_scores",
            "cosine_scores_min",
            "error_scores",
            "cosine_chunk",
            "cosine_whole",
        ],
    )];

    fn work(&self, model: &Model) -> f64 {
        (2.0 + 0.2 * self.products.len() as f64) * work::text(&self.reads(), model)
    }

    fn small(&mut self) {
        (self.seq_len, self.max_tokens) = (self.seq_len.min(128), Some(256));
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_its_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "Keys that are all alike open the same door. ".repeat(20)).unwrap();
        let smoothing = Smoothing { seq_len: 150, ..Smoothing::default() }.on(file).max_tokens(300);
        for (source, kind, reads, ungated) in [
            ("random:gla-tiny", "decays of channels", true, true),
            ("random:mamba2-tiny", "decays of heads", true, false),
            ("random:llama-tiny", "attention", false, false),
        ] {
            let model = Model::load(source).unwrap();
            let rows = smoothing.measure(&model).unwrap();
            let layers: Vec<&Reading> = rows.iter().filter(|row| row.row == "layer").collect();
            let ways = EACH.len() * if ungated { 2 } else { 1 };
            assert_eq!(layers.len(), model.config.layers() * ways, "{source}");
            assert_eq!(rows.len() - layers.len(), ways);
            for row in &rows {
                let number = |name: &str| row.number(name);
                assert!(row.row != "layer" || row.values["kind"] == kind);
                assert!((0.0..=1.0).contains(&number("key_bias").unwrap()));
                let rounded = row.values["products"] != "svfp8";
                assert_eq!(number("cosine_scores").is_some(), rounded, "{row:?}");
                assert_eq!(number("cosine_whole").is_some(), reads);
                if row.values["products"] == "qk8" {
                    assert!(number("cosine_scores").unwrap() > 0.999, "{row:?}");
                    assert!(number("error_scores").unwrap() < 0.05);
                }
            }
            // A head's error of scores in 8 bits is below that in 4.
            let error = |products: &str| {
                rows.iter()
                    .rev()
                    .find(|row| row.values["products"] == products)
                    .unwrap()
                    .number("error_scores")
            };
            assert!(error("qk8") < error("qk4"), "{source}");
        }
        let short = Smoothing { seq_len: 63, ..Smoothing::default() };
        let model = Model::load("random:gla-tiny").unwrap();
        assert!(short.check(&model).unwrap_err().to_string().contains("no chunk of 64"));
    }

    #[test]
    fn a_bias_is_the_share_of_the_mean() {
        let mut bias = Bias::default();
        // Two channels, one constant, one that changes its sign.
        bias.add(&[3.0, 1.0, 3.0, -1.0], 2, 2);
        assert_eq!(bias.share(), Some(18.0 / 20.0));
    }
}
