//! How many bits go through a recurrence: its inputs, and its state.
//!
//! All are symmetric integers, simulated: values are rounded and stay f32. A state in bf16 is stored as such. What shares a
//! scale, each branch says where it rounds.

use super::super::state::LayerState;
use crate::error::{Error, Result};
use crate::kernel::scan::products::{Products, SUBS};
use candle_core::DType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bits of what goes through the recurrence; `None` leaves it in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recurrence {
    /// Bits of the input: x, or the values v.
    pub x: Option<u8>,
    /// Bits of what writes the state and of what reads it: B and C, or keys k and queries q.
    pub bc: Option<u8>,
    /// Bits of the state.
    pub state: Option<StateBits>,
    /// How the products of a chunk are rounded. A chunk begins with the tokens that are given at once and then every 64; a token that comes alone
    /// meets the state only, in f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub products: Option<Products>,
}

/// How the state is stored between tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateBits {
    /// Bits of a value: 2 … 8 of an integer, or the 16 of a bf16.
    pub bits: u8,
    /// Whether what rounding took, the residual, is given back before the next rounding. The residual is kept beside
    /// the state, value by value: in f32 the two take more memory than a state in f32, which needs no feedback.
    #[serde(default)]
    pub feedback: bool,
    /// Bits of a value of the residual: 2 … 8 of an integer, with a scale of its own for each head; none: f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<u8>,
}

impl StateBits {
    /// The state by its part of a scheme's name, without the h: `8`, `16`, `8ef`, `8ef4`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let (bits, residual) = name.split_once("ef").map_or((name, None), |(bits, rest)| (bits, Some(rest)));
        let width = residual.filter(|width| !width.is_empty()).map(str::parse).transpose().ok()?;
        let state = Self { bits: bits.parse().ok()?, feedback: residual.is_some(), residual: width };
        let recurrence = Recurrence { state: Some(state), ..Recurrence::default() };
        recurrence.check().is_ok().then_some(state)
    }

    /// Bytes of a head's state of so many values: codes packed, and an f32 scale for all codes of a kind.
    pub(crate) fn bytes(self, values: usize) -> usize {
        let integers = |bits: u8| (values * usize::from(bits)).div_ceil(8) + size_of::<f32>();
        let state = if self.bits == 16 { 2 * values } else { integers(self.bits) };
        let residual = self.residual.map_or(size_of::<f32>() * values, integers);
        state + if self.feedback { residual } else { 0 }
    }
}

/// As in the name of a scheme, without the h.
impl fmt::Display for StateBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.bits, if self.feedback { "ef" } else { "" })?;
        self.residual.map_or(Ok(()), |bits| write!(f, "{bits}"))
    }
}

impl Recurrence {
    /// Refuses widths that no integer here has.
    ///
    /// # Errors
    /// If a width is not one of 2 … 8 bits, or 16 for a state without feedback, or a residual has one that is not kept; if products
    /// of chunks are rounded beside the state, or in sub-chunks that there are not.
    pub fn check(&self) -> Result<()> {
        let integers = self.state.filter(|state| state.feedback || state.bits != 16);
        let residual = self.state.and_then(|state| state.residual);
        if residual.is_some() && self.state.is_some_and(|state| !state.feedback) {
            return Err(Error::input("a residual of the state without error feedback")
                .hint("set feedback, or leave the residual out"));
        }
        if self.products.is_some() && self.state.is_some() {
            return Err(Error::input(
                "the products of chunks beside a state of few bits, which is rounded token by token",
            )
            .hint("leave one of the two as it is"));
        }
        if let Some(products) = self.products.filter(|products| !SUBS.contains(&products.sub)) {
            return Err(Error::input(format!("a chunk has no sub-chunks of {} tokens", products.sub))
                .hint("choose 8, 16 or 32"));
        }
        let widths = [
            (
                "queries and keys",
                self.products.and_then(|products| products.scores).map(|scores| scores.bits),
            ),
            ("x", self.x),
            ("B and C", self.bc),
            ("the state", integers.map(|state| state.bits)),
            ("the residual of the state", residual),
        ];
        for (what, bits) in widths {
            if let Some(bits) = bits.filter(|bits| !(2..=8).contains(bits)) {
                return Err(Error::input(format!("{what} of the recurrence cannot have {bits} bits"))
                    .hint("choose from 2 to 8 (a state without feedback may have the 16 of bf16), or leave it in f32"));
            }
        }
        Ok(())
    }

    /// Whether anything is rounded whose way back is not straight through.
    pub(crate) fn has_no_way_back(&self) -> bool {
        Self { products: None, ..*self } != Self::default()
    }

    /// Gives a state the form that this recurrence keeps it in: bf16 as such, integers simulated in f32, with the error of
    /// their last rounding if it is fed back.
    pub(crate) fn shape(&self, state: &mut LayerState) -> candle_core::Result<()> {
        let bits = self.state.map(|state| state.bits);
        state.store_as(if bits == Some(16) { DType::BF16 } else { DType::F32 })?;
        match self.state {
            Some(StateBits { feedback: true, .. }) => state.keep_feedback(),
            _ => Ok(()),
        }
    }
}
