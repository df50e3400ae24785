//! How far the weights of a model are from those that they were made of, plainly and by what the loss makes of it.
//!
//! Plainly: ‖W − Ŵ‖ / ‖W‖ and the root of the mean square of W − Ŵ over all matrices that differ. Weighted: the change of the mean NLL
//! that the gradients of a text predict, to first order Σ g ΔW, to second order ½ Σ F ΔW² with the diagonal Fisher information F. Published
//! comparisons of widths were judged by the plain one; it is the weighted one that the loss follows.

use super::gradient::Gradients;
use super::instrument::{Listed, Table};
use super::reference::{self, Beside};
use super::sqnr::aligned;
use super::window::{Sliding, Window};
use super::{Measure, subject, work};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::quantization::Calibrated;
use crate::quantize::Scheme;
use crate::quantize::calibrate::Sample;
use crate::record::Reading;
use candle_core::{DType, Tensor};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Instant;

settings! {
    /// How far weights are from those of the reference: plainly, and by what the loss makes of it.
    pub struct Distortion(reference, pieces) {}
}

impl Default for Distortion {
    fn default() -> Self {
        Self {
            reference: None,
            corpus: PathBuf::from("data/corpus"),
            split: Some("valid".to_string()),
            seq_len: 256,
            max_tokens: Some(16_384),
        }
    }
}

/// What became of one matrix.
struct Change<'a> {
    path: &'a str,
    role: &'static str,
    weights: usize,
    /// Σ W², Σ (W − Ŵ)².
    squares: [f64; 2],
    /// First and second order.
    predicted: (f64, f64),
}

impl Change<'_> {
    /// Of several together.
    fn describe(all: &[Self], row: Reading) -> Reading {
        let sum = |pick: fn(&Self) -> f64| all.iter().map(pick).sum::<f64>();
        let (norm, error) = (sum(|change| change.squares[0]), sum(|change| change.squares[1]));
        let weights = sum(|change| change.weights as f64);
        row.value("weights", weights as u64)
            .value("error", (norm > 0.0).then(|| (error / norm).sqrt()))
            .value("rmse", (weights > 0.0).then(|| (error / weights).sqrt()))
            .value("nll_first_order", sum(|change| change.predicted.0))
            .value("nll_second_order", sum(|change| change.predicted.1))
    }
}

fn square(x: &Tensor) -> Result<f64> {
    Ok(x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()?)
}

impl Distortion {
    /// Of `model` against a reference at hand: a row for each matrix that differs, and a summary.
    ///
    /// # Errors
    /// If a setting is wrong, the text cannot be read, or the matrices of the two do not read the same.
    pub fn compare(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>> {
        aligned(reference, model)?;
        let text = self.sliding().cut(model)?;
        let clock = Instant::now();
        let window = |Window { scored, start }: &Window| (*start, text.ids[*start..scored.end].to_vec());
        let windows: Vec<(usize, Vec<u32>)> = text.windows.iter().map(window).collect();
        let length = windows.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
        let (corpus, sha256) = (text.corpus.title(), text.corpus.sha256.clone());
        let about = Calibrated { corpus, sha256, samples: windows.len(), length, seed: 0 };
        let gradients = Gradients::of(reference, &Sample { windows, about })?
            .ok_or_else(|| Error::input("a rotated model has no gradient").at(&reference.name))?;
        let (sites, linears) = (model.config.sites(), model.linears());
        let mut changes = vec![];
        for (site, (path, linear)) in sites.iter().zip(&linears) {
            let [exact, found] = [reference.tensors()[&site.weight].clone(), linear.weight.values()?]
                .map(|weight| weight.to_dtype(DType::F32));
            let (exact, change) = (exact?, found?);
            let change = (change - &exact)?;
            let squares = [square(&exact)?, square(&change)?];
            if squares[1] > 0.0 {
                let predicted = gradients.predict(&[(site.weight.as_str(), 0, change)])?;
                let weights = site.rows * site.cols;
                changes.push(Change { path, role: site.roles[0], weights, squares, predicted });
            }
        }
        let identity = self.identity(reference, model, &text.corpus)?;
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &self.sliding().conditions())
                .fingerprint(&identity)
        };
        let each = changes.chunks(1).map(|one| {
            let row = row().row("matrix").value("path", one[0].path).value("role", one[0].role);
            Change::describe(one, row)
        });
        let mut rows: Vec<Reading> = each.collect();
        let summary = Change::describe(&changes, row().value("matrices", changes.len()));
        rows.push(text.describe(reference::describe(reference, summary), clock.elapsed().as_secs_f64()));
        Ok(rows)
    }
}

impl Beside for Distortion {
    const IS: (&'static str, u32) = ("distortion", 1);

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

impl Listed for Distortion {
    const TABLES: &'static [Table] = &[Table::of(
        "distortion",
        &["model", "scheme", "reference", "error", "rmse", "nll_first_order", "nll_second_order"],
    )];

    fn check_scheme(&self, scheme: &Scheme) -> Result<()> {
        match scheme.moves_inputs() {
            true => Err(Error::input("its matrices are of other bases or scales than the reference's")
                .at(format!("scheme {scheme}"))
                .hint("measure the divergence of a model that is rotated, smoothed or scaled by channel")),
            false => Ok(()),
        }
    }

    fn work(&self, model: &Model) -> f64 {
        // There and back, and the reference is loaded again.
        4.0 * work::text(&self.reads(), model)
    }

    fn small(&mut self) {
        (self.seq_len, self.max_tokens) = (self.seq_len.min(64), Some(256));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_the_weights_and_small_ones_are_predicted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "Far from what it was, and yet it says the same. ".repeat(30)).unwrap();
        let distortion = Distortion { seq_len: 64, ..Distortion::default() }.on(file).max_tokens(512);
        let model = Model::load("random:llama-tiny").unwrap();
        let of = |scheme: &str| {
            let small = model.quantized(&scheme.parse().unwrap()).unwrap();
            let rows = distortion.compare(&model, &small).unwrap();
            let summary = rows.last().unwrap().clone();
            let report = small.quantization.unwrap();
            let encoded: Vec<_> = report.layers.iter().filter(|l| l.blocks[0].error > 0.0).collect();
            assert_eq!(rows.len(), encoded.len() + 1);
            for (row, layer) in rows.iter().zip(encoded) {
                let (found, told) = (row.number("error").unwrap(), layer.blocks[0].error);
                assert!((found / told - 1.0).abs() < 1e-4, "{scheme} {}: {found} {told}", layer.path);
            }
            ["error", "rmse", "nll_second_order"].map(|name| summary.number(name).unwrap())
        };
        let (eight, four) = (of("w8a16"), of("w4a16"));
        // Sixteen times the step, and its square for what the loss makes of it.
        assert!((10.0..25.0).contains(&(four[0] / eight[0])), "{eight:?} {four:?}");
        assert!((100.0..600.0).contains(&(four[2] / eight[2])), "{eight:?} {four:?}");
        assert!(four[1] < four[0]);
        let told = distortion.check_scheme(&"w4a4-rot".parse().unwrap()).unwrap_err().to_string();
        assert!(told.contains("other bases"), "{told}");
    }
}
