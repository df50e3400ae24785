//! The keys and values of the tokens read so far, in f32 or fewer bits.

use super::channels::{self, Channels};
use super::rows::{Rows, codes};
use std::fmt;

/// How a value of a cache is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Width {
    /// As it is.
    #[default]
    F32,
    /// The nearest bf16.
    Bf16,
    /// An integer of so many bits, 4 or 8, with a scale for the D values of a head and token: their largest over 2^(b−1) − 1.
    Int(u8),
    /// Values as [`Int`](Self::Int); keys as an integer of so many bits with a scale and a minimum, in bf16, for each channel
    /// over 32 tokens, and in f32 until there are so many.
    Channel(u8),
}

/// Keys and values of all heads of a layer, [head, position, D]: of the heads of one sequence, then of the next.
#[derive(Clone)]
pub struct Cache {
    width: Width,
    heads: usize,
    dim: usize,
    len: usize,
    /// Positions that there is memory for.
    capacity: usize,
    keys: Keys,
    values: Rows,
}

#[derive(Clone)]
enum Keys {
    Rows(Rows),
    Channels(Channels),
}

/// One of the two that a token leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Keys,
    Values,
}

impl Cache {
    /// A cache of `heads` heads (sequences × key heads) of `dim` values, nothing in it.
    pub fn new(heads: usize, dim: usize, width: Width) -> Self {
        let keys = match width {
            Width::Channel(bits) => Keys::Channels(Channels::new(heads, dim, bits)),
            _ => Keys::Rows(Rows::new(dim, width)),
        };
        Self { width, heads, dim, len: 0, capacity: 0, keys, values: Rows::new(dim, width) }
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it can go back to where `len` tokens were read: keys that were rounded by channel with later ones are not what
    /// they were.
    pub fn reaches(&self, len: usize) -> bool {
        let keys = match &self.keys {
            Keys::Rows(_) => true,
            Keys::Channels(keys) => keys.reaches(len),
        };
        keys && len <= self.len
    }

    /// Forgets the tokens from the `len`-th on, if it [reaches](Self::reaches) there; the memory stays.
    pub fn truncate(&mut self, len: usize) {
        if !self.reaches(len) {
            return;
        }
        self.len = len;
        if let Keys::Channels(keys) = &mut self.keys {
            keys.truncate(len);
        }
    }

    /// Bytes of what is in it, scales included.
    pub fn bytes(&self) -> usize {
        let values = self.heads * self.len * self.width.value_bytes(self.dim);
        match &self.keys {
            Keys::Rows(_) => 2 * values,
            Keys::Channels(keys) => values + keys.bytes(),
        }
    }

    pub(super) fn fits(&self, heads: usize, dim: usize) -> bool {
        (self.heads, self.dim) == (heads, dim)
    }

    /// Appends tokens: `k` and `v` [B, T, key head, D].
    ///
    /// # Panics
    /// If they are of other sizes.
    pub fn push(&mut self, (batch, time): (usize, usize), k: &[f32], v: &[f32]) {
        let (shared, dim) = (self.heads / batch, self.dim);
        assert!(k.len() == self.heads * time * dim && v.len() == k.len());
        self.settle();
        self.reserve(time);
        let place =
            |head: usize, token: usize| ((head / shared * time + token) * shared + head % shared) * dim;
        for head in 0..self.heads {
            for token in 0..time {
                let (row, at) = (head * self.capacity + self.len + token, place(head, token));
                if let Keys::Rows(keys) = &mut self.keys {
                    keys.write(row, &k[at..][..dim]);
                }
                self.values.write(row, &v[at..][..dim]);
            }
        }
        if let Keys::Channels(keys) = &mut self.keys {
            keys.push(self.capacity, time, |head, token| &k[place(head, token)..][..dim]);
        }
        self.len += time;
    }

    /// Lets go of what only the queries of the tokens pushed last need.
    pub fn settle(&mut self) {
        if let Keys::Channels(keys) = &mut self.keys {
            keys.settle();
        }
    }

    /// Makes room for `more` tokens: where there is too little, for half as many as there were room for, at least.
    pub fn reserve(&mut self, more: usize) {
        let len = self.len + more;
        if len <= self.capacity {
            return;
        }
        let unit = if matches!(self.keys, Keys::Channels(_)) { channels::GROUP } else { 16 };
        let capacity = len.max(self.capacity + self.capacity / 2).next_multiple_of(unit);
        let from = (self.capacity, self.len);
        match &mut self.keys {
            Keys::Rows(keys) => keys.grow(self.heads, from, capacity),
            Keys::Channels(keys) => keys.grow(from, capacity),
        }
        self.values.grow(self.heads, from, capacity);
        self.capacity = capacity;
    }

    /// How many keys the query of token `token` finds as they are stored to stay; those behind are as they were pushed.
    pub(super) fn settled(&self, token: usize) -> usize {
        match self.keys {
            Keys::Rows(_) => usize::MAX,
            Keys::Channels(_) => channels::settled(token),
        }
    }

    /// The keys or values [count, D] of a head from a position on, for queries that find so many `settled`; `wide` is room
    /// for those that are not f32.
    pub(super) fn read<'a>(
        &'a self,
        of: Of,
        head: usize,
        (first, count): (usize, usize),
        settled: usize,
        wide: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let row = head * self.capacity + first;
        match (of, &self.keys) {
            (Of::Values, _) => self.values.read(row, count, wide),
            (Of::Keys, Keys::Rows(keys)) => keys.read(row, count, wide),
            (Of::Keys, Keys::Channels(keys)) => keys.read((head, self.capacity), first, count, settled, wide),
        }
    }

    /// All keys and values in f32 as the last token finds them, each [head, position, D].
    pub fn widened(&self) -> [Vec<f32>; 2] {
        let (mut wide, settled) = (vec![], self.len.checked_sub(1).map_or(0, |last| self.settled(last)));
        [Of::Keys, Of::Values].map(|of| {
            let heads = 0..self.heads;
            heads.flat_map(|head| self.read(of, head, (0, self.len), settled, &mut wide).to_vec()).collect()
        })
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { heads, dim, len, width, .. } = self;
        write!(f, "Cache({heads} × {len} × {dim}, {width:?})")
    }
}

impl Width {
    /// The width of this name, as schemes have it: `16`, `8`, `4`, and `8c`, `4c` with keys by channel.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "16" => Some(Self::Bf16),
            "8" => Some(Self::Int(8)),
            "4" => Some(Self::Int(4)),
            "8c" => Some(Self::Channel(8)),
            "4c" => Some(Self::Channel(4)),
            _ => None,
        }
    }

    /// Its name; none for f32.
    pub fn name(self) -> Option<String> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some("16".to_string()),
            Self::Int(bits) => Some(bits.to_string()),
            Self::Channel(bits) => Some(format!("{bits}c")),
        }
    }

    /// Bytes of the keys and values of a head after `len` tokens, scales included.
    pub fn bytes(self, dim: usize, len: usize) -> usize {
        let values = len * self.value_bytes(dim);
        match self {
            Self::Channel(bits) => values + Channels::bytes_of(dim, bits, len),
            _ => 2 * values,
        }
    }

    /// Bytes of the values of a head and token, the scale included.
    fn value_bytes(self, dim: usize) -> usize {
        match self {
            Self::F32 => 4 * dim,
            Self::Bf16 => 2 * dim,
            Self::Int(bits) | Self::Channel(bits) => codes(dim, bits) + size_of::<f32>(),
        }
    }
}
