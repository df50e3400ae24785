//! Y = X Wᵀ on the matrix unit, which multiplies bf16 alone: other numbers are split into bf16 terms.
//!
//! x = x₀ + x₁ + x₂, each term the bf16 nearest to what those before it left over; they carry 8 bits each. Of the
//! products xᵢ wⱼ, exact in f32 and summed in f32, only those above the precision of the result are made:
//!
//! | W | terms of W, of X | products | error of a product |
//! |---|---|---|---|
//! | bf16 | 1, 2 | x₀w₀ x₁w₀ | 2⁻¹⁸ |
//! | f16 | 2, 2 | x₀w₀ x₁w₀ x₀w₁ | 2⁻¹⁷ |
//! | f32, decoded | 3, 3 | those with i + j ≤ 2 | 2⁻²⁵ |
//!
//! A tile is 16 rows of 32 values. W is the left operand, as it is stored, so that bf16 weights are read in place; X is
//! the right one, packed once; so tiles of Yᵀ come out, and are turned on their way to Y. A task takes as many weight
//! rows as its cache holds past its tokens.

mod terms;

use super::Scatter;
use super::amx::{Config, Tiles};
use super::linear::{Weight, widen};
use super::simd::prefetch;
use rayon::prelude::*;
use std::arch::asm;
use std::arch::x86_64::*;
use terms::{PANEL, ROWS, STEP, Tile, pack, transpose};

/// Bytes of W that stay in the second-level cache of a task.
const GROUP: usize = 3 << 18;

