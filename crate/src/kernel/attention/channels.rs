//! Keys in few bits with a scale for each channel over a group of tokens. Few channels of keys are many times larger than
//! the others, at all tokens alike: a scale for each token would be theirs, and round the others away (Liu et al. 2024, KIVI,
//! arXiv:2402.02750, which the groups, the minimums and the exact rest are taken from; its rest is up to 128 tokens longer).
//!
//! A group is rounded once its last token was read. A query sees the keys of those groups rounded that are finished with its
//! own token, and all later keys as they are: so reading a prompt at once, in pieces or token by token is the same.

use super::rows::{self, codes, put_codes, spread};
use crate::kernel::simd::{Lanes, dispatch};
use half::bf16;
use smallvec::SmallVec;

/// Tokens of a group.
pub(super) const GROUP: usize = 32;

/// Numbers of the channels of a head.
type Few = SmallVec<[f32; 128]>;

/// Keys of all heads of a layer.
#[derive(Clone)]
pub(super) struct Channels {
    heads: usize,
    dim: usize,
    bits: u8,
    /// [head, position, codes of D].
    codes: Vec<u8>,
    /// [head, group, D]: (scale, minimum); key = minimum + code · scale.
    scales: Vec<[bf16; 2]>,
    /// The keys as they are from position `first` on, [head, .., D]: those of the group that is not finished, and from a
    /// [push](Self::push) to the next [`settle`](Self::settle) all that were pushed.
    exact: Vec<f32>,
    first: usize,
}

impl Channels {
    pub fn new(heads: usize, dim: usize, bits: u8) -> Self {
        Self { heads, dim, bits, codes: vec![], scales: vec![], exact: vec![], first: 0 }
    }

    /// Bytes of the keys of a head and `len` tokens.
    pub fn bytes_of(dim: usize, bits: u8, len: usize) -> usize {
        let rounded = len / GROUP * (GROUP * codes(dim, bits) + dim * size_of::<[bf16; 2]>());
        rounded + len % GROUP * dim * size_of::<f32>()
    }

    /// Bytes of what is held.
    pub fn bytes(&self) -> usize {
        self.heads * Self::bytes_of(self.dim, self.bits, self.first) + size_of_val(&*self.exact)
    }

    /// As [`Rows::grow`](super::rows::Rows::grow).
    pub fn grow(&mut self, (from, len): (usize, usize), to: usize) {
        let Self { heads, dim, bits, codes: bytes, scales, .. } = self;
        spread(bytes, *heads, codes(*dim, *bits), (from, len), to);
        spread(scales, *heads, *dim, (from / GROUP, len / GROUP), to / GROUP);
    }

    /// Appends keys [token, D] of each head, in memory of `capacity` positions, and rounds the groups that they finish.
    pub fn push<'a>(&mut self, capacity: usize, time: usize, keys: impl Fn(usize, usize) -> &'a [f32]) {
        let (dim, before) = (self.dim, self.held());
        let mut exact = Vec::with_capacity(self.heads * (before + time) * dim);
        for head in 0..self.heads {
            exact.extend_from_slice(&self.exact[head * before * dim..][..before * dim]);
            (0..time).for_each(|token| exact.extend_from_slice(keys(head, token)));
        }
        self.exact = exact;
        let finished = (before + time) / GROUP;
        for (head, exact) in self.exact.chunks_exact(((before + time) * dim).max(1)).enumerate() {
            let first = self.first / GROUP;
            for (group, keys) in (first..first + finished).zip(exact.chunks_exact(GROUP * dim)) {
                let scales = &mut self.scales[(head * (capacity / GROUP) + group) * dim..][..dim];
                let size = codes(dim, self.bits);
                let at = (head * capacity + group * GROUP) * size;
                round(keys, self.bits, scales, &mut self.codes[at..][..GROUP * size]);
            }
        }
    }

    /// Tokens of each head that are there as they are.
    fn held(&self) -> usize {
        self.exact.len() / (self.heads * self.dim)
    }

    /// Forgets as they are the keys that are rounded.
    pub fn settle(&mut self) {
        let (held, dim) = (self.held(), self.dim);
        let gone = held / GROUP * GROUP;
        if gone > 0 {
            let rest = self.exact.chunks_exact(held * dim).flat_map(|exact| &exact[gone * dim..]);
            self.exact = rest.copied().collect();
            self.first += gone;
        }
    }

    /// Whether nothing is missing to go back to `len` tokens: within a finished group its keys are gone.
    pub fn reaches(&self, len: usize) -> bool {
        len.is_multiple_of(GROUP) || len >= self.first
    }

    /// Forgets the tokens from the `len`-th on, to which it [reaches](Self::reaches).
    pub fn truncate(&mut self, len: usize) {
        let (held, dim) = (self.held(), self.dim);
        let rest = len.saturating_sub(self.first).min(held);
        let kept = self.exact.chunks_exact((held * dim).max(1)).flat_map(|exact| &exact[..rest * dim]);
        self.exact = kept.copied().collect();
        self.first = self.first.min(len);
    }

    /// The keys [count, D] of a head from a position on, in memory of `capacity` positions: those before `settled` rounded,
    /// the others as they are.
    pub fn read<'a>(
        &self,
        (head, capacity): (usize, usize),
        first: usize,
        count: usize,
        settled: usize,
        wide: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let (dim, size) = (self.dim, codes(self.dim, self.bits));
        wide.resize(count * dim, 0.0);
        let (mut of_group, mut scales, mut mins) = (usize::MAX, Few::new(), Few::new());
        for (position, to) in (first..).zip(wide.chunks_exact_mut(dim)) {
            if position >= settled {
                let at = (head * self.held() + position - self.first) * dim;
                to.copy_from_slice(&self.exact[at..][..dim]);
                continue;
            }
            let group = (head * capacity + position) / GROUP;
            if of_group != group {
                let own = &self.scales[group * dim..][..dim];
                // Both at once: a pass over the minimums alone is compiled to vectors that end two bytes past the last of them.
                (scales, mins) = own.iter().map(|[scale, min]| (scale.to_f32(), min.to_f32())).unzip();
                of_group = group;
            }
            let from = &self.codes[(head * capacity + position) * size..][..size];
            widen(from, self.bits, &scales, &mins, to);
        }
        wide
    }
}

