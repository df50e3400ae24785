//! Where a model loses precision: signal-to-quantization-noise ratios of its matrices, 10 log₁₀(Σ y² / Σ (ŷ − y)²) dB.
//!
//! Each linear has two. That of its **output** when it is given the reference's inputs is what this matrix and the
//! rounding of its input cost alone. That of its **input** in the running model is what everything before it cost
//! together, the recurrence included; at the head it tells of the whole model. 6 dB are one bit.

use super::instrument::{Listed, Table};
use super::power::Power;
use super::reference::{self, Beside};
use super::watch::{Watched, tokens_read};
use super::window::{Excerpt, Sliding, Window};
use super::{Measure, finite, subject, work};
use crate::error::{Error, Result};
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::progress::Progress;
use crate::quantize::Scheme;
use crate::record::Reading;
use crate::stats::{Mean, largest};
use crate::threads::install;
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Instant;

settings! {
    /// Which matrices lose precision: the signal-to-quantization-noise ratio of each, in decibel.
    pub struct Sqnr(reference, pieces) {}
}

impl Default for Sqnr {
    fn default() -> Self {
        Self {
            reference: None,
            corpus: PathBuf::from("data/corpus"),
            split: Some("test".to_string()),
            seq_len: 512,
            max_tokens: Some(2048),
        }
    }
}

/// Adds two tensors of one shape, on any device.
fn add(power: &mut Power, exact: &Tensor, found: &Tensor) -> Result<()> {
    let [exact, found] = [exact, found].map(|t| t.to_device(&Device::Cpu).and_then(|t| t.contiguous()));
    Ok(with_floats([&exact?, &found?], |[exact, found]| power.add(exact, found))?)
}

impl Sqnr {
    /// The ratios against this model: a folder, a file, a hub id or `random:SHAPE`.
    pub fn from_reference(source: impl Into<String>) -> Self {
        Self { reference: Some(source.into()), ..Self::default() }
    }

    /// The ratios of `model` against a reference at hand: a row for each linear that reads activations, and a summary.
    ///
    /// # Errors
    /// If a setting is wrong, the text cannot be read, or the matrices of the two do not read the same.
    pub fn compare(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        aligned(reference, model)?;
        let text = self.sliding().cut(model)?;
        let clock = Instant::now();
        let ratios = ratios(reference, model, &text)?;
        let runtime = clock.elapsed().as_secs_f64();
        let identity = self.identity(reference, model, &text.corpus)?;
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.sliding().conditions())
                .fingerprint(&identity)
        };
        let each = |ratio: &Ratio| {
            let row = row().row("layer").value("layer", ratio.layer.as_str());
            let row =
                row.value("sqnr_db", ratio.output.decibel()).value("input_sqnr_db", ratio.input.decibel());
            match ratio.sent {
                // Of a token that one model alone sends to an expert there is nothing to compare.
                Some((common, all)) => row.value("sent_alike", common as f64 / all.max(1) as f64),
                None => row,
            }
        };
        let mut rows: Vec<_> = ratios.iter().map(each).collect();
        let noisy = || ratios.iter().filter(|ratio| ratio.output.noise != 0.0);
        let least = largest(noisy().map(|ratio| -ratio.output.decibel()));
        let is_worst =
            |ratio: &&Ratio| least.is_some_and(|least| (-ratio.output.decibel()).total_cmp(&least).is_eq());
        let worst = noisy().find(is_worst);
        let mean = Mean::of(&noisy().map(|ratio| ratio.output.decibel()).collect::<Vec<_>>());
        let summary = row()
            .value("sqnr_db", mean.map(|mean| mean.mean))
            .value("worst_sqnr_db", worst.map(|ratio| ratio.output.decibel()))
            .value("worst_layer", worst.map(|ratio| ratio.layer.as_str()))
            .value("input_sqnr_db", ratios.last().map(|ratio| ratio.input.decibel()));
        rows.push(text.describe(reference::describe(reference, summary), runtime));
        let models = [("in the reference ", reference), ("", model)];
        finite::told(rows, &models, finite::windows(&text))
    }
}

