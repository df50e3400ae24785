//! Tensors in a file that were not read yet: what they are, and where their bytes lie.

use super::claim::Claim;
use super::gguf::{Block, Tokens};
use super::tokenizer::{Pieces, Tokenizer};
use crate::error::{Error, Result};
use crate::family::Stated;
use crate::format::Encoded;
use candle_core::{DType, Device, Tensor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

/// What a file of weights holds, before any weight is read.
#[derive(Default)]
pub(super) struct Listing {
    /// Its tensors by name.
    pub tensors: BTreeMap<String, Stored>,
    /// The metadata of a safetensors header.
    pub metadata: BTreeMap<String, String>,
    /// Stretches of the file whose checksums it tells, in order and apart from each other.
    pub sums: Vec<Sum>,
    /// Numbers of layers that it tells beside its tensors, by where.
    pub layers: Vec<(String, u64)>,
    /// The configuration that a pickled file has beside its weights.
    pub pickled: Option<serde_json::Value>,
    /// What it says there of their quantization.
    pub claim: Option<Claim>,
    /// What a file that speaks for itself says of everything but its weights.
    pub own: Option<Own>,
}

/// What a file says of a model where no other file beside it is asked.
pub(super) struct Own {
    /// Its configuration, in the spelling of a `config.json`.
    pub stated: Stated,
    /// Its tokenizer, if it has one.
    pub tokens: Option<Tokenizing>,
    /// What its weights are stored in, in a line, if that says more than a dtype.
    pub stored_as: Option<String>,
}

/// A tokenizer inside a file of weights.
pub(super) enum Tokenizing {
    /// As GGUF has it.
    Gguf(Tokens),
    /// The text of a `tokenizer.json`.
    File(String),
}

impl Tokenizing {
    /// The tokenizer, and what of it is assumed; `name` is the file's.
    ///
    /// # Errors
    /// It is of a kind that is not known, or damaged.
    pub fn tokenizer(&self, name: &str) -> Result<(Tokenizer, Option<String>)> {
        match self {
            Self::Gguf(tokens) => tokens.tokenizer(),
            Self::File(text) => Ok((Tokenizer::Pieces(Box::new(Pieces::part(name, text, "{}")?)), None)),
        }
    }
}

/// A stretch of a file with the CRC-32 of its bytes.
pub(super) struct Sum {
    /// What the file calls it.
    pub name: String,
    /// From its first byte to behind its last.
    pub bytes: Range<u64>,
    /// The checksum.
    pub crc: u32,
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    /// Its type, if tensors of it can be loaded.
    pub dtype: Option<DType>,
    /// What it is in the file's own words, such as `BOOL`.
    pub kind: Cow<'static, str>,
    /// Its shape.
    pub shape: Vec<usize>,
    /// From its first element to behind its last.
    pub bytes: Range<u64>,
    layout: Layout,
}

/// How the elements of a tensor lie.
#[derive(Clone, Debug, PartialEq)]
enum Layout {
    /// Row by row.
    Rows,
    /// With so many elements from one to the next along each dimension.
    Strides(Vec<usize>),
    /// In blocks that never reach across rows. Within each head the rows of its second half lie between those of its
    /// first, if there are heads.
    Blocks { of: Block, heads: Option<usize> },
}

impl Stored {
    /// A tensor whose elements lie row by row.
    pub fn rows(dtype: DType, kind: Cow<'static, str>, shape: Vec<usize>, bytes: Range<u64>) -> Self {
        Self { dtype: Some(dtype), kind, shape, bytes, layout: Layout::Rows }
    }

    /// A tensor in blocks, to be decoded to f32 unless it is of `dtype`; where its rows are those of `heads`, the two
    /// halves of each head lie row by row in turn.
    pub fn blocks(
        of: Block,
        dtype: DType,
        shape: Vec<usize>,
        heads: Option<usize>,
        bytes: Range<u64>,
    ) -> Self {
        let dtype = if of.dtype() == Some(dtype) { dtype } else { DType::F32 };
        let layout = Layout::Blocks { of, heads };
        Self { dtype: Some(dtype), kind: of.name().into(), shape, bytes, layout }
    }

    /// What cannot be loaded.
    pub fn foreign(kind: Cow<'static, str>, shape: Vec<usize>) -> Self {
        Self { dtype: None, kind, shape, bytes: 0..0, layout: Layout::Rows }
    }

    /// A view of a storage that lies at `storage`: from its element `offset` on, in these strides. None if it reaches
    /// beyond the storage.
    pub fn view(
        dtype: DType,
        kind: Cow<'static, str>,
        storage: &Range<u64>,
        offset: u64,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Option<Self> {
        let size = dtype.size_in_bytes() as u64;
        let elements = shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
        if shape.len() != strides.len() || (elements.is_none() && !shape.contains(&0)) {
            return None;
        }
        let span = if shape.contains(&0) {
            0
        } else {
            let reach = |n: usize, stride: usize| (n as u64 - 1).checked_mul(stride as u64);
            shape.iter().zip(&strides).try_fold(1u64, |sum, (&n, &s)| sum.checked_add(reach(n, s)?))?
        };
        let start = storage.start.checked_add(offset.checked_mul(size)?)?;
        let end = start.checked_add(span.checked_mul(size)?)?;
        let by_rows = shape.contains(&0) || lie_by_rows(&shape, &strides);
        (end <= storage.end).then_some(Self {
            dtype: Some(dtype),
            kind,
            shape,
            bytes: start..end,
            layout: if by_rows { Layout::Rows } else { Layout::Strides(strides) },
        })
    }

    /// Whether it is of floating-point numbers.
    pub fn is_float(&self) -> bool {
        use DType::{BF16, F8E4M3, F16, F32, F64};
        matches!(self.dtype, Some(F64 | F32 | BF16 | F16 | F8E4M3))
    }

    /// The type of its blocks, if it is in any, be they single numbers.
    pub fn block(&self) -> Option<Block> {
        match self.layout {
            Layout::Blocks { of, .. } => Some(of),
            Layout::Rows | Layout::Strides(_) => None,
        }
    }

    /// The matrix as its blocks have it, from the bytes of its stretch.
    ///
    /// # Errors
    /// It is not in blocks that can be kept.
    pub fn encoded(&self, bytes: &[u8]) -> Result<Encoded> {
        let refused =
            || Error::internal(format!("{} of shape {:?} is not kept packed", self.kind, self.shape));
        let (Layout::Blocks { of, heads }, [rows, cols]) = (&self.layout, &*self.shape) else {
            return Err(refused());
        };
        let bytes = match heads {
            Some(heads) => Cow::Owned(halves(bytes, *rows, *heads)),
            None => Cow::Borrowed(bytes),
        };
        of.encoded(*rows, *cols, &bytes).ok_or_else(refused)
    }

    /// The tensor, from the bytes of its stretch.
    pub fn tensor(&self, bytes: &[u8]) -> Result<Tensor> {
        let Some(dtype) = self.dtype else {
            return Err(Error::input(format!("tensors of type {} cannot be loaded", self.kind))
                .hint("save it again in f32, bf16 or f16"));
        };
        let bytes = match &self.layout {
            Layout::Rows | Layout::Blocks { heads: None, .. } => Cow::Borrowed(bytes),
            Layout::Strides(strides) => {
                Cow::Owned(gathered(bytes, dtype.size_in_bytes(), &self.shape, strides)?)
            }
            Layout::Blocks { heads: Some(heads), .. } => Cow::Owned(halves(bytes, self.shape[0], *heads)),
        };
        if let Layout::Blocks { of, .. } = self.layout
            && of.dtype() != Some(dtype)
        {
            return Ok(Tensor::from_vec(of.decode(&bytes)?, &*self.shape, &Device::Cpu)?);
        }
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &self.shape, &Device::Cpu)?)
    }
}

