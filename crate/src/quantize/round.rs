//! The rounding of a quantization under way: stage by stage, the matrices of a stage on one reading of the text.

use super::calibrate::{Inputs, Sample, Wanted, observe};
use super::gptq::{Gptq, gptq};
use super::rows::{self, nearest};
use super::scheme::Hessians;
use super::select::Part;
use super::walk::Walk;
use super::{Job, Observer, mixed, top_of};
use crate::error::Result;
use crate::family::{Matrices, Site, some_of};
use crate::format::{Coding, Encoded, Format};
use crate::layer::linear::Activation;
use crate::layer::op::with_floats;
use crate::layer::quantized::{Block, Quantized};
use crate::model::quantization::{Backend, BlockReport, Effort};
use crate::model::{Model, cast};
use crate::progress::Progress;
use crate::threads::install;
use crate::warning::warn;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

impl Job<'_> {
    /// Rounds what the scheme rounds.
    pub(super) fn round(mut self, sample: Option<&Sample>) -> Result<Model> {
        let mut walk = sample.filter(|_| self.walks()).map(Walk::new);
        let (clock, before) = (Instant::now(), self.made.whole.tokens);
        let mut inputs = self.inputs(sample)?;
        if let (Some(budget), Some(sample)) = (self.scheme.budget, sample) {
            let chosen = mixed::parts(
                &self.current()?,
                sample,
                &self.sites,
                &self.parts,
                &inputs,
                self.scheme,
                budget,
            )?;
            let whole = &mut self.made.whole;
            whole.tokens += chosen.tokens;
            // What the inputs are like decides on the widths that were not measured.
            let choosing = Effort { seconds: clock.elapsed().as_secs_f64(), tokens: whole.tokens - before };
            self.made.choosing = Some(choosing);
            (self.parts, self.report.budget) = (chosen.parts, Some(chosen.spent));
        }
        self.widths(sample)?;
        let wanted = Wanted { gram: true, ..self.wanted() };
        let mut own = if self.scheme.blocks { self.model.kept_blocks()? } else { BTreeMap::new() };
        let mut matrices = Matrices::new();
        for stage in self.stages() {
            let needed = stage.iter().any(|i| self.is_in(*i) || self.is_rounded(*i));
            if let Some(walk) = walk.as_mut().filter(|_| needed) {
                let place = self.place(stage[0]);
                let model = self.rounded_so_far(&matrices, walk.reached()..place + 1)?;
                inputs = walk.inputs(&model, place, wanted, &mut self.made.whole.tokens)?;
            }
            let weights = |i: usize| (self.sites[i].rows * self.sites[i].cols) as u64;
            let each: Vec<u64> = stage.iter().map(|i| if self.is_in(*i) { weights(*i) } else { 0 }).collect();
            let progress = Progress::new("quantizing", each.iter().sum(), "weights");
            for (i, weights) in stage.into_iter().zip(each) {
                let own = own.remove(&self.sites[i].weight).filter(|_| self.keeps_blocks(i));
                install(|| self.matrix(i, &inputs[i], own, &mut matrices))?;
                progress.tick(weights)?;
            }
        }
        if !self.unseen.is_empty() {
            let paths: Vec<&String> = self.unseen.iter().collect();
            let told = format!(
                "no token of the calibration text reached {}: nearest codes, and scales of activations by token",
                some_of(&paths)
            );
            warn(format!("{} in {}: {told}", self.model.name, self.scheme));
            self.report.method = format!("{}, {told}", self.report.method);
        }
        self.finish(matrices)
    }

    /// Chooses the widths of rows, where the scheme asks for it.
    fn widths(&mut self, sample: Option<&Sample>) -> Result<()> {
        let (Some(rows), Some(coding)) = (self.scheme.rows, self.scheme.weights) else { return Ok(()) };
        let trained = self.how.rows.as_ref().filter(|_| rows.by.is_of_norms());
        let pulls = match (&self.pulls, trained, sample) {
            (Some(pulls), ..) => pulls.clone(),
            (None, Some(path), _) => {
                let (pulls, hash) = rows::Pulls::read(path, &self.sites)?;
                let by = format!("widths by row, by gradients of its training, {hash}");
                self.report.method = self.report.method.replacen("widths by row", &by, 1);
                Arc::new(pulls)
            }
            (None, None, Some(sample)) => {
                let asked = rows::Question { sites: &self.sites, parts: &self.parts, coding, by: rows.by };
                self.made.whole.tokens += asked.readings() * sample.tokens();
                Arc::new(rows::Pulls::of(&self.current()?, sample, &asked)?)
            }
            (None, None, None) => Arc::default(),
        };
        let chosen = rows::Chosen { sites: &self.sites, tensors: &self.tensors, coding, rows };
        self.report.w_bits = Some(chosen.give(&mut self.parts, &pulls)?);
        Ok(())
    }

    /// Whether what is rounded first decides what is seen of the inputs of the rest.
    fn walks(&self) -> bool {
        matches!(self.scheme.gptq, Some(Hessians::Blocks | Hessians::Matrices))
    }

    /// What of the inputs scales need.
    fn wanted(&self) -> Wanted {
        let histogram = matches!(self.scheme.observer, Some(Observer::Percentile(_) | Observer::Mse));
        Wanted { gram: false, histogram }
    }

    /// The inputs of all matrices in the model as it stands, as far as they are needed.
    fn inputs(&mut self, sample: Option<&Sample>) -> Result<Vec<Inputs>> {
        let whole = !self.walks() && (self.scheme.gptq.is_some() || self.scheme.observer.is_some());
        match sample.filter(|_| whole || self.scheme.budget.is_some()) {
            Some(sample) => {
                let gram = self.scheme.gptq.is_some() || self.scheme.budget.is_some();
                let inputs = observe(&self.current()?, sample, Wanted { gram, ..self.wanted() })?;
                self.made.whole.tokens += sample.tokens() * self.wanted().readings();
                Ok(inputs)
            }
            None => Ok(vec![Inputs::default(); self.sites.len()]),
        }
    }

    /// The place of a matrix on the way of the text: what comes before the first block at 0, then the blocks, and last the head,
    /// be it the embedding too.
    fn place(&self, site: usize) -> usize {
        let Site { layer, roles, .. } = &self.sites[site];
        match layer {
            Some(layer) => layer + 1,
            None if !roles.contains(&"head") => 0,
            None => self.model.config.layers() + 1,
        }
    }

    /// The matrices by number in the order in which they are rounded, those together that are rounded on one reading
    /// of the text.
    fn stages(&self) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.sites.len()).collect();
        if !self.walks() {
            return vec![order];
        }
        order.sort_by_key(|i| self.place(*i));
        let apart = self.scheme.gptq == Some(Hessians::Matrices);
        let stages = order.chunk_by(|a, b| !apart && self.place(*a) == self.place(*b));
        stages.map(<[usize]>::to_vec).collect()
    }

    /// The model as it stands, with what is rounded of these places: products are those of what the codes stand for,
    /// so that every backend gets the same codes, and inputs are not rounded.
    fn rounded_so_far(&self, matrices: &Matrices, places: Range<usize>) -> Result<Model> {
        let mut rounded = Matrices::new();
        for (i, site) in self.sites.iter().enumerate().filter(|(i, _)| places.contains(&self.place(*i))) {
            if let Some(matrix) = matrices.get(&site.weight) {
                let block = Block::Fake(matrix.values()?);
                rounded.insert(site.weight.clone(), Quantized::new(vec![block], self.sites[i].cols)?);
            }
        }
        let mut report = self.report.clone();
        report.layers.iter_mut().for_each(|layer| layer.activation = None);
        self.model.with_matrices(self.tensors.clone(), rounded, report)
    }

    /// Whether matrix `i` keeps the blocks that it was read in.
    fn keeps_blocks(&self, i: usize) -> bool {
        let kept = |part: &Part| part.coding.is_some_and(|c| matches!(c.format, Format::Ggml { .. }));
        self.parts[i].iter().all(kept)
    }

    /// Rounds matrix `i`, unless it has its `own` codes already.
    fn matrix(
        &mut self,
        i: usize,
        inputs: &Inputs,
        own: Option<Encoded>,
        matrices: &mut Matrices,
    ) -> Result<()> {
        let site = self.sites[i].clone();
        let unseen = inputs.absmax.is_empty();
        if self.is_rounded(i) {
            let observer = self.scheme.observer.filter(|observer| !unseen || *observer == Observer::Channel);
            self.report.layers[i].activation = self.scheme.activations.map(|bits| Activation {
                bits,
                scale: observer.map(|observer| inputs.scale(observer, top_of(bits))),
            });
            if observer != self.scheme.observer {
                self.unseen.insert(site.path.clone());
            }
        }
        if unseen && self.scheme.gptq.is_some() && self.is_in(i) && !site.is_table() {
            self.unseen.insert(site.path.clone());
        }
        let stored = &self.tensors[&site.weight];
        let blocks = if self.is_in(i) {
            let values = stored.to_dtype(DType::F32)?;
            let values = with_floats([&values.contiguous()?], |[values]| values.to_vec())?;
            let gram = Some(&inputs.gram).filter(|gram| self.scheme.gptq.is_some() && !gram.is_empty());
            let encoded = match own {
                Some(own) => vec![Some(own)],
                None => encode(&values, &site, &self.parts[i], gram.map(Vec::as_slice))
                    .map_err(|error| error.at(&site.path))?,
            };
            self.blocks(i, &values, encoded)?
        } else {
            let block = self.kept(stored)?;
            let (coding, lossless, bytes) = (None, block.is_coded(), block.bytes());
            self.report.layers[i].blocks = vec![BlockReport {
                segment: None,
                rows: site.rows,
                coding,
                bits: None,
                lossless,
                bytes,
                error: 0.0,
            }];
            if lossless { vec![block] } else { vec![] }
        };
        if !blocks.is_empty() {
            matrices.insert(site.weight, Quantized::new(blocks, site.cols)?);
        }
        Ok(())
    }

    /// Rows that are not quantized, in the model's dtype.
    fn kept(&self, values: &Tensor) -> Result<Block> {
        let values = cast(values, self.model.dtype)?;
        Ok(if self.scheme.lossless { Block::coded(&values)? } else { Block::Dense(values) })
    }

    /// The blocks of matrix `i`, and their reports.
    fn blocks(&mut self, i: usize, values: &[f32], encoded: Vec<Option<Encoded>>) -> Result<Vec<Block>> {
        let cols = self.sites[i].cols;
        let (mut blocks, mut reports) = (vec![], vec![]);
        for (part, encoded) in self.parts[i].iter().zip(encoded) {
            let values = &values[part.first * cols..(part.first + part.rows) * cols];
            let (block, error, bytes) = match encoded {
                None => {
                    let kept = self.kept(&Tensor::from_slice(values, (part.rows, cols), &Device::Cpu)?)?;
                    let bytes = kept.bytes();
                    (kept, 0.0, bytes)
                }
                Some(encoded) => {
                    let (back, bytes) = (encoded.decode(), encoded.bytes());
                    let error = relative_error(values, &back);
                    let block = match self.how.backend {
                        Backend::Packed => Block::Packed(Arc::new(encoded)),
                        Backend::Fake => {
                            Block::Fake(Tensor::from_vec(back, (part.rows, cols), &Device::Cpu)?)
                        }
                    };
                    (block, error, bytes)
                }
            };
            let (segment, rows, coding) = (part.segment.clone(), part.rows, part.coding);
            let (lossless, mean) = (block.is_coded(), |widths: &Vec<u8>| {
                widths.iter().map(|bits| f64::from(*bits)).sum::<f64>() / rows.max(1) as f64
            });
            let bits = part.widths.as_ref().map(mean);
            reports.push(BlockReport { segment, rows, coding, bits, lossless, bytes, error });
            blocks.push(block);
        }
        self.report.layers[i].blocks = reports;
        Ok(blocks)
    }
}

