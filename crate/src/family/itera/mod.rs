//! Itera-Lite (CisnerosCodes/Itera-Lite): a selective state space with one step size a token, then a feed-forward layer or a mixture
//! of experts; a table of positions, LayerNorms, a tied head; in the layout of its own training scripts, whose `.pt` files load as
//! they are.

mod config;
mod group;
mod resolve;

use super::stack::{Entry, Positions, Step};
use super::{About, Family, Parts, Stack};
use crate::layer::branch::Branch;
use crate::layer::feed_forward::{Curve, FeedForward};
use crate::layer::moe::Moe;
use crate::layer::selective::{self, Selective};
use candle_core::Result;
pub use config::{Config, Layer};

/// The family.
pub const ABOUT: About = About {
    name: "itera_lite",
    aliases: &[],
    body: "",
    before_body: resolve::before_body,
    name_in_body: resolve::name_in_body,
    recognizes: Config::recognizes,
    resolve: |stated, shapes| {
        let (config, assumed) = Config::resolve(stated, shapes)?;
        Ok((super::Config::IteraLite(config), assumed))
    },
    states_tied: Config::states_tied,
    pickled_config: true,
    stacked: &[],
    shapes: &[("itera-lite-tiny", || super::Config::IteraLite(Config::default()))],
};

/// The recipe: a mixer, then a feed-forward layer or experts.
fn stack(config: &Config, parts: &Parts<'_>) -> Result<Stack> {
    let eps = config.layer_norm_eps;
    let step = |norm: String, path: String, branch: Box<dyn Branch>| -> Result<Step> {
        let (norm_path, norm) = (Some(norm.clone()), parts.layer_norm(&norm, eps)?);
        Ok(Step { path, norm_path, norm, branch, scale: None })
    };
    let block = |i: usize| {
        let ssm = format!("layers.{i}.ssm");
        let small = |name: &str| parts.small(&format!("{ssm}.{name}"));
        let mixer = Selective {
            in_proj: parts.linear(&format!("{ssm}.in_proj"), false)?,
            delta_proj: parts.linear(&format!("{ssm}.ssm.delta_proj"), true)?,
            out_proj: parts.linear(&format!("{ssm}.out_proj"), false)?,
            small: selective::Parts {
                conv_weight: small("conv1d.weight")?,
                conv_bias: small("conv1d.bias")?,
                a_log: small("ssm.A_log")?,
                b: small("ssm.B")?,
                c: small("ssm.C")?,
                d: small("ssm.D")?,
            },
        };
        let feed = config.feed(i);
        let layer = |at: &str| -> Result<Box<dyn Branch>> {
            let [first, second] = ["w1", "w2"].map(|name| parts.linear(&format!("{at}.{name}"), false));
            let (first, second) = (first?, second?);
            Ok(Box::new(FeedForward { first, second, curve: Curve::Gelu, names: ["w1", "w2"] }))
        };
        let after = match config.has_experts(i) {
            false => layer(&feed)?,
            true => {
                let experts = config.layer(i).widths.len();
                let experts = (0..experts).map(|e| layer(&format!("{feed}.experts.{e}")));
                let experts = experts.collect::<Result<Vec<_>>>()?;
                let router = parts.linear(&format!("{feed}.router.gate"), false)?;
                let (router, experts) = (("router.gate", router), ("experts", experts));
                Box::new(Moe::new(router, experts, config.top_k_experts, config.load_balance_loss_weight))
            }
        };
        Ok(vec![
            step(format!("{ssm}.norm"), ssm.clone(), Box::new(mixer))?,
            step(config.feed_norm(i), feed, after)?,
        ])
    };
    let blocks = (0..config.num_layers).map(block).collect::<Result<_>>()?;
    let (path, table) = ("position_embedding".to_string(), parts.linear("position_embedding", false)?);
    let entry = Entry { positions: Some(Positions { path, table }), ..Entry::default() };
    let norm = parts.layer_norm("norm", eps)?;
    Ok(Stack::new(parts, config.ends(), config.tie_word_embeddings, blocks, norm)?.entered_by(entry))
}
