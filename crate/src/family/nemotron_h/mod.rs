//! Nemotron-H (NVIDIA 2025): each layer is one of a Mamba2 mixer, attention without positions, a feed-forward layer with ReLU², or
//! routed experts beside a shared one; in the layout of Hugging Face.

mod config;
mod group;
mod resolve;

use super::hybrid;
use super::{About, Family, Parts, Stack};
use crate::layer::beside::{Part, SideBySide};
use crate::layer::branch::Branch;
use crate::layer::feed_forward::{Curve, FeedForward};
use crate::layer::moe::{Moe, Scores};
use candle_core::Result;
pub use config::{Config, Experts, Layer};

/// The family.
pub const ABOUT: About = About {
    name: "nemotron_h",
    aliases: &[],
    body: "backbone.",
    before_body: resolve::before_body,
    name_in_body: resolve::name_in_body,
    recognizes: Config::recognizes,
    resolve: |stated, shapes| {
        let (config, assumed) = Config::resolve(stated, shapes)?;
        Ok((super::Config::NemotronH(config), assumed))
    },
    states_tied: hybrid::states_tied,
    pickled_config: false,
    stacked: &[],
    shapes: &[("nemotron-h-tiny", || super::Config::NemotronH(Config::default()))],
};

/// The names of the two matrices of a feed-forward layer.
const NAMES: [&str; 2] = ["up_proj", "down_proj"];

/// The recipe: one branch a layer.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let (mixer, eps) = (config.mixer(), config.layer_norm_epsilon);
    let feed = |at: &str| -> Result<Box<dyn Branch>> {
        let [up, down] = NAMES.map(|name| parts.linear(&format!("{at}.{name}"), config.mlp_bias));
        Ok(Box::new(FeedForward { first: up?, second: down?, curve: Curve::ReluSquared, names: NAMES }))
    };
    let experts = |path: &str| -> Result<Box<dyn Branch>> {
        let e = &config.experts;
        let all = (0..e.n_routed_experts).map(|expert| feed(&format!("{path}.experts.{expert}")));
        let all = all.collect::<Result<Vec<_>>>()?;
        let router = parts.linear(&format!("{path}.gate"), false)?;
        let scores = Scores {
            correction: parts.small(&format!("{path}.gate.e_score_correction_bias"))?,
            name: "gate.e_score_correction_bias",
            groups: e.n_group,
            of_groups: e.topk_group,
            normed: e.norm_topk_prob,
            factor: e.routed_scaling_factor as f32,
        };
        let moe = Moe::new(("gate", router), ("experts", all), e.num_experts_per_tok, 0.0).by_scores(scores);
        let shared = Part::new("shared_experts", feed(&format!("{path}.shared_experts"))?);
        Ok(Box::new(SideBySide::new(vec![Part::new("", Box::new(moe)), shared])))
    };
    let block = |(i, layer): (usize, &Layer)| {
        let path = format!("backbone.layers.{i}.mixer");
        let branch: Box<dyn Branch> = match layer {
            Layer::Mamba => Box::new(mixer.branch(parts, &path)?),
            Layer::Attention => Box::new(config.heads.branch(parts, &path, None)?),
            Layer::Mlp => feed(&path)?,
            Layer::Moe => experts(&path)?,
        };
        Ok(vec![parts.boxed(format!("backbone.layers.{i}.norm"), eps, path, branch)?])
    };
    let blocks = config.layers().iter().enumerate().map(block).collect::<Result<_>>()?;
    Stack::new(parts, config.ends(), config.tie_word_embeddings, blocks, parts.norm("backbone.norm_f", eps)?)
}
