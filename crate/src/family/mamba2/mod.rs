//! Mamba2 (Dao & Gu 2024), in the Hugging Face checkpoint layout; original checkpoints are renamed on the way in.

mod config;
mod group;
mod hugging_face;
mod resolve;

use super::{About, Family, Parts, Stack};
use crate::layer::mamba2::{Mamba2, Parts as Small};
use candle_core::{DType, Result, Tensor};
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
    shapes: &[
        ("mamba2-130m", || super::Config::Mamba2(Config::mamba2_130m())),
        ("mamba2-tiny", || super::Config::Mamba2(Config::default())),
    ],
};

/// The recipe: a mixer a block.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let (s, eps, bias) = (config.mixer(), config.layer_norm_epsilon, config.use_bias);
    let block = |i: usize| {
        let at = |name: &str| format!("backbone.layers.{i}.{name}");
        let small = |name: &str| parts.small(&at(name));
        let conv_weight = small("mixer.conv1d.weight")?.squeeze(1)?; // [C, K]
        let conv_bias = match config.use_conv_bias {
            true => small("mixer.conv1d.bias")?,
            false => Tensor::zeros(s.channels(), DType::F32, conv_weight.device())?,
        };
        let own = Small {
            conv_weight,
            conv_bias,
            dt_bias: small("mixer.dt_bias")?,
            a_log: small("mixer.A_log")?,
            d: small("mixer.D")?,
            norm: small("mixer.norm.weight")?,
        };
        let [in_proj, out_proj] =
            ["mixer.in_proj", "mixer.out_proj"].map(|name| parts.linear(&at(name), bias));
        let mixer = Mamba2::new(s, in_proj?, &own, out_proj?)?;
        Ok(vec![parts.step(at("norm"), eps, at("mixer"), mixer)?])
    };
    let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?;
    Stack::new(parts, config.ends(), config.tie_word_embeddings, blocks, parts.norm("backbone.norm_f", eps)?)
}
