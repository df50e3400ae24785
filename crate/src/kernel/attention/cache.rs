//! The keys and values of the tokens read so far, in f32 or fewer bits.

use crate::kernel::round::fake_int;
use half::bf16;
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
}

/// Keys and values of all heads of a layer, [head, position, D]: of the heads of one sequence, then of the next.
#[derive(Clone)]
pub struct Cache {
    heads: usize,
    dim: usize,
    len: usize,
    /// Positions that there is memory for.
    capacity: usize,
    keys: Part,
    values: Part,
}

impl Cache {
    /// A cache of `heads` heads (sequences × key heads) of `dim` values, nothing in it.
    pub fn new(heads: usize, dim: usize, width: Width) -> Self {
        let part = || Part::new(width);
        Self { heads, dim, len: 0, capacity: 0, keys: part(), values: part() }
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the tokens from the `len`-th on, if there are so many; the memory stays.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Bytes of what is in it, scales included.
    pub fn bytes(&self) -> usize {
        2 * self.heads * self.len * self.keys.width.bytes(self.dim)
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
        self.reserve(self.len + time);
        for (i, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
            let (token, head) = (i / shared % time, i / shared / time * shared + i % shared);
            let row = head * self.capacity + self.len + token;
            self.keys.write(row, k);
            self.values.write(row, v);
        }
        self.len += time;
    }

    /// Makes room for so many tokens: half as many again as there were, at least.
    fn reserve(&mut self, len: usize) {
        if len <= self.capacity {
            return;
        }
        let capacity = len.max(self.capacity + self.capacity / 2).next_multiple_of(16);
        for part in [&mut self.keys, &mut self.values] {
            part.grow(self.heads, self.dim, (self.capacity, self.len), capacity);
        }
        self.capacity = capacity;
    }

    /// The keys [count, D] of a head from a position on; `wide` is room for those that are not f32.
    pub(super) fn keys<'a>(
        &'a self,
        head: usize,
        first: usize,
        count: usize,
        wide: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        self.keys.read(head * self.capacity + first, count, self.dim, wide)
    }

    /// As [`keys`](Self::keys), the values.
    pub(super) fn values<'a>(
        &'a self,
        head: usize,
        first: usize,
        count: usize,
        wide: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        self.values.read(head * self.capacity + first, count, self.dim, wide)
    }

    /// All keys and values in f32, each [head, position, D].
    pub fn widened(&self) -> [Vec<f32>; 2] {
        [&self.keys, &self.values].map(|part| {
            let mut wide = vec![];
            let heads = (0..self.heads).map(|head| head * self.capacity);
            heads.flat_map(|row| part.read(row, self.len, self.dim, &mut wide).to_vec()).collect()
        })
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { heads, dim, len, keys, .. } = self;
        write!(f, "Cache({heads} × {len} × {dim}, {:?})", keys.width)
    }
}

impl Width {
    /// The width of so many bits, if it is one.
    pub fn of_bits(bits: u8) -> Option<Self> {
        match bits {
            16 => Some(Self::Bf16),
            8 | 4 => Some(Self::Int(bits)),
            _ => None,
        }
    }

    /// Bits of a value, without scales; none for f32.
    pub fn bits(self) -> Option<u8> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(16),
            Self::Int(bits) => Some(bits),
        }
    }

    /// Bytes of the values of a head and token, the scale included.
    pub fn bytes(self, dim: usize) -> usize {
        match self {
            Self::F32 => 4 * dim,
            Self::Bf16 => 2 * dim,
            Self::Int(bits) => codes(dim, bits) + size_of::<f32>(),
        }
    }
}

/// Bytes of so many codes.
fn codes(dim: usize, bits: u8) -> usize {
    if bits == 4 { dim.div_ceil(2) } else { dim }
}

/// Keys, or values.
#[derive(Clone)]
struct Part {
    width: Width,
    floats: Vec<f32>,
    halves: Vec<bf16>,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Part {
    fn new(width: Width) -> Self {
        Self { width, floats: vec![], halves: vec![], codes: vec![], scales: vec![] }
    }

    fn grow(&mut self, heads: usize, dim: usize, (from, len): (usize, usize), to: usize) {
        let Self { width, floats, halves, codes: bytes, scales } = self;
        match *width {
            Width::F32 => spread(floats, heads, dim, (from, len), to),
            Width::Bf16 => spread(halves, heads, dim, (from, len), to),
            Width::Int(bits) => {
                spread(bytes, heads, codes(dim, bits), (from, len), to);
                spread(scales, heads, 1, (from, len), to);
            }
        }
    }

    fn write(&mut self, row: usize, values: &[f32]) {
        let dim = values.len();
        match self.width {
            Width::F32 => self.floats[row * dim..][..dim].copy_from_slice(values),
            Width::Bf16 => {
                let to = &mut self.halves[row * dim..][..dim];
                to.iter_mut().zip(values).for_each(|(to, value)| *to = bf16::from_f32(*value));
            }
            Width::Int(bits) => {
                // By the one function that rounds to integers, so that the cache is what a simulation of it says.
                let mut rounded = values.to_vec();
                fake_int(&mut rounded, bits);
                let most = ((1i32 << (bits - 1)) - 1) as f32;
                let top = values.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
                let scale = top / most;
                self.scales[row] = scale;
                let size = codes(dim, bits);
                let to = &mut self.codes[row * size..][..size];
                let code = |value: &f32| if scale > 0.0 { (value / scale).round() as i8 } else { 0 };
                if bits == 4 {
                    to.fill(0);
                    for (i, value) in rounded.iter().enumerate() {
                        to[i / 2] |= ((code(value) as u8) & 15) << (4 * (i % 2));
                    }
                } else {
                    to.iter_mut().zip(&rounded).for_each(|(to, value)| *to = code(value) as u8);
                }
            }
        }
    }

    fn read<'a>(&'a self, row: usize, count: usize, dim: usize, wide: &'a mut Vec<f32>) -> &'a [f32] {
        if self.width == Width::F32 {
            return &self.floats[row * dim..][..count * dim];
        }
        wide.resize(count * dim, 0.0);
        match self.width {
            Width::F32 => {}
            Width::Bf16 => {
                let from = &self.halves[row * dim..][..count * dim];
                wide.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
            }
            Width::Int(bits) => {
                let size = codes(dim, bits);
                let rows = self.codes[row * size..][..count * size].chunks_exact(size);
                for ((to, from), scale) in wide.chunks_exact_mut(dim).zip(rows).zip(&self.scales[row..]) {
                    if bits == 4 {
                        for (i, to) in to.iter_mut().enumerate() {
                            let code = ((from[i / 2] >> (4 * (i % 2))) << 4) as i8 >> 4;
                            *to = f32::from(code) * scale;
                        }
                    } else {
                        to.iter_mut().zip(from).for_each(|(to, from)| *to = f32::from(*from as i8) * scale);
                    }
                }
            }
        }
        wide
    }
}

/// Moves the first `len` positions of each head to where they lie if there is memory for `to` positions.
fn spread<T: Copy + Default>(
    values: &mut Vec<T>,
    heads: usize,
    size: usize,
    (from, len): (usize, usize),
    to: usize,
) {
    let mut grown = vec![T::default(); heads * to * size];
    for head in 0..heads {
        grown[head * to * size..][..len * size].copy_from_slice(&values[head * from * size..][..len * size]);
    }
    *values = grown;
}
