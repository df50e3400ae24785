//! Orthonormal rotation of activations: what makes their outliers small before they are rounded.

use super::op::with_floats;
use crate::kernel::hadamard::Rotation as Kernel;
use candle_core::{Result, Tensor};
use std::fmt;
use std::sync::Arc;

/// A randomized Hadamard rotation of vectors, shared by everything that it is folded into.
#[derive(Clone)]
pub struct Rotation(Arc<Kernel>);

impl Rotation {
    /// The rotation with these signs, each ±1; as long as the vectors.
    pub fn new(signs: Vec<f32>) -> Self {
        Self(Arc::new(Kernel::new(signs)))
    }

    /// Length of the vectors.
    pub fn len(&self) -> usize {
        self.0.size()
    }

    /// Whether the vectors have no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// R x for every vector of `values`, in place.
    pub(crate) fn apply(&self, values: &mut [f32]) {
        self.0.apply(values);
    }

    /// Rᵀ x for every vector of `values`, in place.
    pub(crate) fn apply_transposed(&self, values: &mut [f32]) {
        self.0.apply_transposed(values);
    }

    /// R x for every vector of x [.., len].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.mapped(x, |values| self.0.apply(values))
    }

    /// Rᵀ x for every vector of x [.., len].
    pub fn backward(&self, x: &Tensor) -> Result<Tensor> {
        self.mapped(x, |values| self.0.apply_transposed(values))
    }

    fn mapped(&self, x: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<Tensor> {
        let mut values = with_floats([&x.contiguous()?], |[x]| x.to_vec())?;
        f(&mut values);
        Tensor::from_vec(values, x.shape().clone(), x.device())
    }
}

impl fmt::Debug for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rotation({})", self.len())
    }
}
