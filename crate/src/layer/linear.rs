//! A matrix of a model and its product: the one place where quantization enters.

use super::branch::Places;
use super::op::with_floats;
use super::quantized::{Activations, Quantized};
use super::room::Room;
use super::rotation::Rotation;
use crate::kernel::integer::Integers;
use crate::kernel::linear as kernel;
use crate::kernel::norm::add;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// How a matrix [out, in] is stored.
#[derive(Clone, Debug)]
pub enum Weight {
    /// As it is: f32, bf16 or f16.
    Dense(Tensor),
    /// Rows of it, or all, in few bits.
    Quantized(Quantized),
}

impl Weight {
    /// (out, in).
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(weight) => weight.dims2(),
            Self::Quantized(weight) => Ok(weight.shape()),
        }
    }

    /// Bytes of the stored values.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Quantized(weight) => weight.bytes(),
        }
    }

    /// What it stands for, [out, in] in f32.
    pub fn values(&self) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => weight.to_dtype(DType::F32),
            Self::Quantized(weight) => weight.values(),
        }
    }

    /// Its rows of these numbers (u32, any shape), [.., in] in f32.
    pub fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let mut dims = ids.dims().to_vec();
        dims.push(self.shape()?.1);
        match self {
            Self::Dense(weight) if weight.track_op() || !weight.device().is_cpu() => {
                weight.index_select(&ids.flatten_all()?, 0)?.to_dtype(DType::F32)?.reshape(dims)
            }
            _ => {
                let mut rows = vec![0.0; dims.iter().product()];
                self.rows(&ids.flatten_all()?.to_vec1()?, &mut rows)?;
                Tensor::from_vec(rows, dims, &Device::Cpu)
            }
        }
    }

    /// The same on a CPU: `to` [ids, in], overwritten.
    pub(crate) fn rows(&self, ids: &[u32], to: &mut [f32]) -> Result<()> {
        let rows = self.shape()?.0;
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            candle_core::bail!("token {id} lies outside a vocabulary of {rows}");
        }
        match self {
            Self::Dense(weight) => with_weight(weight, |w| {
                let inner = to.len() / ids.len().max(1);
                for (id, to) in ids.iter().zip(to.chunks_mut(inner.max(1))) {
                    kernel::widen(w, *id as usize, inner, to);
                }
            }),
            Self::Quantized(weight) => weight.lookup(ids, to),
        }
    }
}

/// How the input of a product is rounded to integers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Activation {
    /// Bits of an integer, 2 … 8.
    pub bits: u8,
    /// The scale of all inputs, found by calibration; none: each token has its own, from its largest value.
    pub scale: Option<f32>,
}

/// What a [`Tap`] calls with an input.
pub type Look = dyn Fn(&Tensor) -> Result<()> + Send + Sync;

/// Sees the inputs of a product: for calibration and measurements.
#[derive(Clone)]
pub struct Tap(pub Arc<Look>);

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

/// y = Q(R x) Wᵀ + b: rotated and rounded where a scheme asks for it.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The matrix.
    pub weight: Weight,
    /// `[out]`, f32.
    pub bias: Option<Tensor>,
    /// Applied to the input; the matrix has its reverse folded in.
    pub rotation: Option<Rotation>,
    /// How the input is rounded.
    pub activation: Option<Activation>,
    /// Called with the input as it meets the matrix: rotated, not rounded.
    pub tap: Option<Tap>,
}

