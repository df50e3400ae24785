//! What a checkpoint tells of its config: in `config.json`, in any spelling, and by the names and shapes of its tensors.

use super::super::mixer::stated_limit;
use super::super::setting::{
    NO_HEAD, before_layers, dims, find, flag, known, layers, number, same_layers, size,
};
use super::super::{Family, Shapes, Stated};
use super::config::Config;
use crate::error::{Error, Result};
use serde_json::Value;

/// What stands before the body of a Mamba2 in the name of a tensor that every one of its layers has: `backbone.` or
/// nothing, with whatever a program put in front.
pub(super) fn before_body(name: &str) -> Option<&str> {
    before_layers(name, ".mixer.A_log")
}

/// The Hugging Face name of a tensor, from what follows the place of the body in a checkpoint's; none if it is not one of
/// the body's.
pub(super) fn name_in_body(name: &str) -> Option<String> {
    match name {
        "embedding.weight" => Some("backbone.embeddings.weight".to_string()), // in original checkpoints
        name => {
            let of_body = ["layers.", "embeddings.", "norm_f."].iter().any(|start| name.starts_with(start));
            of_body.then(|| format!("backbone.{name}"))
        }
    }
}

/// Where a `config.json` states a setting, in the Hugging Face and in the original spelling.
const STATE_SIZE: &[&str] = &["/state_size", "/ssm_cfg/d_state"];
const N_GROUPS: &[&str] = &["/n_groups", "/ssm_cfg/ngroups"];
const EPSILON: &[&str] = &["/layer_norm_epsilon", "/norm_epsilon"];
const TIME_STEP_LIMIT: &[&str] = &["/time_step_limit", "/ssm_cfg/dt_limit", "/dt_limit"];
const TIED: &[&str] = &["/tie_word_embeddings", "/tie_embeddings"];

/// Settings that change the architecture, with the values, in JSON, of the one that is here.
const KNOWN: [(&str, &[&str]); 8] = [
    ("/hidden_act", &["\"silu\"", "\"swish\""]),
    ("/rms_norm", &["true"]),
    ("/d_intermediate", &["0"]),
    ("/attn_layer_idx", &["[]"]),
    ("/ssm_cfg/layer", &["\"Mamba2\""]),
    ("/ssm_cfg/activation", &["\"silu\"", "\"swish\""]),
    ("/ssm_cfg/rmsnorm", &["true"]),
    ("/ssm_cfg/norm_before_gate", &["false"]),
];

impl Config {
    /// Whether tensors of these names are a Mamba2: every layer has its mixer.
    pub fn recognizes(shapes: &Shapes) -> bool {
        let others = ["mixer.q_proj.weight", "mixer.up_proj.weight", "mixer.gate.weight"];
        shapes.contains_key("backbone.layers.0.mixer.A_log")
            && shapes.contains_key("backbone.layers.0.mixer.dt_bias")
            && !shapes.keys().any(|name| others.iter().any(|other| name.ends_with(other)))
    }

