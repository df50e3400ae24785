//! The matrices of a model that can be quantized: what they are called and what they are for.

use super::{Ends, Family, Sizes};

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
    /// The expert of its block that it is part of, by number: it reads those tokens alone that the block's router (role `router`)
    /// chose the expert for. None of what reads all tokens.
    pub expert: Option<usize>,
    /// What it is for, in the words of its family: `in_proj`, `q_proj`, …; `head`, `embedding`, a tied head is both of these.
    pub roles: Vec<&'static str>,
    /// Parts of its rows with a meaning of their own, from the first row down; empty where there are none.
    pub segments: Vec<Segment>,
    /// Whether it is quantized unless a scheme says otherwise.
    pub by_default: bool,
    /// Name of the tensor by which the norm before it scales its inputs. Sites of one norm are all that read it; none where
    /// inputs come from no norm, or from one that others than sites read too.
    pub norm: Option<String>,
    /// The matrix that its inputs grow with, row by row; none where there is no such one.
    pub fed: Option<Fed>,
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

/// Inputs that grow with the rows of another matrix: if row r of it is multiplied by a number, so is every channel c of the
/// input with [`row`](Self::row)(c) = r. Values pass through attention so, and the half of a gated layer that is not the
/// gate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fed {
    /// Path of that matrix.
    pub path: String,
    /// Channels of a head.
    pub head: usize,
    /// Heads, one after the other, that share the rows of one.
    pub shared: usize,
    /// The first row that any channel grows with.
    pub first: usize,
}

impl Fed {
    /// The row that a channel of the input grows with.
    pub fn row(&self, channel: usize) -> usize {
        self.first + channel / (self.head * self.shared) * self.head + channel % self.head
    }
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
    /// It has to do with it by other matrices alone.
    Apart,
}

impl Site {
    /// The matrix `path`.weight of these sizes, quantized by default unless it is at an end; everything else is left open.
    pub fn new(path: String, (rows, cols): (usize, usize), role: &'static str, residual: Residual) -> Self {
        Self {
            weight: format!("{path}.weight"),
            path,
            layer: None,
            rows,
            cols,
            expert: None,
            roles: vec![role],
            segments: vec![],
            by_default: residual != Residual::Ends,
            norm: None,
            fed: None,
            residual,
        }
    }

    /// What it is within its block: its first role, with the number of its expert; at the ends of the network all of its roles.
    pub fn part(&self) -> String {
        match (self.layer, self.expert) {
            (None, _) => self.roles.join("|"),
            (_, None) => self.roles[0].to_string(),
            (_, Some(expert)) => format!("{}.{expert}", self.roles[0]),
        }
    }

    /// Whether rows of it are looked up and nothing is multiplied by it: it reads no activations.
    pub fn is_table(&self) -> bool {
        self.roles.contains(&"embedding") && !self.roles.contains(&"head")
    }

    /// The first block that reads something else when it changes, of so many; none where the residual stream begins with it, their number
    /// where only the head reads it.
    pub fn first_reader(&self, layers: usize) -> Option<usize> {
        match self.layer {
            Some(layer) => Some(layer),
            None if self.opens() => None,
            None => Some(layers),
        }
    }

    /// Whether what enters the first block depends on it.
    pub fn opens(&self) -> bool {
        self.layer.is_none() && self.roles != ["head"]
    }

    /// Those of a network: of each layer, then of the ends.
    pub fn of_network(of: &impl Family, layer: impl FnMut(usize) -> Vec<Self>) -> Vec<Self> {
        let (sizes, ends) = (of.sizes(), of.ends());
        (0..sizes.layers).flat_map(layer).chain(Self::of_ends(ends, sizes, of.tied())).collect()
    }

    /// An embedding and a head, or the one matrix that is both, which is listed as the head.
    pub fn of_ends(ends: Ends, sizes: Sizes, tied: bool) -> Vec<Self> {
        let size = (sizes.vocabulary, sizes.hidden);
        let site = |path: &str, role| Self::new(path.to_string(), size, role, Residual::Ends);
        let (head, embedding) = (site(ends.head, "head"), site(ends.embedding, "embedding"));
        match tied {
            true => vec![Self { weight: embedding.weight, roles: vec!["head", "embedding"], ..head }],
            false => vec![embedding, head],
        }
    }
}

#[test]
fn heads_that_share_values_share_rows() {
    let fed = Fed { path: "v".into(), head: 3, shared: 2, first: 0 };
    let rows: Vec<usize> = (0..12).map(|channel| fed.row(channel)).collect();
    assert_eq!(rows, [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]);
    assert_eq!(Fed { first: 4, ..fed }.row(6), 7);
}
