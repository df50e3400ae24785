//! Scores and values in FP8.

use super::Products;
use crate::kernel::integer::absmax;
use crate::kernel::round::{fake_fp8, fake_fp8_each};
use crate::kernel::scan::CHUNK;
use crate::kernel::tile::{View, matmul_add};

/// Rounds what every sub-chunk of a chunk of `len` tokens has of those before it, in rows that are [`CHUNK`] apart, with one
/// scale for each sub-chunk.
pub fn round_scores(products: Products, len: usize, scores: &mut [f32]) {
    if !products.fp8_values {
        return;
    }
    let sub = usize::from(products.sub);
    for first in (sub..len).step_by(sub) {
        let count = sub.min(len - first);
        let rows = scores[first * CHUNK..].chunks(CHUNK).take(count).map(|row| absmax(&row[..first]));
        let top = rows.fold(0.0, larger);
        let rows = scores[first * CHUNK..].chunks_mut(CHUNK).take(count);
        rows.for_each(|row| fake_fp8(&mut row[..first], top));
    }
}

/// Working memory for the values of chunks.
#[derive(Debug, Default)]
pub struct Values {
    /// The values before a sub-chunk, [Q, width].
    rounded: Vec<f32>,
    /// The largest magnitude of each channel.
    tops: Vec<f32>,
}

impl Values {
    /// y [len, width] += scores · v, lower-triangular scores in rows that are [`CHUNK`] apart: those of a sub-chunk meet its values as they
    /// are, and the ones before it in FP8.
    pub fn add(
        &mut self,
        products: Products,
        len: usize,
        width: usize,
        scores: &[f32],
        v: &[f32],
        y: &mut [f32],
    ) {
        let sub = usize::from(products.sub);
        self.tops.clear();
        self.tops.resize(width, 0.0);
        for first in (0..len).step_by(sub) {
            let (count, own) = (sub.min(len - first), &v[first * width..]);
            let (y, at) = (&mut y[first * width..], &scores[first * CHUNK..]);
            matmul_add(count, count, width, View::rows(&at[first..], CHUNK), own, width, y, width);
            if first > 0 {
                self.round(first, width, v);
                matmul_add(count, first, width, View::rows(at, CHUNK), &self.rounded, width, y, width);
            }
            for row in own[..count * width].chunks_exact(width) {
                self.tops.iter_mut().zip(row).for_each(|(top, v)| *top = larger(*top, v.abs()));
            }
        }
    }

    /// The first `len` values, each channel with the scale that makes its largest magnitude the largest number.
    fn round(&mut self, len: usize, width: usize, v: &[f32]) {
        self.rounded.clear();
        self.rounded.extend_from_slice(&v[..len * width]);
        for row in self.rounded.chunks_exact_mut(width) {
            fake_fp8_each(row, &self.tops);
        }
    }
}

/// The larger of two magnitudes; NaN if one is.
fn larger(top: f32, size: f32) -> f32 {
    if size <= top || top.is_nan() { top } else { size }
}
