//! Mamba2 (Dao & Gu 2024), in the Hugging Face checkpoint layout; original checkpoints are renamed on the way in.

mod config;
mod group;
mod hugging_face;
mod resolve;

use super::{About, Family, Parts, Stack};
use candle_core::Result;
pub use config::Config;

/// The family.
pub const ABOUT: About = About {
    name: "mamba2",
    aliases: &["mamba"],
    body: "backbone.",
    before_body: resolve::before_body,
    name_in_body: resolve::name_in_body,
    recognizes: Config::recognizes,
    resolve: |stated, shapes| {
        let (config, assumed) = Config::resolve(stated, shapes)?;
        Ok((super::Config::Mamba2(config), assumed))
    },
    states_tied: Config::states_tied,
    pickled_config: false,
    stacked: &[],
    shapes: &[
        ("mamba2-130m", || super::Config::Mamba2(Config::mamba2_130m())),
        ("mamba2-tiny", || super::Config::Mamba2(Config::default())),
    ],
};

/// The recipe: a mixer a block.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let (mixer, eps) = (config.mixer(), config.layer_norm_epsilon);
    let block = |i: usize| {
        let at = |name: &str| format!("backbone.layers.{i}.{name}");
        Ok(vec![parts.step(at("norm"), eps, at("mixer"), mixer.branch(parts, &at("mixer"))?)?])
    };
    let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?;
    Stack::new(parts, config.ends(), config.tie_word_embeddings, blocks, parts.norm("backbone.norm_f", eps)?)
}