impl Beside for Sqnr {
    const IS: (&'static str, u32) = ("sqnr", 1);

    fn reference(&self) -> Option<&str> {
        self.reference.as_deref()
    }

    fn sliding(&self) -> Sliding<'_> {
        self.reads()
    }

    fn settings(&self) -> Value {
        self.sliding().identity()
    }

    fn alike(&self, reference: &Model, model: &Model) -> Result<()> {
        aligned(reference, model)
    }

    fn against(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        self.compare(reference, model)
    }
}

impl Listed for Sqnr {
    const TABLES: &'static [Table] = &[Table::of(
        "sqnr",
        &["model", "scheme", "reference", "sqnr_db", "worst_layer", "worst_sqnr_db", "input_sqnr_db"],
    )];

    fn check_scheme(&self, scheme: &Scheme) -> Result<()> {
        match scheme.moves_inputs() {
            true => {
                Err(Error::input("its matrices read inputs of other bases or scales than the reference's")
                    .at(format!("scheme {scheme}"))
                    .hint("measure the divergence of a model that is rotated, smoothed or scaled by channel"))
            }
            false => Ok(()),
        }
    }

    fn work(&self, model: &Model) -> f64 {
        2.0 * work::text(&self.reads(), model)
    }

    fn small(&mut self) {
        self.max_tokens = Some(1024);
    }
}

/// The ratios of one linear.
#[derive(Debug, Default)]
struct Ratio {
    layer: String,
    output: Power,
    input: Power,
    /// Tokens that the two models both send to the expert that it is part of, and those that either sends.
    sent: Option<(usize, usize)>,
}

impl Ratio {
    /// What an expert's matrix reads in both models, of the tokens that both send to it; none if there are none.
    fn shared(
        &mut self,
        inputs: Option<(Tensor, Tensor)>,
        (tokens, others): (Option<Vec<u32>>, Option<Vec<u32>>),
    ) -> Result<Option<(Tensor, Tensor)>> {
        let [tokens, others] = [tokens, others].map(Option::unwrap_or_default);
        let rows = |own: &[u32], other: &[u32]| -> Vec<u32> {
            (0..).zip(own).filter(|(_, token)| other.contains(token)).map(|(row, _)| row).collect()
        };
        let both = rows(&tokens, &others);
        let (common, all) = self.sent.unwrap_or_default();
        self.sent = Some((common + both.len(), all + tokens.len() + others.len() - both.len()));
        let Some((x, x_found)) = inputs.filter(|_| !both.is_empty()) else { return Ok(None) };
        let pick = |x: &Tensor, rows: Vec<u32>| x.index_select(&Tensor::new(rows, x.device())?, 1);
        Ok(Some((pick(&x, both)?, pick(&x_found, rows(&others, &tokens))?)))
    }
}

/// The ratios of every linear that reads activations: an embedding of its own reads tokens.
fn ratios(reference: &Model, model: &Model, text: &Excerpt) -> Result<Vec<Ratio>> {
    let watched = [reference, model].map(Watched::new);
    let named = |(layer, _)| Ratio { layer, ..Ratio::default() };
    let mut ratios: Vec<_> = model.linears().into_iter().map(named).collect();
    let sites = model.config.sites();
    let progress = Progress::new("sqnr", text.scored(), "tokens");
    for Window { scored, start } in &text.windows {
        let ids = &text.ids[*start..scored.end - 1];
        let [exact, found] = watched.each_ref().map(|watched| watched.inputs(ids));
        let (exact, found) = (exact?, found?);
        let [tokens, others] = [&exact, &found].map(|inputs| tokens_read(&sites, inputs));
        let tokens = tokens?.into_iter().zip(others?);
        let inputs = exact.into_iter().zip(found).zip(tokens);
        let linears = reference.linears().into_iter().zip(model.linears());
        for ((ratio, ((exact, found), tokens)), ((_, linear), (_, other))) in
            ratios.iter_mut().zip(inputs).zip(linears)
        {
            let both = match tokens {
                (None, None) => exact.zip(found),
                tokens => ratio.shared(exact.zip(found), tokens)?,
            };
            let Some((x, x_found)) = both else { continue };
            let here = x.to_device(model.device())?;
            let (y, y_found) = install(|| Ok::<_, Error>((linear.forward(&x)?, other.forward(&here)?)))?;
            add(&mut ratio.output, &y, &y_found)?;
            add(&mut ratio.input, &x, &x_found)?;
        }
        progress.tick(scored.len() as u64)?;
    }
    ratios.retain(|ratio| ratio.input.signal != 0.0);
    Ok(ratios)
}

