//! Mixed precision: every matrix in the width that its measured sensitivity earns.
//!
//! The harm of a part of the model is measured once, as the divergence from full precision with that part alone at 4
//! bits; other widths are predicted from it by the error that they make in the part's output. Ranking by this
//! divergence predicts the loss of perplexity better than the error of weights or outputs does.
//!
//! So this is a measurement of every part too, only a small one: the KL of each part at one width on 1,024 tokens,
//! beside one reading of the calibration text for XᵀX of the inputs. [`Chosen`] says how many tokens were read for
//! it, and [`Made`](crate::model::quantization::Made) how long all of it took; a choice from a run of
//! [`Sensitivity`](crate::measure::sensitivity::Sensitivity) reads each part at every width on its whole text
//! instead.

use super::allocate::{Choices, allocate};
use super::calibrate::{Inputs, Sample};
use super::probe::spliced;
use super::scheme::{Budget, Scheme};
use super::select::{Part, joined};
use crate::error::{Error, Result};
use crate::family::Site;
use crate::format::{Coding, Format, Granularity};
use crate::kernel::linear as kernel;
use crate::kernel::softmax;
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::model::quantization::Spent;
use crate::progress::Progress;
use crate::threads::install;
use candle_core::{DType, Device, Tensor};

/// The widths to choose from.
const WIDTHS: [u8; 7] = [2, 3, 4, 5, 6, 7, 8];
/// The width at which harm is measured.
const PROBE: u8 = 4;
/// Tokens that a measurement reads.
const TOKENS: usize = 1024;

/// The format whose width is to be chosen.
///
/// # Errors
/// If it is not integers by row or group.
pub fn coding(scheme: &Scheme) -> Result<Coding> {
    let coding = scheme.weights.filter(|coding| {
        let rows = matches!(coding.granularity, Granularity::Row | Granularity::Group(_));
        rows && matches!(coding.format, Format::Int(_) | Format::Uint(_))
    });
    coding.ok_or_else(|| {
        Error::input("mixed precision needs integers by row or by group")
            .at(format!("scheme {scheme}"))
            .hint("such as w4a16-g64-mix4.5")
    })
}

/// What was chosen.
pub struct Chosen {
    /// The parts of all sites, cut anew.
    pub parts: Vec<Vec<Part>>,
    /// The budget, and what they take of it.
    pub spent: Spent,
    /// Tokens that were read through a whole model to measure harm.
    pub tokens: u64,
}

/// The parts of all sites with those that the scheme gives its own format cut anew: `budget` for all of them, scales
/// included, spent to within one row's step.
///
/// # Errors
/// If the format is not integers by row or group, or the budget does not suffice for the narrowest width.
pub fn parts(
    model: &Model,
    sample: &Sample,
    sites: &[Site],
    parts: &[Vec<Part>],
    inputs: &[Inputs],
    scheme: &Scheme,
    budget: Budget,
) -> Result<Chosen> {
    let coding = coding(scheme)?;
    let at_width = |width: u8| {
        let format =
            if matches!(coding.format, Format::Uint(_)) { Format::Uint(width) } else { Format::Int(width) };
        Coding { format, ..coding }
    };
    let free = |part: &&Part| part.coding == Some(coding);
    let count = parts.iter().flatten().filter(free).count();
    let progress = Progress::new("sensitivity", count as u64, "parts");
    let windows = windows(sample);
    let reference = logits(model, &windows)?;
    let (mut choices, mut weights, mut readings) = (vec![], 0, 1);
    for (i, site) in sites.iter().enumerate() {
        for part in parts[i].iter().filter(free) {
            let values = rows(model, i, part)?;
            let error = |width: u8| -> Result<(f64, Vec<f32>)> {
                let back = at_width(width).encode(&values, part.rows, site.cols)?.decode();
                Ok((output_error(&values, &back, site.cols, &inputs[i].gram), back))
            };
            let (unit, probe) = install(|| error(PROBE)).map_err(|error| error.at(&site.path))?;
            let divergence = divergence(&reference, &logits(&probed(model, i, part, probe)?, &windows)?)?;
            let per_error = if unit > 0.0 { divergence.max(0.0) / unit } else { 0.0 };
            let harm = WIDTHS.map(|width| Ok(per_error * install(|| error(width))?.0));
            choices.push(Choices {
                rows: part.rows,
                row_bits: WIDTHS.map(|width| 8 * at_width(width).bytes(1, site.cols) as u64).to_vec(),
                harm: harm.into_iter().collect::<Result<_>>()?,
            });
            weights += (part.rows * site.cols) as u64;
            readings += 1;
            progress.tick(1)?;
        }
    }
    let asked = budget.bits(weights);
    let shares = allocate(&choices, asked).map_err(|error| error.at(format!("scheme {scheme}")))?;
    let used: u64 = choices.iter().zip(&shares).map(|(part, shares)| part.bits(shares)).sum();
    let mut shares = shares.into_iter();
    let mut cut = |part: &Part| -> Vec<Part> {
        if part.coding != Some(coding) {
            return vec![part.clone()];
        }
        let mut first = part.first;
        let shares = shares.next().unwrap_or_default().into_iter().map(|share| {
            first += share.rows;
            let coding = Some(at_width(WIDTHS[share.width]));
            Part { first: first - share.rows, rows: share.rows, coding, ..part.clone() }
        });
        shares.collect()
    };
    Ok(Chosen {
        parts: parts.iter().map(|parts| joined(parts.iter().flat_map(&mut cut).collect())).collect(),
        spent: Spent { asked: asked / 8, used: used / 8 },
        tokens: readings * windows.iter().map(|ids| ids.len() as u64).sum::<u64>(),
    })
}

