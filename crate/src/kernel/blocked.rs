//! Products of large matrices, 32 × 32 sums at a time: which of them a task makes and in what order, whatever unit of the
//! processor multiplies.
//!
//! The left operand has 32 rows at a time, as they are stored wherever that is possible, so that weights are read in
//! place; the right one is packed once, 16 rows side by side. With W on the left tiles of Yᵀ come out, and are turned on
//! their way to Y. A task takes few rows of the left operand past all of the right one, and those of the next task come
//! meanwhile.

use super::Scatter;
use super::ahead::Ahead;
use super::kept::Kept;
use super::tile::{View, transposed_16};
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a tile of sums.
pub const ROWS: usize = 16;
/// Rows of either operand whose 2 × 2 tiles of sums are made at once.
pub const PANEL: usize = 2 * ROWS;
/// Values of a row that a step of a product takes.
pub const STEP: usize = 32;
/// Weights of a task: few enough that the second-level cache holds them, the tokens and the weights of the next task.
const GROUP: usize = 3 << 15;

/// Sums of 2 × 2 tiles: [left tile, right tile][row of the left][row of the right], each row a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Sums(pub [[[f32; ROWS]; ROWS]; 4]);

impl Sums {
    /// Nothing summed yet.
    pub const ZERO: Self = Self([[[0.0; ROWS]; ROWS]; 4]);
}

/// Two times 16 rows of the left operand, by their places.
#[derive(Clone, Copy)]
pub struct Left {
    /// The first step of each.
    pub start: [*const u8; 2],
    /// Bytes between rows.
    pub row: usize,
    /// Bytes between neighbours in a row.
    pub value: usize,
    /// Bytes between steps.
    pub step: usize,
}

impl Left {
    /// 32 rows as they are stored, `k` values apart.
    pub fn stored<T>(w: &[T], k: usize) -> Self {
        let start = [w.as_ptr().cast(), w[ROWS * k..].as_ptr().cast()];
        Self { start, row: k * size_of::<T>(), value: size_of::<T>(), step: STEP * size_of::<T>() }
    }

    /// The first values of 32 rows, then the second ones, and so on.
    pub fn turned<T>(w: &[T]) -> Self {
        let start = [w.as_ptr().cast(), w[ROWS..].as_ptr().cast()];
        let value = PANEL * size_of::<T>();
        Self { start, row: size_of::<T>(), value, step: STEP * value }
    }
}

/// What multiplies, ready for one task.
pub trait Unit {
    /// A step of 16 rows of the right operand.
    type Right: Sync;

    /// Whether it is so fast that the right operand has to be asked for before its use.
    const FETCHES: bool;

    /// May the thread use it from now on.
    fn begin() -> Self;

    /// The right operand, [rows / 16, steps], zeros beyond the ends; rows to whole panels.
    fn pack(x: View<'_>, rows: usize, k: usize) -> Kept<Self::Right>;

    /// The sums over `steps` steps. What was in `sums` before is given to `before` first, or while tiles are multiplied;
    /// meanwhile the next part of `ahead` is fetched.
    ///
    /// # Safety
    /// The processor has the unit. The left operand has `steps` steps behind each of its starts.
    unsafe fn multiply(
        &self,
        left: Left,
        right: [&[Self::Right]; 2],
        steps: usize,
        ahead: Option<&mut Ahead>,
        before: impl FnOnce(&Sums),
        sums: &mut Sums,
    );
}

/// 32 rows of a left operand, perhaps with memory of their own.
pub trait Panel: Sync {
    /// Where they are.
    fn left(&self) -> Left;
}

/// The products of `rows` rows of a left operand, of which `left` makes panels, with the rows of `x` [columns, k]. `store`
/// gets 32 × 32 sums each and where they belong, first the column, then the row; `soon` is told one product before.
///
/// # Safety
/// The processor has the unit. Panels have k values a row, filled up to whole steps.
pub unsafe fn product<U: Unit, P: Panel>(
    rows: usize,
    k: usize,
    columns: usize,
    x: View<'_>,
    left: impl Fn(Range<usize>) -> P + Sync,
    ahead: impl Fn(Range<usize>, usize) -> Option<Ahead> + Sync,
    soon: impl Fn(usize, usize) + Sync,
    store: impl Fn(&Sums, usize, usize) + Sync,
) {
    let steps = k.div_ceil(STEP);
    let packed = U::pack(x, columns, k);
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
        let group: Vec<P> = (first..last).map(|panel| left(of_panels(panel, panel + 1))).collect();
        let mut ahead = ahead(of_panels(first, last), part.len() * group.len() * steps);
        let (mut sums, mut before) = (Sums::ZERO, None);
        let unit = U::begin();
        for pair in part {
            let x = &packed[2 * pair * steps..][..2 * steps];
            let next = packed.get(2 * (pair + 1) * steps..).unwrap_or_default();
            let share = (2 * steps).div_ceil(group.len());
            for (panel, left) in group.iter().enumerate() {
                // The columns after these, a share beside each panel: otherwise the first panel would wait for them.
                if U::FETCHES {
                    next.iter().skip(panel * share).take(share).for_each(near);
                }
                soon(pair * PANEL, (first + panel) * PANEL);
                let before = before.replace((pair * PANEL, (first + panel) * PANEL));
                let finish = |sums: &Sums| {
                    if let Some((column, row)) = before {
                        store(sums, column, row);
                    }
                };
                let (left, right) = (left.left(), [&x[..steps], &x[steps..]]);
                // SAFETY: a panel has as many steps; the caller's promise.
                unsafe { unit.multiply(left, right, steps, ahead.as_mut(), finish, &mut sums) };
            }
        }
        if let Some((column, row)) = before {
            store(&sums, column, row);
        }
    });
}