/// ‖x − y‖ / ‖x‖.
fn relative_error(x: &[f32], y: &[f32]) -> f64 {
    let norm: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let error: f64 = x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

/// The parts of a matrix [rows, cols] in their formats: nearest codes, or GPTQ's if XᵀX of its inputs is given.
pub(super) fn encode(
    values: &[f32],
    site: &Site,
    parts: &[Part],
    gram: Option<&[f32]>,
) -> Result<Vec<Option<Encoded>>> {
    let cols = site.cols;
    let rows_of = |part: &Part| &values[part.first * cols..(part.first + part.rows) * cols];
    let Some(gram) = gram else {
        return parts.iter().map(|part| nearest(part, rows_of(part), cols)).collect();
    };
    // The scales are those of the weights as they are; GPTQ only chooses codes.
    let fitted = |part: &Part| {
        let fit = |coding: Coding| Ok((coding, coding.fit(rows_of(part), part.rows, cols)?));
        part.coding.map(fit).transpose()
    };
    let scales = parts.iter().map(fitted).collect::<Result<Vec<_>>>()?;
    let part_of: Vec<usize> =
        parts.iter().enumerate().flat_map(|(p, part)| std::iter::repeat_n(p, part.rows)).collect();
    let mut rounded = values.to_vec();
    let codes = gptq(&mut rounded, site.rows, cols, gram, Gptq::default(), |row, col, x| {
        let part = part_of[row];
        match &scales[part] {
            None => (0, x),
            Some((coding, scales)) => {
                let runs = coding.granularity.runs(parts[part].rows, cols);
                let scale = scales.get(runs.of(row - parts[part].first, col));
                let code = coding.format.code(x, scale);
                (code, coding.format.value(code, scale))
            }
        }
    })?;
    let packed = parts.iter().zip(scales).map(|(part, scales)| {
        let codes = &codes[part.first * cols..(part.first + part.rows) * cols];
        scales.map(|(coding, scales)| Encoded::new(coding, part.rows, cols, codes, scales))
    });
    Ok(packed.collect())
}
