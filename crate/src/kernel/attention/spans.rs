//! Few queries against many keys, as in decoding: the keys are cut into spans that are met apart, on as many cores as there
//! are, and what they gave is joined by the logarithms of their sums (Dao et al. 2023, Flash-Decoding). How they are cut
//! depends on their number alone, so that results do not depend on the number of threads.

use super::{KEYS, Shape, Tile, Work};
use crate::kernel::attention::Cache;
use rayon::prelude::*;
use std::ops::Range;

/// The longest span, in keys.
pub(super) const LENGTH: usize = 256;

/// What one span gave the rows of a tile.
struct Part {
    /// Outputs before division [rows, D], relative to the largest score.
    y: Vec<f32>,
    /// Largest score of each row.
    tops: Vec<f32>,
    /// Sum of exponentials of each row.
    sums: Vec<f32>,
}

/// [`attend`](super::attend) for the one tile of these tokens in each head.
pub(super) fn attend(
    shape: Shape,
    tokens: Range<usize>,
    q: &mut [f32],
    cache: &Cache,
    mut logs: Option<&mut [f32]>,
) {
    let (heads, dim) = (shape.batch * shape.shared, shape.dim);
    let tile = |head: usize| Tile { shape, head, tokens: tokens.clone() };
    // Of nearly equal lengths: the last one is not what the others wait for.
    let spans = cache.len().div_ceil(LENGTH);
    let step = cache.len().div_ceil(spans).next_multiple_of(KEYS);
    let spans = cache.len().div_ceil(step);
    let queries = &*q;
    let part = |work: &mut Work, i: usize| {
        let (tile, first) = (tile(i / spans), i % spans * step);
        work.begin(&tile, |place| &queries[place..][..dim]);
        work.meet(&tile, cache, first..cache.len().min(first + step));
        Part { y: work.y.clone(), tops: work.tops.clone(), sums: work.sums.clone() }
    };
    let parts: Vec<Part> = (0..heads * spans).into_par_iter().map_init(Work::default, part).collect();
    for (head, parts) in parts.chunks_exact(spans).enumerate() {
        let tile = tile(head);
        for r in 0..tile.rows() {
            let to = &mut q[tile.place(r)..][..dim];
            let log = join(parts, r, to);
            if let Some(logs) = logs.as_deref_mut() {
                logs[tile.place(r) / dim] = log;
            }
        }
    }
}

/// Row `r` of all spans: `y` [D], overwritten. Gives ln Σ e^score.
fn join(parts: &[Part], r: usize, y: &mut [f32]) -> f32 {
    let larger = |top: f32, part: &Part| if part.tops[r] <= top { top } else { part.tops[r] };
    let top = parts.iter().fold(f32::NEG_INFINITY, larger);
    // A span that this row sees nothing of has the sum 0.
    let weight = |part: &Part| if part.sums[r] == 0.0 { 0.0 } else { (part.tops[r] - top).exp() };
    let sum: f32 = parts.iter().map(|part| weight(part) * part.sums[r]).sum();
    let dim = y.len();
    y.fill(0.0);
    for part in parts {
        let share = weight(part) / sum;
        y.iter_mut().zip(&part.y[r * dim..]).for_each(|(y, part)| *y += share * part);
    }
    top + sum.ln()
}
