//! The types of tensors: numbers by themselves, and blocks of small whole numbers that share scales.

use crate::error::{Error, Result};
use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, DType};
use rayon::prelude::*;
use std::borrow::Cow;

/// A type of the table, by its name in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(non_camel_case_types)]
pub enum Block {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_1,
    Q5_0,
    Q5_K,
    Q4_1,
    Q4_0,
    Q4_K,
}

/// The numbers that files give to types which are not read, for their names.
const OTHERS: [(u32, &str); 21] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// Blocks that are decoded at a time.
const PIECE: usize = 4096;

impl Block {
    /// The type of this number.
    ///
    /// # Errors
    /// It is none of the table.
    pub fn of(code: u32) -> Result<Self> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => {
                let name = OTHERS.iter().find(|(other, _)| *other == code).map(|(_, name)| *name);
                let name = name.map_or_else(|| format!("number {code}"), String::from);
                return Err(Error::input(format!("tensors of type {name} are not read"))
                    .hint("known are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K"));
            }
        })
    }

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q6_K => "Q6_K",
            Self::Q5_1 => "Q5_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_K => "Q5_K",
            Self::Q4_1 => "Q4_1",
            Self::Q4_0 => "Q4_0",
            Self::Q4_K => "Q4_K",
        }
    }

    fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q6_K => GgmlDType::Q6K,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_K => GgmlDType::Q5K,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_K => GgmlDType::Q4K,
        }
    }

    /// Elements of a block, all of one row.
    pub fn elements(self) -> usize {
        self.ggml().block_size()
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.ggml().type_size()
    }

    /// The type of its numbers, where they are numbers by themselves.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// The numbers of whole blocks, each product and sum rounded to f32 as ggml does it.
    pub fn decode(self, blocks: &[u8]) -> Result<Vec<f32>> {
        let mut numbers = vec![0f32; blocks.len() / self.bytes() * self.elements()];
        let pieces =
            numbers.par_chunks_mut(PIECE * self.elements()).zip(blocks.par_chunks(PIECE * self.bytes()));
        pieces.try_for_each(|(numbers, blocks)| {
            // candle holds blocks to an even address; what is allocated begins at one, and blocks are of even sizes.
            let blocks = self.ggml().from_data(Cow::Borrowed(blocks));
            match blocks.dequantize(numbers.len())? {
                CpuStorage::F32(decoded) => numbers.copy_from_slice(&decoded),
                other => return Err(Error::internal(format!("blocks became {other:?}"))),
            }
            Ok(())
        })?;
        Ok(numbers)
    }
}