/// y = x Wᵀ: `x` [m, k], `w` [n, k], `y` [m, n], overwritten.
///
/// # Panics
/// If the processor or the system has no tiles: see [`super::amx::has_bf16`].
pub fn forward(m: usize, k: usize, n: usize, x: &[f32], w: Weight<'_>, y: &mut [f32]) {
    match w {
        Weight::Bf16(_) => product::<1, 2>(m, k, n, x, w, y),
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
    let group = (GROUP / (PANEL * steps * A * size_of::<Tile>() / ROWS)).clamp(1, panels);
    let (groups, pairs) = (panels.div_ceil(group), m.div_ceil(PANEL));
    // Few groups: the tokens are shared as well, neighbours with the same weights.
    let threads = rayon::current_num_threads();
    let parts = if threads == 1 { 1 } else { (4 * threads).div_ceil(groups).min(pairs) };
    let pairs_each = pairs.div_ceil(parts);
    let (products, out) = (products::<A, B>(), Scatter::new(y));
    (0..groups * parts).into_par_iter().for_each(|task| {
        let first = task / parts * group;
        let last = (first + group).min(panels);
        let part = task % parts * pairs_each..(task % parts * pairs_each + pairs_each).min(pairs);
        let weights: Vec<Panel<'_, A>> = (first..last)
            .map(|panel| Panel::new(w, k, panel * PANEL, PANEL.min(n - panel * PANEL)))
            .collect();
        // SAFETY: this task alone has these weights and tokens; `has_bf16` implies the features.
        let store = |sums: &Sums, (token, row): (usize, usize)| unsafe { store(sums, token, m, row, n, out) };
        let (mut sums, mut before) = ([[[0.0; ROWS]; ROWS]; 4], None);
        let tiles = Tiles::load(&Config::FULL);
        for pair in part {
            let x = &packed[2 * pair * steps..][..2 * steps];
            let next = packed.get(2 * (pair + 1) * steps..).unwrap_or_default();
            let ahead = (2 * steps).div_ceil(weights.len());
            for (panel, w) in weights.iter().enumerate() {
                // The tokens after these, a share beside each panel: otherwise the first panel would wait for them.
                next.iter().skip(panel * ahead).take(ahead).for_each(near);
                multiply(&tiles, w, x, &products);
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

    /// Its two first tiles; bytes between the rows of a tile; bytes between tiles.
    fn start(&self) -> ([*const u8; 2], usize, usize) {
        match self {
            Self::Stored(w, k) => ([w.as_ptr().cast(), w[ROWS * k..].as_ptr().cast()], 2 * k, 2 * STEP),
            Self::Packed(tiles) => {
                let second = &tiles[tiles.len() / 2];
                ([(&raw const tiles[0]).cast(), (&raw const *second).cast()], 2 * STEP, size_of_val(second))
            }
        }
    }
}

/// The products xᵢ wⱼ that are made, as distances in bytes from term 0 to i and to j; the smallest first.
fn products<const A: usize, const B: usize>() -> Vec<[usize; 2]> {
    let all = (0..A.max(B)).rev().flat_map(|order| (0..=order).map(move |i| [i, order - i]));
    all.filter(|[i, j]| *i < A && *j < B)
        .map(|[i, j]| [i * size_of::<Tile>(), j * size_of::<Tile>()])
        .collect()
}

/// Sums of the 2 × 2 tiles of a panel and of 32 tokens: [W tile, X tile][row of W][token].
type Sums = [[[f32; ROWS]; ROWS]; 4];

/// Sums all `products` of a panel and 32 tokens, `x` [2, steps], in the tiles 0 … 3.
fn multiply<const A: usize, const B: usize>(
    _: &Tiles,
    w: &Panel<'_, A>,
    x: &[[Tile; B]],
    products: &[[usize; 2]],
) {
    let steps = x.len() / 2;
    let ([w0, w1], w_row, w_step) = w.start();
    // SAFETY: the distances reach every term of a tile and no further, and there are `steps` tiles behind each of the
    // four starts; the shapes are set.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "mov {pass}, {products}",
            "3:",
            "mov {at}, [{pass}]",
            "add {at}, {w0}",
            "tileloadd tmm4, [{at} + {w_row}*1]",
            "mov {at}, [{pass} + 8]",
            "add {at}, {x0}",
            "tileloadd tmm6, [{at} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "mov {at}, [{pass} + 8]",
            "add {at}, {x1}",
            "tileloadd tmm7, [{at} + {row}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "mov {at}, [{pass}]",
            "add {at}, {w1}",
            "tileloadd tmm5, [{at} + {w_row}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {pass}, 16",
            "cmp {pass}, {end}",
            "jne 3b",
            "add {w0}, {w_step}",
            "add {w1}, {w_step}",
            "add {x0}, {x_step}",
            "add {x1}, {x_step}",
            "dec {left}",
            "jnz 2b",
            products = in(reg) products.as_ptr(), end = in(reg) products.as_ptr_range().end,
            pass = out(reg) _, at = out(reg) _, left = inout(reg) steps => _,
            w0 = inout(reg) w0 => _, w1 = inout(reg) w1 => _,
            x0 = inout(reg) x.as_ptr() => _, x1 = inout(reg) x[steps..].as_ptr() => _,
            w_row = in(reg) w_row, row = in(reg) 64usize, w_step = in(reg) w_step,
            x_step = const size_of::<Tile>() * B,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}

/// Writes the tiles 0 … 3 to memory. The compiler has no use of its own for tiles: they last from `multiply` to here.
fn keep(_: &Tiles, sums: &mut Sums) {
    // SAFETY: four tiles of 1024 bytes fill `sums`; the shapes are set.
    unsafe {
        asm!(
            "tilestored [{to} + {row}*1], tmm0",
            "tilestored [{to} + {row}*1 + 1024], tmm1",
            "tilestored [{to} + {row}*1 + 2048], tmm2",
            "tilestored [{to} + {row}*1 + 3072], tmm3",
            to = in(reg) sums.as_mut_ptr(), row = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
}

/// Writes sums, turned back, to `y` [.., n] from (`token`, `first`) on, as far as `tokens` and n reach.
///
/// # Safety
/// Nothing else writes there meanwhile.
#[target_feature(enable = "avx512f")]
unsafe fn store(sums: &Sums, token: usize, tokens: usize, first: usize, n: usize, y: Scatter<'_>) {
    for (at, tile) in sums.iter().enumerate() {
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
                (Weight::Bf16(&narrow), 17),
                (Weight::F16(&half), 16),
            ] {
                let mut wide = vec![0.0; n * k];
                widen(stored, 0, k, &mut wide);
                let mut y = vec![f32::NAN; m * n];
                forward(m, k, n, &x, stored, &mut y);
                for (ij, y) in y.iter().enumerate() {
                    let (x, w) = (&x[ij / n * k..][..k], &wide[ij % n * k..][..k]);
                    let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), xw| (sum + xw, size + xw.abs()));
                    let error = (f64::from(*y) - sum).abs() / size;
                    assert!(error < 0.5f64.powi(bits), "{m}×{k}×{n} {bits} bits at {ij}: {y} not {sum}");
                }
            }
        }
    }
}
