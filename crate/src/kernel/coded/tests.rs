//! Every bit comes back, and products are those of the plain matrix.

use super::*;
use crate::kernel::linear::forward;
use crate::kernel::stream::FEW_ROWS;
use crate::kernel::weight::Weight;

fn value(i: usize) -> f32 {
    let hashed = (i as u32).wrapping_mul(2_654_435_761);
    ((hashed >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.5f32.powi((hashed >> 3 & 7) as i32)
}

/// Values of every kind: of one size, of all sizes, zeros, subnormal ones, and what is no number.
fn rows(cols: usize, seed: usize) -> Vec<f32> {
    let odd = [0.0, -0.0, 1e-39, -1e-44, 1e-20, 3e38, f32::MIN_POSITIVE, -1e-30];
    let kinds = [
        (0..cols).map(|i| value(i + seed)).collect::<Vec<_>>(),
        (0..cols).map(|i| if i % 29 == seed % 29 { odd[i % 8] } else { value(i + seed) }).collect(),
        (0..cols).map(|i| value(i) * 2.0f32.powi((i * 37 % 250) as i32 - 125)).collect(),
        vec![0.0; cols],
        (0..cols).map(|i| if i == cols / 2 { 1e30 } else { value(i + seed) * 1e-6 }).collect(),
    ];
    kinds.concat()
}

const COLS: [usize; 8] = [1, 31, 64, 127, 128, 129, 300, 768];

#[test]
fn every_bit_comes_back() {
    for cols in COLS {
        let mut values = rows(cols, 5);
        values[0] = f32::NEG_INFINITY;
        values[cols - 1] = f32::NAN;
        let narrow: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
        let widened: Vec<f32> = narrow.iter().map(|v| v.to_f32()).collect();
        let single = Coded::of_f32(5, cols, &values);
        for (coded, values) in [(&single, &values), (&Coded::of_bf16(5, cols, &narrow), &widened)] {
            let mut back = vec![9.0; values.len()];
            coded.widen(0, &mut back);
            for (i, value) in values.iter().enumerate() {
                assert_eq!(back[i].to_bits(), value.to_bits(), "{cols} columns, weight {i}: {value}");
                assert_eq!(coded.at(i / cols, i % cols).to_bits(), value.to_bits());
            }
            coded.widen(3, &mut back[..cols]);
            assert!(back[..cols].iter().all(|x| x.to_bits() == 0));
        }
        let coded = Coded::of_bf16(5, cols, &narrow);
        let mut back = vec![bf16::ONE; narrow.len()];
        coded.narrow(0, &mut back);
        assert!(back.iter().zip(&narrow).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
fn parts_are_put_together_again_or_refused() {
    let coded = Coded::of_f32(5, 300, &rows(300, 5));
    let (groups, bases, starts, exceptions) = coded.parts();
    let again = |groups: &[u8], bases: &[u8], starts: &[u32], exceptions: &[u32]| {
        Coded::from_parts(5, 300, groups, bases.to_vec(), starts.to_vec(), exceptions)
    };
    assert_eq!(again(groups, bases, starts, &exceptions).as_ref(), Some(&coded));
    let (mut late, mut far) = (starts.to_vec(), exceptions.clone());
    late[2] = late[5] + 1;
    far[exceptions.len() - 1] = 300 << 8;
    let turned: Vec<u32> = exceptions.iter().rev().copied().collect();
    for (case, wrong) in [
        again(&groups[64..], bases, starts, &exceptions),
        again(&groups[1..], bases, starts, &exceptions),
        again(groups, &bases[1..], starts, &exceptions),
        again(groups, bases, &late, &exceptions),
        again(groups, bases, starts, &exceptions[1..]),
        again(groups, bases, starts, &far),
        again(groups, bases, starts, &turned),
        Coded::from_parts(0, 300, &[], vec![], vec![0], &[]),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(wrong, None, "{case}");
    }
}

/// y = x Wᵀ of the coded matrix is that of the plain one, bit for bit, for few rows of x and for many.
#[test]
fn products_are_those_of_the_plain_matrix() {
    for cols in [32, 128, 160, 768] {
        let n = 5 * 9;
        let finite = |v: f32| if v.abs() < 1e20 { v } else { 1e20 };
        let w: Vec<f32> = (0..9).flat_map(|i| rows(cols, i)).map(finite).collect();
        let narrow: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
        let (single, half) = (Coded::of_f32(n, cols, &w), Coded::of_bf16(n, cols, &narrow));
        for m in [1, 2, FEW_ROWS, 5, 33, 70] {
            let x: Vec<f32> = (0..m * cols).map(|i| value(i + 77)).collect();
            let pairs =
                [(Weight::Coded(&single), Weight::F32(&w)), (Weight::Coded(&half), Weight::Bf16(&narrow))];
            for (coded, plain) in pairs {
                let (mut found, mut expected) = (vec![f32::NAN; m * n], vec![0.0; m * n]);
                forward(m, cols, n, &x, coded, &mut found);
                forward(m, cols, n, &x, plain, &mut expected);
                for (ij, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert_eq!(found.to_bits(), expected.to_bits(), "{m}×{cols}, {ij}: {found} {expected}");
                }
            }
        }
    }
}

/// Sums of rows that are not cut into whole vectors differ by their order alone.
#[test]
fn products_of_odd_rows_are_the_definition() {
    for (m, k, n) in [(1, 1, 1), (1, 37, 70), (3, 129, 33), (4, 300, 5)] {
        let (x, w): (Vec<f32>, Vec<f32>) = ((0..m * k).map(value).collect(), (0..n * k).map(value).collect());
        let coded = Coded::of_f32(n, k, &w);
        let mut y = vec![f32::NAN; m * n];
        forward(m, k, n, &x, Weight::Coded(&coded), &mut y);
        for (ij, y) in y.iter().enumerate() {
            let (x, w) = (&x[ij / n * k..][..k], &w[ij % n * k..][..k]);
            let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            assert!((f64::from(*y) - expected).abs() < 1e-6, "{m}×{k}×{n} at {ij}: {y} not {expected}");
        }
    }
}

#[test]
fn normal_weights_take_12_and_28_bits() {
    let (rows, cols) = (64, 768);
    let bell = |i: usize| (0..12).map(|j| value(12 * i + j).signum() * 0.5 + value(7 * i + j)).sum::<f32>();
    let values: Vec<f32> = (0..rows * cols).map(bell).collect();
    let narrow: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
    let bits = |coded: Coded| 8.0 * coded.bytes() as f64 / (rows * cols) as f64;
    let (single, half) =
        (bits(Coded::of_f32(rows, cols, &values)), bits(Coded::of_bf16(rows, cols, &narrow)));
    assert!((28.0..28.2).contains(&single) && (12.0..12.2).contains(&half), "{single}, {half}");
}