impl Linear {
    /// A layer whose input is taken as it comes.
    pub fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias, rotation: None, activation: None, tap: None }
    }

    /// x [.., in] in f32 → [.., out] in f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let plain = matches!(self.weight, Weight::Dense(_)) && self.activation.is_none();
        if plain && (self.tracked() || x.track_op() || !x.device().is_cpu()) {
            return self.definition(x);
        }
        if x.track_op() {
            bail!("a quantized layer has no gradient")
        }
        let (out, inner) = self.weight.shape()?;
        let mut dims = x.dims().to_vec();
        if dims.pop() != Some(inner) {
            bail!("a linear layer of shape [{out}, {inner}] got an input of shape {:?}", x.dims())
        }
        let mut y = vec![0.0; x.elem_count() / inner * out];
        with_floats([&x.contiguous()?], |[x]| self.apply(x, &mut y, &mut Room::default()))??;
        dims.push(out);
        Tensor::from_vec(y, dims, x.device())
    }

    /// The same in tensor operations: with gradients, on any device.
    fn definition(&self, x: &Tensor) -> Result<Tensor> {
        let rotated = self.rotation.as_ref().map(|rotation| rotation.forward(x)).transpose()?;
        let x = rotated.as_ref().unwrap_or(x);
        if let Some(Tap(tap)) = &self.tap {
            tap(x)?;
        }
        let Weight::Dense(weight) = &self.weight else { bail!("a quantized layer runs on a CPU only") };
        let y = dense(x, weight)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// The same by the kernels on a CPU: `x` [m, in], `y` [m, out], overwritten.
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32], room: &mut Room) -> Result<()> {
        let (out, inner) = self.weight.shape()?;
        let rotated = self.rotation.as_ref().map(|rotation| {
            let mut rotated = room.take(x.len());
            rotated.copy_from_slice(x);
            rotation.apply(&mut rotated);
            rotated
        });
        let values = rotated.as_deref().unwrap_or(x);
        if let Some(Tap(tap)) = &self.tap {
            tap(&Tensor::from_slice(values, (1, x.len() / inner, inner), &Device::Cpu)?)?;
        }
        let activations = match self.activation {
            None => Activations::Floats(values),
            Some(Activation { bits, scale }) => {
                room.integers.round(values, inner, bits, scale);
                Activations::integers(&room.integers)
            }
        };
        match &self.weight {
            Weight::Quantized(weight) => weight.product(&activations, y)?,
            Weight::Dense(weight) => {
                let (x, m) = (activations.values(), x.len() / inner);
                with_weight(weight, |w| kernel::forward(m, inner, out, x, w, y))?;
            }
        }
        if let Some(rotated) = rotated {
            room.give(rotated);
        }
        self.add_bias(out, y)
    }

    fn add_bias(&self, out: usize, y: &mut [f32]) -> Result<()> {
        match &self.bias {
            Some(bias) => with_floats([bias], |[bias]| y.chunks_mut(out).for_each(|y| add(bias, y))),
            None => Ok(()),
        }
    }

    /// The matrix that training moves.
    fn trained(&self) -> Result<&Tensor> {
        match self {
            Self { weight: Weight::Dense(weight), rotation: None, .. } => Ok(weight),
            _ => bail!("a quantized layer has no gradient"),
        }
    }

    /// What the matrix meets of `x`, where training rounds it.
    fn rounded(&self, x: &[f32], inner: usize) -> Option<Vec<f32>> {
        let Activation { bits, scale } = self.activation?;
        let mut integers = Integers::default();
        integers.round(x, inner, bits, scale);
        Some(integers.values())
    }

    /// [`Self::apply`] on the way to gradients, as exact as they are; the input rounded where that is asked for.
    ///
    /// # Errors
    /// If the matrix is not plain f32: what is packed has no gradient.
    pub(crate) fn trace(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        let weight = self.trained()?;
        let (out, inner) = weight.dims2()?;
        let rounded = self.rounded(x, inner);
        let x = rounded.as_deref().unwrap_or(x);
        with_floats([weight], |[w]| kernel::trained(x.len() / inner, inner, out, x, w, y))?;
        self.add_bias(out, y)
    }

    /// The gradients where [`Self::trace`] read `x` [m, in] and that of its output is `dy` [m, out]: `dx` [m, in], `dw`
    /// [out, in] and, where there is a bias, `db` `[out]`, all overwritten.
    ///
    /// # Errors
    /// If the matrix is not plain f32: what is rounded has no gradient.
    pub(crate) fn backward(
        &self,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
    ) -> Result<()> {
        let weight = self.trained()?;
        let (out, inner) = weight.dims2()?;
        let m = x.len() / inner;
        with_floats([weight], |[w]| kernel::input_grad(m, inner, out, dy, w, dx))?;
        // The gradient passes the rounding of the input; that of the weights is by what they met.
        let rounded = self.rounded(x, inner);
        kernel::weight_grad(m, inner, out, dy, rounded.as_deref().unwrap_or(x), dw);
        if let Some(db) = db {
            db.fill(0.0);
            dy.chunks(out).for_each(|dy| add(dy, db));
        }
        Ok(())
    }

    /// [`Self::backward`] of a linear of this name within a branch.
    ///
    /// # Errors
    /// As it, or if there is no place for a gradient.
    pub(super) fn pull(
        &self,
        name: &str,
        (x, dy): (&[f32], &[f32]),
        dx: &mut [f32],
        places: &mut Places<'_>,
    ) -> Result<()> {
        let bias = places.optional(&format!("{name}.bias"));
        self.backward(x, dy, dx, places.take(&format!("{name}.weight"))?, bias)
    }

    /// Whether the graph of a differentiable definition is wanted.
    pub(crate) fn tracked(&self) -> bool {
        matches!(&self.weight, Weight::Dense(weight) if weight.track_op())
    }
}

/// x Wᵀ as stored, in tensor operations.
fn dense(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, (out, inner)) = (x.elem_count() / x.dim(x.rank() - 1)?, weight.dims2()?);
    let y = x.reshape((rows, inner))?.to_dtype(weight.dtype())?.matmul(&weight.t()?)?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(out);
    y.to_dtype(DType::F32)?.reshape(shape)
}

/// Lets `f` use a contiguous matrix on the CPU as the kernels' weight.
pub(super) fn with_weight<R>(weight: &Tensor, f: impl FnOnce(kernel::Weight<'_>) -> R) -> Result<R> {
    let (storage, layout) = weight.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(stored(storage, layout)?)),
        _ => bail!("expected a matrix on the CPU"),
    }
}

fn stored<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<kernel::Weight<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("weights must be contiguous") };
    match storage {
        CpuStorage::F32(w) => Ok(kernel::Weight::F32(&w[start..end])),
        CpuStorage::BF16(w) => Ok(kernel::Weight::Bf16(&w[start..end])),
        CpuStorage::F16(w) => Ok(kernel::Weight::F16(&w[start..end])),
        _ => bail!("weights must be f32, bf16 or f16"),
    }
}
