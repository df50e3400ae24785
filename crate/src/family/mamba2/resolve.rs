//! What a checkpoint tells of its config: in `config.json`, in either spelling, and by the shapes of its tensors.

use super::super::Tensors;
use super::config::{Config, time_step_limit};
use crate::error::{Error, Result};
use candle_core::Tensor;
use serde_json::Value;

/// The Hugging Face name of an original checkpoint's tensor.
pub fn canonical_name(name: &str) -> String {
    name.replace("backbone.embedding.weight", "backbone.embeddings.weight")
}

/// Where a `config.json` states a setting, in the Hugging Face and in the original spelling.
const STATE_SIZE: &[&str] = &["/state_size", "/ssm_cfg/d_state"];
const N_GROUPS: &[&str] = &["/n_groups", "/ssm_cfg/ngroups"];
const EPSILON: &[&str] = &["/layer_norm_epsilon", "/norm_epsilon"];
const TIME_STEP_LIMIT: &[&str] = &["/time_step_limit", "/ssm_cfg/dt_limit", "/dt_limit"];

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

/// The first of several places in a `config.json` that holds something.
fn find<'a>(json: &'a Value, places: &[&str]) -> Option<&'a Value> {
    places.iter().filter_map(|place| json.pointer(place)).find(|value| !value.is_null())
}

/// Whether two tensors of one shape hold the same numbers.
fn equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.dtype() == b.dtype() && a.eq(b)?.flatten_all()?.min(0)?.to_scalar::<u8>()? == 1)
}

impl Config {
    /// Whether tensors of these names are a Mamba2.
    pub fn recognizes(tensors: &Tensors) -> bool {
        tensors.contains_key("backbone.layers.0.mixer.A_log")
            && tensors.contains_key("backbone.layers.0.mixer.dt_bias")
    }

    /// The config of a checkpoint; see [`crate::family::Config::resolve`].
    pub fn resolve(json: Option<&Value>, tensors: &Tensors) -> Result<(Self, Vec<String>)> {
        let mut config = Self::infer(tensors)?;
        let mut assumed = vec![];
        let Some(json) = json else {
            assumed.extend(
                ["n_groups = 1", "layer_norm_epsilon = 1e-5", "time_step_limit = [0, inf]"].map(String::from),
            );
            return Ok((config, assumed));
        };
        let layers = config.num_hidden_layers;
        config.read(json).map_err(|error| error.at("config.json"))?;
        if config.num_hidden_layers != layers {
            let what =
                format!("num_hidden_layers is {}, and the checkpoint has {layers}", config.num_hidden_layers);
            return Err(Error::input(what).at("config.json").hint("are they of the same model?"));
        }
        // Shapes fix G·N only; the config fixes G, or N, or leaves one group.
        let states = |names: &[&str]| find(json, names).is_some();
        if !states(STATE_SIZE) {
            config.state_size /= config.n_groups;
        } else if !states(N_GROUPS) {
            let product = Self::infer(tensors)?.state_size;
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
        config.check().map_err(|error| error.at("config.json"))?;
        Ok((config, assumed))
    }

    /// Everything that shapes tell, with one group.
    fn infer(tensors: &Tensors) -> Result<Self> {
        let dims = |name: &str, rank: usize| -> Result<Vec<usize>> {
            let name = if name.starts_with("backbone") {
                name.to_string()
            } else {
                format!("backbone.layers.0.{name}")
            };
            let tensor = tensors
                .get(&name)
                .ok_or_else(|| Error::input("missing: a Mamba2's sizes are read from it").at(&name))?;
            if tensor.rank() != rank {
                let found = tensor.dims();
                return Err(
                    Error::input(format!("expected {rank} dimensions, found shape {found:?}")).at(&name)
                );
            }
            Ok(tensor.dims().to_vec())
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
        // The highest number counts: a tensor that is missing below it is told by its name later.
        let number = |name: &String| name.strip_prefix("backbone.layers.")?.split('.').next()?.parse().ok();
        let layers = tensors.keys().filter_map(number).max().map_or(0, |last: usize| last.saturating_add(1));
        let embedded = &tensors["backbone.embeddings.weight"];
        // Original checkpoints store a shared matrix under both names.
        let untied = match tensors.get("lm_head.weight") {
            Some(head) => head.dims() != embedded.dims() || !equal(head, embedded)?,
            None => false,
        };
        Ok(Self {
            hidden_size: embedding[1],
            num_hidden_layers: layers,
            vocab_size: embedding[0],
            state_size: (conv[0] - inner) / 2,
            head_dim: inner / heads,
            num_heads: heads,
            n_groups: 1,
            conv_kernel: conv[2],
            use_bias: tensors.contains_key("backbone.layers.0.mixer.in_proj.bias"),
            use_conv_bias: tensors.contains_key("backbone.layers.0.mixer.conv1d.bias"),
            tie_word_embeddings: !untied,
            ..Self::default()
        })
    }

    /// Takes what a `config.json` states, in the Hugging Face or the original spelling.
    fn read(&mut self, json: &Value) -> Result<()> {
        for (place, known) in KNOWN {
            if let Some(value) =
                find(json, &[place]).filter(|value| !known.contains(&value.to_string().as_str()))
            {
                let key = &place[1..].replace('/', ".");
                return Err(Error::input(format!(
                    "{key} = {value} calls for an architecture that this version does not have"
                )));
            }
        }
        let size = |names: &[&str], to: &mut usize| -> Result<()> {
            match find(json, names) {
                None => Ok(()),
                Some(value) => {
                    let wrong = || {
                        Error::input(format!("{} must be a positive integer, found {value}", &names[0][1..]))
                    };
                    *to = value.as_u64().filter(|n| *n > 0).ok_or_else(wrong)? as usize;
                    Ok(())
                }
            }
        };
        size(&["/hidden_size", "/d_model"], &mut self.hidden_size)?;
        size(&["/num_hidden_layers", "/n_layer"], &mut self.num_hidden_layers)?;
        size(STATE_SIZE, &mut self.state_size)?;
        size(&["/head_dim", "/ssm_cfg/headdim"], &mut self.head_dim)?;
        size(&["/num_heads"], &mut self.num_heads)?;
        size(N_GROUPS, &mut self.n_groups)?;
        size(&["/conv_kernel", "/ssm_cfg/d_conv"], &mut self.conv_kernel)?;
        // The original code pads its vocabulary, so there only the embedding tells.
        if json.get("d_model").is_none() {
            size(&["/vocab_size"], &mut self.vocab_size)?;
        }
        for (names, to) in [
            (["/use_bias", "/ssm_cfg/bias"], &mut self.use_bias),
            (["/use_conv_bias", "/ssm_cfg/conv_bias"], &mut self.use_conv_bias),
            (["/tie_word_embeddings", "/tie_embeddings"], &mut self.tie_word_embeddings),
        ] {
            if let Some(value) = find(json, &names) {
                let wrong =
                    || Error::input(format!("{} must be true or false, found {value}", &names[0][1..]));
                *to = value.as_bool().ok_or_else(wrong)?;
            }
        }
        if let Some(value) = find(json, EPSILON) {
            let wrong = || Error::input(format!("layer_norm_epsilon must be a number, found {value}"));
            self.layer_norm_epsilon = value.as_f64().ok_or_else(wrong)?;
        }
        if let Some(value) = find(json, TIME_STEP_LIMIT) {
            self.time_step_limit = time_step_limit(value).ok_or_else(|| {
                Error::input(format!("time_step_limit must be a pair of numbers, found {value}"))
            })?;
        }
        Ok(())
    }
}
