//! The names of schemes: written, read, and listed. [`Scheme`] has the table of their parts.

use super::calibrate::Observer;
use super::rows::RowWidths;
use super::scheme::{Budget, Hessians, Rule, Scheme};
use crate::error::{Error, Result};
use crate::format::{Coding, Format};
use crate::layer::attention::Width;
use crate::layer::recurrence::{Recurrence, StateBits};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

impl Scheme {
    /// Of which parts a name is made, as the command line tells it.
    pub const GRAMMAR: &str = "\
A name is a format and the bits of the activations, then any of the parts below, joined by -.

gguf             the blocks of a GGUF file packed as they are (Q8_0, Q5_0, Q5_1, Q4_0, Q4_1); the rest as it is
w2 … w8, w16     signed integers by row; w16 leaves weights as they are
u2 … u8          integers with a zero point
nf4, nf4dq, fp8, mxfp4, nvfp4, ternary
a2 … a8, a16     activations as integers, right after the format (w4a8, nf4a8, ggufa8)
g64, b64         groups of 64 columns, blocks of 64 values; also row, tensor
mse              scales that clip, for least squared error; q99.99: at this quantile, in percent
sf16, sf32       scales of integers in f16 or f32 in place of bf16; sf16late: codes chosen before the scale is rounded
floor0.5         the least value that reaches the top: runs of smaller ones have its scale, and compress better
static           one scale for all tokens; also static99.9 (percent), staticmse, perchannel
rot              rotated by a randomized Hadamard matrix
smooth0.5        outliers moved from activations to weights (SmoothQuant)
gptq             codes chosen by GPTQ on the inputs that matrices have in the model as it is
gptqseq          the same block by block, on the inputs that rounded blocks leave (the paper's way, twice the
                 reading); gptqtrueseq: matrix by matrix. Activations are not rounded meanwhile
rowsfisher5.5    a width for each row of integers, so many bits a weight in the mean (without a number: as many as make a packed
                 file as large as that of the format alone): by the square of gradients on the
                 calibration text; rowsgrad: by their logarithms; rowscost: by what rounding costs to second
                 order; rowskl: by the KL of each row alone in 4 bits, measured (as many readings of the text as there are
                 rows); rowsmag: by the row's largest weight; rowsftle: by the rule published as FTLE
mix4.25          each matrix in the width that its sensitivity earns, so many bits a weight in all, which it
                 measures: the KL of every part at 4 bits on 1,024 tokens; mix1460608B: so many bytes in all
x8, bc8          a recurrence's input; what writes and reads its state (B and C, keys and queries)
h8, h16          a recurrence's state in 8 bits; in bf16
h8ef8, h8ef4     with error feedback, its residual in 8 or 4 bits: 16 or 12 bits a value in all
h8ef             with a residual in f32: 40 bits a value, more than a state in f32 that needs none
qk4, qk8, qk4row queries with keys of a recurrence's chunks (C with B) as integers, a scale for each sub-chunk, or each row
smoothk, smoothq, smoothqk
                 the means of their keys, queries or both taken away before, and given back in f32 (SageAttention2);
                 smoothqkdrop: without the terms that are constant in a row, as softmax allows
svfp8            their scores with the values in FP8 E4M3
sub8, sub32      sub-chunks of so many tokens; else 16
kv8, kv4, kv16   the keys and values that attention keeps: integers by head and token; bf16
kv8c, kv4c       the same, keys by channel over 32 tokens (KIVI), in f32 until there are so many
f32, bf16, f16   the dtype of all that is not quantized; stored: as the model is
lossless         which keeps every bit in fewer: 12 for bf16, 28 for f32 (also alone: as stored)
+dt=w8           another format for a role or a segment of the model's, or a path with * and ?; +head=keep for none.
                 The head has 8 bits where activations have 8, else stays as it is";

