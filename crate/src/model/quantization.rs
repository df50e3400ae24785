//! What a quantized model is: the report that its making leaves, enough to put it together again from a file.

use super::Model;
use super::init::stream;
use crate::error::{Error, Result};
use crate::family::site::Residual;
use crate::family::{Config, Matrices, Network, Tensors};
use crate::format::{Coding, Encoded, Scales};
use crate::kernel::coded::Coded;
use crate::layer::linear::Activation;
use crate::layer::mamba2::Recurrence;
use crate::layer::quantized::{Block, Quantized};
use crate::layer::rotation::Rotation;
use candle_core::{Device, Tensor, WithDType};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use half::bf16;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

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
    /// The text that was read for it.
    pub calibration: Option<Calibrated>,
    /// Every matrix, in forward order.
    pub layers: Vec<LayerReport>,
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
        self.coding.map(|coding| coding.to_string()).or(lossless)
    }
}

impl LayerReport {
    /// Whether any of its weights are stored in a format.
    fn is_encoded(&self) -> bool {
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
    pub(super) fn apply(&self, config: &Config, network: &mut Network) -> Result<()> {
        for ((_, linear), layer) in network.linears_mut().into_iter().zip(&self.layers) {
            linear.activation = layer.activation;
        }
        network.set_recurrence(self.recurrence)?;
        let Some(seed) = self.rotation else { return Ok(()) };
        network.rotate(&rotation(seed, config.hidden_size()));
        for ((_, linear), site) in network.linears_mut().into_iter().zip(config.sites()) {
            if site.residual == Residual::Writes {
                linear.rotation = Some(rotation(seed, site.cols));
            }
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
        let mut network = Network::new(&self.config, &tensors, &matrices)?;
        quantization.apply(&self.config, &mut network)?;
        Ok(Self { tensors, matrices, network, quantization: Some(quantization), ..self.clone() })
    }

    /// The tensors of the file of a quantized model: codes and scales beside what is not quantized.
    pub(super) fn packed_tensors(&self) -> Result<Tensors> {
        let mut all = self.tensors.clone();
        for (name, matrix) in &self.matrices {
            for (i, block) in matrix.blocks().iter().enumerate() {
                let at = |part: &str| format!("{name}.{i}.{part}");
                match block {
                    Block::Dense(values) => drop(all.insert(at("values"), values.clone())),
                    Block::Coded(coded) => {
                        all.extend(coded_parts(coded)?.map(|(part, tensor)| (at(part), tensor)));
                    }
                    Block::Packed(encoded) => {
                        all.extend(parts(encoded)?.into_iter().map(|(part, tensor)| (at(part), tensor)));
                    }
                    Block::Fake(_) => {
                        return Err(Error::input("a simulated quantization cannot be saved")
                            .at(&self.name)
                            .hint("quantize with the packed backend"));
                    }
                }
            }
        }
        Ok(all)
    }
}

/// The report in a checkpoint's metadata, if it is one of a quantized model.
///
/// # Errors
/// If it was written in another layout, or is damaged.
pub(super) fn read_report(metadata: &BTreeMap<String, String>) -> Result<Option<Quantization>> {
    let Some(text) = metadata.get("quantization") else { return Ok(None) };
    match metadata.get("lowbit_layout").map(String::as_str) {
        Some(LAYOUT) => {}
        layout => {
            let written = metadata.get("lowbit_version").map_or("unknown", String::as_str);
            let layout = layout.unwrap_or("none");
            return Err(Error::input(format!(
                "the quantized weights have layout {layout}, written by lowbit {written}; this version reads {LAYOUT}"
            ))
            .hint("quantize the original model again"));
        }
    }
    let report = serde_json::from_str(text);
    Ok(Some(
        report
            .map_err(|error| Error::input(format!("the report of the quantization is damaged: {error}")))?,
    ))
}

/// Takes the matrices that the report tells of out of a checkpoint's tensors.
///
/// # Errors
/// If parts are missing or have other sizes than the report says.
pub(super) fn read_matrices(report: &Quantization, tensors: &mut Tensors) -> Result<Matrices> {
    let mut matrices = Matrices::new();
    for layer in report.layers.iter().filter(|layer| layer.is_encoded()) {
        let cols = layer.shape.1;
        let mut blocks = vec![];
        for (i, block) in layer.blocks.iter().enumerate() {
            let name = format!("{}.{i}", layer.weight);
            let mut take = |part: &str| {
                let name = format!("{name}.{part}");
                tensors.remove(&name).ok_or_else(|| {
                    Error::input("this part of a quantized matrix is missing")
                        .at(name)
                        .hint("copy the file again")
                })
            };
            blocks.push(match block.coding {
                None if block.lossless => Block::Coded(Arc::new(
                    coded(block.rows, cols, &mut take).map_err(|error| error.at(&name))?,
                )),
                None => Block::Dense(take("values")?),
                Some(coding) => {
                    let encoded =
                        encoded(coding, block.rows, cols, &mut take).map_err(|error| error.at(&name))?;
                    Block::Packed(Arc::new(encoded))
                }
            });
        }
        let mut matrix = Quantized::new(blocks, cols)?;
        matrix.lay_out();
        matrices.insert(layer.weight.clone(), matrix);
    }
    Ok(matrices)
}

fn tensor<T: WithDType>(values: &[T]) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, values.len(), &Device::Cpu)?)
}

