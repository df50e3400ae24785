//! Gated linear attention (Yang et al. 2023) in the layout of flash-linear-attention: mixer, then gated feed-forward layer; some
//! blocks may have softmax attention in the place of the mixer.

mod config;
mod group;
mod resolve;

use super::{About, Family, Parts, Stack};
use crate::layer::attention::{Attention, Rotary};
use crate::layer::branch::Branch;
use crate::layer::gla::{Gla, Parts as Mixer};
use candle_core::Result;
pub use config::{Config, Hybrid};
use std::sync::Arc;

/// The family.
pub const ABOUT: About = About {
    name: "gla",
    aliases: &[],
    body: "model.",
    before_body: resolve::before_body,
    name_in_body: resolve::name_in_body,
    recognizes: Config::recognizes,
    resolve: |stated, shapes| {
        let (config, assumed) = Config::resolve(stated, shapes)?;
        Ok((super::Config::Gla(config), assumed))
    },
    states_tied: Config::states_tied,
    pickled_config: false,
    stacked: &[],
    shapes: &[
        ("gla-tiny", || super::Config::Gla(Config::tiny())),
        ("gla-1m", || super::Config::Gla(Config::default())),
        ("gla-130m", || super::Config::Gla(Config::gla_130m())),
    ],
};

/// The recipe: a mixer or attention, then a feed-forward layer.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let eps = config.norm_eps;
    let rotary = config.attention().map(|(sizes, hybrid)| {
        let frequencies = hybrid.rope().frequencies(sizes.dim);
        (sizes, hybrid, Arc::new(Rotary::new(frequencies, sizes.longest)))
    });
    let block = |i: usize| {
        let at = |name: &str| format!("model.layers.{i}.{name}");
        let linear = |name: &str, bias: bool| parts.linear(&at(name), bias);
        let mixer: Box<dyn Branch> = match &rotary {
            Some((sizes, hybrid, rotary)) if hybrid.layers.contains(&i) => {
                let bias = hybrid.qkv_bias;
                let all = [
                    linear("attn.q_proj", bias)?,
                    linear("attn.k_proj", bias)?,
                    linear("attn.v_proj", bias)?,
                    linear("attn.o_proj", false)?,
                ];
                Box::new(Attention::new(*sizes, all, rotary.clone()))
            }
            _ => {
                let gate = config.use_output_gate.then(|| linear("attn.g_proj", false)).transpose()?;
                let mixer = Mixer {
                    q_proj: linear("attn.q_proj", false)?,
                    k_proj: linear("attn.k_proj", false)?,
                    v_proj: linear("attn.v_proj", false)?,
                    g_proj: gate,
                    gk_proj: [linear("attn.gk_proj.0", false)?, linear("attn.gk_proj.1", true)?],
                    o_proj: linear("attn.o_proj", false)?,
                    norm: parts.small(&format!("{}.weight", at(config.norm_of_heads())))?,
                };
                Box::new(Gla::new(config.mixer(), mixer))
            }
        };
        let mlp = parts.gated(&at("mlp"), false, None)?;
        Ok(vec![
            parts.boxed(at("attn_norm"), eps, at("attn"), mixer)?,
            parts.step(at("mlp_norm"), eps, at("mlp"), mlp)?,
        ])
    };
    let blocks = (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?;
    Stack::new(parts, config.ends(), config.tie_word_embeddings, blocks, parts.norm("model.norm", eps)?)
}
