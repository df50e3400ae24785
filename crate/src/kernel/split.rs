//! Y = X Wᵀ on the matrix unit, which multiplies bf16 alone: other numbers are split into bf16 terms.
//!
//! x = x₀ + x₁ + x₂, each term the bf16 nearest to what those before it left over; they carry 8 bits each. Of the
//! products xᵢ wⱼ, exact in f32 and summed in f32, only those above the precision of the result are made:
//!
//! | W | terms of W, of X | products | error of a product |
//! |---|---|---|---|
//! | bf16 | 1, 1 | x₀w₀ | none: X is rounded to bf16 |
//! | f16 | 2, 2 | x₀w₀ x₁w₀ x₀w₁ | 2⁻¹⁷ |
//! | f32, decoded | 3, 3 | those with i + j ≤ 2 | 2⁻²⁵ |
//!
//! A tile is 16 rows of 32 values. W is the left operand, as it is stored, so that bf16 weights are read in place; X is
//! the right one, packed once; so tiles of Yᵀ come out, and are turned on their way to Y. A task takes few weights past all
//! of its tokens, and those of the next task come meanwhile.

use super::Scatter;
use super::amx::ahead::Ahead;
use super::amx::product::{Left, Sums, keep, multiply};
use super::amx::terms::{PANEL, ROWS, STEP, Tile, pack, transpose};
use super::amx::{Config, Tiles};
use super::linear::{Weight, widen};
use super::simd::prefetch;
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::ops::Range;

/// Weights of a task: few enough that the second-level cache holds them, the tokens and the weights of the next task.
const GROUP: usize = 3 << 15;

/// y = x Wᵀ: `x` [m, k], `w` [n, k], `y` [m, n], overwritten.
///
/// # Panics
/// If the processor or the system has no tiles: see [`super::amx::has_bf16`].
pub fn forward(m: usize, k: usize, n: usize, x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    match w {
        Weight::Bf16(_) => product::<1, 1>(m, k, n, x, w, y),
        Weight::F16(_) => product::<2, 2>(m, k, n, x, w, y),
        Weight::F32(_) | Weight::Decoded(_) => product::<3, 3>(m, k, n, x, w, y),
    }
}

/// Asks for a tile's terms.
fn near<const T: usize>(tiles: &[Tile; T]) {
    for Tile(rows) in tiles {
        for row in rows {
            prefetch(row, 0);
        }
    }
}

/// [`forward`] with `A` terms of W and `B` of X.
fn product<const A: usize, const B: usize>(
    m: usize,
    k: usize,
    n: usize,
    x: &[f32],
    w: Weight<'_>,
    y: &mut [f32],
) {
    assert!(x.len() == m * k && y.len() == m * n && k > 0);
    assert!(super::amx::has_bf16());
    let steps = k.div_ceil(STEP);
    let packed = pack::<B>(x, k, true);
    let panels = n.div_ceil(PANEL);
    let group = (GROUP / (PANEL * k)).clamp(1, panels);
    let (groups, pairs) = (panels.div_ceil(group), m.div_ceil(PANEL));
    // Few groups: the tokens are shared as well, neighbours with the same weights.
    let threads = rayon::current_num_threads();
    let parts = if threads == 1 { 1 } else { (4 * threads).div_ceil(groups).min(pairs) };
    let pairs_each = pairs.div_ceil(parts);
    let out = Scatter::new(y);
    (0..groups * parts).into_par_iter().for_each(|task| {
        let first = task / parts * group;
        let last = (first + group).min(panels);
        let part = task % parts * pairs_each..(task % parts * pairs_each + pairs_each).min(pairs);
        let weights: Vec<Panel<'_, A>> = (first..last)
            .map(|panel| Panel::new(w, k, panel * PANEL, PANEL.min(n - panel * PANEL)))
            .collect();
        // SAFETY: this task alone has these weights and tokens; `has_bf16` implies the features.
        let store = |sums: &Sums, (token, row): (usize, usize)| unsafe { store(sums, token, m, row, n, out) };
        let mut ahead =
            ahead(w, first * PANEL * k..(last * PANEL).min(n) * k, part.len() * weights.len() * steps);
        let (mut sums, mut before) = (Sums::ZERO, None);
        let tiles = Tiles::load(&Config::FULL);
        for pair in part {
            let x = &packed[2 * pair * steps..][..2 * steps];
            let next = packed.get(2 * (pair + 1) * steps..).unwrap_or_default();
            let share = (2 * steps).div_ceil(weights.len());
            for (panel, w) in weights.iter().enumerate() {
                // The tokens after these, a share beside each panel: otherwise the first panel would wait for them.
                next.iter().skip(panel * share).take(share).for_each(near);
                // SAFETY: a panel has as many steps.
                unsafe {
                    multiply::<A, B>(&tiles, w.left(), [&x[..steps], &x[steps..]], steps, ahead.as_mut())
                };
                // While tiles are multiplied, the vectors finish what was before.
                if let Some(place) = before.replace((pair * PANEL, (first + panel) * PANEL)) {
                    store(&sums, place);
                }
                keep(&tiles, &mut sums);
            }
        }
        if let Some(place) = before {
            store(&sums, place);
        }
    });
}

