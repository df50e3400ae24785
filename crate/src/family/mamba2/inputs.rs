//! What goes into a layer's recurrence.

use super::Config;
use crate::family::Tensors;
use crate::kernel::conv::{Shape, conv_silu};
use crate::layer::op::with_floats;
use candle_core::{DType, Result, Tensor};

impl Config {
    /// x [T, I], B [T, G·N] and C [T, G·N] as the recurrence of `layer` gets them, by name: after convolution and SiLU,
    /// not rounded. `rows` [1, T, R] is what in_proj gave from a state of zeros.
    ///
    /// # Errors
    /// If a tensor is not there, or anything is not on the CPU.
    pub fn recurrence_inputs(
        &self,
        tensors: &Tensors,
        layer: usize,
        rows: &Tensor,
    ) -> Result<Vec<(&'static str, Tensor)>> {
        let s = self.mixer();
        let small = |name: &str| -> Result<Option<Tensor>> {
            let found = tensors.get(&format!("backbone.layers.{layer}.mixer.conv1d.{name}"));
            found.map(|tensor| tensor.to_dtype(DType::F32)?.flatten_all()).transpose()
        };
        let Some(weight) = small("weight")? else { candle_core::bail!("missing conv1d of layer {layer}") };
        let bias = match small("bias")? {
            Some(bias) => bias,
            None => Tensor::zeros(s.channels(), DType::F32, weight.device())?,
        };
        let (_, time, row) = rows.dims3()?;
        let shape = Shape { batch: 1, time, channels: s.channels(), width: s.conv_width, row };
        let mut out = vec![0.0; time * s.channels()];
        let mut past = vec![0.0; s.channels() * s.conv_width];
        with_floats([&rows.contiguous()?, &weight, &bias], |[rows, weight, bias]| {
            conv_silu(shape, &rows[s.inner()..], weight, bias, &mut past, &mut out); // z comes first
        })?;
        let all = Tensor::from_vec(out, (time, s.channels()), rows.device())?;
        let shared = s.groups * s.state;
        let parts = [("x", 0, s.inner()), ("B", s.inner(), shared), ("C", s.inner() + shared, shared)];
        parts
            .into_iter()
            .map(|(name, first, len)| Ok((name, all.narrow(1, first, len)?.contiguous()?)))
            .collect()
    }
}
