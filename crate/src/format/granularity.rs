//! Which values of a matrix share a scale.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Which values of a matrix [rows, cols] share a scale. Every run of them is contiguous in the row-major matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// All.
    Tensor,
    /// Those of a row, which is an output channel.
    Row,
    /// So many columns of a row; the last group of a row may be smaller.
    Group(usize),
    /// So many values of the flattened matrix, across rows; the last block may be smaller.
    Block(usize),
}

/// The runs of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    rows: usize,
    cols: usize,
    granularity: Granularity,
}

impl Granularity {
    /// The runs of a matrix [rows, cols].
    pub fn runs(self, rows: usize, cols: usize) -> Runs {
        Runs { rows, cols, granularity: self }
    }

    pub(super) fn check(self, rows: usize, cols: usize) -> Result<()> {
        match self {
            Self::Group(0) | Self::Block(0) => {
                Err(Error::input("a group needs at least one value").hint("64 is customary"))
            }
            Self::Group(size) if size > cols => {
                Err(Error::input(format!("groups of {size} are larger than the row of {cols}"))
                    .hint(format!("choose a group of at most {cols}")))
            }
            Self::Block(size) if size > rows * cols => {
                Err(Error::input(format!("blocks of {size} are larger than the matrix of {}", rows * cols))
                    .hint("choose a smaller block"))
            }
            _ => Ok(()),
        }
    }
}

impl Runs {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self.granularity {
            Granularity::Tensor => 1,
            Granularity::Row => self.rows,
            Granularity::Group(size) => self.rows * self.cols.div_ceil(size),
            Granularity::Block(size) => (self.rows * self.cols).div_ceil(size),
        }
    }

    /// Where run `i` lies in the flattened matrix.
    pub fn range(&self, i: usize) -> Range<usize> {
        let (cols, all) = (self.cols, self.rows * self.cols);
        match self.granularity {
            Granularity::Tensor => 0..all,
            Granularity::Row => i * cols..(i + 1) * cols,
            Granularity::Group(size) => {
                let per_row = cols.div_ceil(size);
                let (row, group) = (i / per_row, i % per_row);
                row * cols + group * size..row * cols + ((group + 1) * size).min(cols)
            }
            Granularity::Block(size) => i * size..((i + 1) * size).min(all),
        }
    }

    /// The run of the value at (row, col).
    pub fn of(&self, row: usize, col: usize) -> usize {
        match self.granularity {
            Granularity::Tensor => 0,
            Granularity::Row => row,
            Granularity::Group(size) => row * self.cols.div_ceil(size) + col / size,
            Granularity::Block(size) => (row * self.cols + col) / size,
        }
    }

    /// Columns col .. end of `row` that belong to one run.
    pub fn end_in_row(&self, row: usize, col: usize) -> usize {
        (self.range(self.of(row, col)).end - row * self.cols).min(self.cols)
    }

    /// Cuts a buffer of the matrix's size into the runs.
    pub(super) fn split<'a, T>(&self, mut values: &'a mut [T]) -> Vec<&'a mut [T]> {
        let cut = (0..self.count()).map(|i| {
            let (run, rest) = std::mem::take(&mut values).split_at_mut(self.range(i).len());
            values = rest;
            run
        });
        cut.collect()
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.write_str("tensor"),
            Self::Row => f.write_str("row"),
            Self::Group(size) => write!(f, "g{size}"),
            Self::Block(size) => write!(f, "b{size}"),
        }
    }
}

impl FromStr for Granularity {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let size = |prefix| name.strip_prefix(prefix).and_then(|size| size.parse().ok());
        match name {
            "tensor" => Some(Self::Tensor),
            "row" => Some(Self::Row),
            _ => size('g').map(Self::Group).or_else(|| size('b').map(Self::Block)),
        }
        .ok_or_else(|| {
            Error::input(format!("unknown granularity {name:?}"))
                .hint("known are tensor, row, g64 (groups of 64 columns) and b64 (blocks of 64 values)")
        })
    }
}
