//! The matrices of a model that can be quantized: what they are called and what they are for.

/// A matrix that can be quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Path of its linear, such as `backbone.layers.0.mixer.in_proj`.
    pub path: String,
    /// Name of its tensor.
    pub weight: String,
    /// Number of the block that it is in; none at the ends of the network.
    pub layer: Option<usize>,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// What it is for: `in_proj`, `out_proj`, `head`, `embedding`; a tied head is both of the last two.
    pub roles: Vec<&'static str>,
    /// Parts of its rows with a meaning of their own, from the first row down; empty where there are none.
    pub segments: Vec<Segment>,
    /// Whether it is quantized unless a scheme says otherwise.
    pub by_default: bool,
    /// Name of the tensor by which the norm before it scales its inputs; none where other layers see these too.
    pub norm: Option<String>,
    /// How it is tied to the residual stream.
    pub residual: Residual,
}

/// A part of a matrix's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its name, such as `dt`.
    pub name: &'static str,
    /// Its rows.
    pub rows: usize,
}

/// How a matrix is tied to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// It reads the normed stream.
    Reads,
    /// It adds to the stream.
    Writes,
    /// It begins or ends it.
    Ends,
}
