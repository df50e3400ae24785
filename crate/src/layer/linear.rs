//! A matrix of a model and its product: the one place where quantization enters.

use super::op::{floats, gradients};
use crate::kernel::linear as kernel;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

/// How a matrix [out, in] is stored.
#[derive(Clone, Debug)]
pub enum Weight {
    /// As it is: f32, bf16 or f16.
    Dense(Tensor),
}

impl Weight {
    /// (out, in).
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(weight) => weight.dims2(),
        }
    }

    /// Bytes of the stored values.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
        }
    }
}

/// y = x Wᵀ + b.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The matrix.
    pub weight: Weight,
    /// `[out]`, f32.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// A layer with a stored matrix [out, in].
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Dense(weight), bias }
    }

    /// x [.., in] in f32 → [.., out] in f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Weight::Dense(weight) = &self.weight;
        let y = if x.device().is_cpu() {
            x.contiguous()?.apply_op2(weight, Product)?
        } else {
            let (rows, (out, inner)) = (x.elem_count() / x.dim(x.rank() - 1)?, weight.dims2()?);
            let y = x.reshape((rows, inner))?.to_dtype(weight.dtype())?.matmul(&weight.t()?)?;
            let mut shape = x.dims().to_vec();
            shape.pop();
            shape.push(out);
            y.to_dtype(DType::F32)?.reshape(shape)?
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
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
        let Some((start, end)) = l2.contiguous_offsets() else { bail!("weights must be contiguous") };
        let w = match s2 {
            CpuStorage::F32(w) => kernel::Weight::F32(&w[start..end]),
            CpuStorage::BF16(w) => kernel::Weight::Bf16(&w[start..end]),
            CpuStorage::F16(w) => kernel::Weight::F16(&w[start..end]),
            _ => bail!("weights must be f32, bf16 or f16"),
        };
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