dispatch! {
    /// key = minimum + code · scale, each channel with its own.
    fn widen(codes: &[u8], bits: u8, scales: &[f32], mins: &[f32], to: &mut [f32]) = widen_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn widen_body<V: Lanes>(codes: &[u8], bits: u8, scales: &[f32], mins: &[f32], to: &mut [f32]) {
    const STEP: usize = 64;
    let mut apart = [0; STEP];
    let all = scales.chunks(STEP).zip(mins.chunks(STEP)).zip(codes.chunks(rows::codes(STEP, bits)));
    for (to, ((scales, mins), mut codes)) in to.chunks_mut(STEP).zip(all) {
        if bits == 4 {
            for (two, both) in apart.chunks_exact_mut(2).zip(codes) {
                two.copy_from_slice(&[both & 15, both >> 4]);
            }
            codes = &apart[..to.len()];
        }
        for (((to, code), scale), min) in to.iter_mut().zip(codes).zip(scales).zip(mins) {
            *to = min + f32::from(*code) * scale;
        }
    }
}

/// How many keys are rounded for the query of token `token`.
pub(super) fn settled(token: usize) -> usize {
    (token + 1) / GROUP * GROUP
}

/// Rounds the keys [GROUP, D] of a group to the nearest of 2^b levels of each channel, the least of which lies at its smallest
/// key or below, and the last at its largest or above: nothing is clipped.
fn round(keys: &[f32], bits: u8, scales: &mut [[bf16; 2]], to: &mut [u8]) {
    let (dim, top) = (scales.len(), ((1u32 << bits) - 1) as f32);
    for (c, own) in scales.iter_mut().enumerate() {
        let channel = || keys.iter().skip(c).step_by(dim);
        let min = below(channel().fold(f32::INFINITY, |min, x| x.min(min)));
        let max = channel().fold(f32::NEG_INFINITY, |max, x| x.max(max));
        let scale = above((max - min.to_f32()) / top);
        // No code stands for NaN or an infinity: the scale tells of them.
        *own = [if channel().all(|x| x.is_finite()) { scale } else { bf16::NAN }, min];
    }
    let size = codes(dim, bits);
    for (keys, to) in keys.chunks_exact(dim).zip(to.chunks_exact_mut(size)) {
        let codes = keys.iter().zip(&*scales).map(|(key, [scale, min])| {
            let (scale, min) = (scale.to_f32(), min.to_f32());
            // Where all are equal the scale may be 0, and 0 / 0 becomes the code 0.
            ((key - min) / scale).round_ties_even().clamp(0.0, top) as u8
        });
        put_codes(to, bits, codes);
    }
}

/// The largest bf16 that is not above a number.
fn below(x: f32) -> bf16 {
    let near = bf16::from_f32(x);
    match near.to_f32() > x {
        // The bits of negative numbers rise as the numbers fall.
        true if x > 0.0 => bf16::from_bits(near.to_bits() - 1),
        true if near.to_f32() == 0.0 => bf16::from_bits(0x8001),
        true => bf16::from_bits(near.to_bits() + 1),
        false => near,
    }
}

/// The smallest bf16 that is not below a number.
fn above(x: f32) -> bf16 {
    -below(-x)
}
