//! Falcon-H1 (TII 2025): in each layer a Mamba2 mixer and attention side by side, then a gated feed-forward layer, with constant
//! multipliers almost everywhere; in the layout of Hugging Face.

mod config;
mod group;
mod resolve;

use super::hybrid;
use super::stack::Entry;
use super::{About, Family, Parts, Stack};
use crate::layer::beside::{Part, SideBySide};
use candle_core::Result;
pub use config::Config;

/// The family.
pub const ABOUT: About = About {
    name: "falcon_h1",
    aliases: &[],
    body: "model.",
    before_body: hybrid::before_body,
    name_in_body: hybrid::name_in_body,
    recognizes: Config::recognizes,
    resolve: |stated, shapes| {
        let (config, assumed) = Config::resolve(stated, shapes)?;
        Ok((super::Config::FalconH1(config), assumed))
    },
    states_tied: hybrid::states_tied,
    pickled_config: false,
    stacked: &[],
    shapes: &[("falcon-h1-tiny", || super::Config::FalconH1(Config::default()))],
};

/// The recipe: both mixers by one norm, then a feed-forward layer.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let (mixer, heads, eps) = (config.mixer(), &config.heads, config.rms_norm_eps);
    let longest = config.max_position_embeddings;
    let rotary = heads.rotary(&config.rope, heads.head_dim, longest);
    let [gate, down] = config.mlp_multipliers;
    let block = |i: usize| {
        let path = format!("model.layers.{i}");
        let at = |name: &str| format!("{path}.{name}");
        let mamba = mixer.branch(parts, &at("mamba"))?;
        let attention = heads.branch(parts, &at("self_attn"), Some((rotary.clone(), longest)))?;
        let attention = attention.with_keys_times(config.key_multiplier);
        let both = SideBySide::new(vec![
            Part::new("mamba", Box::new(mamba)).times(config.ssm_in_multiplier, config.ssm_out_multiplier),
            Part::new("self_attn", Box::new(attention))
                .times(config.attention_in_multiplier, config.attention_out_multiplier),
        ]);
        let mlp = parts.gated(&at("feed_forward"), config.mlp_bias, Some(gate as f32))?;
        Ok(vec![
            parts.step(at("input_layernorm"), eps, path.clone(), both)?,
            parts.step(at("pre_ff_layernorm"), eps, at("feed_forward"), mlp)?.times(down),
        ])
    };
    let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?;
    let entry = Entry { factor: Some(config.embedding_multiplier as f32), ..Entry::default() };
    let norm = parts.norm("model.final_layernorm", eps)?;
    let stack = Stack::new(parts, config.ends(), config.tie_word_embeddings, blocks, norm)?;
    Ok(stack.entered_by(entry).with_logits_times(config.lm_head_multiplier))
}
