//! Widths by row: more bits for the rows of a matrix that the loss, or the matrix itself, asks them for.
//!
//! Under a uniform quantizer a row of largest magnitude m in b bits has an error of about m² · 4^−b a weight. Where s is what a unit
//! of it costs, the least cost for a given number of bits is had where all rows cost alike: b = ½ log₂(s · m²) + λ, rounded and held to
//! 2 … 8, with the largest λ by which no more bits are given than are asked for, over all matrices whose widths are chosen. The
//! published rule of "FTLE" (parameter-golf, pull request 316) is another: 4 + 4 n bits, n from 0 to 1 by the norm of a row's
//! gradient within its matrix, shifted to the mean that is asked for and then held to 4 … 8, so that the mean given is not the mean asked for.

use super::alone;
use super::calibrate::Sample;
use super::select::Part;
use crate::error::{Error, Result};
use crate::family::{Gradients, Site, Tensors};
use crate::format::{Coding, Encoded, Format};
use crate::layer::op::with_floats;
use crate::model::Model;
use candle_core::{DType, Device};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// How the widths of rows are chosen, and how many bits a weight they have in the mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowWidths {
    /// What decides.
    pub by: Score,
    /// Bits a weight in the mean; none: as many as make a packed file that is no larger than that of the format alone.
    pub bits: Option<f64>,
}

/// What a row's width is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// By the published rule: the mean norm of the row's gradient.
    Ftle,
    /// The same in log space: s is e to twice the mean logarithm of that norm.
    Gradient,
    /// The mean square of the row's gradient: its diagonal Fisher information.
    Fisher,
    /// The row's largest magnitude alone, s = 1: all rows get steps of about one size.
    Magnitude,
    /// What rounding costs to second order, Σ F Δw² over the row's own weights, in the place of s · m².
    Cost,
    /// The same measured: the KL divergence that the row makes which alone has 4 bits.
    Divergence,
}

/// The bits of a row in which it is rounded to see what that costs.
const PROBE: u8 = 4;

impl Score {
    /// Whether it is the norms of gradients that decide, which a training can keep.
    pub(super) fn is_of_norms(self) -> bool {
        matches!(self, Self::Ftle | Self::Gradient)
    }

    /// All, by the part of a name that asks for them.
    const NAMES: [(&str, Self); 6] = [
        ("rowsftle", Self::Ftle),
        ("rowsgrad", Self::Gradient),
        ("rowsfisher", Self::Fisher),
        ("rowsmag", Self::Magnitude),
        ("rowscost", Self::Cost),
        ("rowskl", Self::Divergence),
    ];
}

impl RowWidths {
    /// By the part of a scheme's name: `rowsfisher`, `rowsftle5.25`.
    pub(super) fn named(part: &str) -> Option<Self> {
        let (start, by) = Score::NAMES.into_iter().find(|(name, _)| part.starts_with(name))?;
        let bits = match &part[start.len()..] {
            "" => None,
            bits => Some(bits.parse().ok().filter(|bits: &f64| (2.0..=8.0).contains(bits))?),
        };
        Some(Self { by, bits })
    }

    /// Whether a text is read for it.
    pub fn needs_text(self) -> bool {
        self.by != Score::Magnitude
    }
}

/// As in the name of a scheme.
impl fmt::Display for RowWidths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Score::NAMES.into_iter().find(|(_, by)| *by == self.by);
        f.write_str(name.map_or("", |(name, _)| name))?;
        self.bits.map_or(Ok(()), |bits| write!(f, "{bits}"))
    }
}

/// The published rule: widths by the scores of a matrix's rows.
pub fn published(scores: &[f64], mean: f64) -> Vec<u8> {
    let (low, high) =
        scores.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), s| (s.min(low), s.max(high)));
    let raw = |score: &f64| 4.0 + if high > low { 4.0 * (score - low) / (high - low) } else { 0.0 };
    let given = scores.iter().map(raw).sum::<f64>() / scores.len().max(1) as f64;
    let bits = |score| (raw(score) + mean - given).clamp(4.0, 8.0).round_ties_even();
    scores.iter().map(|score| bits(score) as u8).collect()
}