/// The first tokens of the sample, in windows.
fn windows(sample: &Sample) -> Vec<Vec<u32>> {
    let mut all: Vec<_> = sample.windows.clone();
    all.sort();
    let mut left = TOKENS;
    let cut = all.into_iter().map(|(_, mut ids)| {
        ids.truncate(left);
        left -= ids.len();
        ids
    });
    cut.filter(|ids| !ids.is_empty()).collect()
}

/// Rows of a matrix, in f32.
fn rows(model: &Model, i: usize, part: &Part) -> Result<Vec<f32>> {
    let weight = model.linears()[i].1.weight.values()?.narrow(0, part.first, part.rows)?.contiguous()?;
    Ok(with_floats([&weight], |[values]| values.to_vec())?)
}

/// The model with some rows of one matrix replaced.
fn probed(model: &Model, i: usize, part: &Part, values: Vec<f32>) -> Result<Model> {
    let mut model = model.clone();
    let mut linears = model.linears_mut();
    let linear = &mut linears[i].1;
    let (_, cols) = linear.weight.shape()?;
    let values = Tensor::from_vec(values, (part.rows, cols), &Device::Cpu)?;
    linear.weight = spliced(&linear.weight, [(part.first, values)])?;
    drop(linears);
    Ok(model)
}

/// Logits at every position of the windows, [tokens, vocabulary] each.
fn logits(model: &Model, windows: &[Vec<u32>]) -> Result<Vec<Tensor>> {
    let of = |ids: &Vec<u32>| {
        Ok(model
            .forward(&model.tokens(ids)?, None, crate::model::Positions::All)?
            .squeeze(0)?
            .to_dtype(DType::F32)?)
    };
    windows.iter().map(of).collect()
}

/// The mean of KL(reference ‖ other) over all positions.
fn divergence(reference: &[Tensor], other: &[Tensor]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for (p, q) in reference.iter().zip(other) {
        let (rows, vocab) = p.dims2()?;
        let all = with_floats([p, q], |[p, q]| softmax::divergence(p, q, vocab, &vec![0; rows]))?;
        sum += all.iter().map(|position| position.kl).sum::<f64>();
        count += rows;
    }
    Ok(sum / count.max(1) as f64)
}

/// tr(ΔW XᵀX ΔWᵀ): the squared error of the outputs; of the weights, where the inputs are not known.
pub fn output_error(values: &[f32], back: &[f32], cols: usize, gram: &[f32]) -> f64 {
    let difference: Vec<f32> = values.iter().zip(back).map(|(x, y)| x - y).collect();
    let mut seen = vec![0.0; difference.len()];
    if gram.is_empty() {
        seen.copy_from_slice(&difference);
    } else {
        kernel::forward(
            difference.len() / cols,
            cols,
            cols,
            &difference,
            kernel::Weight::F32(gram),
            &mut seen,
        );
    }
    difference.iter().zip(seen).map(|(a, b)| f64::from(a * b)).sum()
}