    /// Common schemes, for lists and for suggestions.
    pub fn presets() -> Vec<(&'static str, &'static str)> {
        vec![
            ("f32", "single precision"),
            ("bf16", "bfloat16"),
            ("f16", "half precision"),
            (
                "f32-lossless",
                "single precision in 28 bits: the same values, exponents coded; faster with AVX-512, hardly with AVX2 alone",
            ),
            ("bf16-lossless", "bfloat16 in 12 bits, likewise"),
            ("gguf", "the blocks of a GGUF file packed as they are"),
            ("ggufa8", "the same, 8-bit activations by token"),
            ("w8a8", "8-bit weights by row, 8-bit activations by token, the head too"),
            ("w4a16", "4-bit weights by row"),
            ("w4a8", "4-bit weights by row, 8-bit activations, the head in 8 bits"),
            ("w4a4", "4-bit weights by row, 4-bit activations"),
            ("w4a8-g64", "4-bit weights in groups of 64, 8-bit activations"),
            ("w4a8-g64-gptq", "the same, codes chosen by GPTQ"),
            ("w4a8-g64-gptqseq", "the same, block by block on the inputs that rounded blocks leave"),
            ("w4a4-g64-rot-gptq", "4 bits everywhere, rotated, codes chosen by GPTQ"),
            ("w4a16-g64-mix4.5", "mixed widths of 4.5 bits a weight in all"),
            ("nf4", "NF4 in blocks of 64"),
            ("nf4dq", "NF4 with double quantization"),
            ("fp8", "FP8 E4M3 weights by row"),
            ("mxfp4", "FP4 with power-of-two scales by 32"),
            ("nvfp4", "FP4 with FP8 scales by 16"),
            ("ternary", "−1, 0, 1"),
        ]
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = vec![];
        let mut dtype = self.dtype.clone();
        match &self.weights {
            None if self.blocks => {
                parts.push(self.activations.map_or("gguf".into(), |bits| format!("ggufa{bits}")));
            }
            None if self.keeps_values() => match dtype.take() {
                Some(dtype) => parts.push(dtype),
                None if self.lossless => {}
                None => parts.push("stored".to_string()),
            },
            None => parts.push(format!("w16a{}", self.activations.unwrap_or(16))),
            Some(coding) => {
                let bits = match (self.activations, coding.format) {
                    (Some(bits), _) => format!("a{bits}"),
                    (None, Format::Int(_) | Format::Uint(_)) => "a16".to_string(),
                    (None, _) => String::new(),
                };
                parts.push(format!("{}{bits}", coding.format));
                parts.extend(coding.details());
            }
        }
        parts.extend(self.observer.map(|observer| observer.to_string()));
        parts.extend(self.rotation.map(|seed| if seed == 0 { "rot".into() } else { format!("rot{seed}") }));
        parts.extend(self.smooth.map(|exponent| format!("smooth{exponent}")));
        let hessians = Hessians::NAMES.into_iter().filter(|(_, hessians)| self.gptq == Some(*hessians));
        parts.extend(hessians.map(|(name, _)| name.to_string()));
        parts.extend(self.rows.map(|rows| rows.to_string()));
        parts.extend(self.budget.map(|budget| format!("mix{budget}")));
        let Recurrence { x, bc, state, products } = self.recurrence;
        parts.extend(x.map(|bits| format!("x{bits}")));
        parts.extend(bc.map(|bits| format!("bc{bits}")));
        parts.extend(state.map(|state| format!("h{state}")));
        parts.extend(products.map(|products| products.to_string()));
        parts.extend(self.cache.name().map(|width| format!("kv{width}")));
        parts.extend(dtype);
        parts.extend(self.lossless.then(|| "lossless".to_string()));
        f.write_str(&parts.join("-"))?;
        for Rule { pattern, coding } in &self.rules {
            match coding {
                Some(coding) => write!(f, "+{pattern}={coding}")?,
                None => write!(f, "+{pattern}=keep")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown = |what: String| {
            let mut near: Vec<(usize, &str)> = Self::presets()
                .into_iter()
                .map(|(preset, _)| (strsim::damerau_levenshtein(name, preset), preset))
                .collect();
            near.sort();
            let near: Vec<&str> = near.iter().take(3).map(|(_, preset)| *preset).collect();
            Error::input(what)
                .at(format!("scheme {name:?}"))
                .hint(format!("near it are {}; `lowbit schemes` lists the parts of a name", near.join(", ")))
        };
        let mut sections = name.split('+');
        let mut parts = sections.next().unwrap_or_default().split('-');
        let mut scheme = base(parts.next().unwrap_or_default())
            .ok_or_else(|| unknown("no number format begins like this".to_string()))?;
        for part in parts {
            scheme.set(part).ok_or_else(|| unknown(format!("unknown part {part:?}")))?;
        }
        for rule in sections {
            let (pattern, coding) = rule
                .split_once('=')
                .filter(|(pattern, _)| !pattern.is_empty())
                .ok_or_else(|| unknown(format!("expected pattern=format after +, found {rule:?}")))?;
            let coding = match coding {
                "keep" => None,
                coding => Some(coding.parse().map_err(|error: Error| error.at(format!("scheme {name:?}")))?),
            };
            scheme.rules.push(Rule { pattern: pattern.to_string(), coding });
        }
        Ok(scheme)
    }
}

/// The first part of a name: a dtype, or a format with the bits of the activations.
fn base(part: &str) -> Option<Scheme> {
    if ["f32", "bf16", "f16"].contains(&part) {
        return Some(Scheme::plain(part));
    }
    if part == "stored" {
        return Some(Scheme::default());
    }
    if part == "lossless" {
        return Some(Scheme::lossless());
    }
    let (format, bits) = match part.rsplit_once('a') {
        Some((format, bits)) if !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) => {
            (format, bits)
        }
        _ => (part, "16"),
    };
    let activations = match bits.parse().ok()? {
        16 => None,
        bits @ 2..=8 => Some(bits),
        _ => return None,
    };
    if format == "gguf" {
        return Some(Scheme { activations, ..Scheme::gguf() });
    }
    let weights = if format == "w16" { None } else { Some(Coding::of(format.parse().ok()?)) };
    Some(Scheme { weights, activations, ..Scheme::default() })
}

impl Scheme {
    /// Adds what a further part of a name says; nothing if it says nothing.
    fn set(&mut self, part: &str) -> Option<()> {
        let bits = |text: &str| text.parse().ok().filter(|bits| (2..=8).contains(bits));
        if Coding::of(Format::Int(8)).set(part) {
            self.weights.as_mut()?.set(part);
        } else if let Some((_, hessians)) = Hessians::NAMES.into_iter().find(|(name, _)| *name == part) {
            self.weights?;
            self.gptq = Some(hessians);
        } else if let Some(observer) = Observer::named(part) {
            self.activations?;
            self.observer = Some(observer);
        } else if let Some(seed) = part.strip_prefix("rot") {
            self.rotation = Some(if seed.is_empty() { 0 } else { seed.parse().ok()? });
        } else if self.recurrence.set_products(part) {
        } else if let Some(exponent) = part.strip_prefix("smooth") {
            let exponent: f32 = exponent.parse().ok()?;
            self.smooth = Some(exponent).filter(|exponent| (0.0..=1.0).contains(exponent));
            self.smooth?;
        } else if part.starts_with("rows") {
            self.weights?;
            self.rows = Some(RowWidths::named(part)?);
        } else if let Some(budget) = part.strip_prefix("mix") {
            self.weights?;
            self.budget = Some(match budget.strip_suffix('B') {
                Some(bytes) => Budget::Bytes(bytes.parse().ok().filter(|bytes| *bytes > 0)?),
                None => Budget::Bits(budget.parse().ok().filter(|b: &f64| *b > 0.0 && b.is_finite())?),
            });
        } else if let Some(width) = part.strip_prefix("kv") {
            self.cache = Width::named(width)?;
        } else if let Some(width) = part.strip_prefix("bc") {
            self.recurrence.bc = Some(bits(width)?);
        } else if let Some(width) = part.strip_prefix('x') {
            self.recurrence.x = Some(bits(width)?);
        } else if let Some(width) = part.strip_prefix('h') {
            self.recurrence.state = Some(StateBits::named(width)?);
        } else if ["f32", "bf16", "f16"].contains(&part) {
            self.dtype = Some(part.to_string());
        } else if part == "lossless" {
            self.lossless = true;
        } else {
            return None;
        }
        Some(())
    }
}

/// As its name.
impl Serialize for Scheme {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scheme {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_preset_has_its_own_name() {
        for (name, _) in Scheme::presets() {
            assert_eq!(name.parse::<Scheme>().unwrap().to_string(), name);
        }
        assert_eq!(Scheme::w4a4().rotated().gptq().grouped(64).to_string(), "w4a4-g64-rot-gptq");
        for name in [
            "lossless",
            "stored",
            "w16a16-h8-lossless",
            "w4a16-g64-bf16-lossless",
            "w16a16-f32-lossless+head=w8",
            "w4a4-rot-gptqseq",
            "w4a4-rot-gptqtrueseq",
            "w3a16-mix1460608B+head=w3",
            "w16a16-h8ef",
            "w16a16-h4ef8",
            "w16a16-kv4c",
            "w4a8-kv8c-bf16",
            "w5a16-sf16-rowsfisher5.5+head=w8",
            "w4a8-rowsftle",
            "gguf",
            "ggufa8-kv4-bf16+head=w8",
            "w16a16-qk4",
            "w4a8-qk8row-smoothk-svfp8-sub32",
            "w16a16-smooth0.5-bc8-qk4-smoothqkdrop-kv8-bf16",
            "w16a16-svfp8",
            "w6a16-q99.99984-sf16late-floor1",
            "w5a16-sf32-floor0.00000001+head=w8-sf16",
        ] {
            assert_eq!(name.parse::<Scheme>().unwrap().to_string(), name);
        }
        let ruled = Scheme::w4a8().with("dt", "w8".parse().unwrap()).without("backbone.layers.0.*");
        assert_eq!(ruled.to_string(), "w4a8+dt=w8+backbone.layers.0.*=keep");
        assert_eq!(ruled.to_string().parse::<Scheme>().unwrap(), ruled);
    }

