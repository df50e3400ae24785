//! What can be left out of a network whole, so that a smaller network of the same family is left: structured pruning.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A part that can be left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What it is.
    pub kind: Kind,
    /// The setting of the config that says how many of them there are.
    pub setting: &'static str,
    /// Number of its block.
    pub layer: usize,
    /// The expert that it is, or is part of.
    pub expert: Option<usize>,
    /// Its number among those of its kind in its block, or in its expert.
    pub at: usize,
    /// Its slices of tensors that remain.
    pub slices: Vec<Slice>,
    /// The tensors that it is all of: those whose names begin with this and its number. Those of higher numbers move up.
    pub whole: Option<String>,
    /// The columns of a matrix, by its path, through which all that it computes goes on; those of a dropped one too.
    pub read: Vec<(String, Range<usize>)>,
}

/// Groups among which some must stay: those of one kind and setting in one block, channels in one expert.
pub type Place = (usize, Kind, &'static str, Option<usize>);

impl Group {
    /// The `at`-th of a setting in a block, all of whose output goes on through columns of the matrix at `read`.
    pub(super) fn new(
        (kind, setting): (Kind, &'static str),
        (layer, at): (usize, usize),
        slices: Vec<Slice>,
        read: (String, Range<usize>),
    ) -> Self {
        Self { kind, setting, layer, expert: None, at, slices, whole: None, read: vec![read] }
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        let expert = if self.kind == Kind::Expert { None } else { self.expert };
        (self.layer, self.kind, self.setting, expert)
    }
}

/// How many of those that a setting counts are left out, of each place as many.
pub(super) fn left_out_of(setting: &str, left_out: &[&Group]) -> usize {
    let mut places: BTreeMap<Place, usize> = BTreeMap::new();
    for group in left_out.iter().filter(|group| group.setting == setting) {
        *places.entry(group.place()).or_default() += 1;
    }
    places.into_values().max().unwrap_or(0)
}

/// The key heads of attention at `path`, each with the query heads that share it: query heads, key heads, values of a head; with a bias
/// on what makes them, or without.
pub(super) fn key_heads(
    layer: usize,
    path: &str,
    (heads, shared, dim): (usize, usize, usize),
    bias: bool,
) -> impl Iterator<Item = Group> {
    let each = heads / shared.max(1) * dim;
    (0..shared).map(move |head| {
        let (keys, queries) = (head * dim..(head + 1) * dim, head * each..(head + 1) * each);
        let mut slices = vec![];
        for (name, rows) in [("q_proj", &queries), ("k_proj", &keys), ("v_proj", &keys)] {
            slices.push(Slice::new(format!("{path}.{name}.weight"), 0, rows.clone()));
            if bias {
                slices.push(Slice::new(format!("{path}.{name}.bias"), 0, rows.clone()));
            }
        }
        slices.push(Slice::new(format!("{path}.o_proj.weight"), 1, queries.clone()));
        let read = (format!("{path}.o_proj"), queries);
        Group::new((Kind::Head, "num_key_value_heads"), (layer, head), slices, read)
    })
}

/// Rows, columns or whatever lies along an axis of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Name of the tensor.
    pub tensor: String,
    /// The axis.
    pub axis: usize,
    /// Where, along it.
    pub range: Range<usize>,
}

impl Slice {
    /// Of a tensor along an axis.
    pub fn new(tensor: impl Into<String>, axis: usize, range: Range<usize>) -> Self {
        Self { tensor: tensor.into(), axis, range }
    }

    /// One row, or whatever lies along the first axis.
    pub fn row(tensor: impl Into<String>, at: usize) -> Self {
        Self::new(tensor, 0, at..at + 1)
    }

    /// One column.
    pub fn column(tensor: impl Into<String>, at: usize) -> Self {
        Self::new(tensor, 1, at..at + 1)
    }
}

/// What a [`Group`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A whole expert, with its row of the router.
    Expert,
    /// A channel inside a feed-forward layer, or inside an expert: rows of what makes it and a column of what reads it.
    Channel,
    /// An inner channel: of a state space, or a direction of queries of low rank.
    Inner,
    /// A head: of a state space, or a key head with the query heads that share it.
    Head,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Expert, Self::Channel, Self::Inner, Self::Head];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expert => "expert",
            Self::Channel => "channel",
            Self::Inner => "inner",
            Self::Head => "head",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = crate::error::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = || {
            let names = Self::ALL.map(Self::name);
            crate::error::Error::input(format!("unknown kind of part {name:?}"))
                .hint(format!("known are {}", names.join(", ")))
        };
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(known)
    }
}
