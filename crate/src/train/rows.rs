//! How strongly each row of each matrix pulls on the loss while a network trains: means over steps of the norms of their
//! gradients, and of the logarithms of these. Published scripts give more bits to rows by the former (parameter-golf, pull
//! request 316, after finite-time Lyapunov exponents, "FTLE").

use super::Training;
use crate::error::{Error, Result};
use crate::family::{Gradients, Tensors};
use crate::model::safetensors::save_safetensors;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// The sums so far.
pub(super) struct RowGradients {
    every: u64,
    /// Steps that were added.
    count: u64,
    matrices: BTreeMap<String, Matrix>,
}

struct Matrix {
    cols: usize,
    norms: Vec<f64>,
    logs: Vec<f64>,
}

/// Where the number of steps stands in a checkpoint.
const COUNT: &str = "rows/steps";

/// The least norm that has a logarithm: a row without a gradient counts as this.
const LEAST: f64 = 1e-12;

impl RowGradients {
    /// Of no steps yet.
    pub fn new(training: &Training) -> Self {
        let sites = training.model.sites().into_iter().filter(|_| training.row_gradients > 0);
        let matrix = |rows: usize, cols| Matrix { cols, norms: vec![0.0; rows], logs: vec![0.0; rows] };
        let matrices = sites.map(|site| (site.weight, matrix(site.rows, site.cols))).collect();
        Self { every: training.row_gradients, count: 0, matrices }
    }

    /// Takes in the gradients of update number `step` (from 0), if it is one that counts.
    pub fn add(&mut self, step: u64, grads: &Gradients) {
        if self.every == 0 || !step.is_multiple_of(self.every) {
            return;
        }
        self.count += 1;
        for (name, Matrix { cols, norms, logs }) in &mut self.matrices {
            for ((norm, log), row) in norms.iter_mut().zip(logs).zip(grads[name].chunks(*cols)) {
                let size = row.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                *norm += size;
                *log += size.max(LEAST).ln();
            }
        }
    }

    /// The sums, as a training checkpoint holds them.
    pub fn save(&self) -> Result<Tensors> {
        let mut all = Tensors::new();
        if self.every > 0 {
            all.insert(COUNT.to_string(), Tensor::new(&[self.count as i64], &Device::Cpu)?);
        }
        for (name, Matrix { norms, logs, .. }) in &self.matrices {
            all.insert(format!("rows/norm/{name}"), Tensor::new(norms.as_slice(), &Device::Cpu)?);
            all.insert(format!("rows/log/{name}"), Tensor::new(logs.as_slice(), &Device::Cpu)?);
        }
        Ok(all)
    }

    /// Takes up what [`Self::save`] gave.
    pub fn restore(&mut self, tensors: &Tensors) -> Result<()> {
        let get = |name: String| {
            tensors.get(&name).ok_or_else(|| Error::input("missing from the training checkpoint").at(name))
        };
        if self.every > 0 {
            self.count = get(COUNT.to_string())?.to_vec1::<i64>()?[0].unsigned_abs();
        }
        for (name, matrix) in &mut self.matrices {
            matrix.norms = get(format!("rows/norm/{name}"))?.to_vec1()?;
            matrix.logs = get(format!("rows/log/{name}"))?.to_vec1()?;
        }
        Ok(())
    }

    /// Writes the means, in f32: for each matrix `NAME.norm` and `NAME.log`, one number a row. Nothing if nothing was kept.
    pub fn write(&self, path: &Path) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let mean = |sums: &[f64]| -> Result<Tensor> {
            let means: Vec<f32> = sums.iter().map(|sum| (sum / self.count as f64) as f32).collect();
            Ok(Tensor::from_vec(means, sums.len(), &Device::Cpu)?)
        };
        let mut all = Tensors::new();
        for (name, Matrix { norms, logs, .. }) in &self.matrices {
            all.insert(format!("{name}.norm"), mean(norms)?);
            all.insert(format!("{name}.log"), mean(logs)?);
        }
        let metadata = BTreeMap::from([("steps".to_string(), self.count.to_string())]);
        save_safetensors(path, &all, &metadata)
    }
}
