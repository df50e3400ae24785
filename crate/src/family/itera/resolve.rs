//! What a checkpoint tells of its config: by the names and shapes of its tensors, and by the configuration that is pickled with them
//! or lies beside them, if there is one.

use super::super::setting::{NO_HEAD, before_layers, dims, find, flag, layers, number, size};
use super::super::{Family, Shapes, Stated};
use super::config::{Config, Layer};
use crate::error::{Error, Result};
use serde_json::Value;

/// What stands before the names of the scripts: nothing, with whatever a program put in front.
pub(super) fn before_body(name: &str) -> Option<&str> {
    before_layers(name, ".ssm.ssm.A_log")
}

/// The name of a tensor as the scripts of today say it: earlier ones called a mixture of experts `moe.moe`.
pub(super) fn name_in_body(name: &str) -> Option<String> {
    let starts = ["layers.", "embedding.", "position_embedding.", "norm."];
    // How often each expert was used in training.
    let of_body = starts.iter().any(|start| name.starts_with(start)) && !name.ends_with(".expert_counts");
    of_body.then(|| name.replacen(".moe.moe.", ".moe.layer.", 1))
}

const TIED: &[&str] = &["/tie_word_embeddings"];
const CHOSEN: &[&str] = &["/top_k_experts"];
const BALANCE: &[&str] = &["/load_balance_loss_weight"];
const EPSILON: &[&str] = &["/layer_norm_eps"];

impl Config {
    /// Whether tensors of these names are an Itera-Lite.
    pub(super) fn recognizes(shapes: &Shapes) -> bool {
        ["ssm.ssm.A_log", "ssm.ssm.D"].iter().all(|name| shapes.contains_key(&format!("layers.0.{name}")))
    }

