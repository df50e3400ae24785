//! A matrix of a model and its product: the one place where quantization enters.

use super::op::{floats, gradients, with_floats};
use super::quantized::{Activations, Quantized};
use super::room::Room;
use super::rotation::Rotation;
use crate::kernel::linear as kernel;
use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
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
        match self {
            Self::Dense(weight) => {
                let mut dims = ids.dims().to_vec();
                dims.push(weight.dim(1)?);
                weight.index_select(&ids.flatten_all()?, 0)?.to_dtype(DType::F32)?.reshape(dims)
            }
            Self::Quantized(weight) => weight.lookup(ids),
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
        if let Some(bias) = &self.bias {
            with_floats([bias], |[bias]| {
                y.chunks_mut(out).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
            })?;
        }
        if let Some(rotated) = rotated {
            room.give(rotated);
        }
        Ok(())
    }

    /// Whether gradients are wanted of the matrix.
    pub(crate) fn tracked(&self) -> bool {
        matches!(&self.weight, Weight::Dense(weight) if weight.track_op())
    }
}

/// x Wᵀ as stored, with gradients.
fn dense(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op2(weight, Product);
    }
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

/// x Wᵀ by the kernels, with its gradients.
struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = floats(s1, l1)?;
        let (n, k) = l2.shape().dims2()?;
        let mut dims = l1.dims().to_vec();
        if dims.pop() != Some(k) {
            bail!("a linear layer of shape [{n}, {k}] got an input of shape {:?}", l1.dims())
        }
        let m = x.len() / k;
        let w = stored(s2, l2)?;
        let mut y = vec![0.0; m * n];
        kernel::forward(m, k, n, x, w, &mut y);
        dims.push(n);
        Ok((CpuStorage::F32(y), dims.into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, k) = w.dims2()?;
        let (m, dy) = (x.elem_count() / k, &dy.contiguous()?);
        let (mut dx, mut dw) = (None, None);
        if x.track_op() {
            [dx] = gradients([dy, w], [x], |[dy, w], [dx]| kernel::input_grad(m, k, n, dy, w, dx))?;
        }
        if w.track_op() {
            [dw] = gradients([dy, x], [w], |[dy, x], [dw]| kernel::weight_grad(m, k, n, dy, x, dw))?;
        }
        Ok((dx, dw))
    }
}
