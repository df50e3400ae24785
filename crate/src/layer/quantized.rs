//! A matrix of which parts are stored in few bits, and its product.

use super::op::with_values;
use crate::format::Encoded;
use crate::kernel::coded::Coded;
use crate::kernel::integer::Integers;
use crate::kernel::linear as kernel;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// A matrix [out, in] as blocks of rows, one below the other.
#[derive(Clone, Debug)]
pub struct Quantized {
    blocks: Vec<Block>,
    rows: usize,
    cols: usize,
}

/// Rows that are stored alike.
#[derive(Clone, Debug)]
pub enum Block {
    /// As they are, [rows, in]: f32, bf16 or f16.
    Dense(Tensor),
    /// With every bit, in fewer.
    Coded(Arc<Coded>),
    /// Codes and scales, in the order of the instructions once a model holds them; products with integer activations
    /// are exact sums of integers.
    Packed(Arc<Encoded>),
    /// What the codes stand for, [rows, in] in f32: the definition that `Packed` is held to.
    Fake(Tensor),
}

impl Block {
    /// A matrix [rows, in] of f32 or bf16 with every bit, in fewer where that is possible.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn coded(values: &Tensor) -> Result<Self> {
        let (rows, cols) = values.dims2()?;
        let values = values.contiguous()?;
        let coded = match values.dtype() {
            DType::F32 => with_values([&values], |[values]| Coded::of_f32(rows, cols, values)),
            DType::BF16 => with_values([&values], |[values]| Coded::of_bf16(rows, cols, values)),
            other => bail!("the exponents of {other:?} are not coded"),
        };
        // Short rows are filled up by more than their exponents save.
        let (coded, dense) = (Self::Coded(Arc::new(coded?)), Self::Dense(values));
        Ok(if coded.bytes() < dense.bytes() { coded } else { dense })
    }

    /// Whether they have every bit in fewer.
    pub fn is_coded(&self) -> bool {
        matches!(self, Self::Coded(_))
    }

    /// Rows.
    pub fn rows(&self) -> Result<usize> {
        match self {
            Self::Dense(values) | Self::Fake(values) => values.dim(0),
            Self::Coded(coded) => Ok(coded.shape().0),
            Self::Packed(encoded) => Ok(encoded.rows),
        }
    }

    /// Bytes of the stored values.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(values) | Self::Fake(values) => values.elem_count() * values.dtype().size_in_bytes(),
            Self::Coded(coded) => coded.bytes(),
            Self::Packed(encoded) => encoded.bytes(),
        }
    }

    /// y [m, rows], overwritten, for activations [m, in].
    fn product(&self, x: &Activations, rows: usize, cols: usize, y: &mut [f32]) -> Result<()> {
        let float = |w: kernel::Weight<'_>, y: &mut [f32]| {
            kernel::forward(x.rows(cols), cols, rows, x.values(), w, y);
        };
        match (self, x) {
            (Self::Packed(encoded), Activations::Integers { codes, .. })
                if encoded.coding.format.is_integer() =>
            {
                encoded.integer_product(codes, y);
            }
            (Self::Packed(encoded), _) => {
                if !encoded.product(x.rows(cols), x.values(), y) {
                    float(kernel::Weight::Decoded(&|first, values| encoded.decode_rows(first, values)), y);
                }
            }
            (Self::Coded(coded), _) => float(kernel::Weight::Coded(coded), y),
            (Self::Dense(values) | Self::Fake(values), _) => {
                super::linear::with_weight(values, |w| float(w, y))?;
            }
        }
        Ok(())
    }
}

/// The input of a product, [m, in].
pub(super) enum Activations<'a> {
    Floats(&'a [f32]),
    /// Integers, and what they stand for once a product asks for it.
    Integers {
        codes: &'a Integers,
        values: OnceLock<Vec<f32>>,
    },
}

