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
//! A tile is 16 rows of 32 values. bf16 weights are read in place.

use super::Scatter;
use super::ahead::Ahead;
use super::amx::product::{keep, multiply};
use super::amx::terms::{Tile, pack};
use super::amx::{Config, Tiles, has_bf16};
use super::blocked::{Left, PANEL, Panel, STEP, Sums, Unit, product, soon, store};
use super::kept::Kept;
use super::tile::View;
use super::weight::{Weight, widen};
use half::bf16;
use std::mem::MaybeUninit;
use std::ops::Range;

/// y = x Wᵀ: `x` [m, k], `w` [n, k], `y` [m, n], overwritten.
///
/// # Panics
/// If the processor or the system has no tiles: see [`has_bf16`].
pub fn forward(m: usize, k: usize, n: usize, x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    match w {
        _ if w.is_bf16() => weighted::<1, 1>(m, k, n, x, w, y),
        Weight::F16(_) => weighted::<2, 2>(m, k, n, x, w, y),
        _ => weighted::<3, 3>(m, k, n, x, w, y),
    }
}

/// out[m, n] = a[m, k] b[n, k]ᵀ, overwritten, of two terms each, which lie by rows or by columns: for training.
///
/// # Panics
/// If the processor or the system has no tiles: see [`has_bf16`].
pub fn two_terms(m: usize, k: usize, n: usize, a: View<'_>, b: View<'_>, out: &mut [f32]) {
    assert!(has_bf16() && out.len() == m * n && k > 0);
    let out = Scatter::new(out);
    let of = |rows: Range<usize>| {
        let (first, count) = (rows.start, rows.len());
        Rows::Packed(pack::<2>(View { data: &a.data[first * a.row..], ..a }, count, k, false))
    };
    // SAFETY: one task alone has these rows and columns; `has_bf16` implies the features.
    let store = |sums: &Sums, col, row| unsafe { store::<false>(sums, (row, m), (col, n), out) };
    let soon = |col, row| soon((row, m), (col, n), out);
    // SAFETY: there are tiles, and panels are filled up.
    unsafe { product::<Terms<2, 2>, _>(m, k, n, b, of, |_, _| None, soon, store) };
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
    assert!(has_bf16() && x.len() == m * k && y.len() == m * n && k > 0);
    let out = Scatter::new(y);
    let of = |rows: Range<usize>| Rows::<A>::new(w, k, rows);
    let ahead = |rows: Range<usize>, steps| Ahead::of(w, k, rows, steps).map(Ahead::within_reach);
    // SAFETY: one task alone has these weights and tokens; `has_bf16` implies the features.
    let store = |sums: &Sums, token, row| unsafe { store::<true>(sums, (token, m), (row, n), out) };
    // The buffers of results are used again and again: they are near.
    // SAFETY: there are tiles, and panels are filled up.
    unsafe { product::<Terms<A, B>, _>(n, k, m, View::rows(x, k), of, ahead, |_, _| {}, store) };
}

/// Tiles of `A` terms on the left and `B` on the right.
struct Terms<const A: usize, const B: usize>(Tiles);

impl<const A: usize, const B: usize> Unit for Terms<A, B> {
    type Right = [Tile; B];
    const FETCHES: bool = true;

    fn begin() -> Self {
        Self(Tiles::load(&Config::FULL))
    }

    fn pack(x: View<'_>, rows: usize, k: usize) -> Kept<[Tile; B]> {
        pack(x, rows, k, true)
    }

    unsafe fn multiply(
        &self,
        left: Left,
        right: [&[[Tile; B]]; 2],
        steps: usize,
        ahead: Option<&mut Ahead>,
        before: impl FnOnce(&Sums),
        sums: &mut Sums,
    ) {
        // SAFETY: the caller's promise.
        unsafe { multiply::<A, B>(&self.0, left, right, steps, ahead) };
        // While tiles are multiplied, the vectors finish what was before.
        before(sums);
        keep(&self.0, sums);
    }
}

/// 32 rows of a left operand.
enum Rows<'a, const A: usize> {
    /// As they are stored: whole tiles of bf16, rows `k` apart.
    Stored(&'a [bf16], usize),
    /// The same of codes, zeros behind the ends.
    Decoded(Kept<bf16>, usize),
    /// Two rows of tiles, [2, steps], zeros behind the ends.
    Packed(Kept<[Tile; A]>),
}

impl<'a, const A: usize> Rows<'a, A> {
    fn new(w: Weight<'a>, k: usize, rows: Range<usize>) -> Self {
        let (first, rows) = (rows.start, rows.len());
        match w {
            Weight::Bf16(w) if k.is_multiple_of(STEP) && rows == PANEL => {
                Self::Stored(&w[first * k..][..PANEL * k], k)
            }
            Weight::F32(w) => Self::Packed(pack(View::rows(&w[first * k..], k), rows, k, false)),
            Weight::Coded(w) if !w.is_f32() => {
                let row = k.next_multiple_of(STEP);
                // SAFETY: everything is written.
                let mut own = unsafe { Kept::filled(PANEL * row, |own| own.fill(MaybeUninit::zeroed())) };
                for (row, own) in (first..first + rows).zip(own.chunks_mut(row)) {
                    w.narrow(row, &mut own[..k]);
                }
                Self::Decoded(own, row)
            }
            _ => {
                let mut wide = vec![0.0; rows * k];
                widen(w, first, k, &mut wide);
                Self::Packed(pack(View::rows(&wide, k), rows, k, false))
            }
        }
    }
}

impl<const A: usize> Panel for Rows<'_, A> {
    fn left(&self) -> Left {
        match self {
            Self::Stored(w, k) => Left::stored(w, *k),
            Self::Decoded(w, row) => Left::stored(w, *row),
            Self::Packed(tiles) => Left::packed(tiles.split_at(tiles.len() / 2).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::blocked::tests::{hold_every_storage, hold_every_view};

    #[test]
    fn products_are_the_definition_to_the_stated_error() {
        if has_bf16() {
            let bits = |w: Weight<'_>| if matches!(w, Weight::F16(_)) { 16 } else { 21 };
            // Beside what products lose there is what their sums in f32 do.
            let sums = |k: usize| (k as f64 / 256.0).max(1.0);
            hold_every_storage(forward, |w, k| sums(k) * 0.5f64.powi(bits(w)));
        }
    }

    #[test]
    fn products_of_two_terms_are_the_definition_to_the_stated_error() {
        if has_bf16() {
            hold_every_view(two_terms, |_| 0.5f64.powi(16));
        }
    }
}
