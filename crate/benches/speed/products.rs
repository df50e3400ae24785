//! Products with matrices at the sizes of the 130M shape: many rows of activations, and one.

use crate::check::{hold, noise, some};
use crate::mixer::{HIDDEN, INNER, PROJECTED, TIME};
use crate::table::{Bound, Table};
use half::bf16;
use lowbit::kernel::coded::Coded;
use lowbit::kernel::integer::{self, IntegerRows, Integers, Run, quantize_rows};
use lowbit::kernel::linear::{self, Weight};
use lowbit::kernel::packed::{self, Packed};

/// Bytes of a matrix that is read for one token.
const STREAMED: usize = 128 << 20;

/// By width of the weights.
pub fn all(table: &mut Table) {
    for bits in [32, 16, 8, 4] {
        for (k, n) in [(HIDDEN, PROJECTED), (INNER, HIDDEN)] {
            let count = 2 * TIME * k * n;
            let bound = match bits {
                32 => Bound::Float(count),
                16 => Bound::Bf16(count),
                _ => Bound::Int8(count),
            };
            product(table, "gemm", bits, (TIME, k, n), bound);
        }
    }
    for bits in [32, 28, 16, 12, 8, 4] {
        let n = STREAMED * 8 / bits / HIDDEN;
        product(table, "gemv", bits, (1, HIDDEN, n), Bound::Bytes(STREAMED));
    }
}

/// Rows of activations m, columns k and rows n of a matrix.
type Size = (usize, usize, usize);

/// y [m, n] = x [m, k] Wᵀ with weights of so many bits; from 8 on down of integers with integers.
fn product(table: &mut Table, what: &str, bits: usize, size: Size, bound: Bound) {
    let (m, k, n) = size;
    let name = |kind: &str| format!("{what} {kind} {m}×{k}→{n}");
    match bits {
        32 => table.case(&name("f32"), || bound, || float_product(size)),
        28 => table.case(&name("f32 in 28 bits"), || bound, || coded_product(size, true)),
        16 => table.case(&name("bf16"), || bound, || bf16_product(size)),
        12 => table.case(&name("bf16 in 12 bits"), || bound, || coded_product(size, false)),
        _ => table.case(&name(&format!("int{bits}×int8")), || bound, || integer_product(size, bits)),
    }
}

fn float_product(size: Size) -> impl FnMut() {
    let (m, k, n) = size;
    let (x, w, mut y) = (noise(m * k, 1), noise(n * k, 2), vec![f32::NAN; m * n]);
    linear::forward(m, k, n, &x, Weight::F32(&w), &mut y);
    hold_product(size, &x, &w, &y, 1e-5);
    move || linear::forward(m, k, n, &x, Weight::F32(&w), &mut y)
}

/// With exponents coded; the product has to be that of the plain matrix to the last bit.
fn coded_product(size: Size, single: bool) -> impl FnMut() {
    let (m, k, n) = size;
    let (x, w, mut y, mut plain) =
        (noise(m * k, 1), noise(n * k, 2), vec![f32::NAN; m * n], vec![0.0; m * n]);
    let narrow: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
    let (coded, stored) = match single {
        true => (Coded::of_f32(n, k, &w), Weight::F32(&w)),
        false => (Coded::of_bf16(n, k, &narrow), Weight::Bf16(&narrow)),
    };
    linear::forward(m, k, n, &x, Weight::Coded(&coded), &mut y);
    linear::forward(m, k, n, &x, stored, &mut plain);
    assert!(y == plain, "a coded matrix of {n} rows has another product than the plain one");
    move || linear::forward(m, k, n, &x, Weight::Coded(&coded), &mut y)
}

fn bf16_product(size: Size) -> impl FnMut() {
    let (m, k, n) = size;
    let (x, mut y) = (noise(m * k, 1), vec![f32::NAN; m * n]);
    // As in a model, from a cache line on.
    let mut room = vec![bf16::ZERO; n * k + 32];
    let first = room.as_ptr().align_offset(64);
    for (to, w) in room[first..].iter_mut().zip(noise(n * k, 2)) {
        *to = bf16::from_f32(w);
    }
    let part = first..first + n * k;
    let w = &room[part.clone()];
    linear::forward(m, k, n, &x, Weight::Bf16(w), &mut y);
    let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
    let narrow: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(); // as the product takes them
    hold_product(size, &narrow, &wide, &y, 1e-5);
    move || linear::forward(m, k, n, &x, Weight::Bf16(&room[part.clone()]), &mut y)
}

/// Panics if rows of the product are not those of sums in f64, within `slack` of the largest.
fn hold_product((m, k, n): Size, x: &[f32], w: &[f32], y: &[f32], slack: f64) {
    for i in some(m) {
        let dot = |w: &[f32]| x[i * k..][..k].iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        hold("a product", &y[i * n..][..n], &w.chunks(k).map(dot).collect::<Vec<f64>>(), slack);
    }
}

/// Integers of a range, one scale a row.
struct Plain {
    cols: usize,
    top: i32,
}

impl IntegerRows for Plain {
    fn integers(&self, row: usize, to: &mut [i8]) {
        for (column, to) in to.iter_mut().enumerate() {
            let noise = ((row * self.cols + column) * 7919 + 13) % (2 * self.top as usize + 1);
            *to = (noise as i32 - self.top) as i8;
        }
    }
    fn runs(&self, row: usize, to: &mut Vec<Run>) {
        to.push(Run { end: self.cols, scale: 0.01 + (row % 29) as f32 * 0.013, zero: 0.0 });
    }
    fn range(&self) -> (i8, i8) {
        (-self.top as i8, self.top as i8)
    }
}

/// The product, once its rows are, bit for bit, those of the exact sums.
fn integer_product((m, k, n): Size, bits: usize) -> impl FnMut() {
    let plain = Plain { cols: k, top: (1 << (bits - 1)) - 1 };
    let packed = Packed::new(n, k, &plain).expect("one group a row");
    let (x, mut y) = (quantize_rows(&noise(m * k, 1), k, 8, None), vec![f32::NAN; m * n]);
    packed::forward(&x, &packed, &mut y);
    for i in some(m) {
        let row = Integers { codes: x.codes[i * k..][..k].to_vec(), scales: vec![x.scales[i]], k };
        let mut exact = vec![0.0; n];
        integer::forward(&row, n, &plain, &mut exact);
        assert!(exact == y[i * n..][..n], "row {i} of a product of integers is not the exact sum");
    }
    move || packed::forward(&x, &packed, &mut y)
}
