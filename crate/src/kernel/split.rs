//! Y = X Wᵀ on the matrix unit, which multiplies bf16 alone: other numbers are split into bf16 terms.
//!
//! x = x₀ + x₁ + x₂, each term the bf16 nearest to what those before it left over; they carry 8 bits each. Of the
//! products xᵢ wⱼ, exact in f32 and summed in f32, only those above the precision of the result are made:
//!
//! | W | terms of W, of X | products | error of a product |
//! |---|---|---|---|
//! | bf16 | 1, 1 | x₀w₀ | none: X is rounded to bf16 |
//! | f16, and all of training | 2, 2 | x₀w₀ x₁w₀ x₀w₁ | 2⁻¹⁷ |
//! | f32, decoded | 3, 3 | those with i + j ≤ 2 | 2⁻²⁵ |
//!
//! A tile is 16 rows of 32 values. W is the left operand, as it is stored, so that bf16 weights are read in place; X is
//! the right one, packed once; so tiles of Yᵀ come out, and are turned on their way to Y. A task takes few weights past all
//! of its tokens, and those of the next task come meanwhile.

use super::Scatter;
use super::amx::ahead::Ahead;
use super::amx::product::{Left, Sums, keep, multiply};
use super::amx::terms::{PANEL, ROWS, STEP, Tile, pack};
use super::amx::{Config, Tiles};
use super::linear::{Weight, widen};
use super::simd::prefetch;
use super::tile::{View, transposed_16};
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
        Weight::Bf16(_) => weighted::<1, 1>(m, k, n, x, w, y),
        Weight::F16(_) => weighted::<2, 2>(m, k, n, x, w, y),
        Weight::F32(_) | Weight::Decoded(_) => weighted::<3, 3>(m, k, n, x, w, y),
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

/// out[m, n] = a[m, k] b[n, k]ᵀ, overwritten, of two terms each, which lie by rows or by columns: for training.
///
/// # Panics
/// If the processor or the system has no tiles: see [`super::amx::has_bf16`].
pub fn two_terms(m: usize, k: usize, n: usize, a: View<'_>, b: View<'_>, out: &mut [f32]) {
    assert!(out.len() == m * n && k > 0);
    let out = Scatter::new(out);
    let of = |rows: Range<usize>| {
        let (first, count) = (rows.start, rows.len());
        Panel::Packed(pack::<2>(View { data: &a.data[first * a.row..], ..a }, count, k, false))
    };
    // SAFETY: one task alone has these rows and columns; `has_bf16` implies the features.
    let store = |sums: &Sums, col, row| unsafe { store::<false>(sums, (row, m), (col, n), out) };
    let soon = |col, row| soon((row, m), (col, n), out);
    product::<2, 2>(m, k, n, b, of, |_, _| None, soon, store);
}

/// y = x Wᵀ with `A` terms of W and `B` of X.
fn weighted<const A: usize, const B: usize>(
    m: usize,
    k: usize,
    n: usize,
    x: &[f32],
    w: Weight<'_>,
    y: &mut [f32],
) {
    assert!(x.len() == m * k && y.len() == m * n && k > 0);
    let out = Scatter::new(y);
    let of = |rows: Range<usize>| Panel::new(w, k, rows);
    let ahead = |rows: Range<usize>, steps| ahead(w, rows.start * k..rows.end * k, steps);
    // SAFETY: one task alone has these weights and tokens; `has_bf16` implies the features.
    let store = |sums: &Sums, token, row| unsafe { store::<true>(sums, (token, m), (row, n), out) };
    // Its buffers are used again and again: they are near.
    product::<A, B>(n, k, m, View::rows(x, k), of, ahead, |_, _| {}, store);
}

