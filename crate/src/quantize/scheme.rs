//! [`Scheme`]: what is quantized, to what, and how.

use super::calibrate::Observer;
use super::rows::RowWidths;
use crate::format::{Clip, Coding, Format, Granularity};
use crate::layer::attention::Width;
use crate::layer::recurrence::Recurrence;
use std::fmt;

/// A quantization: plain data, with a canonical short name that parses back.
///
/// ```
/// use lowbit::quantize::Scheme;
/// let scheme = Scheme::w4a8().grouped(64).gptq();
/// assert_eq!(scheme.to_string(), "w4a8-g64-gptq");
/// assert_eq!("w4a8-g64-gptq".parse::<Scheme>()?, scheme);
/// # Ok::<(), lowbit::Error>(())
/// ```
///
/// The name is the format and the bits of the activations, then what differs from the plainest form, in this order:
///
/// | part | means |
/// |---|---|
/// | `w4`, `u4`, `nf4`, `nf4dq`, `fp8`, `mxfp4`, `nvfp4`, `ternary` | the weights' format ([`Format`]); `w16`: as they are |
/// | `gguf` | the blocks that a GGUF file has the weights in, packed as they are; the rest as it is |
/// | `a8` | activations as integers of 8 bits; `a16`: as they are |
/// | `g64`, `b64`, `row`, `tensor` | which weights share a scale ([`Granularity`]) |
/// | `mse`, `q99.99` | scales that clip, for least squared error or at a quantile in percent ([`Clip`]) |
/// | `sf16`, `sf16late`, `sf32` | how the scales of integers are stored, in place of bf16 ([`Stored`](crate::format::Stored)) |
/// | `floor0.5` | the least value that reaches the top of the range ([`Coding::floor`]) |
/// | `static`, `static99.9`, `staticmse` | one scale for all tokens of an input, by calibration ([`Observer`]) |
/// | `rot` | rotated by a randomized Hadamard matrix |
/// | `smooth0.5` | outliers moved from activations to weights (SmoothQuant) with this exponent |
/// | `gptq` | codes chosen by GPTQ on the inputs that matrices have in the model as it is ([`Hessians`]) |
/// | `gptqseq`, `gptqtrueseq` | the same block by block, or matrix by matrix, on inputs that what is rounded leaves |
/// | `rowsfisher5.5`, `rowsgrad`, `rowscost`, `rowskl`, `rowsmag`, `rowsftle` | a width for each row, so many bits a weight in the mean, or as many as the bytes of the format alone ([`rows`](super::rows)) |
/// | `mix4.25`, `mix1460608B` | each matrix in the width that it earns, so many bits a weight, or bytes, in all |
/// | `x8`, `bc8`, `h8`, `h16` | a recurrence's input, what writes and reads its state (B and C, keys and queries), its state; its state in bf16 |
/// | `h8ef8`, `h8ef` | a state with error feedback, the residual in 8 bits, or in f32: then 40 bits a value |
/// | `qk4`, `qk8row`, `smoothqk`, `svfp8`, `sub32` | the products of a recurrence's chunks ([`Products`](crate::kernel::scan::products::Products)) |
/// | `kv8`, `kv4`, `kv16` | the keys and values that attention keeps: integers by head and token; bf16 |
/// | `kv8c`, `kv4c` | the same with a scale and a minimum of the keys for each channel over 32 tokens |
/// | `bf16` | the dtype of all that is not quantized |
/// | `lossless` | what is not quantized keeps every bit in fewer: 12 for bf16, 28 for f32 ([`Coded`](crate::kernel::coded::Coded)) |
/// | `+dt=w8`, `+head=nf4`, `+*.3.*=keep` | other formats, or none, for roles, segments or paths; the last that fits holds |
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scheme {
    /// Format of the weights in scope; none leaves them as they are.
    pub weights: Option<Coding>,
    /// Whether matrices that were read in blocks of a GGUF file keep their codes and scales.
    pub blocks: bool,
    /// Bits of activations, 2 … 8; none leaves them as they are.
    pub activations: Option<u8>,
    /// How one scale for all tokens is found; none: each token has its own.
    pub observer: Option<Observer>,
    /// Seed of a rotation.
    pub rotation: Option<u64>,
    /// Exponent of SmoothQuant.
    pub smooth: Option<f32>,
    /// The inputs on which GPTQ chooses codes; none: codes are the nearest.
    pub gptq: Option<Hessians>,
    /// How the widths of rows are chosen; none: they are all those of the format.
    pub rows: Option<RowWidths>,
    /// What mixed widths may use.
    pub budget: Option<Budget>,
    /// Bits of what goes through the recurrence.
    pub recurrence: Recurrence,
    /// How attention keeps keys and values.
    pub cache: Width,
    /// Dtype of all that is not quantized: f32, bf16, f16; none: the model's.
    pub dtype: Option<String>,
    /// Whether the exponents of all that is not quantized are coded: the same values, in fewer bits.
    pub lossless: bool,
    /// Exceptions, the last that fits first.
    pub rules: Vec<Rule>,
}

