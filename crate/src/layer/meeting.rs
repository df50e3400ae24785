//! How the tokens of a chunk meet, for measurements: queries and keys of one block, and what they give with products rounded.
//!
//! Softmax attention has queries and keys too: their scores can be looked at in the same way, what it makes of them cannot.

use super::op::with_floats;
use crate::kernel::scan::channels::{self, Inputs};
use crate::kernel::scan::products::Products;
use crate::kernel::scan::{self, CHUNK};
use candle_core::{Result, Tensor};

/// Queries and keys of one sequence of whole chunks.
#[derive(Clone, Debug)]
pub struct Meeting {
    /// Tokens T, a multiple of [`CHUNK`].
    pub time: usize,
    /// Heads H of the queries.
    pub heads: usize,
    /// Groups G of heads that share keys.
    pub groups: usize,
    /// Channels K of a key.
    pub key: usize,
    /// [T, H, K], scaled as the branch scales them.
    pub q: Vec<f32>,
    /// [T, G, K].
    pub k: Vec<f32>,
    /// What is made of their scores.
    pub made: Made,
}

/// What a branch makes of scores.
#[derive(Clone, Debug)]
pub enum Made {
    /// Shares of attention: nothing that is linear.
    Softmax,
    /// A recurrence with a decay for each channel of the keys.
    Channels {
        /// Decays [T, G, K].
        a: Vec<f32>,
        /// Values [T, G, V].
        v: Vec<f32>,
    },
    /// A recurrence with a decay for each head: the values come before groups share, so that queries are those of groups.
    Heads {
        /// Of one sequence.
        shape: scan::Shape,
        /// x|B|C [T, row].
        xbc: Vec<f32>,
        /// Δ [T, heads].
        dt: Vec<f32>,
        /// A of each head.
        rates: Vec<f32>,
    },
}

/// How much of a recurrence is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// y of each chunk from a state of zeros.
    Chunk,
    /// y of the whole sequence.
    Whole,
}

impl Meeting {
    /// Whether decays come between queries and keys before they meet, channel by channel.
    pub fn decays(&self) -> bool {
        matches!(self.made, Made::Channels { .. })
    }

    /// Heads that read: those of the values where queries are those of groups.
    pub fn readers(&self) -> usize {
        match &self.made {
            Made::Heads { shape, .. } => shape.heads,
            _ => self.heads,
        }
    }

    /// What each token has of those up to it in its chunk, [T, H, Q], with zeros behind; decays of channels left out if not
    /// `gates`, those of heads always: they come after.
    pub fn scores(&self, products: Option<Products>, gates: bool) -> Vec<f32> {
        let Self { time, heads, groups, key, .. } = *self;
        // What a query reads where every value is a unit vector.
        let units = (0..time)
            .flat_map(|t| std::iter::repeat_n(t % CHUNK, groups))
            .flat_map(|unit| (0..CHUNK).map(move |at| if at == unit { 1.0 } else { 0.0 }));
        let (v, ones) = (units.collect::<Vec<f32>>(), vec![1.0; time * groups * key]);
        let a = match &self.made {
            Made::Channels { a, .. } if gates => a,
            _ => &ones,
        };
        let shape = channels::Shape { batch: time / CHUNK, time: CHUNK, heads, groups, key, value: CHUNK };
        chunks(shape, products, Inputs { q: &self.q, k: &self.k, v: &v, a })
    }

    /// y [T, readers, V]; without decays if not `gates`. None where softmax comes between.
    pub fn read(&self, products: Option<Products>, gates: bool, part: Part) -> Option<Vec<f32>> {
        let Self { time, heads, groups, key, .. } = *self;
        let (batch, time) = match part {
            Part::Chunk => (time / CHUNK, CHUNK),
            Part::Whole => (1, time),
        };
        match &self.made {
            Made::Softmax => None,
            Made::Channels { a, v } => {
                let ones = vec![1.0; a.len()];
                let a = if gates { a } else { &ones };
                let value = v.len() / (self.time * groups);
                let shape = channels::Shape { batch, time, heads, groups, key, value };
                Some(chunks(shape, products, Inputs { q: &self.q, k: &self.k, v, a }))
            }
            Made::Heads { shape, xbc, dt, rates } => {
                let shape = scan::Shape { batch, time, ..*shape };
                let still = vec![0.0; rates.len()];
                let rates = if gates { rates } else { &still };
                let mut h = vec![0.0; batch * shape.heads * shape.head_dim * shape.state];
                let mut y = vec![0.0; batch * time * shape.out];
                // Without the skip, which no product of a chunk has a part in.
                scan::chunked(shape, products, xbc, dt, rates, &still, &mut h, &mut y);
                Some(y)
            }
        }
    }
}

fn chunks(shape: channels::Shape, products: Option<Products>, inputs: Inputs<'_>) -> Vec<f32> {
    let mut s = vec![0.0; shape.batch * shape.heads * shape.state()];
    let mut y = vec![0.0; shape.batch * shape.time * shape.heads * shape.value];
    channels::chunked(shape, products, inputs, &mut s, &mut y);
    y
}

/// The values of a tensor on the CPU, row by row.
pub(super) fn rows(x: &Tensor) -> Result<Vec<f32>> {
    with_floats([&x.contiguous()?], |[x]| x.to_vec())
}
