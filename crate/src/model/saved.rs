//! A quantized model in a file: its report in the metadata, and its matrices as tensors by part.

use super::Model;
use super::quantization::{LAYOUT, Quantization};
use crate::error::{Error, Result};
use crate::family::{Config, Matrices, Tensors};
use crate::format::int::signed;
use crate::format::{Coding, Encoded, Format, Scales, range};
use crate::kernel::coded::Coded;
use crate::layer::linear::Activation;
use crate::layer::quantized::{Block, Quantized};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Model {
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

/// Holds the report of a quantization to the network that it is of.
///
/// # Errors
/// It tells of other matrices, of parts of them that are not the whole, or of inputs that cannot be rounded so.
pub(super) fn check_report(report: &Quantization, config: &Config) -> Result<()> {
    let damaged = |what: String| {
        Error::input(format!("the report of the quantization is of another model: {what}"))
            .hint("copy the file again, or quantize the original model again")
    };
    let sites = config.sites();
    if report.layers.len() != sites.len() {
        return Err(damaged(format!("it has {} matrices, the model {}", report.layers.len(), sites.len())));
    }
    for (layer, site) in report.layers.iter().zip(&sites) {
        if (&layer.path, &layer.weight, layer.shape) != (&site.path, &site.weight, (site.rows, site.cols)) {
            let (rows, cols) = layer.shape;
            return Err(damaged(format!(
                "expected {} [{}, {}], found {} [{rows}, {cols}]",
                site.path, site.rows, site.cols, layer.path
            )));
        }
        let rows = layer.blocks.iter().try_fold(0usize, |sum, block| sum.checked_add(block.rows));
        if rows != Some(site.rows) || layer.blocks.iter().any(|block| block.rows == 0) {
            return Err(damaged(format!("the rows of {} are not {}", site.path, site.rows)));
        }
        let fits =
            |a: Activation| (2..=8).contains(&a.bits) && a.scale.is_none_or(|s| s.is_finite() && s >= 0.0);
        if !layer.activation.is_none_or(fits) {
            return Err(damaged(format!("the inputs of {} cannot be rounded so", site.path)));
        }
    }
    Ok(())
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
                None => Block::Dense(dense(take("values")?, block.rows, cols).map_err(|e| e.at(&name))?),
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

/// Rows that are stored as they are.
fn dense(values: Tensor, rows: usize, cols: usize) -> Result<Tensor> {
    let (dtype, found) = (values.dtype(), values.dims());
    if found == [rows, cols] && matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
        return Ok(values);
    }
    Err(Error::input(format!("expected floating-point numbers [{rows}, {cols}], found {dtype:?} {found:?}"))
        .hint("copy the file again, or quantize the original model again"))
}

fn tensor<T: WithDType>(values: &[T]) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, values.len(), &Device::Cpu)?)
}

fn values<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    tensor.flatten_all()?.to_vec1().map_err(|_| {
        Error::input(format!("expected values of type {:?}, found {:?}", T::DTYPE, tensor.dtype()))
    })
}

/// The value of a tensor that has one.
fn one(tensor: &Tensor) -> Result<f32> {
    match values(tensor)?[..] {
        [value] => Ok(value),
        ref several => Err(Error::input(format!("expected one value, found {}", several.len()))),
    }
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

/// The codes of integers one to a byte, with their sign, row by row; none of other formats, whose codes are packed as they are.
pub(super) fn bytes_of_codes(encoded: &Encoded) -> Option<Vec<u8>> {
    let sign = match encoded.coding.format {
        Format::Int(bits) => Some(bits),
        Format::Ternary => Some(2),
        Format::Uint(_) => None,
        _ => return None,
    };
    let mut codes = vec![0; encoded.rows * encoded.cols];
    codes.chunks_mut(encoded.cols).enumerate().for_each(|(row, codes)| encoded.row_codes(row, codes));
    if let Some(bits) = sign {
        codes.iter_mut().for_each(|code| *code = signed(*code, bits) as u8);
    }
    Some(codes)
}

/// An encoded matrix as tensors by part.
fn parts(encoded: &Encoded) -> Result<Vec<(&'static str, Tensor)>> {
    let mut parts = vec![("codes", tensor(&encoded.codes())?)];
    match &encoded.scales {
        Scales::Bf16(scales) => parts.push(("scales", tensor(scales)?)),
        Scales::F32(scales) => parts.push(("scales", tensor(scales)?)),
        Scales::F16(scales, mins) => {
            parts.push(("scales", tensor(scales)?));
            if let Some(mins) = mins {
                parts.push(("mins", tensor(mins)?));
            }
        }
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
    let codes = take("codes")?;
    let codes = match codes.dtype() {
        DType::U32 => range::decode(&values(&codes)?, rows * cols)?,
        _ => values(&codes)?,
    };
    let scales = take("scales")?;
    let scales = match Scales::store(coding.format, coding.stored, &[]) {
        Scales::Bf16(_) => Scales::Bf16(values::<bf16>(&scales)?),
        Scales::F32(_) => Scales::F32(values(&scales)?),
        Scales::F16(_, mins) => {
            let mins = mins.map(|_| values::<f16>(&take("mins")?)).transpose()?;
            Scales::F16(values(&scales)?, mins)
        }
        Scales::Power(_) => Scales::Power(values(&scales)?),
        Scales::Affine(..) => Scales::Affine(values(&scales)?, values(&take("zeros")?)?),
        Scales::Double { map, .. } => {
            let offset = one(&take("offset")?)?;
            Scales::Double { codes: values(&scales)?, absmax: values(&take("absmax")?)?, offset, map }
        }
        Scales::Fp8 { .. } => {
            let tensor = one(&take("factor")?)?;
            Scales::Fp8 { codes: values(&scales)?, tensor }
        }
    };
    // One to a byte, as a compressed file has them or its range coder gives them.
    let open = matches!(coding.format, Format::Int(_) | Format::Uint(_) | Format::Ternary);
    if open && codes.len() == rows * cols && coding.format.bits() < 8.0 {
        let mask = u8::MAX >> (8 - coding.format.width());
        let codes: Vec<u8> = codes.iter().map(|code| code & mask).collect();
        let checked = coding.check(rows, cols);
        let whole = scales.len() == coding.granularity.runs(rows, cols).count();
        if checked.is_ok() && whole {
            return Ok(Encoded::new(coding, rows, cols, &codes, scales));
        }
    }
    Encoded::from_parts(coding, rows, cols, codes, scales)
}
