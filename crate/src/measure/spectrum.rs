//! Singular values of a model's matrices: how many directions they use.
//!
//! Of each matrix of a block, as it is stored or as its codes stand for: the condition number s₁ / s_last; the effective rank, e to the
//! entropy of s / Σ s (Roy & Vetterli 2007); the stable rank Σ s² / s₁²; and the number of directions with 90 % of Σ s². The queries of
//! attention are looked at as one matrix too, under the role `queries`, the product of two where they are of low rank: the condition number is
//! over as many values as the rank that it can have, and the singular values are kept.

use super::instrument::{Listed, Table};
use super::{Measure, subject};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::singular::singular_values;
use crate::progress::Progress;
use crate::record::{Conditions, Reading, fingerprint};
use crate::stats::quantile;
use candle_core::Tensor;
use serde_json::json;

settings! {
    /// Singular values of the matrices: condition numbers, effective and stable ranks.
    #[derive(Default)]
    pub struct Spectrum {}
}

/// The role of queries as one matrix.
const QUERIES: &str = "queries";

/// What singular values tell.
struct Shape {
    rank: usize,
    condition: f64,
    effective: f64,
    stable: f64,
    energy: usize,
}

impl Shape {
    /// Of singular values from the largest down, of which the first `rank` count.
    fn of(values: &[f64], rank: usize) -> Self {
        let values = &values[..rank.min(values.len())];
        let (first, sum) = (values[0], values.iter().sum::<f64>());
        let squares: f64 = values.iter().map(|s| s * s).sum();
        let share = |s: f64| s / sum;
        let entropy: f64 = values.iter().filter(|s| **s > 0.0).map(|s| -share(*s) * share(*s).ln()).sum();
        let mut held = 0.0;
        let energy = values.iter().take_while(|s| {
            let needed = held < 0.9 * squares;
            held += **s * **s;
            needed
        });
        Self {
            rank: values.len(),
            condition: first / values[values.len() - 1],
            effective: entropy.exp(),
            stable: squares / (first * first),
            energy: energy.count(),
        }
    }

    fn describe(&self, row: Reading) -> Reading {
        row.value("rank", self.rank)
            .value("condition", Some(self.condition).filter(|x| x.is_finite()))
            .value("effective_rank", Some(self.effective).filter(|x| x.is_finite()))
            .value("stable_rank", Some(self.stable).filter(|x| x.is_finite()))
            .value("rank_90", self.energy)
    }
}

impl Measure for Spectrum {
    const NAME: &'static str = "spectrum";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        fingerprint(Self::NAME, Self::VERSION, &json!({}), &subject(model), &"")
    }

    /// A row for each matrix of a block, one for the queries of each layer with attention, and a summary.
    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        let identity = self.fingerprint(model)?;
        let row = || {
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &Conditions::default())
                .fingerprint(&identity)
        };
        let (sites, queries) = (model.config.sites(), model.queries()?);
        let of_blocks = sites
            .iter()
            .zip(model.linears())
            .filter_map(|(site, (path, linear))| Some((site, site.layer?, path, linear)));
        let of_blocks: Vec<_> = of_blocks.collect();
        let progress = Progress::new("spectrum", (of_blocks.len() + queries.len()) as u64, "matrices");
        let (mut rows, mut conditions) = (vec![], vec![]);
        for (site, layer, path, linear) in of_blocks {
            let values = of_matrix(&linear.weight.values()?, &path)?;
            let shape = Shape::of(&values, values.len());
            let row = row().row("matrix").value("role", site.roles[0]).value("layer", layer);
            rows.push(shape.describe(row.value("path", path.as_str())));
            progress.tick(1)?;
        }
        for (layer, rank, matrix) in queries {
            let values = of_matrix(&matrix, QUERIES)?;
            let shape = Shape::of(&values, rank);
            conditions.push(shape.condition);
            let kept: Vec<f64> = values.iter().take(rank).map(|s| s / values[0]).collect();
            let row = row().row("matrix").value("role", QUERIES).value("layer", layer);
            rows.push(shape.describe(row).value("singular_values", kept));
            progress.tick(1)?;
        }
        conditions.sort_by(f64::total_cmp);
        let finite: Vec<f64> = conditions.into_iter().filter(|x| x.is_finite()).collect();
        rows.push(
            row()
                .value("matrices", rows.len())
                .value("condition_queries_median", quantile(&finite, 0.5))
                .value("condition_queries_max", finite.last().copied()),
        );
        Ok(rows)
    }
}

