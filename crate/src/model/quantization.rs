//! What a quantized model is: the report that its making leaves, enough to put it together again.

use super::Model;
use super::init::stream;
use crate::error::Result;
use crate::family::site::Residual;
use crate::family::{Config, Matrices, Stack, Tensors};
use crate::format::Coding;
use crate::layer::attention::Width;
use crate::layer::linear::Activation;
use crate::layer::recurrence::Recurrence;
use crate::layer::rotation::Rotation;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The version of the layout in which quantized models are saved.
pub const LAYOUT: &str = "1";

/// How quantized products are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// From packed codes; integers are multiplied as integers.
    #[default]
    Packed,
    /// From what the codes stand for, in f32: the definition, slower to load and larger.
    Fake,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packed => "packed",
            Self::Fake => "fake",
        })
    }
}

/// The report of a quantization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantization {
    /// Canonical name of the scheme.
    pub scheme: String,
    /// Bits of the scheme's weights, without scales.
    pub w_bits: Option<f64>,
    /// Bits of the scheme's activations.
    pub a_bits: Option<f64>,
    /// Weights that share a scale, where they are groups.
    pub group_size: Option<usize>,
    /// Whether every output channel has a scale of its own.
    pub per_channel: Option<bool>,
    /// How codes and scales were chosen, such as `nearest` or `rotation, gptq`.
    pub method: String,
    /// How products are computed.
    pub backend: Backend,
    /// Seed of the rotations that the weights hold.
    pub rotation: Option<u64>,
    /// Bits of what goes through the recurrence.
    pub recurrence: Recurrence,
    /// How attention keeps keys and values, if not in f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cached>,
    /// The text that was read for it.
    pub calibration: Option<Calibrated>,
    /// What a budget for widths asked for, and what they take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Spent>,
    /// Every matrix, in forward order.
    pub layers: Vec<LayerReport>,
}

/// The width of a cache as reports have it: its bits as a number, or its name where it has more to say, such as `4c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached(pub Width);

impl Serialize for Cached {
    fn serialize<S: serde::Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        let name = self.0.name().unwrap_or_default();
        match name.parse::<u8>() {
            Ok(bits) => out.serialize_u8(bits),
            Err(_) => out.serialize_str(&name),
        }
    }
}

impl<'de> Deserialize<'de> for Cached {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let told = serde_json::Value::deserialize(from)?;
        let name = told.as_str().map_or_else(|| told.to_string(), String::from);
        let unknown = || serde::de::Error::custom(format!("a cache is 16, 8, 4, 8c or 4c, not {name}"));
        Width::named(&name).map(Self).ok_or_else(unknown)
    }
}

/// A budget of bytes, scales included, for the weights whose widths were chosen under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Bytes that could be spent.
    pub asked: u64,
    /// Bytes that were.
    pub used: u64,
}

/// Time, and tokens read through a whole model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Effort {
    /// Wall time.
    pub seconds: f64,
    /// Tokens; through half of the layers counts as half.
    pub tokens: u64,
}

/// What making a quantized model took, here and now: nothing of it is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Made {
    /// In all, loading left out.
    pub whole: Effort,
    /// Of that until widths were chosen under a budget, if they were.
    pub choosing: Option<Effort>,
}

/// The text that scales and errors were measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibrated {
    /// Name of the corpus.
    pub corpus: String,
    /// SHA-256 of the corpus.
    pub sha256: String,
    /// Windows read.
    pub samples: usize,
    /// Tokens of a window.
    pub length: usize,
    /// Seed of their places.
    pub seed: u64,
}

/// Such as `corpus/train, 128 × 512 tokens, seed 0, sha256 0123456789abcdef`.
impl fmt::Display for Calibrated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { corpus, sha256, samples, length, seed } = self;
        let sha256 = &sha256[..sha256.len().min(16)];
        write!(f, "{corpus}, {samples} × {length} tokens, seed {seed}, sha256 {sha256}")
    }
}

/// What became of one matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Path of its linear.
    pub path: String,
    /// Name of its tensor.
    pub weight: String,
    /// Output and input channels.
    pub shape: (usize, usize),
    /// Its blocks of rows, from the first down.
    pub blocks: Vec<BlockReport>,
    /// How its input is rounded.
    pub activation: Option<Activation>,
}

/// What became of some rows of a matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockReport {
    /// What the rows are, where they are not the whole matrix.
    pub segment: Option<String>,
    /// How many they are.
    pub rows: usize,
    /// Their format; none if they are left as they are.
    pub coding: Option<Coding>,
    /// Bits in the mean, where each row has a width of its own within the format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<f64>,
    /// Whether they keep every bit in fewer.
    #[serde(default)]
    pub lossless: bool,
    /// Their bytes.
    pub bytes: usize,
    /// ‖W − Ŵ‖ / ‖W‖ in the Frobenius norm.
    pub error: f64,
}

impl Quantization {
    /// Format of the output matrix, if it is quantized.
    pub fn head(&self) -> Option<String> {
        let names = self.layers.last()?.blocks.iter().map(BlockReport::format);
        names.collect::<Option<Vec<_>>>().map(|names| names.join("|"))
    }
}

