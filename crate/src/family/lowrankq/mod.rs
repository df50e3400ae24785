//! The low-rank-Q transformer of the parameter-golf contest (pull request 316 and the record that it builds on): queries
//! through a bottleneck, norms without weights, squared ReLU, skips between the halves, x₀ mixed into every block, a gate with
//! the token before and a hash of token pairs at the entry; in the layout of the published scripts.
//!
//! What the scripts do to positions beyond the training length depends on the length of the whole sequence (the rotary base
//! grows with it, "NTK"), so that tokens would change what was computed for those before them. Here the length that the base is
//! made for is part of the config: [`Config::max_position_embeddings`]. Windows of that length are read as the scripts read
//! them, and pieces and single tokens agree with the whole.

mod config;
mod group;
mod resolve;

use super::stack::{Block, Entry, Mixing, Pairs, Scale, Skip, Step};
use super::{About, Family, Parts, Stack};
use crate::layer::attention::{Attention, Heads, Names, Rotary};
use crate::layer::feed_forward::{Curve, FeedForward};
use crate::layer::norm::Norm;
use candle_core::Result;
pub use config::{Config, Rank};
use std::sync::Arc;

/// The family.
pub const ABOUT: About = About {
    name: "lowrank_q",
    aliases: &[],
    body: "",
    before_body: resolve::before_body,
    name_in_body: resolve::name_in_body,
    recognizes: Config::recognizes,
    resolve: |stated, shapes| {
        let (config, assumed) = Config::resolve(stated, shapes)?;
        Ok((super::Config::LowrankQ(config), assumed))
    },
    states_tied: Config::states_tied,
    pickled_config: false,
    stacked: &[],
    shapes: &[("lowrank-q-tiny", || super::Config::LowrankQ(Config::default()))],
};

/// The names of the scripts.
const NAMES: Names =
    Names { q: "c_q", low_rank: ["c_q_down", "c_q_up"], k: "c_k", v: "c_v", o: "proj", gain: "q_gain" };

/// The recipe: attention, then a feed-forward layer; the first half of the blocks hands copies of the stream to the second.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let (sizes, eps) = (config.attention(), config.norm_eps);
    let rotary = Arc::new(Rotary::new(config.frequencies(), sizes.longest));
    let plain = |channels: usize| Norm::plain(channels, eps, parts.device());
    let skips = config.skips();
    let block = |i: usize| {
        let at = |name: &str| format!("blocks.{i}.{name}");
        let linear = |name: &str| parts.linear(&at(name), false);
        let step = |path: &str, scale: &str, branch| -> Result<Step> {
            let (norm, scale) =
                (plain(config.model_dim)?, Some(Scale::Channels(parts.parameter(at(scale))?)));
            Ok(Step { path: at(path), norm_path: None, norm, branch, scale })
        };
        let [k, v, o] = ["attn.c_k", "attn.c_v", "attn.proj"].map(linear);
        let heads = Heads { norm: plain(sizes.dim)?, gain: parts.small(&at("attn.q_gain"))? };
        let attention = match config.q_rank.of(i) {
            0 => Attention::new(sizes, [linear("attn.c_q")?, k?, v?, o?], rotary.clone()),
            _ => {
                let low = [linear("attn.c_q_down")?, linear("attn.c_q_up")?];
                Attention::low_rank(sizes, low, [k?, v?, o?], rotary.clone())
            }
        };
        let attention = attention.with_heads(heads).named(&NAMES);
        let (first, second) = (linear("mlp.fc")?, linear("mlp.proj")?);
        let mlp = FeedForward { first, second, curve: Curve::ReluSquared, names: ["fc", "proj"] };
        // Copy 0 is x₀; those of the first half follow, and the last is asked for first.
        let skip = i.checked_sub(skips).filter(|row| *row < skips).map(|row| {
            let weights = parts.parameter("skip_weights".to_string());
            weights.map(|weights| Skip { copy: skips - row, weights, row })
        });
        Ok(Block {
            mixing: Some(Mixing { skip: skip.transpose()?, shares: parts.parameter(at("resid_mix"))? }),
            steps: vec![
                step("attn", "attn_scale", Box::new(attention))?,
                step("mlp", "mlp_scale", Box::new(mlp))?,
            ],
            keeps: Some(i + 1).filter(|copy| *copy <= skips),
            again: config.iterations - 1,
        })
    };
    let blocks: Vec<Block> = (0..config.num_layers).map(block).collect::<Result<_>>()?;
    let pairs = match config.bigram_vocab_size {
        0 => None,
        _ => {
            let proj = config.bigram_dim != config.model_dim;
            Some(Pairs {
                path: "bigram".to_string(),
                table: parts.linear("bigram.embed", false)?,
                proj: proj.then(|| parts.linear("bigram.proj", false)).transpose()?,
                scale: parts.parameter("bigram.scale".to_string())?,
            })
        }
    };
    let gate = config.smear_gate.then(|| parts.parameter("smear.gate".to_string())).transpose()?;
    let entry = Entry { norm: Some(plain(config.model_dim)?), pairs, gate, ..Entry::default() };
    let stack = Stack::new(parts, config.ends(), config.tie_embeddings, blocks, plain(config.model_dim)?)?
        .entered_by(entry);
    Ok(match config.logit_softcap {
        0.0 => stack,
        cap => stack.capped(cap),
    })
}