/// Asks for a step of the right operand.
fn near<T>(step: &T) {
    for line in (0..size_of::<T>()).step_by(64) {
        // SAFETY: a hint that never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(step).cast::<i8>().wrapping_add(line)) };
    }
}

/// Asks for the places of 32 × 32 sums: they are written one product later, and a line that is not there has to be read
/// before a part of it can be written.
pub(super) fn soon((row, m): (usize, usize), (col, n): (usize, usize), out: Scatter<'_>) {
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
/// Nothing else writes there meanwhile. The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn store<const TURNED: bool>(
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

/// What the products of every unit are held to.
#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::coded::Coded;
    use crate::kernel::weight::{Weight, widen};
    use half::{bf16, f16};

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (seed..seed + count).map(|i| ((i * 7919 + 13) % 10007) as f32 / 5003.0 - 1.0).collect()
    }

    /// Within `bound` of the sum of the terms' sizes.
    fn close(found: f32, terms: impl Iterator<Item = f64>, bound: f64, what: &str) {
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
        assert!((f64::from(found) - sum).abs() <= bound * size, "{what}: {found} not {sum}");
    }

    /// Products with weights of every storage, at odd sizes.
    pub fn hold_every_storage(
        forward: fn(usize, usize, usize, &[f32], Weight<'_>, &mut [f32]),
        bound: impl Fn(Weight<'_>, usize) -> f64,
    ) {
        for (m, k, n) in [(1, 1, 1), (5, 31, 33), (16, 32, 32), (33, 64, 96), (70, 500, 65), (257, 96, 40)] {
            let (x, w) = (values(m * k, 0), values(n * k, 5));
            let narrow: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
            let half: Vec<f16> = w.iter().map(|w| f16::from_f32(*w)).collect();
            let coded = [Coded::of_f32(n, k, &w), Coded::of_bf16(n, k, &narrow)];
            let decode = |first: usize, rows: &mut [f32]| rows.copy_from_slice(&w[first * k..][..rows.len()]);
            for (at, stored) in [
                Weight::F32(&w),
                Weight::Decoded(&decode),
                Weight::Coded(&coded[0]),
                Weight::Bf16(&narrow),
                Weight::Coded(&coded[1]),
                Weight::F16(&half),
            ]
            .into_iter()
            .enumerate()
            {
                let mut wide = vec![0.0; n * k];
                widen(stored, 0, k, &mut wide);
                let factor =
                    |x: f32| if stored.is_bf16() { bf16::from_f32(x).to_f64() } else { f64::from(x) };
                let mut y = vec![f32::NAN; m * n];
                forward(m, k, n, &x, stored, &mut y);
                for (ij, y) in y.iter().enumerate() {
                    let (x, w) = (&x[ij / n * k..][..k], &wide[ij % n * k..][..k]);
                    let terms = x.iter().zip(w).map(|(x, w)| factor(*x) * f64::from(*w));
                    close(*y, terms, bound(stored, k), &format!("storage {at}, {m}×{k}×{n} at {ij}"));
                }
            }
        }
    }

    /// Products of operands that lie by rows or by columns.
    pub fn hold_every_view(
        product: fn(usize, usize, usize, View<'_>, View<'_>, &mut [f32]),
        bound: impl Fn(usize) -> f64,
    ) {
        for (m, k, n) in [(1, 1, 1), (5, 31, 33), (33, 64, 96), (70, 100, 65), (257, 33, 40)] {
            let (a, b) = (values(m * k, 0), values(n * k, 5));
            for (a_turned, b_turned) in [(false, false), (false, true), (true, false), (true, true)] {
                let view = |values, rows, turned| match turned {
                    true => View::transposed(values, rows),
                    false => View::rows(values, k),
                };
                let (a, b) = (view(&a, m, a_turned), view(&b, n, b_turned));
                let mut out = vec![f32::NAN; m * n];
                product(m, k, n, a, b, &mut out);
                for (ij, found) in out.iter().enumerate() {
                    let at = |v: View<'_>, i: usize, p: usize| f64::from(v.data[i * v.row + p * v.col]);
                    let terms = (0..k).map(|p| at(a, ij / n, p) * at(b, ij % n, p));
                    close(*found, terms, bound(k), &format!("{m}×{k}×{n} at {ij}"));
                }
            }
        }
    }
}