impl BlockReport {
    /// The name of their format; none if they are stored as they are.
    pub fn format(&self) -> Option<String> {
        let lossless = self.lossless.then(|| "lossless".to_string());
        let by_row = self.bits.map_or_else(String::new, |bits| format!(" ({bits:.2} bits by row)"));
        self.coding.map(|coding| format!("{coding}{by_row}")).or(lossless)
    }
}

impl LayerReport {
    /// Whether any of its weights are stored in a format.
    pub(super) fn is_encoded(&self) -> bool {
        self.blocks.iter().any(|block| block.coding.is_some() || block.lossless)
    }

    /// Whether any of it is quantized.
    pub fn is_quantized(&self) -> bool {
        self.blocks.iter().any(|block| block.coding.is_some()) || self.activation.is_some()
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes).sum()
    }

    /// Bits of a weight, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / (self.shape.0 * self.shape.1) as f64
    }
}

impl Quantization {
    /// The report as a table: a line for every block of rows.
    pub fn table(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads = vec!["layer", "rows", "shape", "format", "inputs", "bytes", "bits a weight", "error"];
        let lines = self.layers.iter().flat_map(|layer| layer.blocks.iter().map(move |block| (layer, block)));
        let line = |(layer, block): (&LayerReport, &BlockReport)| {
            let inputs = layer.activation.map(|a| match a.scale {
                None => format!("a{}", a.bits),
                Some(scale) => format!("a{} × {scale:.3e}", a.bits),
            });
            vec![
                layer.path.clone(),
                block.segment.clone().unwrap_or_else(|| "all".to_string()),
                format!("{} × {}", block.rows, layer.shape.1),
                block.format().unwrap_or_else(|| "as it is".to_string()),
                inputs.unwrap_or_default(),
                block.bytes.to_string(),
                format!("{:.3}", 8.0 * block.bytes as f64 / (block.rows * layer.shape.1) as f64),
                block.coding.map_or_else(String::new, |_| format!("{:.4}", block.error)),
            ]
        };
        (heads, lines.map(line).collect())
    }

    /// Bits of a weight over all matrices of which some rows are in a format, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        let layers = self.layers.iter().filter(|layer| layer.is_encoded());
        let (bytes, weights) = layers.fold((0, 0), |(bytes, weights), layer| {
            (bytes + layer.bytes(), weights + layer.shape.0 * layer.shape.1)
        });
        8.0 * bytes as f64 / (weights.max(1)) as f64
    }

    /// Tells a network what its matrices expect of their inputs.
    pub(super) fn apply(&self, config: &Config, stack: &mut Stack) -> Result<()> {
        let layers: BTreeMap<&str, &LayerReport> =
            self.layers.iter().map(|layer| (layer.path.as_str(), layer)).collect();
        for (path, linear) in stack.linears_mut() {
            linear.activation = layers.get(path.as_str()).and_then(|layer| layer.activation);
        }
        stack.set_recurrence(self.recurrence)?;
        stack.set_cache(self.cache.map_or(Width::F32, |cached| cached.0))?;
        let Some(seed) = self.rotation else { return Ok(()) };
        stack.rotate(&rotation(seed, config.hidden_size()));
        let writers = config.sites().into_iter().filter(|site| site.residual == Residual::Writes);
        let writers: BTreeMap<String, usize> = writers.map(|site| (site.path, site.cols)).collect();
        for (path, linear) in stack.linears_mut() {
            linear.rotation = writers.get(&path).map(|cols| rotation(seed, *cols));
        }
        Ok(())
    }
}

/// The rotation of vectors of this length under a seed.
pub fn rotation(seed: u64, len: usize) -> Rotation {
    let mut signs = stream(seed, &format!("rotation of {len}"));
    Rotation::new((0..len).map(|_| if signs.random::<bool>() { 1.0 } else { -1.0 }).collect())
}

impl Model {
    /// Puts a quantized model together: this one with other tensors, and matrices in few bits.
    pub(crate) fn with_matrices(
        &self,
        mut tensors: Tensors,
        mut matrices: Matrices,
        quantization: Quantization,
    ) -> Result<Self> {
        for matrix in matrices.values_mut() {
            matrix.lay_out();
        }
        tensors.retain(|name, _| !matrices.contains_key(name));
        let mut stack = self.config.stack(&tensors, &matrices)?;
        quantization.apply(&self.config, &mut stack)?;
        Ok(Self { tensors, matrices, stack, quantization: Some(quantization), ..self.clone() })
    }
}

/// The table, and a line on the whole.
impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (heads, lines) = self.table();
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(heads).add_rows(lines);
        for number in 5..8 {
            if let Some(column) = table.column_mut(number) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "{table}")?;
        write!(
            f,
            "{}: {}, {:.3} bits a weight{}",
            self.scheme,
            self.method,
            self.bits_per_weight(),
            if self.w_bits.is_some() { " where quantized" } else { "" }
        )?;
        if let Some(calibration) = &self.calibration {
            write!(f, "; calibrated on {calibration}")?;
        }
        match self.budget {
            Some(Spent { asked, used }) => write!(f, "; {used} of {asked} bytes spent on the widths"),
            None => Ok(()),
        }
    }
}
