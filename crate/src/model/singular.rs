//! Singular values of matrices, read and replaced, in f64.

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use faer::Mat;

/// The singular values of a matrix, from the largest down.
///
/// # Errors
/// If it has no decomposition.
pub fn singular_values(matrix: &Tensor) -> Result<Vec<f64>> {
    let rows = matrix.to_vec2::<f32>()?;
    let (m, n) = matrix.dims2()?;
    let matrix = Mat::from_fn(m, n, |i, j| f64::from(rows[i][j]));
    let values = matrix.singular_values();
    values.map_err(|error| Error::internal(format!("no singular values: {error:?}")))
}

/// A matrix whose singular values are those that `value` gives for the largest one and their number, from 0.
pub(super) fn shaped(matrix: &Tensor, value: impl Fn(f64, usize) -> f64) -> Result<Tensor> {
    let rows = matrix.to_vec2::<f32>()?;
    let (m, n) = matrix.dims2()?;
    let matrix = Mat::from_fn(m, n, |i, j| f64::from(rows[i][j]));
    let svd = matrix.thin_svd().map_err(|error| Error::internal(format!("no singular values: {error:?}")))?;
    let (u, s, v) = (svd.U(), svd.S().column_vector(), svd.V());
    let first = s[0];
    let scaled = Mat::from_fn(m, s.nrows(), |i, k| u[(i, k)] * value(first, k));
    let product = scaled * v.transpose();
    let values: Vec<f32> = (0..m * n).map(|i| product[(i / n, i % n)] as f32).collect();
    Ok(Tensor::from_vec(values, (m, n), &Device::Cpu)?)
}