    #[test]
    fn a_typo_is_told_with_names_near_it() {
        let error = |name: &str| name.parse::<Scheme>().unwrap_err().to_string();
        assert!(error("w4a9").contains("near it are w4a"), "{}", error("w4a9"));
        assert!(error("w4a8-g64-gtpq").contains("unknown part \"gtpq\"; near it are w4a8-g64-gptq"));
        assert!(error("w4a8+dt").contains("expected pattern=format after +"));
        assert!(error("w4a8+dt=int8").contains("unknown number format \"int8\""));
        for name in [
            "",
            "w1a8",
            "w4a16-static",
            "f32-g64",
            "w16a16-gptq",
            "w16a16-gptqseq",
            "w4a8-smooth2",
            "w4a8-mix-1",
            "w4a8-mix0B",
            "w4a8-mix4.5B",
            "w4a8-h9",
            "w4a8-h16ef",
            "w4a8-h8ef9",
            "w4a8-kv5",
            "w4a8-kv16c",
            "gguf-g64",
            "gguf-mse",
            "gguf-gptq",
            "w16a16-smoothqk",
            "w16a16-qk9",
            "w16a16-qk4-smoothkq",
            "w16a16-sub32",
            "w16a16-qk4-sub12",
            "q4_0",
            "w4a16-q40",
            "w4a16-floor0",
            "w4a16-rowsfisher9",
            "w4a16-rows",
            "w16a16-rowsmag",
            "w16a16-sf16",
        ] {
            assert!(name.parse::<Scheme>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn names_parse_back(
            format in 0usize..8, bits in 2u8..=8, group in 1usize..300, choices in any::<[bool; 13]>(),
            percent in 90u32..100, budget in 2.0f64..8.0, bytes in 1u64..1 << 40, hessians in 0usize..3,
        ) {
            let formats = [Format::Int(bits), Format::Uint(bits), Format::Nf4, Format::Nf4Double, Format::Fp8,
                Format::Mxfp4, Format::Nvfp4, Format::Ternary];
            let mut scheme = Scheme::of(formats[format], choices[0].then_some(bits));
            if choices[1] { scheme = scheme.grouped(group); }
            if choices[2] { scheme = scheme.clipped(); }
            if choices[0] && choices[3] { scheme = scheme.observed(Observer::Percentile(percent as f32 + 0.5)); }
            if choices[4] { scheme = scheme.rotated(); }
            if choices[5] { scheme = scheme.smoothed(0.75); }
            if choices[6] { scheme = scheme.gptq_on(Hessians::NAMES[hessians].1); }
            if choices[7] {
                scheme = scheme.budget(if choices[11] { Budget::Bytes(bytes) } else { Budget::Bits(budget) });
            }
            if choices[8] {
                let residual = Some(bits).filter(|_| choices[1] && choices[12]);
                let state = Some(StateBits { bits, feedback: choices[1], residual });
                scheme = scheme.recurrence(Recurrence { x: Some(bits), state, ..Recurrence::default() });
            }
            if choices[9] { scheme.dtype = Some("bf16".into()); }
            scheme.lossless = choices[10];
            prop_assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
        }
    }
}
