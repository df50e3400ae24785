//! Mamba2 (Dao & Gu 2024), in the Hugging Face checkpoint layout; original checkpoints are renamed on the way in.

use super::{Init, TensorSpec, Tensors};
use crate::error::{Error, Result};
use crate::layer::linear::Linear;
use crate::layer::mamba2::{Mamba2 as Mixer, Parts, Sizes};
use crate::layer::norm::RmsNorm;
use crate::layer::state::State;
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The shape of a Mamba2 model. Field names are those of a Hugging Face `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// State size N.
    pub state_size: usize,
    /// Values per head P.
    pub head_dim: usize,
    /// Heads H.
    pub num_heads: usize,
    /// Groups G that share B and C.
    pub n_groups: usize,
    /// Conv taps K.
    pub conv_kernel: usize,
    /// ε of every norm.
    pub layer_norm_epsilon: f64,
    /// Biases on in_proj and out_proj.
    pub use_bias: bool,
    /// Bias on the convolution.
    pub use_conv_bias: bool,
    /// Range that Δ is clamped to; `null` is infinity.
    #[serde(with = "limit")]
    pub time_step_limit: (f64, f64),
    /// Head and embedding are one matrix.
    pub tie_word_embeddings: bool,
}

/// A byte-level model of 3.5 M parameters: the shape of the default model.
impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            num_hidden_layers: 8,
            vocab_size: 256,
            state_size: 64,
            head_dim: 64,
            num_heads: 8,
            n_groups: 1,
            conv_kernel: 4,
            layer_norm_epsilon: 1e-5,
            use_bias: false,
            use_conv_bias: true,
            time_step_limit: (0.0, f64::INFINITY),
            tie_word_embeddings: true,
        }
    }
}

/// JSON and YAML have no infinity: it is written as null, and read in every spelling that is found in the wild.
mod limit {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(limit: &(f64, f64), out: S) -> Result<S::Ok, S::Error> {
        [limit.0, limit.1].map(|x| x.is_finite().then_some(x)).serialize(out)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<(f64, f64), D::Error> {
        let value = serde_json::Value::deserialize(from)?;
        super::time_step_limit(&value).ok_or_else(|| {
            serde::de::Error::custom(format!("time_step_limit must be a pair of numbers, found {value}"))
        })
    }
}

/// A pair of numbers, where the second may be infinite: `null`, `"inf"`, `"Infinity"` or `{"__float__": "Infinity"}`.
fn time_step_limit(value: &Value) -> Option<(f64, f64)> {
    fn number(value: &Value, null: f64) -> Option<f64> {
        match value {
            Value::Null => Some(null),
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(), // "inf", "Infinity", "1e-3"
            Value::Object(fields) => fields.get("__float__").and_then(|inner| number(inner, null)),
            _ => None,
        }
    }
    match value {
        Value::Null => Some((0.0, f64::INFINITY)),
        Value::Array(pair) if pair.len() == 2 => {
            Some((number(&pair[0], 0.0)?, number(&pair[1], f64::INFINITY)?))
        }
        _ => None,
    }
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
    /// The published 130M shape.
    pub fn mamba2_130m() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 24,
            vocab_size: 50288,
            state_size: 128,
            head_dim: 64,
            num_heads: 24,
            ..Self::default()
        }
    }

    /// Whether tensors of these names are a Mamba2.
    pub fn recognizes(tensors: &Tensors) -> bool {
        tensors.contains_key("backbone.layers.0.mixer.A_log")
            && tensors.contains_key("backbone.layers.0.mixer.dt_bias")
    }

    /// The config of a checkpoint; see [`super::Config::resolve`].
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

    /// Refuses sizes that no Mamba2 can have.
    pub fn check(&self) -> Result<()> {
        for (name, size) in [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("vocab_size", self.vocab_size),
            ("state_size", self.state_size),
            ("head_dim", self.head_dim),
            ("num_heads", self.num_heads),
            ("n_groups", self.n_groups),
            ("conv_kernel", self.conv_kernel),
        ] {
            if size == 0 {
                return Err(Error::input(format!("{name} must be a positive integer, found 0")));
            }
        }
        if !self.num_heads.is_multiple_of(self.n_groups) {
            let (groups, heads) = (self.n_groups, self.num_heads);
            return Err(Error::input(format!("n_groups = {groups} does not divide num_heads = {heads}")));
        }
        let (low, high) = self.time_step_limit;
        if low.is_nan() || high.is_nan() || low > high {
            return Err(Error::input(format!("time_step_limit must be a range, found [{low}, {high}]")));
        }
        Ok(())
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

    fn sizes(&self) -> Sizes {
        Sizes {
            heads: self.num_heads,
            head_dim: self.head_dim,
            groups: self.n_groups,
            state: self.state_size,
            conv_width: self.conv_kernel,
            eps: self.layer_norm_epsilon as f32,
            dt_limit: (self.time_step_limit.0 as f32, self.time_step_limit.1 as f32),
        }
    }

    /// Every tensor of such a model, with the initialization of the reference implementation.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let s = self.sizes();
        let (hidden, heads, inner, channels) = (self.hidden_size, s.heads, s.inner(), s.channels());
        let mut specs = vec![];
        let mut add = |name: String, shape: &[usize], init: Init, matrix: bool| {
            specs.push(TensorSpec { name, shape: shape.to_vec(), init, matrix });
        };
        // Each block adds one branch to the residual stream: its last matrix starts smaller by √layers (GPT-2).
        let linear = |inputs: usize| Init::Uniform((inputs as f32).sqrt().recip());
        let out = Init::Uniform(((inner * self.num_hidden_layers) as f32).sqrt().recip());
        let conv = Init::Uniform((self.conv_kernel as f32).sqrt().recip());
        add("backbone.embeddings.weight".into(), &[self.vocab_size, hidden], Init::Normal(0.02), true);
        for i in 0..self.num_hidden_layers {
            let at = |name: &str| format!("backbone.layers.{i}.{name}");
            add(at("norm.weight"), &[hidden], Init::Constant(1.0), false);
            add(at("mixer.in_proj.weight"), &[s.rows(), hidden], linear(hidden), true);
            if self.use_bias {
                add(at("mixer.in_proj.bias"), &[s.rows()], Init::Constant(0.0), false);
            }
            add(at("mixer.conv1d.weight"), &[channels, 1, self.conv_kernel], conv, false);
            if self.use_conv_bias {
                add(at("mixer.conv1d.bias"), &[channels], conv, false);
            }
            add(at("mixer.dt_bias"), &[heads], Init::InverseSoftplus(0.001, 0.1), false);
            add(at("mixer.A_log"), &[heads], Init::LogUniform(1.0, 16.0), false);
            add(at("mixer.D"), &[heads], Init::Constant(1.0), false);
            add(at("mixer.norm.weight"), &[inner], Init::Constant(1.0), false);
            add(at("mixer.out_proj.weight"), &[hidden, inner], out, true);
            if self.use_bias {
                add(at("mixer.out_proj.bias"), &[hidden], Init::Constant(0.0), false);
            }
        }
        add("backbone.norm_f.weight".into(), &[hidden], Init::Constant(1.0), false);
        if !self.tie_word_embeddings {
            add("lm_head.weight".into(), &[self.vocab_size, hidden], Init::Normal(0.02), true);
        }
        specs
    }
}

/// The Hugging Face name of an original checkpoint's tensor.
pub fn canonical_name(name: &str) -> String {
    name.replace("backbone.embedding.weight", "backbone.embeddings.weight")
}

/// The layers of a Mamba2.
#[derive(Clone, Debug)]
pub struct Mamba2 {
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// The output matrix, shared with the embedding where the config ties them.
    pub head: Linear,
}

#[derive(Clone, Debug)]
struct Block {
    norm: RmsNorm,
    mixer: Mixer,
}

impl Mamba2 {
    /// Builds the layers from tensors of the right names and shapes; small parameters are widened to f32.
    pub fn new(config: &Config, tensors: &Tensors) -> candle_core::Result<Self> {
        let get = |name: &str| match tensors.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => candle_core::bail!("missing tensor {name}"),
        };
        let small = |name: &str| get(name)?.to_dtype(DType::F32);
        let s = config.sizes();
        let blocks = (0..config.num_hidden_layers).map(|i| {
            let at = |name: &str| format!("backbone.layers.{i}.{name}");
            let bias = |name: &str| config.use_bias.then(|| small(&at(name))).transpose();
            let conv_weight = small(&at("mixer.conv1d.weight"))?.squeeze(1)?; // [C, K]
            let conv_bias = if config.use_conv_bias {
                small(&at("mixer.conv1d.bias"))?
            } else {
                Tensor::zeros(s.channels(), DType::F32, conv_weight.device())?
            };
            let parts = Parts {
                conv_weight,
                conv_bias,
                dt_bias: small(&at("mixer.dt_bias"))?,
                a_log: small(&at("mixer.A_log"))?,
                d: small(&at("mixer.D"))?,
                norm: small(&at("mixer.norm.weight"))?,
            };
            let in_proj = Linear::dense(get(&at("mixer.in_proj.weight"))?, bias("mixer.in_proj.bias")?);
            let out_proj = Linear::dense(get(&at("mixer.out_proj.weight"))?, bias("mixer.out_proj.bias")?);
            Ok(Block {
                norm: RmsNorm::new(small(&at("norm.weight"))?, config.layer_norm_epsilon),
                mixer: Mixer::new(s, in_proj, &parts, out_proj)?,
            })
        });
        let embedding = get("backbone.embeddings.weight")?;
        let head = if config.tie_word_embeddings { embedding.clone() } else { get("lm_head.weight")? };
        Ok(Self {
            blocks: blocks.collect::<candle_core::Result<_>>()?,
            norm: RmsNorm::new(small("backbone.norm_f.weight")?, config.layer_norm_epsilon),
            head: Linear::dense(head, None),
            embedding,
        })
    }

    /// tokens [B, T] → [B, T, hidden] after the last norm; see [`super::Network::hidden`].
    pub fn hidden(&self, tokens: &Tensor, mut state: Option<&mut State>) -> candle_core::Result<Tensor> {
        let (batch, time) = tokens.dims2()?;
        let rows = self.embedding.index_select(&tokens.flatten_all()?, 0)?.to_dtype(DType::F32)?;
        let mut x = rows.reshape((batch, time, ()))?; // the residual stream, [B, T, hidden], f32
        for (i, block) in self.blocks.iter().enumerate() {
            let layer = state.as_deref_mut().map(|state| &mut state.layers[i]);
            x = (block.mixer.forward(&block.norm.forward(&x)?, layer)? + x)?;
        }
        if let Some(state) = state {
            state.position += time;
        }
        self.norm.forward(&x)
    }

    /// A state before the first token.
    pub fn zero_state(&self, batch: usize, device: &Device) -> candle_core::Result<State> {
        let layers = self
            .blocks
            .iter()
            .map(|block| block.mixer.zero_state(batch, device))
            .collect::<Result<_, _>>()?;
        Ok(State { layers, position: 0 })
    }

    /// in_proj and out_proj of every block, then the head.
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            let at = move |name: &str| format!("backbone.layers.{i}.mixer.{name}");
            [(at("in_proj"), &block.mixer.in_proj), (at("out_proj"), &block.mixer.out_proj)]
        });
        blocks.chain([("lm_head".to_string(), &self.head)]).collect()
    }
}
