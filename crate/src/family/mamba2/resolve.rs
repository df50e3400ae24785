//! What a checkpoint tells of its config: in `config.json`, in either spelling, and by the shapes of its tensors.

use super::super::Tensors;
use super::config::{Config, time_step_limit};
use crate::error::{Error, Result};
use serde_json::Value;

/// The Hugging Face name of an original checkpoint's tensor.
pub fn canonical_name(name: &str) -> String {
    name.replace("backbone.embedding.weight", "backbone.embeddings.weight")
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
        config.read(json)?;
        if config.n_groups == 0 || config.num_heads % config.n_groups != 0 {
            return Err(Error::input(format!(
                "n_groups = {} does not divide num_heads = {}",
                config.n_groups, config.num_heads
            )));
        }
        // Shapes fix G·N only; the config fixes G.
        if json.get("state_size").is_none() && json.pointer("/ssm_cfg/d_state").is_none() {
            config.state_size /= config.n_groups;
        }
        for (key, original) in [("layer_norm_epsilon", "norm_epsilon"), ("time_step_limit", "dt_limit")] {
            if json.get(key).is_none() && json.get(original).is_none() {
                assumed
                    .push(format!("{key} = {}", if key == "time_step_limit" { "[0, inf]" } else { "1e-5" }));
            }
        }
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
        let layers =
            (0..).take_while(|i| tensors.contains_key(&format!("backbone.layers.{i}.mixer.A_log"))).count();
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
            tie_word_embeddings: !tensors.contains_key("lm_head.weight"),
            ..Self::default()
        })
    }

    /// Takes what a `config.json` states, in the Hugging Face or the original spelling.
    fn read(&mut self, json: &Value) -> Result<()> {
        let find = |names: &[&str]| {
            names.iter().find_map(|name| json.pointer(name)).filter(|value| !value.is_null())
        };
        let size = |names: &[&str], to: &mut usize| -> Result<()> {
            match find(names) {
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
        size(&["/state_size", "/ssm_cfg/d_state"], &mut self.state_size)?;
        size(&["/head_dim", "/ssm_cfg/headdim"], &mut self.head_dim)?;
        size(&["/num_heads"], &mut self.num_heads)?;
        size(&["/n_groups", "/ssm_cfg/ngroups"], &mut self.n_groups)?;
        size(&["/conv_kernel", "/ssm_cfg/d_conv"], &mut self.conv_kernel)?;
        // The original code pads its vocabulary, so there only the embedding tells.
        if json.get("d_model").is_none() {
            size(&["/vocab_size"], &mut self.vocab_size)?;
        }
        for (name, to) in [
            ("/use_bias", &mut self.use_bias),
            ("/use_conv_bias", &mut self.use_conv_bias),
            ("/tie_word_embeddings", &mut self.tie_word_embeddings),
        ] {
            let original = name.replace("word_", "");
            if let Some(value) = find(&[name, &original]) {
                let wrong = || Error::input(format!("{} must be true or false, found {value}", &name[1..]));
                *to = value.as_bool().ok_or_else(wrong)?;
            }
        }
        if let Some(value) = find(&["/layer_norm_epsilon", "/norm_epsilon"]) {
            let wrong = || Error::input(format!("layer_norm_epsilon must be a number, found {value}"));
            self.layer_norm_epsilon = value.as_f64().ok_or_else(wrong)?;
        }
        if let Some(value) = find(&["/time_step_limit", "/dt_limit"]) {
            self.time_step_limit = time_step_limit(value).ok_or_else(|| {
                Error::input(format!("time_step_limit must be a pair of numbers, found {value}"))
            })?;
        }
        Ok(())
    }
}