/// The products of `rows` rows of a left operand, `A` terms of which `left` makes a panel, with the rows of `x` [columns, k],
/// packed once as `B` terms. `store` gets 32 × 32 sums each and where they belong, first the column, then the row.
fn product<'a, const A: usize, const B: usize>(
    rows: usize,
    k: usize,
    columns: usize,
    x: View<'_>,
    left: impl Fn(Range<usize>) -> Panel<'a, A> + Sync,
    ahead: impl Fn(Range<usize>, usize) -> Option<Ahead> + Sync,
    soon: impl Fn(usize, usize) + Sync,
    store: impl Fn(&Sums, usize, usize) + Sync,
) {
    assert!(super::amx::has_bf16());
    let steps = k.div_ceil(STEP);
    let packed = pack::<B>(x, columns, k, true);
    let panels = rows.div_ceil(PANEL);
    let group = (GROUP / (PANEL * k)).clamp(1, panels);
    let (groups, pairs) = (panels.div_ceil(group), columns.div_ceil(PANEL));
    // Few groups: the columns are shared as well, neighbours with the same rows.
    let threads = rayon::current_num_threads();
    let parts = if threads == 1 { 1 } else { (4 * threads).div_ceil(groups).min(pairs) };
    let pairs_each = pairs.div_ceil(parts);
    (0..groups * parts).into_par_iter().for_each(|task| {
        let first = task / parts * group;
        let last = (first + group).min(panels);
        let part = task % parts * pairs_each..(task % parts * pairs_each + pairs_each).min(pairs);
        let of_panels = |first: usize, last: usize| first * PANEL..(last * PANEL).min(rows);
        let group: Vec<Panel<'_, A>> = (first..last).map(|panel| left(of_panels(panel, panel + 1))).collect();
        let mut ahead = ahead(of_panels(first, last), part.len() * group.len() * steps);
        let (mut sums, mut before) = (Sums::ZERO, None);
        let tiles = Tiles::load(&Config::FULL);
        for pair in part {
            let x = &packed[2 * pair * steps..][..2 * steps];
            let next = packed.get(2 * (pair + 1) * steps..).unwrap_or_default();
            let share = (2 * steps).div_ceil(group.len());
            for (panel, left) in group.iter().enumerate() {
                // The columns after these, a share beside each panel: otherwise the first panel would wait for them.
                next.iter().skip(panel * share).take(share).for_each(near);
                soon(pair * PANEL, (first + panel) * PANEL);
                // SAFETY: a panel has as many steps.
                unsafe {
                    multiply::<A, B>(&tiles, left.left(), [&x[..steps], &x[steps..]], steps, ahead.as_mut())
                };
                // While tiles are multiplied, the vectors finish what was before.
                if let Some((column, row)) = before.replace((pair * PANEL, (first + panel) * PANEL)) {
                    store(&sums, column, row);
                }
                keep(&tiles, &mut sums);
            }
        }
        if let Some((column, row)) = before {
            store(&sums, column, row);
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

/// 32 rows of a left operand.
enum Panel<'a, const A: usize> {
    /// As they are stored: whole tiles of bf16, rows `k` apart.
    Stored(&'a [half::bf16], usize),
    /// Two rows of tiles, [2, steps], zeros behind the ends.
    Packed(Vec<[Tile; A]>),
}

impl<'a, const A: usize> Panel<'a, A> {
    fn new(w: Weight<'a>, k: usize, rows: Range<usize>) -> Self {
        let (first, rows) = (rows.start, rows.len());
        match w {
            Weight::Bf16(w) if k.is_multiple_of(STEP) && rows == PANEL => {
                Self::Stored(&w[first * k..][..PANEL * k], k)
            }
            Weight::F32(w) => Self::Packed(pack(View::rows(&w[first * k..], k), rows, k, false)),
            _ => {
                let mut wide = vec![0.0; rows * k];
                widen(w, first, k, &mut wide);
                Self::Packed(pack(View::rows(&wide, k), rows, k, false))
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

/// Asks for the places of 32 × 32 sums: they are written one product later, and a line that is not there has to be read
/// before a part of it can be written.
fn soon((row, m): (usize, usize), (col, n): (usize, usize), out: Scatter<'_>) {
    for row in row..m.min(row + PANEL) {
        for col in [col, col + ROWS, (col + PANEL).min(n) - 1] {
            out.prefetch(row * n + col);
        }
    }
}

/// Writes sums to `out` [m, n] from row and column on, as far as both reach; `TURNED` where the rows of the right operand are
/// the rows of `out`.
///
/// # Safety
/// Nothing else writes there meanwhile.
#[target_feature(enable = "avx512f")]
unsafe fn store<const TURNED: bool>(
    sums: &Sums,
    (row, m): (usize, usize),
    (col, n): (usize, usize),
    out: Scatter<'_>,
) {
    for (at, tile) in sums.0.iter().enumerate() {
        let (down, across) = if TURNED { (at % 2, at / 2) } else { (at / 2, at % 2) };
        let (row, col) = (row + down * ROWS, col + across * ROWS);
        let width = n.saturating_sub(col).min(ROWS);
        let mut rows = [_mm512_setzero_ps(); ROWS];
        for (row, values) in rows.iter_mut().zip(tile) {
            // SAFETY: 16 values.
            *row = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        }
        if TURNED {
            rows = transposed_16(rows);
        }
        for (values, row) in rows.into_iter().zip(row..m) {
            // SAFETY: the caller's promise; the mask ends with the slice.
            unsafe {
                let out = out.slice(row * n + col.min(n), width);
                _mm512_mask_storeu_ps(out.as_mut_ptr(), ((1u32 << width) - 1) as u16, values);
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

    #[test]
    fn products_of_two_terms_are_the_definition_to_the_stated_error() {
        if !super::super::amx::has_bf16() {
            return;
        }
        for (m, k, n) in [(1, 1, 1), (5, 31, 33), (33, 64, 96), (70, 100, 65), (257, 33, 40)] {
            let value = |i: usize| ((i * 7919 + 13) % 10007) as f32 / 5003.0 - 1.0;
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..n * k).map(|i| value(i + 5)).collect();
            for (a_turned, b_turned) in [(false, false), (false, true), (true, false), (true, true)] {
                let view = |values, rows, turned| match turned {
                    true => View::transposed(values, rows),
                    false => View::rows(values, k),
                };
                let (a, b) = (view(&a, m, a_turned), view(&b, n, b_turned));
                let mut out = vec![f32::NAN; m * n];
                two_terms(m, k, n, a, b, &mut out);
                for (ij, found) in out.iter().enumerate() {
                    let at = |v: View<'_>, i: usize, p: usize| f64::from(v.data[i * v.row + p * v.col]);
                    let terms = (0..k).map(|p| at(a, ij / n, p) * at(b, ij % n, p));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                    let error = (f64::from(*found) - sum).abs() / size;
                    assert!(error < 0.5f64.powi(16), "{m}×{k}×{n} at {ij}: {found} not {sum}");
                }
            }
        }
    }
}