impl<'a> Activations<'a> {
    pub fn integers(codes: &'a Integers) -> Self {
        Self::Integers { codes, values: OnceLock::new() }
    }

    pub fn values(&self) -> &[f32] {
        match self {
            Self::Floats(values) => values,
            Self::Integers { codes, values } => values.get_or_init(|| codes.values()),
        }
    }

    fn rows(&self, cols: usize) -> usize {
        match self {
            Self::Floats(values) => values.len() / cols,
            Self::Integers { codes, .. } => codes.scales.len(),
        }
    }
}

impl Quantized {
    /// Stacks blocks of equally long rows.
    pub fn new(blocks: Vec<Block>, cols: usize) -> Result<Self> {
        let rows = blocks.iter().map(Block::rows).sum::<Result<usize>>()?;
        Ok(Self { blocks, rows, cols })
    }

    /// Brings codes into the order of the instructions that multiply them.
    pub fn lay_out(&mut self) {
        for block in &mut self.blocks {
            if let Block::Packed(encoded) = block
                && encoded.packed().is_none()
            {
                *encoded = Arc::new(encoded.for_products());
            }
        }
    }

    /// The blocks, from the first row down.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// (out, in).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The dtype of rows that are not quantized, if there are any.
    pub fn dtype(&self) -> Option<DType> {
        self.blocks.iter().find_map(|block| match block {
            Block::Dense(values) => Some(values.dtype()),
            Block::Coded(coded) if coded.is_f32() => Some(DType::F32),
            Block::Coded(_) => Some(DType::BF16),
            Block::Packed(_) | Block::Fake(_) => None,
        })
    }

    /// Bytes of the stored values.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(Block::bytes).sum()
    }

    /// What the matrix stands for, [out, in] in f32.
    pub fn values(&self) -> Result<Tensor> {
        let blocks = self.blocks.iter().map(|block| match block {
            Block::Dense(values) | Block::Fake(values) => values.to_dtype(DType::F32),
            Block::Coded(coded) => {
                let mut values = vec![0.0; coded.shape().0 * self.cols];
                coded.widen(0, &mut values);
                Tensor::from_vec(values, coded.shape(), &Device::Cpu)
            }
            Block::Packed(encoded) => {
                Tensor::from_vec(encoded.decode(), (encoded.rows, encoded.cols), &Device::Cpu)
            }
        });
        Tensor::cat(&blocks.collect::<Result<Vec<_>>>()?, 0)
    }

    /// The rows of these numbers: `to` [ids, in], overwritten.
    pub(super) fn lookup(&self, ids: &[u32], to: &mut [f32]) -> Result<()> {
        for (id, to) in ids.iter().zip(to.chunks_mut(self.cols)) {
            let mut row = *id as usize;
            for block in &self.blocks {
                let rows = block.rows()?;
                if row < rows {
                    match block {
                        Block::Packed(encoded) => encoded.decode_rows(row, to),
                        Block::Coded(coded) => coded.widen(row, to),
                        Block::Dense(all) | Block::Fake(all) => {
                            super::linear::with_weight(all, |w| kernel::widen(w, row, self.cols, to))?;
                        }
                    }
                    break;
                }
                row -= rows;
            }
        }
        Ok(())
    }

    /// `y` [m, out], overwritten, for activations [m, in].
    pub(super) fn product(&self, x: &Activations, y: &mut [f32]) -> Result<()> {
        let (m, n) = (x.rows(self.cols), self.rows);
        if let [block] = self.blocks.as_slice() {
            return block.product(x, n, self.cols, y);
        }
        let mut first = 0;
        for block in &self.blocks {
            let rows = block.rows()?;
            let mut part = vec![0.0; m * rows];
            block.product(x, rows, self.cols, &mut part)?;
            for (y, part) in y.chunks_mut(n).zip(part.chunks(rows)) {
                y[first..first + rows].copy_from_slice(part);
            }
            first += rows;
        }
        Ok(())
    }
}
