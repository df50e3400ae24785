//! Rotary positions (Su et al. 2021): the pair (c, c + r/2) of the first r channels of a head is turned by position × frequency_c;
//! r is D unless only a part of each head is turned.

use std::sync::OnceLock;

/// Positions whose angles are computed together.
const BLOCK: usize = 256;

/// Cosines and sines of all positions up to a longest, each computed when it is first needed.
#[derive(Debug)]
pub struct Rotary {
    frequencies: Vec<f32>,
    /// Values of a head D, of which the first r are turned.
    head: usize,
    /// On cosines and sines.
    factor: f32,
    /// For each position of a block r/2 cosines, then r/2 sines.
    blocks: Vec<OnceLock<Vec<f32>>>,
}

impl Rotary {
    /// Of the frequencies [r/2] in radians a position, for positions below `longest`; of heads of r values.
    pub fn new(frequencies: Vec<f32>, longest: usize) -> Self {
        let blocks = (0..longest.div_ceil(BLOCK)).map(|_| OnceLock::new()).collect();
        Self { head: 2 * frequencies.len(), frequencies, factor: 1.0, blocks }
    }

    /// For heads of `dim` values, of which the first r are turned.
    ///
    /// # Panics
    /// If r is more than that.
    #[must_use]
    pub fn within(self, dim: usize) -> Self {
        assert!(self.dim() <= dim, "{} of {dim} values cannot be turned", self.dim());
        Self { head: dim, ..self }
    }

    /// With cosines and sines, and so what is turned, multiplied by `factor`.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        let longest = self.blocks.len() * BLOCK;
        let head = self.head;
        Self { factor: factor as f32, head, ..Self::new(self.frequencies, longest) }
    }

    /// r.
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// The cosines, then the sines `[r]` of a position.
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
        let cosines = self.frequencies.iter().map(move |f| self.factor * angle(f).cos() as f32);
        cosines.chain(self.frequencies.iter().map(move |f| self.factor * angle(f).sin() as f32))
    }

    /// Turns heads [B, T, heads, D], of which the first token of each sequence is at position `first`, in place; by the
    /// angles' negatives, the way that gradients go, if `back`.
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
            for head in token.chunks_exact_mut(self.head) {
                let (low, high) = head[..dim].split_at_mut(half);
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
    fn of_a_head_that_is_turned_in_part_the_rest_stays() {
        let whole = Rotary::new(vec![1.0, 0.25], 600);
        let part = Rotary::new(vec![1.0, 0.25], 600).times(1.5).within(7);
        let heads: Vec<f32> = (0..3 * 2 * 7).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut turned = heads.clone();
        part.turn((1, 3), 20, &mut turned, false);
        for (i, (from, to)) in heads.chunks(7).zip(turned.chunks(7)).enumerate() {
            let mut first = from[..4].to_vec();
            whole.turn((1, 1), 20 + i / 2, &mut first, false);
            assert!(to[..4].iter().zip(first).all(|(a, b)| (a - 1.5 * b).abs() < 1e-6));
            assert_eq!(to[4..], from[4..]);
        }
    }

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
        // What is turned grows with the factor, and what is turned back by it again: the way of gradients.
        let (factor, mut plain) = (rotary.times(1.5), turned.clone());
        Rotary::new(vec![1.0, 0.25], 600).turn((2, 3), 500, &mut plain, false);
        factor.turn((2, 3), 500, &mut turned, false);
        assert!(turned.iter().zip(&plain).all(|(a, b)| (a - 1.5 * b).abs() < 1e-6));
        factor.turn((2, 3), 500, &mut turned, true);
        assert!(turned.iter().zip(&heads).all(|(a, b)| (a - 2.25 * b).abs() < 1e-5));
    }
}