/// Of which inputs GPTQ's Hessians are taken.
///
/// "The quantization process operates not on the layer inputs in the full precision model but on the actual layer
/// inputs in the already partially quantized one" (Frantar et al. 2022, section 4): that is [`Blocks`](Self::Blocks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hessians {
    /// All at once, of the model before anything is rounded.
    Once,
    /// Block by block: blocks before this one are rounded already, its own matrices are not.
    Blocks,
    /// Matrix by matrix, those before this one in its block rounded too (`--true-sequential` of the paper's program).
    Matrices,
}

impl Hessians {
    /// All, by the part of a name that asks for them.
    pub(super) const NAMES: [(&str, Self); 3] =
        [("gptq", Self::Once), ("gptqseq", Self::Blocks), ("gptqtrueseq", Self::Matrices)];
}

/// What the weights whose widths are chosen may take in all, scales included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bits a weight.
    Bits(f64),
    /// Bytes in all.
    Bytes(u64),
}

impl Budget {
    /// Bits for so many weights.
    pub(crate) fn bits(self, weights: u64) -> u64 {
        match self {
            Self::Bits(bits) => (bits * weights as f64).floor() as u64,
            Self::Bytes(bytes) => bytes.saturating_mul(8),
        }
    }
}

/// Bits a weight.
impl From<f64> for Budget {
    fn from(bits: f64) -> Self {
        Self::Bits(bits)
    }
}

/// As in the name of a scheme: `4.25`, or `1460608B`.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits(bits) => write!(f, "{bits}"),
            Self::Bytes(bytes) => write!(f, "{bytes}B"),
        }
    }
}

/// An exception of a scheme.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// A role of the model's matrices (`head`), a segment of theirs (`dt` of a Mamba2), or a pattern with `*` and `?` for paths (`backbone.layers.0.*`).
    pub pattern: String,
    /// The format there; none leaves it as it is.
    pub coding: Option<Coding>,
}

impl Scheme {
    pub(super) fn of(format: Format, activations: Option<u8>) -> Self {
        Self { weights: Some(Coding::of(format)), activations, ..Self::default() }
    }

    pub(super) fn plain(dtype: &str) -> Self {
        Self { dtype: Some(dtype.to_string()), ..Self::default() }
    }

    /// Format of an output matrix that no rule names. It is the largest matrix of most models, and is read for every
    /// token: where activations are integers of 8 bits, it has 8 bits too; else it stays as it is. So it does where
    /// inputs are scaled by channel, which takes a norm before the matrix, and where a budget is shared out.
    pub fn head(&self) -> Option<Coding> {
        let by_channel = self.smooth.is_some() || self.observer == Some(Observer::Channel);
        let integers = self.weights.is_some() && self.activations == Some(8);
        (integers && !by_channel && self.budget.is_none()).then(|| Coding::of(Format::Int(8)))
    }

    /// Single precision.
    pub fn f32() -> Self {
        Self::plain("f32")
    }

    /// bfloat16.
    pub fn bf16() -> Self {
        Self::plain("bf16")
    }

    /// Half precision.
    pub fn f16() -> Self {
        Self::plain("f16")
    }

    /// As the model is stored, every bit of it in fewer: 12 for bf16, 28 for f32.
    pub fn lossless() -> Self {
        Self { lossless: true, ..Self::default() }
    }

    /// The blocks of a GGUF file packed as they are, what is in none as it is.
    pub fn gguf() -> Self {
        Self { blocks: true, ..Self::default() }
    }

    /// Weights and activations of 8 bits.
    pub fn w8a8() -> Self {
        Self::of(Format::Int(8), Some(8))
    }

    /// Weights of 4 bits.
    pub fn w4a16() -> Self {
        Self::of(Format::Int(4), None)
    }

    /// Weights of 4 bits, activations of 8.
    pub fn w4a8() -> Self {
        Self::of(Format::Int(4), Some(8))
    }

    /// Weights and activations of 4 bits.
    pub fn w4a4() -> Self {
        Self::of(Format::Int(4), Some(4))
    }

    /// NF4 weights in blocks of 64.
    pub fn nf4() -> Self {
        Self::of(Format::Nf4, None)
    }

    /// NF4 weights with double quantization.
    pub fn nf4_double() -> Self {
        Self::of(Format::Nf4Double, None)
    }