/// Whether strides are those of elements row by row; those of dimensions of one element do not matter.
fn lie_by_rows(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == expected;
        expected *= n;
        fits
    })
}

/// The elements of a view row by row.
fn gathered(bytes: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Result<Vec<u8>> {
    let elements: usize = shape.iter().product();
    // A view may repeat elements without end; weights do not.
    if elements.saturating_mul(size) > bytes.len().saturating_mul(4).saturating_add(1 << 16) {
        return Err(Error::input(format!(
            "a view of shape {shape:?} repeats what is stored in {} bytes",
            bytes.len()
        ))
        .hint("save it again after .contiguous()"));
    }
    let (&inner, &step) = shape.last().zip(strides.last()).unwrap_or((&1, &1));
    let outer = shape.len().saturating_sub(1);
    let (mut at, mut out) = (vec![0; outer], Vec::with_capacity(elements * size));
    for _ in 0..elements / inner.max(1) {
        let start: usize = at.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        for j in 0..inner {
            let first = (start + j * step) * size;
            out.extend_from_slice(&bytes[first..first + size]);
        }
        for axis in (0..outer).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    Ok(out)
}

/// Rows of heads whose two halves lie in turn, the halves one after the other: row 2c comes to c, row 2c + 1 to
/// c + half a head.
fn halves(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let row = bytes.len() / rows;
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(row * (rows / heads)) {
        for half in 0..2 {
            head.chunks_exact(row).skip(half).step_by(2).for_each(|row| out.extend_from_slice(row));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: std::ops::Range<u8>) -> Vec<u8> {
        values.collect()
    }

    #[test]
    fn views_are_read_in_their_strides() {
        let view = |offset, shape: &[usize], strides: &[usize]| {
            Stored::view(DType::U8, "".into(), &(10..22), offset, shape.to_vec(), strides.to_vec())
        };
        let read = |stored: Stored| {
            let (start, end) = (stored.bytes.start as u8 - 10, stored.bytes.end as u8 - 10);
            let tensor = stored.tensor(&bytes(start..end)).unwrap();
            (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap())
        };
        assert_eq!(read(view(0, &[3, 4], &[4, 1]).unwrap()), (vec![3, 4], bytes(0..12)));
        assert_eq!(
            read(view(0, &[4, 3], &[1, 4]).unwrap()),
            (vec![4, 3], vec![0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])
        );
        // The right half of every row, as a slice of a fused weight is.
        assert_eq!(read(view(2, &[3, 2], &[4, 1]).unwrap()), (vec![3, 2], vec![2, 3, 6, 7, 10, 11]));
        assert_eq!(read(view(1, &[2, 1, 2], &[6, 9, 3]).unwrap()), (vec![2, 1, 2], vec![1, 4, 7, 10]));
        assert_eq!(read(view(5, &[2, 3], &[0, 1]).unwrap()), (vec![2, 3], vec![5, 6, 7, 5, 6, 7]));
        assert_eq!(read(view(11, &[], &[]).unwrap()), (vec![], vec![11]));
        assert_eq!(read(view(12, &[0, 7], &[7, 1]).unwrap()), (vec![0, 7], vec![]));
    }

    #[test]
    fn the_halves_of_heads_come_apart() {
        let expected = [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11, 12, 13, 16, 17, 20, 21, 14, 15, 18, 19, 22, 23];
        assert_eq!(halves(&bytes(0..24), 12, 2), expected);
        assert_eq!(halves(&bytes(0..4), 4, 1), [0, 2, 1, 3]);
    }

    #[test]
    fn views_beyond_their_storage_and_without_end_are_refused() {
        let view = |offset, shape: &[usize], strides: &[usize]| {
            Stored::view(DType::F32, "".into(), &(0..40), offset, shape.to_vec(), strides.to_vec())
        };
        assert!(view(0, &[10], &[1]).is_some() && view(1, &[10], &[1]).is_none());
        assert!(view(u64::MAX, &[1], &[1]).is_none() && view(0, &[2], &[usize::MAX]).is_none());
        assert!(view(0, &[usize::MAX, usize::MAX], &[0, 0]).is_none() && view(0, &[1], &[]).is_none());
        let endless = view(0, &[1 << 20, 1 << 20], &[0, 0]).unwrap();
        assert!(
            endless.tensor(&[0; 4]).unwrap_err().to_string().contains("repeats what is stored in 4 bytes")
        );
    }
}
