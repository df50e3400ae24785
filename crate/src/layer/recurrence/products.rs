//! The products of a chunk in the names of schemes: `qk4`, `qk8row`, `smoothqk`, `svfp8`, `sub32`, joined by hyphens.

use super::Recurrence;
use crate::error::{Error, Result};
use crate::kernel::scan::products::{Products, SUBS, Scores, Share, Smooth};
use std::fmt;
use std::str::FromStr;

/// Tokens of a sub-chunk of which a name says nothing.
const SUB: u8 = 16;

/// What a name says of means that are taken away.
const SMOOTHED: [(&str, Smooth); 4] = [
    ("smoothk", Smooth::K),
    ("smoothq", Smooth::Q),
    ("smoothqk", Smooth::Qk),
    ("smoothqkdrop", Smooth::QkDropped),
];

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = vec![];
        if let Some(Scores { bits, share, smooth }) = self.scores {
            parts.push(format!("qk{bits}{}", if share == Share::Row { "row" } else { "" }));
            parts
                .extend(SMOOTHED.into_iter().find(|(_, by)| *by == smooth).map(|(name, _)| name.to_string()));
        }
        parts.extend(self.fp8_values.then(|| "svfp8".to_string()));
        parts.extend((self.sub != SUB).then(|| format!("sub{}", self.sub)));
        f.write_str(&parts.join("-"))
    }
}

impl FromStr for Products {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let mut recurrence = Recurrence::default();
        let unknown = |part: &str| {
            Error::input(format!("unknown part {part:?} of rounded products"))
                .at(format!("products {name:?}"))
                .hint("they are qk4, qk8, qk4row, then smoothk, smoothq, smoothqk or smoothqkdrop, svfp8, sub8 or sub32, joined by -")
        };
        for part in name.split('-') {
            if !recurrence.set_products(part) {
                return Err(unknown(part));
            }
        }
        recurrence.products.ok_or_else(|| unknown(name))
    }
}

impl Recurrence {
    /// Adds what a part of a scheme's name says of the products of chunks; false if it says nothing of them.
    pub(crate) fn set_products(&mut self, part: &str) -> bool {
        let none = Products { scores: None, fp8_values: false, sub: SUB };
        let so_far = self.products.unwrap_or(none);
        let scores = |bits: &str, share| {
            let bits = bits.parse().ok().filter(|bits| (2..=8).contains(bits))?;
            Some(Scores { bits, share, smooth: Smooth::None })
        };
        let set = if part == "svfp8" {
            Some(Products { fp8_values: true, ..so_far })
        } else if let Some(bits) = part.strip_prefix("qk") {
            let scores = match bits.strip_suffix("row") {
                Some(bits) => scores(bits, Share::Row),
                None => scores(bits, Share::Block),
            };
            scores.map(|scores| Products { scores: Some(scores), ..so_far })
        } else if let Some((_, smooth)) = SMOOTHED.into_iter().find(|(name, _)| *name == part) {
            let scores = so_far.scores.map(|scores| Scores { smooth, ..scores });
            scores.map(|scores| Products { scores: Some(scores), ..so_far })
        } else if let Some(sub) = part.strip_prefix("sub") {
            let sub = sub.parse().ok().filter(|sub| SUBS.contains(sub) && self.products.is_some());
            sub.map(|sub| Products { sub, ..so_far })
        } else {
            None
        };
        self.products = set.or(self.products);
        set.is_some()
    }
}
