//! Bamba (IBM, Princeton, CMU and UIUC 2024): in each layer a Mamba2 mixer or attention, of whose heads positions turn the first half,
//! then a gated feed-forward layer; in the layout of Hugging Face.

mod config;
mod group;
mod resolve;

use super::hybrid;
use super::{About, Family, Parts, Stack};
use crate::layer::branch::Branch;
use candle_core::Result;
pub use config::Config;

/// The family.
pub const ABOUT: About = About {
    name: "bamba",
    aliases: &[],
    body: "model.",
    before_body: hybrid::before_body,
    name_in_body: hybrid::name_in_body,
    recognizes: Config::recognizes,
    resolve: |stated, shapes| {
        let (config, assumed) = Config::resolve(stated, shapes)?;
        Ok((super::Config::Bamba(config), assumed))
    },
    states_tied: hybrid::states_tied,
    pickled_config: false,
    stacked: &[],
    shapes: &[("bamba-tiny", || super::Config::Bamba(Config::default()))],
};

/// The recipe: a mixer, then a feed-forward layer.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let (mixer, heads, eps) = (config.mixer(), &config.heads, config.rms_norm_eps);
    let longest = config.max_position_embeddings;
    let rotary = heads.rotary(&config.rope, config.turned(), longest);
    let block = |i: usize| {
        let at = |name: &str| format!("model.layers.{i}.{name}");
        let path = at(config.place(i));
        let first: Box<dyn Branch> = match config.attends(i) {
            true => Box::new(heads.branch(parts, &path, Some((rotary.clone(), longest)))?),
            false => Box::new(mixer.branch(parts, &path)?),
        };
        let mlp = parts.gated(&at("feed_forward"), config.mlp_bias, None)?;
        Ok(vec![
            parts.boxed(at("input_layernorm"), eps, path, first)?,
            parts.step(at("pre_ff_layernorm"), eps, at("feed_forward"), mlp)?,
        ])
    };
    let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?;
    let norm = parts.norm("model.final_layernorm", eps)?;
    Stack::new(parts, config.ends(), config.tie_word_embeddings, blocks, norm)
}