/// Refuses two models whose matrices are given different things: of other shapes, rotated, or rescaled by the norms.
pub(super) fn aligned(reference: &Model, model: &Model) -> Result<()> {
    reference::comparable(reference, model)?;
    let refused = |what: &str, hint: &str| {
        Err(Error::input(what).at(format!("{} against {}", model.name, reference.name)).hint(hint))
    };
    if reference.config != model.config {
        return refused("the two have different layers", "compare a model with what it was made of");
    }
    let rotated = |model: &Model| model.quantization.as_ref().is_some_and(|q| q.rotation.is_some());
    let mut moved = rotated(reference) || rotated(model);
    for spec in model.config.tensors().iter().filter(|spec| !spec.matrix) {
        let [a, b] =
            [reference, model].map(|model| model.tensors()[&spec.name].flatten_all()?.to_vec1::<f32>());
        moved |= a? != b?;
    }
    match moved {
        true => refused(
            "their matrices read inputs of different bases or scales",
            "measure the divergence of a model that is rotated, smoothed or scaled by channel",
        ),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layer, and the ratios of its output and its input.
    type Row = (String, Option<f64>, Option<f64>);

    /// The rows of a scheme, the summary last.
    fn rows(scheme: &str) -> Result<Vec<Row>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "The noise of a matrix is heard by all that follow it. ".repeat(4)).unwrap();
        let model = Model::load("random:mamba2-tiny").unwrap();
        let sqnr = Sqnr { seq_len: 64, ..Sqnr::default() }.on(file);
        let rows = sqnr.measure(&model.quantized(&scheme.parse()?)?)?;
        let layer = |row: &Reading| row.values.get("layer").map(|path| path.as_str().unwrap().to_string());
        let told = rows
            .iter()
            .map(|row| (layer(row).unwrap_or_default(), row.number("sqnr_db"), row.number("input_sqnr_db")));
        Ok(told.collect())
    }

    #[test]
    fn six_decibels_are_a_bit() {
        let (eight, five) = (rows("w8a16").unwrap(), rows("w5a16").unwrap());
        assert_eq!((eight.len(), eight[16].0.as_str()), (8 * 2 + 1 + 1, "lm_head"));
        for (eight, five) in eight.iter().zip(&five).filter(|(eight, _)| eight.0.contains("proj")) {
            let (eight, five) = (eight.1.unwrap(), five.1.unwrap());
            assert!(
                (35.0..50.0).contains(&eight) && (16.0..20.5).contains(&(eight - five)),
                "{eight} {five}"
            );
        }
        // Before the first matrix nothing has happened; then noise adds up.
        assert!(eight[0].2.is_none() && eight[1].2.unwrap() > 35.0);
        assert!(eight[16].2.unwrap() < eight[1].2.unwrap());
        // The head was left as it is.
        assert_eq!(eight[16].1, None);
        assert_eq!(eight[17].2, eight[16].2);
    }

    #[test]
    fn the_recurrence_is_heard_by_what_follows_it_alone() {
        let rows = rows("w16a16-h4").unwrap();
        assert!(rows.iter().all(|row| row.1.is_none()));
        assert!(rows[0].2.is_none() && rows[1].2.unwrap() < 40.0);
    }

    #[test]
    fn other_bases_are_refused() {
        let sentence = rows("w4a16-rot").unwrap_err().to_string();
        assert!(sentence.contains("different bases or scales; measure the divergence"), "{sentence}");
    }
}