fn values<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    tensor.flatten_all()?.to_vec1().map_err(|_| {
        Error::input(format!("expected values of type {:?}, found {:?}", T::DTYPE, tensor.dtype()))
    })
}

/// A matrix whose exponents are coded, as tensors by part.
fn coded_parts(coded: &Coded) -> Result<[(&'static str, Tensor); 4]> {
    let (groups, bases, starts, exceptions) = coded.parts();
    Ok([
        ("groups", tensor(groups)?),
        ("bases", tensor(bases)?),
        ("starts", tensor(starts)?),
        ("exceptions", tensor(&exceptions)?),
    ])
}

/// The reverse of [`coded_parts`].
fn coded(rows: usize, cols: usize, take: &mut impl FnMut(&str) -> Result<Tensor>) -> Result<Coded> {
    let (groups, bases) = (values::<u8>(&take("groups")?)?, values(&take("bases")?)?);
    let (starts, exceptions) = (values(&take("starts")?)?, values(&take("exceptions")?)?);
    Coded::from_parts(rows, cols, &groups, bases, starts, &exceptions).ok_or_else(|| {
        Error::input(format!("the coded exponents are not those of a matrix [{rows}, {cols}]"))
            .hint("copy the file again, or quantize the original model again")
    })
}

/// An encoded matrix as tensors by part.
fn parts(encoded: &Encoded) -> Result<Vec<(&'static str, Tensor)>> {
    let mut parts = vec![("codes", tensor(&encoded.codes())?)];
    match &encoded.scales {
        Scales::Bf16(scales) => parts.push(("scales", tensor(scales)?)),
        Scales::F32(scales) => parts.push(("scales", tensor(scales)?)),
        Scales::Power(scales) => parts.push(("scales", tensor(scales)?)),
        Scales::Affine(scales, zeros) => {
            parts.extend([("scales", tensor(scales)?), ("zeros", tensor(zeros)?)]);
        }
        Scales::Double { codes, absmax, offset, .. } => {
            parts.extend([
                ("scales", tensor(codes)?),
                ("absmax", tensor(absmax)?),
                ("offset", tensor(&[*offset])?),
            ]);
        }
        Scales::Fp8 { codes, tensor: factor } => {
            parts.extend([("scales", tensor(codes)?), ("factor", tensor(&[*factor])?)]);
        }
    }
    Ok(parts)
}

/// The reverse of [`parts`].
fn encoded(
    coding: Coding,
    rows: usize,
    cols: usize,
    take: &mut impl FnMut(&str) -> Result<Tensor>,
) -> Result<Encoded> {
    let codes = values::<u8>(&take("codes")?)?;
    let scales = take("scales")?;
    let scales = match Scales::store(coding.format, &[]) {
        Scales::Bf16(_) => Scales::Bf16(values::<bf16>(&scales)?),
        Scales::F32(_) => Scales::F32(values(&scales)?),
        Scales::Power(_) => Scales::Power(values(&scales)?),
        Scales::Affine(..) => Scales::Affine(values(&scales)?, values(&take("zeros")?)?),
        Scales::Double { map, .. } => {
            let offset = values::<f32>(&take("offset")?)?.first().copied().unwrap_or(0.0);
            Scales::Double { codes: values(&scales)?, absmax: values(&take("absmax")?)?, offset, map }
        }
        Scales::Fp8 { .. } => {
            let tensor = values::<f32>(&take("factor")?)?.first().copied().unwrap_or(0.0);
            Scales::Fp8 { codes: values(&scales)?, tensor }
        }
    };
    Encoded::from_parts(coding, rows, cols, codes, scales)
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
        match &self.calibration {
            Some(calibration) => write!(f, "; calibrated on {calibration}"),
            None => Ok(()),
        }
    }
}