/// What comes behind this part of W, over `steps` steps.
fn ahead(w: Weight<'_>, part: Range<usize>, steps: usize) -> Option<Ahead> {
    match w {
        Weight::F32(w) => Some(Ahead::behind(&w[part], steps)),
        Weight::Bf16(w) => Some(Ahead::behind(&w[part], steps)),
        Weight::F16(w) => Some(Ahead::behind(&w[part], steps)),
        Weight::Decoded(_) => None,
    }
}

/// 32 rows of W.
enum Panel<'a, const A: usize> {
    /// As they are stored: whole tiles of bf16, rows `k` apart.
    Stored(&'a [half::bf16], usize),
    /// Two rows of tiles, [2, steps], zeros behind the ends.
    Packed(Vec<[Tile; A]>),
}

impl<'a, const A: usize> Panel<'a, A> {
    fn new(w: Weight<'a>, k: usize, first: usize, rows: usize) -> Self {
        match w {
            Weight::Bf16(w) if k.is_multiple_of(STEP) && rows == PANEL => {
                Self::Stored(&w[first * k..][..PANEL * k], k)
            }
            Weight::F32(w) => Self::Packed(pack(&w[first * k..][..rows * k], k, false)),
            _ => {
                let mut wide = vec![0.0; rows * k];
                widen(w, first, k, &mut wide);
                Self::Packed(pack(&wide, k, false))
            }
        }
    }

    fn left(&self) -> Left {
        match self {
            Self::Stored(w, k) => Left::stored(w, *k),
            Self::Packed(tiles) => Left::packed(tiles.split_at(tiles.len() / 2).into()),
        }
    }
}

/// Writes sums, turned back, to `y` [.., n] from (`token`, `first`) on, as far as `tokens` and n reach.
///
/// # Safety
/// Nothing else writes there meanwhile.
#[target_feature(enable = "avx512f")]
unsafe fn store(sums: &Sums, token: usize, tokens: usize, first: usize, n: usize, y: Scatter<'_>) {
    for (at, tile) in sums.0.iter().enumerate() {
        let (token, first) = (token + at % 2 * ROWS, first + at / 2 * ROWS);
        let width = n.saturating_sub(first).min(ROWS);
        let mut rows = [_mm512_setzero_ps(); ROWS];
        for (row, values) in rows.iter_mut().zip(tile) {
            // SAFETY: 16 values.
            *row = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        }
        for (row, token) in transpose(rows).into_iter().zip(token..tokens) {
            // SAFETY: the caller's promise; the mask ends with the slice.
            unsafe {
                let y = y.slice(token * n + first.min(n), width);
                _mm512_mask_storeu_ps(y.as_mut_ptr(), ((1u32 << width) - 1) as u16, row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn products_are_the_definition_to_the_stated_error() {
        if !super::super::amx::has_bf16() {
            return;
        }
        for (m, k, n) in [(1, 1, 1), (5, 31, 33), (16, 32, 32), (33, 64, 96), (70, 100, 65), (257, 96, 40)] {
            let value = |i: usize| ((i * 7919 + 13) % 10007) as f32 / 5003.0 - 1.0;
            let x: Vec<f32> = (0..m * k).map(value).collect();
            let w: Vec<f32> = (0..n * k).map(|i| value(i + 5)).collect();
            let narrow: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
            let half: Vec<f16> = w.iter().map(|w| f16::from_f32(*w)).collect();
            let decode = |first: usize, rows: &mut [f32]| rows.copy_from_slice(&w[first * k..][..rows.len()]);
            for (stored, bits) in [
                (Weight::F32(&w), 21),
                (Weight::Decoded(&decode), 21),
                (Weight::Bf16(&narrow), 21),
                (Weight::F16(&half), 16),
            ] {
                let mut wide = vec![0.0; n * k];
                widen(stored, 0, k, &mut wide);
                let factor = |x: &f32| match stored {
                    Weight::Bf16(_) => bf16::from_f32(*x).to_f64(),
                    _ => f64::from(*x),
                };
                let mut y = vec![f32::NAN; m * n];
                forward(m, k, n, &x, stored, &mut y);
                for (ij, y) in y.iter().enumerate() {
                    let (x, w) = (&x[ij / n * k..][..k], &wide[ij % n * k..][..k]);
                    let terms = x.iter().zip(w).map(|(x, w)| factor(x) * f64::from(*w));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), xw| (sum + xw, size + xw.abs()));
                    let error = (f64::from(*y) - sum).abs() / size;
                    assert!(error < 0.5f64.powi(bits), "{m}×{k}×{n} {bits} bits at {ij}: {y} not {sum}");
                }
            }
        }
    }
}