/// Widths of 2 … 8 bits for rows of so many weights each, as near to what they ask for as their mean over weights, which is at most
/// `mean`, allows: each is what it asks for and a number that is the same for all, rounded.
pub fn shared(asked: &[f64], weights: &[usize], mean: f64) -> Vec<u8> {
    let widths = |add: f64| asked.iter().map(move |bits| (bits + add).clamp(2.0, 8.0).round_ties_even());
    let all: usize = weights.iter().sum();
    let given = |add: f64| widths(add).zip(weights).map(|(bits, count)| bits * *count as f64).sum::<f64>();
    let ends = [f64::min, f64::max].map(|end| asked.iter().copied().reduce(end).unwrap_or(0.0));
    let (mut low, mut high) = (1.0 - ends[1], 9.0 - ends[0]); // all at 2 bits, all at 8
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        match given(middle) <= mean * all as f64 {
            true => low = middle,
            false => high = middle,
        }
    }
    widths(low).map(|bits| bits as u8).collect()
}

/// What gradients say of each row of a matrix: means over windows.
#[derive(Clone, Debug, Default)]
struct Pull {
    /// Norms.
    norm: Vec<f64>,
    /// Their logarithms.
    log: Vec<f64>,
    /// Their squares.
    square: Vec<f64>,
    /// Of each weight, the square of its gradient.
    fisher: Vec<f32>,
    /// What the row alone in few bits makes of the predictions, in nats a token; see [`alone`].
    kl: Vec<f64>,
}

/// What gradients, or measurements, say of all matrices.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulls(BTreeMap<String, Pull>);

/// Of which rows something is asked, for widths by what.
pub(super) struct Question<'a> {
    pub sites: &'a [Site],
    pub parts: &'a [Vec<Part>],
    /// The format whose widths are chosen.
    pub coding: Coding,
    pub by: Score,
}

impl Question<'_> {
    /// How many times the text is read: there and back for gradients, once for each row where each is measured.
    pub fn readings(&self) -> u64 {
        match self.by {
            Score::Divergence => 1 + alone::rows(self.parts, self.coding) as u64,
            _ => 3,
        }
    }
}

/// The least norm that has a logarithm.
const LEAST: f64 = 1e-12;

impl Pulls {
    /// On a sample of text; with the square of each weight's gradient where that decides.
    pub fn of(model: &Model, sample: &Sample, asked: &Question<'_>) -> Result<Self> {
        let Question { sites, parts, coding, by } = *asked;
        if by == Score::Divergence {
            let all = alone::divergences(model, sample, (sites, parts), coding, PROBE)?;
            let pull = |(name, kl)| (name, Pull { kl, ..Pull::default() });
            return Ok(Self(all.into_iter().map(pull).collect()));
        }
        let mut all = BTreeMap::new();
        for site in sites {
            let rows = || vec![0.0; site.rows];
            let fisher = vec![0.0; if by == Score::Cost { site.rows * site.cols } else { 0 }];
            let pull = Pull { norm: rows(), log: rows(), square: rows(), fisher, kl: vec![] };
            all.insert(site.weight.clone(), pull);
        }
        let share = 1.0 / sample.windows.len().max(1) as f64;
        model.slopes(sample, |grads: &Gradients| {
            for site in sites {
                let (Some(pull), Some(grad)) = (all.get_mut(&site.weight), grads.get(&site.weight)) else {
                    continue;
                };
                for (row, grad) in grad.chunks(site.cols).enumerate() {
                    let square: f64 = grad.iter().map(|g| f64::from(*g).powi(2)).sum();
                    pull.norm[row] += share * square.sqrt();
                    pull.log[row] += share * square.sqrt().max(LEAST).ln();
                    pull.square[row] += share * square;
                }
                pull.fisher.iter_mut().zip(grad).for_each(|(f, g)| *f += g * g * share as f32);
            }
        })?;
        Ok(Self(all))
    }