/// Singular values from the largest down.
fn of_matrix(matrix: &Tensor, name: &str) -> Result<Vec<f64>> {
    let values = singular_values(matrix).map_err(|error| error.at(name))?;
    match values.first() {
        Some(first) if *first > 0.0 => Ok(values),
        _ => Err(Error::input("the matrix is zero: it has no directions").at(name)),
    }
}

impl Listed for Spectrum {
    const TABLES: &'static [Table] = &[Table {
        measure: "spectrum",
        row: "matrix",
        columns: &["role", "layer", "rank", "condition", "effective_rank", "stable_rank", "rank_90"],
    }];

    fn work(&self, model: &Model) -> f64 {
        // A decomposition of each matrix: about as long as reading some hundred tokens.
        300.0 * (model.parameters() as f64 / 1e6).max(1.0)
    }

    fn small(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_their_definitions() {
        let shape = Shape::of(&[2.0, 2.0, 2.0, 2.0, 0.0], 4);
        assert!((shape.effective - 4.0).abs() < 1e-12 && (shape.stable - 4.0).abs() < 1e-12);
        assert_eq!((shape.rank, shape.condition, shape.energy), (4, 1.0, 4));
        let steep = Shape::of(&[10.0, 1.0, 0.1], 3);
        assert!((steep.condition - 100.0).abs() < 1e-9 && steep.energy == 1);
        assert!(steep.stable < 1.02 && steep.effective < 1.5);
    }

    #[test]
    fn queries_of_low_rank_are_one_matrix() {
        let model =
            Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lowrankq-tiny")).unwrap();
        let rows = Spectrum::default().measure(&model).unwrap();
        assert_eq!(rows.len(), 4 * 7 + 4 + 1);
        let queries: Vec<&Reading> =
            rows.iter().filter(|row| row.values.get("role").is_some_and(|role| role == QUERIES)).collect();
        assert!(queries.iter().all(|row| row.number("rank") == Some(16.0)));
        // No more directions than values.
        assert!(queries.iter().all(|row| row.number("effective_rank").unwrap() <= 16.0 + 1e-9));
    }

    #[test]
    fn queries_of_full_rank_are_their_matrix() {
        let model = Model::load("random:llama-tiny").unwrap();
        let rows = Spectrum::default().measure(&model).unwrap();
        let of = |role: &str| -> Vec<&Reading> {
            rows.iter().filter(|row| row.values.get("role").is_some_and(|own| own == role)).collect()
        };
        let (queries, matrices) = (of(QUERIES), of("q_proj"));
        assert!(queries.len() == model.config.layers() && queries.len() == matrices.len());
        for (queries, matrix) in queries.iter().zip(matrices) {
            for column in ["rank", "condition", "effective_rank", "stable_rank"] {
                assert_eq!(queries.number(column), matrix.number(column), "{column}");
            }
            let kept = queries.values["singular_values"].as_array().unwrap();
            let last = kept.last().unwrap().as_f64().unwrap();
            assert!((1.0 / last / queries.number("condition").unwrap() - 1.0).abs() < 1e-9);
        }
        let most = queries.iter().filter_map(|row| row.number("condition")).fold(0.0, f64::max);
        assert_eq!(rows.last().unwrap().number("condition_queries_max"), Some(most));
    }
}
