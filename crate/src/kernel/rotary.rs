//! Rotary positions (Su et al. 2021): the pair (c, c + D/2) of a head is turned by position × frequency_c.

use std::sync::OnceLock;

/// Positions whose angles are computed together.
const BLOCK: usize = 256;

/// Cosines and sines of all positions up to a longest, each computed when it is first needed.
#[derive(Debug)]
pub struct Rotary {
    frequencies: Vec<f32>,
    /// For each position of a block D/2 cosines, then D/2 sines.
    blocks: Vec<OnceLock<Vec<f32>>>,
}

impl Rotary {
    /// Of the frequencies [D/2] in radians a position, for positions below `longest`.
    pub fn new(frequencies: Vec<f32>, longest: usize) -> Self {
        Self { frequencies, blocks: (0..longest.div_ceil(BLOCK)).map(|_| OnceLock::new()).collect() }
    }

    /// D.
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// The cosines, then the sines `[D]` of a position.
    ///
    /// # Panics
    /// If the position is none of those that it was made for.
    pub fn of(&self, position: usize) -> &[f32] {
        let dim = self.dim();
        let block = self.blocks[position / BLOCK].get_or_init(|| {
            let first = position / BLOCK * BLOCK;
            (first..first + BLOCK).flat_map(|position| self.angles(position)).collect()
        });
        &block[position % BLOCK * dim..][..dim]
    }

    fn angles(&self, position: usize) -> impl Iterator<Item = f32> {
        // An angle in f32, as everywhere in the field: it is what models were trained with.
        let angle = move |frequency: &f32| f64::from(position as f32 * frequency);
        let cosines = self.frequencies.iter().map(move |f| angle(f).cos() as f32);
        cosines.chain(self.frequencies.iter().map(move |f| angle(f).sin() as f32))
    }

    /// Turns heads [B, T, heads, D], of which the first token of each sequence is at position `first`, in place; by the
    /// angles' negatives if `back`.
    ///
    /// # Panics
    /// If it is not whole tokens, or a position lies beyond the longest.
    pub fn turn(&self, (batch, time): (usize, usize), first: usize, heads: &mut [f32], back: bool) {
        let (dim, half) = (self.dim(), self.dim() / 2);
        if batch * time == 0 {
            return;
        }
        let row = heads.len() / (batch * time);
        for (i, token) in heads.chunks_exact_mut(row).enumerate() {
            let (cosines, sines) = self.of(first + i % time).split_at(half);
            for head in token.chunks_exact_mut(dim) {
                let (low, high) = head.split_at_mut(half);
                for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                    let sin = if back { -sin } else { *sin };
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_turned_by_its_angle_and_back() {
        let rotary = Rotary::new(vec![1.0, 0.25], 600);
        let heads: Vec<f32> = (0..2 * 3 * 2 * 4).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut turned = heads.clone();
        rotary.turn((2, 3), 500, &mut turned, false);
        for (i, (from, to)) in heads.chunks(4).zip(turned.chunks(4)).enumerate() {
            let position = 500 + i / 2 % 3;
            for (c, frequency) in [1.0, 0.25].into_iter().enumerate() {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let (a, b) = (f64::from(from[c]), f64::from(from[c + 2]));
                assert!((f64::from(to[c]) - (a * cos - b * sin)).abs() < 1e-6);
                assert!((f64::from(to[c + 2]) - (b * cos + a * sin)).abs() < 1e-6);
            }
        }
        rotary.turn((2, 3), 500, &mut turned, true);
        assert!(turned.iter().zip(&heads).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