    /// As a training left them, `NAME.norm` and `NAME.log` in a file of tensors; with the beginning of the file's SHA-256.
    pub fn read(path: &Path, sites: &[Site]) -> Result<(Self, String)> {
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, &error))?;
        let hash = Sha256::digest(&bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|error| {
            Error::input(format!("{error}"))
                .at(path.display())
                .hint("name the rows.safetensors that a training with row_gradients left")
        })?;
        let one = |site: &Site| {
            let part = |end: &str| -> Result<Vec<f64>> {
                let name = format!("{}.{end}", site.weight);
                let at = || format!("{}, tensor {name}", path.display());
                let tensor =
                    tensors.get(&name).ok_or_else(|| Error::input("the tensor is not there").at(at()))?;
                let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
                match values.len() == site.rows {
                    true => Ok(values),
                    false => {
                        Err(Error::input(format!("{} rows expected, found {}", site.rows, values.len()))
                            .at(at())
                            .hint("the training was of another model"))
                    }
                }
            };
            Ok((site.weight.clone(), Pull { norm: part("norm")?, log: part("log")?, ..Pull::default() }))
        };
        Ok((Self(sites.iter().map(one).collect::<Result<_>>()?), hash))
    }
}

/// A model's matrices, of which some have their widths chosen by row.
pub(super) struct Chosen<'a> {
    pub sites: &'a [Site],
    pub tensors: &'a Tensors,
    /// The format whose widths are chosen.
    pub coding: Coding,
    pub rows: RowWidths,
}

impl Chosen<'_> {
    /// Gives the rows of the parts in that format their widths; returns the mean over their weights.
    pub fn give(&self, parts: &mut [Vec<Part>], pulls: &Pulls) -> Result<f64> {
        let mean = self.rows.bits.ok_or_else(|| Error::internal("no mean of the widths of rows"))?;
        let mut all: Vec<(&mut Part, Vec<f64>, usize)> = vec![];
        for (site, parts) in self.sites.iter().zip(parts) {
            for part in parts.iter_mut().filter(|part| part.coding == Some(self.coding)) {
                let scores = self.scores(site, part, pulls).map_err(|error| error.at(&site.path))?;
                all.push((part, scores, site.cols));
            }
        }
        let weights: Vec<usize> =
            all.iter().flat_map(|(_, scores, cols)| std::iter::repeat_n(*cols, scores.len())).collect();
        let mut widths: Vec<u8> = match self.rows.by {
            Score::Ftle => all.iter().flat_map(|(_, scores, _)| published(scores, mean)).collect(),
            _ => {
                let asked: Vec<f64> = all.iter().flat_map(|(_, scores, _)| scores.iter().copied()).collect();
                shared(&asked, &weights, mean)
            }
        };
        let bits: f64 =
            widths.iter().zip(&weights).map(|(bits, count)| f64::from(*bits) * *count as f64).sum();
        for (part, scores, _) in all {
            let rest = widths.split_off(scores.len());
            part.widths = Some(std::mem::replace(&mut widths, rest));
            part.coding = Some(Coding { format: Format::Int(8), ..self.coding });
        }
        Ok(bits / weights.iter().sum::<usize>().max(1) as f64)
    }

    /// Of each row of a part its score by the published rule, or else the bits that it asks for, up to what is the same for all.
    fn scores(&self, site: &Site, part: &Part, pulls: &Pulls) -> Result<Vec<f64>> {
        let (cols, rows) = (site.cols, part.first..part.first + part.rows);
        let none = || Error::internal("gradients of another model");
        let of = |pick: fn(&Pull) -> &Vec<f64>| -> Result<Vec<f64>> {
            let values = pulls.0.get(&site.weight).map(pick).ok_or_else(none)?;
            Ok(values.get(rows.clone()).ok_or_else(none)?.to_vec())
        };
        let weight = self.tensors[&site.weight].to_dtype(DType::F32)?.contiguous()?;
        let values = with_floats([&weight], |[w]| w[part.first * cols..][..part.rows * cols].to_vec())?;
        let reach = |i: usize| f64::from(self.coding.reach(&values[i * cols..(i + 1) * cols]));
        let asked = |costs: Vec<f64>| -> Vec<f64> {
            let each = costs.into_iter().enumerate();
            each.map(|(i, cost)| (cost.max(f64::MIN_POSITIVE) * reach(i).powi(2)).log2() / 2.0).collect()
        };
        Ok(match self.rows.by {
            Score::Ftle => of(|pull| &pull.norm)?,
            Score::Magnitude => asked(vec![1.0; part.rows]),
            Score::Gradient => {
                asked(of(|pull| &pull.log)?.into_iter().map(|log| (2.0 * log).exp()).collect())
            }
            Score::Fisher => asked(of(|pull| &pull.square)?),
            Score::Cost => {
                let fisher = &pulls.0.get(&site.weight).ok_or_else(none)?.fisher;
                let fisher =
                    fisher.get(part.first * cols..(part.first + part.rows) * cols).ok_or_else(none)?;
                let rounded =
                    self.coding.encode_rows(&values, part.rows, cols, &vec![PROBE; part.rows])?.decode();
                let errors = values.iter().zip(&rounded).zip(fisher);
                let errors: Vec<f64> =
                    errors.map(|((x, y), f)| f64::from(*f) * f64::from(x - y).powi(2)).collect();
                per_weight(errors.chunks(cols).map(|row| row.iter().sum()), cols)
            }
            Score::Divergence => per_weight(of(|pull| &pull.kl)?.into_iter(), cols),
        })
    }
}

