//! Granite 4 (IBM 2025): in each layer a Mamba2 mixer or attention, then a gated feed-forward layer, as a rule with routed experts
//! beside it; constant multipliers on the embedding, on what joins the stream, on scores and on logits; in the layout of Hugging Face.

mod config;
mod group;
mod resolve;

use super::hybrid;
use super::stack::{Entry, Step};
use super::{About, Family, Parts, Stack, Stacked};
use crate::layer::beside::{Part, SideBySide};
use crate::layer::branch::Branch;
use crate::layer::feed_forward::{Curve, FeedForward};
use crate::layer::moe::Moe;
use candle_core::Result;
pub use config::{Config, Layer};

/// The family.
pub const ABOUT: About = About {
    name: "granitemoehybrid",
    aliases: &[],
    body: "model.",
    before_body: resolve::before_body,
    name_in_body: resolve::name_in_body,
    recognizes: Config::recognizes,
    resolve: |stated, shapes| {
        let (config, assumed) = Config::resolve(stated, shapes)?;
        Ok((super::Config::Granitemoehybrid(config), assumed))
    },
    states_tied: hybrid::states_tied,
    pickled_config: false,
    stacked: &[
        Stacked {
            whole: ".block_sparse_moe.input_linear.weight",
            before: ".block_sparse_moe.experts.",
            after: ".input_linear.weight",
        },
        Stacked {
            whole: ".block_sparse_moe.output_linear.weight",
            before: ".block_sparse_moe.experts.",
            after: ".output_linear.weight",
        },
    ],
    shapes: &[("granite-hybrid-tiny", || super::Config::Granitemoehybrid(Config::default()))],
};

/// The recipe: a mixer, then the shared layer with the experts beside it.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let (mixer, eps) = (config.mixer(), config.rms_norm_eps);
    let longest = config.max_position_embeddings;
    let heads = &config.heads;
    let positions = config.rope.as_ref().map(|rope| (heads.rotary(rope, heads.head_dim, longest), longest));
    let feed = |at: String| -> Result<Box<dyn Branch>> {
        let [input, output] =
            ["input_linear", "output_linear"].map(|name| parts.linear(&format!("{at}.{name}"), false));
        let names = ["input_linear", "output_linear"];
        Ok(Box::new(FeedForward { first: input?, second: output?, curve: Curve::SwiGlu, names }))
    };
    let block = |(i, layer): (usize, &Layer)| -> Result<Vec<Step>> {
        let path = format!("model.layers.{i}");
        let at = |name: &str| format!("{path}.{name}");
        let first: Box<dyn Branch> = match layer {
            Layer::Mamba => Box::new(mixer.branch(parts, &at("mamba"))?),
            Layer::Attention => {
                let attention = heads.branch(parts, &at("self_attn"), positions.clone())?;
                Box::new(attention.scaled(config.attention_multiplier))
            }
        };
        let mut beside = vec![];
        if config.num_local_experts > 0 {
            let experts = (0..config.num_local_experts)
                .map(|e| feed(at(&format!("block_sparse_moe.experts.{e}"))))
                .collect::<Result<Vec<_>>>()?;
            let router = parts.linear(&at("block_sparse_moe.router.layer"), false)?;
            let (router, experts) = (("router.layer", router), ("experts", experts));
            let moe = Moe::new(router, experts, config.num_experts_per_tok, 0.0);
            beside.push(Part::new("block_sparse_moe", Box::new(moe)));
        }
        beside.push(Part::new("shared_mlp", feed(at("shared_mlp"))?));
        let after = Box::new(SideBySide::new(beside));
        let steps = [
            parts.boxed(at("input_layernorm"), eps, at(layer.place()), first)?,
            parts.boxed(at("post_attention_layernorm"), eps, path.clone(), after)?,
        ];
        Ok(steps.map(|step| step.times(config.residual_multiplier)).to_vec())
    };
    let blocks = config.layer_types.iter().enumerate().map(block).collect::<Result<Vec<_>>>()?;
    let entry = Entry { factor: Some(config.embedding_multiplier as f32), ..Entry::default() };
    let norm = parts.norm("model.norm", eps)?;
    let stack = Stack::new(parts, config.ends(), config.tie_word_embeddings, blocks, norm)?;
    Ok(stack.entered_by(entry).with_logits_over(config.logits_scaling))
}