    /// Whether head and embedding are said to be one matrix.
    pub fn states_tied(json: &Value) -> Option<bool> {
        find(json, TIED)?.as_bool()
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`].
    pub fn resolve(stated: Option<&Stated>, shapes: &Shapes) -> Result<(Self, Vec<String>)> {
        let mut config = Self::infer(shapes)?;
        let mut assumed = vec![];
        let json = stated.map(|stated| &stated.json);
        let states = |names: &[&str]| json.is_some_and(|json| find(json, names).is_some());
        if let Some(Stated { file, json }) = stated {
            let layers = config.num_hidden_layers;
            config.read(json).map_err(|error| error.at(file))?;
            same_layers(config.num_hidden_layers, layers, file)?;
        }
        // Shapes fix G·N only; the config fixes G, or N, or leaves one group.
        if !states(STATE_SIZE) {
            config.state_size /= config.n_groups;
        } else if !states(N_GROUPS) {
            let product = Self::infer(shapes)?.state_size;
            config.n_groups = if product % config.state_size == 0 { product / config.state_size } else { 1 };
        }
        if !states(N_GROUPS) && !states(STATE_SIZE) {
            assumed.push("n_groups = 1".to_string());
        }
        for (names, what) in
            [(EPSILON, "layer_norm_epsilon = 1e-5"), (TIME_STEP_LIMIT, "time_step_limit = [0, inf]")]
        {
            if !states(names) {
                assumed.push(what.to_string());
            }
        }
        if !states(TIED) && !shapes.contains_key("lm_head.weight") {
            assumed.push(NO_HEAD.to_string());
        }
        config.check().map_err(|error| match stated {
            Some(stated) => error.at(&stated.file),
            None => error,
        })?;
        Ok((config, assumed))
    }

    /// Everything that shapes tell, with one group.
    fn infer(shapes: &Shapes) -> Result<Self> {
        let dims = |name: &str, rank: usize| match name.starts_with("backbone") {
            true => dims(shapes, name, rank, "Mamba2"),
            false => dims(shapes, &format!("backbone.layers.0.{name}"), rank, "Mamba2"),
        };
        let embedding = dims("backbone.embeddings.weight", 2)?;
        let heads = dims("mixer.A_log", 1)?[0];
        let inner = dims("mixer.out_proj.weight", 2)?[1];
        let conv = dims("mixer.conv1d.weight", 3)?;
        if heads == 0 || inner % heads != 0 || conv[0] < inner {
            return Err(Error::input(format!(
                "{heads} heads (mixer.A_log), {inner} inner channels (mixer.out_proj) and {} conv channels do not fit together",
                conv[0]
            )));
        }
        let layers = layers(shapes.keys(), "backbone.layers.")?;
        // Original checkpoints store a shared matrix under both names; whether it is one, its values tell.
        let untied = shapes.get("lm_head.weight").is_some_and(|head| *head != embedding);
        Ok(Self {
            hidden_size: embedding[1],
            num_hidden_layers: layers,
            vocab_size: embedding[0],
            state_size: (conv[0] - inner) / 2,
            head_dim: inner / heads,
            num_heads: heads,
            n_groups: 1,
            conv_kernel: conv[2],
            use_bias: shapes.contains_key("backbone.layers.0.mixer.in_proj.bias"),
            use_conv_bias: shapes.contains_key("backbone.layers.0.mixer.conv1d.bias"),
            tie_word_embeddings: !untied,
            ..Self::default()
        })
    }

    /// Takes what a `config.json` states, in the Hugging Face or the original spelling, or a `params.json`.
    fn read(&mut self, json: &Value) -> Result<()> {
        known(json, &KNOWN)?;
        let size = |names: &[&str], to: &mut usize| size(json, names, to);
        size(&["/hidden_size", "/d_model", "/dim"], &mut self.hidden_size)?;
        size(&["/num_hidden_layers", "/n_layer", "/n_layers"], &mut self.num_hidden_layers)?;
        size(STATE_SIZE, &mut self.state_size)?;
        size(&["/head_dim", "/ssm_cfg/headdim"], &mut self.head_dim)?;
        size(&["/num_heads"], &mut self.num_heads)?;
        size(N_GROUPS, &mut self.n_groups)?;
        size(&["/conv_kernel", "/ssm_cfg/d_conv"], &mut self.conv_kernel)?;
        // The original code pads its vocabulary, so there only the embedding tells.
        if json.get("d_model").is_none() && json.get("dim").is_none() {
            size(&["/vocab_size"], &mut self.vocab_size)?;
        }
        for (names, to) in [
            (&["/use_bias", "/ssm_cfg/bias"][..], &mut self.use_bias),
            (&["/use_conv_bias", "/ssm_cfg/conv_bias"], &mut self.use_conv_bias),
            (TIED, &mut self.tie_word_embeddings),
        ] {
            flag(json, names, to)?;
        }
        number(json, EPSILON, &mut self.layer_norm_epsilon)?;
        if let Some(value) = find(json, TIME_STEP_LIMIT) {
            self.time_step_limit = stated_limit(value)?;
        }
        Ok(())
    }
}
