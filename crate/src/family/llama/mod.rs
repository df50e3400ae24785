//! Llama-type transformers (Touvron et al. 2023): RMSNorm, grouped attention with rotary positions, gated feed-forward layers;
//! in the layout of Hugging Face.

mod config;
mod group;
mod resolve;
mod rope;
mod yarn;

use super::{About, Family, Parts, Stack};
use crate::layer::attention::{Attention, Rotary};
use candle_core::Result;
pub use config::Config;
pub use rope::{Rope, Scaling};
use std::sync::Arc;
pub use yarn::Yarn;

/// The family.
pub const ABOUT: About = About {
    name: "llama",
    aliases: &[],
    body: "model.",
    before_body: resolve::before_body,
    name_in_body: resolve::name_in_body,
    recognizes: Config::recognizes,
    resolve: |stated, shapes| {
        let (config, assumed) = Config::resolve(stated, shapes)?;
        Ok((super::Config::Llama(config), assumed))
    },
    states_tied: Config::states_tied,
    pickled_config: false,
    stacked: &[],
    shapes: &[
        ("llama-tiny", || super::Config::Llama(Config::default())),
        ("smollm2-135m", || super::Config::Llama(Config::smollm2_135m())),
    ],
};

/// The recipe: attention, then a feed-forward layer.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let (sizes, eps) = (config.attention(), config.rms_norm_eps);
    let frequencies = config.rope.frequencies(sizes.dim);
    let rotary = Rotary::new(frequencies, config.max_position_embeddings);
    let rotary = Arc::new(rotary.times(config.rope.attention_factor()));
    let block = |i: usize| {
        let at = |name: &str| format!("model.layers.{i}.{name}");
        let (bias, out_bias) = (config.attention_bias, config.attention_out_bias);
        let attention = [("q_proj", bias), ("k_proj", bias), ("v_proj", bias), ("o_proj", out_bias)];
        let [q, k, v, o] =
            attention.map(|(name, bias)| parts.linear(&at(&format!("self_attn.{name}")), bias));
        let mlp = parts.gated(&at("mlp"), config.mlp_bias, None)?;
        let attention = Attention::new(sizes, [q?, k?, v?, o?], rotary.clone());
        Ok(vec![
            parts.step(at("input_layernorm"), eps, at("self_attn"), attention)?,
            parts.step(at("post_attention_layernorm"), eps, at("mlp"), mlp)?,
        ])
    };
    let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?;
    Stack::new(parts, config.ends(), config.tie_word_embeddings, blocks, parts.norm("model.norm", eps)?)
}