    /// FP8 weights.
    pub fn fp8() -> Self {
        Self::of(Format::Fp8, None)
    }

    /// Ternary weights.
    pub fn ternary() -> Self {
        Self::of(Format::Ternary, None)
    }

    /// Groups of `size` columns share a scale.
    #[must_use]
    pub fn grouped(mut self, size: usize) -> Self {
        self.weights = self.weights.map(|coding| coding.shared_by(Granularity::Group(size)));
        self
    }

    /// Scales that clip, for least squared error.
    #[must_use]
    pub fn clipped(mut self) -> Self {
        self.weights = self.weights.map(|coding| Coding { clip: Clip::Mse, ..coding });
        self
    }

    /// Codes chosen by GPTQ, on the inputs of the model as it is.
    #[must_use]
    pub fn gptq(self) -> Self {
        self.gptq_on(Hessians::Once)
    }

    /// Codes chosen by GPTQ, on these inputs.
    #[must_use]
    pub fn gptq_on(mut self, hessians: Hessians) -> Self {
        self.gptq = Some(hessians);
        self
    }

    /// Rotated by a randomized Hadamard matrix.
    #[must_use]
    pub fn rotated(mut self) -> Self {
        self.rotation = Some(0);
        self
    }

    /// Outliers moved from activations to weights with this exponent, ½ being customary.
    #[must_use]
    pub fn smoothed(mut self, exponent: f32) -> Self {
        self.smooth = Some(exponent);
        self
    }

    /// One scale for all tokens of an input.
    #[must_use]
    pub fn observed(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Mixed widths that take so many bits a weight in all, or so many [bytes](Budget::Bytes).
    #[must_use]
    pub fn budget(mut self, budget: impl Into<Budget>) -> Self {
        self.budget = Some(budget.into());
        self
    }

    /// Quantizes what goes through the recurrence.
    #[must_use]
    pub fn recurrence(mut self, recurrence: Recurrence) -> Self {
        self.recurrence = recurrence;
        self
    }

    /// Quantizes the keys and values that attention keeps.
    #[must_use]
    pub fn cache(mut self, width: Width) -> Self {
        self.cache = width;
        self
    }

    /// Another format for a role, a segment or paths.
    #[must_use]
    pub fn with(mut self, pattern: &str, coding: Coding) -> Self {
        self.rules.push(Rule { pattern: pattern.to_string(), coding: Some(coding) });
        self
    }

    /// Leaves a role, a segment or paths as they are.
    #[must_use]
    pub fn without(mut self, pattern: &str) -> Self {
        self.rules.push(Rule { pattern: pattern.to_string(), coding: None });
        self
    }

    /// Whether it changes nothing but the dtype.
    pub fn is_plain(&self) -> bool {
        !self.lossless && self.keeps_values()
    }

    /// Whether the model computes what its dtype does.
    pub(super) fn keeps_values(&self) -> bool {
        Self { dtype: None, lossless: false, ..self.clone() } == Self::default()
    }

    /// Whether its matrices read other numbers than the model's: rotated, smoothed, or scaled by channel.
    pub fn moves_inputs(&self) -> bool {
        let by_channel = self.observer == Some(Observer::Channel) && self.activations.is_some();
        self.rotation.is_some() || self.smooth.is_some() || by_channel
    }

    /// Whether it needs a text to be read.
    pub fn needs_calibration(&self) -> bool {
        let rows = self.rows.is_some_and(RowWidths::needs_text);
        rows || self.gptq.is_some()
            || self.observer.is_some()
            || self.smooth.is_some()
            || self.budget.is_some()
    }

    /// How codes and scales are chosen, in words.
    pub fn method(&self) -> String {
        let steps = [
            (self.blocks, "blocks as stored".to_string()),
            (self.rotation.is_some(), "rotation".to_string()),
            (self.smooth.is_some(), "smoothing".to_string()),
            (self.budget.is_some(), "mixed precision".to_string()),
            (self.rows.is_some(), "widths by row".to_string()),
            (self.gptq == Some(Hessians::Once), "gptq".to_string()),
            (self.gptq == Some(Hessians::Blocks), "gptq block by block".to_string()),
            (self.gptq == Some(Hessians::Matrices), "gptq matrix by matrix".to_string()),
            (self.gptq.is_none() && self.weights.is_some(), "nearest".to_string()),
            (self.lossless, "exponents coded".to_string()),
        ];
        let steps: Vec<String> = steps.into_iter().filter(|step| step.0).map(|step| step.1).collect();
        steps.join(", ")
    }
}

impl From<&Scheme> for Scheme {
    fn from(scheme: &Scheme) -> Self {
        scheme.clone()
    }
}