/// The bits that rows of so many weights ask for, by what each costs in bits that are the same for all.
fn per_weight(costs: impl Iterator<Item = f64>, cols: usize) -> Vec<f64> {
    costs.map(|cost| (cost / cols as f64).max(f64::MIN_POSITIVE).log2() / 2.0).collect()
}

/// Rows of a matrix in the nearest codes, of as many bits each as `part` gives them.
pub(super) fn nearest(part: &Part, values: &[f32], cols: usize) -> Result<Option<Encoded>> {
    let Some(coding) = part.coding else { return Ok(None) };
    match &part.widths {
        Some(widths) => coding.encode_rows(values, part.rows, cols, widths),
        None => coding.encode(values, part.rows, cols),
    }
    .map(Some)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{calibration, model};
    use super::*;
    use crate::quantize::Scheme;

    #[test]
    fn rows_share_what_is_asked_for() {
        let asked = [-3.0, 0.0, 1.2, 9.0, f64::MIN_POSITIVE.log2() / 2.0];
        let weights = [10, 10, 10, 10, 10];
        for mean in [2.0, 3.3, 5.0, 7.9, 8.0] {
            let widths = shared(&asked, &weights, mean);
            let given = widths.iter().map(|bits| f64::from(*bits)).sum::<f64>() / 5.0;
            assert!(given <= mean && widths.is_sorted_by_key(|bits| *bits) || mean < 8.0, "{widths:?}");
            assert!(given <= mean && mean - given < 1.0, "{mean}: {widths:?}");
            assert!(widths[0] <= widths[1] && widths[1] <= widths[2] && widths[2] <= widths[3]);
        }
        // A row of four times the error costs as much with a bit more.
        assert_eq!(shared(&[0.0, 1.0, 2.0], &[1, 1, 1], 4.0), [3, 4, 5]);
        // Large rows weigh as many bits as they have weights.
        let widths = shared(&[0.0, 1.0], &[300, 100], 4.0);
        assert_eq!(widths, [4, 4]);
        assert_eq!(shared(&[], &[], 4.0), [0u8; 0]);
        assert_eq!(published(&[0.0, 1.0], 6.0), [4, 8]);
        assert_eq!(published(&[3.0; 4], 5.0), [5; 4]);
    }

    #[test]
    fn widths_follow_the_scores_and_the_mean() {
        let folder = tempfile::tempdir().unwrap();
        let (model, how) = (model(), calibration(&folder));
        let bytes = |scheme: &str| {
            let made = model.quantized_with(&scheme.parse::<Scheme>().unwrap(), &how).unwrap();
            let bits = made.quantization.as_ref().unwrap().w_bits.unwrap();
            (made.artifact().unwrap().bytes.len(), bits)
        };
        let (uniform, _) = bytes("w5a16");
        for by in ["ftle", "grad", "fisher", "mag", "cost"] {
            let (small, bits) = bytes(&format!("w5a16-rows{by}"));
            // As large as the format alone, or a little smaller.
            assert!(small <= uniform && small as f64 > 0.98 * uniform as f64, "{by}: {small} {uniform}");
            let (larger, more) = bytes(&format!("w4a16-rows{by}6.5"));
            assert!(larger > small && more > bits && (by == "ftle" || more <= 6.5), "{by}: {more} {bits}");
        }
        let told = |scheme: &str| {
            model.quantized_with(&scheme.parse::<Scheme>().unwrap(), &how).unwrap_err().to_string()
        };
        assert!(told("nf4-rowsfisher").contains("widths of rows are those of integers"));
        assert!(told("w4a16-rot-rowsfisher").contains("rows"), "{}", told("w4a16-rot-rowsfisher"));
    }
}