    /// Whether head and embedding are said to be one matrix.
    pub(super) fn states_tied(json: &Value) -> Option<bool> {
        find(json, TIED)?.as_bool()
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`].
    pub(super) fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        refuse_missing_experts(shapes)?;
        let (mut config, mut assumed) = (Self::infer(shapes)?, vec![]);
        let empty = Value::Object(Default::default());
        let (json, file) = stated.map_or((&empty, None), |Stated { file, json }| (json, Some(file)));
        let at = |error: Error| match file {
            Some(file) => error.at(file),
            None => error,
        };
        config.read(json).map_err(at)?;
        let states = |names: &[&str]| find(json, names).is_some();
        if !config.moe_layers.is_empty() {
            for (names, what) in [
                (CHOSEN, format!("top_k_experts = {}", config.top_k_experts)),
                (BALANCE, format!("load_balance_loss_weight = {}", config.load_balance_loss_weight)),
            ] {
                if !states(names) {
                    assumed.push(what);
                }
            }
        }
        if !states(EPSILON) {
            assumed.push(format!("layer_norm_eps = {}", config.layer_norm_eps));
        }
        if !states(TIED) && !shapes.contains_key("lm_head.weight") {
            assumed.push(NO_HEAD.to_string());
        }
        config.check().map_err(at)?;
        Ok((config, assumed))
    }

    /// Everything that shapes tell.
    fn infer(shapes: &Shapes) -> Result<Self> {
        let dims = |name: &str, rank: usize| dims(shapes, name, rank, "Itera-Lite");
        let embedding = dims("embedding.weight", 2)?;
        let (hidden, positions) = (embedding[1], dims("position_embedding.weight", 2)?[0]);
        let num_layers = layers(shapes.keys(), "layers.")?;
        let routed = |i: &usize| shapes.contains_key(&router(*i));
        let moe_layers: Vec<usize> = (0..num_layers).filter(routed).collect();
        let conv = dims("layers.0.ssm.conv1d.weight", 3)?;
        let untied = shapes.get("lm_head.weight").is_some_and(|head| *head != embedding);
        let base = Self {
            vocab_size: embedding[0],
            hidden_size: hidden,
            num_layers,
            ssm_state_size: dims("layers.0.ssm.ssm.A_log", 1)?[0],
            ssm_conv_kernel: conv[2],
            moe_layers,
            max_seq_length: positions,
            tie_word_embeddings: !untied,
            ..Self::default()
        };
        let layer = |i: usize| -> Result<Layer> {
            let feed = base.feed(i);
            let widths = match base.has_experts(i) {
                false => vec![dims(&format!("{feed}.w1.weight"), 2)?[0]],
                true => {
                    let experts = 0..dims(&router(i), 2)?[0];
                    let width = |e| Ok(dims(&format!("{feed}.experts.{e}.w1.weight"), 2)?[0]);
                    experts.map(width).collect::<Result<_>>()?
                }
            };
            Ok(Layer { inner: dims(&format!("layers.{i}.ssm.conv1d.weight"), 3)?[0], widths })
        };
        let sizes = (0..num_layers).map(layer).collect::<Result<Vec<_>>>()?;
        // Of models that were not pruned all layers agree.
        let count = |i: &usize| sizes[*i].widths.len();
        let num_experts = base.moe_layers.iter().map(count).max().unwrap_or(Self::default().num_experts);
        let widths = sizes.iter().flat_map(|layer| &layer.widths);
        let config = Self {
            num_experts,
            top_k_experts: Self::default().top_k_experts.min(num_experts),
            ssm_expand_factor: sizes
                .iter()
                .map(|layer| layer.inner / hidden.max(1))
                .max()
                .unwrap_or(0)
                .max(1),
            expert_size: widths.copied().max().unwrap_or(0),
            ..base
        };
        let usual = sizes.iter().enumerate().all(|(i, layer)| *layer == config.usual_layer(i));
        Ok(Self { layer_sizes: if usual { vec![] } else { sizes }, ..config })
    }

    /// Takes what a configuration states; what contradicts the shapes is refused when they are held to it.
    fn read(&mut self, json: &Value) -> Result<()> {
        for (key, to) in [
            ("/vocab_size", &mut self.vocab_size),
            ("/hidden_size", &mut self.hidden_size),
            ("/num_layers", &mut self.num_layers),
            ("/ssm_state_size", &mut self.ssm_state_size),
            ("/ssm_conv_kernel", &mut self.ssm_conv_kernel),
            ("/ssm_expand_factor", &mut self.ssm_expand_factor),
            ("/num_experts", &mut self.num_experts),
            ("/expert_size", &mut self.expert_size),
            ("/top_k_experts", &mut self.top_k_experts),
            ("/max_seq_length", &mut self.max_seq_length),
        ] {
            size(json, &[key], to)?;
        }
        let routed = serde_json::json!(self.moe_layers);
        if let Some(found) = json.get("moe_layers").filter(|found| !found.is_null() && **found != routed) {
            let what = format!("moe_layers is {found}, and the layers that have a router are {routed}");
            return Err(Error::input(what).hint("are they of the same model?"));
        }
        if let Some(sizes) = json.get("layer_sizes").filter(|value| !value.is_null()) {
            let sizes: Vec<Layer> = serde_json::from_value(sizes.clone()).map_err(|error| {
                Error::input(format!("layer_sizes must be a list of sizes, one for each layer: {error}"))
            })?;
            self.layer_sizes = sizes;
        }
        number(json, BALANCE, &mut self.load_balance_loss_weight)?;
        number(json, EPSILON, &mut self.layer_norm_eps)?;
        flag(json, TIED, &mut self.tie_word_embeddings)
    }
}

fn router(layer: usize) -> String {
    format!("layers.{layer}.moe.layer.router.gate.weight")
}

/// Refuses a checkpoint that has routers and nothing that they could route to.
fn refuse_missing_experts(shapes: &Shapes) -> Result<()> {
    const ROUTER: &str = ".moe.layer.router.gate.weight";
    let without = shapes.iter().filter_map(|(name, shape)| {
        let layer = name.strip_suffix(ROUTER)?;
        let experts = format!("{layer}.moe.layer.experts.");
        let any = shapes.keys().any(|name| name.starts_with(&experts));
        (!any).then(|| (format!("{layer}.moe"), shape.first().copied().unwrap_or(0)))
    });
    let without: Vec<(String, usize)> = without.collect();
    let [first @ .., (last, count)] = without.as_slice() else { return Ok(()) };
    let first: Vec<&str> = first.iter().map(|(layer, _)| layer.as_str()).collect();
    let (layers, have) = match first.as_slice() {
        [] => (last.clone(), "has"),
        first => (format!("{} and {last}", first.join(", ")), "have"),
    };
    let what = format!(
        "{layers} {have} a router for {count} experts: the expert weights are missing from this file"
    );
    Err(Error::input(what)
        .hint("save the state dict of the whole model, without dropping names that do not match"))
}
