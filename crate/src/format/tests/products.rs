//! Matrices in the order of the instructions that multiply them.

use super::*;
use crate::kernel::integer::{IntegerRows, quantize_rows};
use half::f16;

/// How far a product is from that of these numbers, as a share of the sum of its terms' sizes.
fn far(y: f32, x: &[f32], w: &[f32]) -> f64 {
    let terms: Vec<f64> = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).collect();
    (f64::from(y) - terms.iter().sum::<f64>()).abs() / terms.iter().map(|term| term.abs()).sum::<f64>()
}

/// The order of instructions is only another place for the same codes.
#[test]
fn a_matrix_laid_out_for_products_is_the_same() {
    let (rows, cols) = (37, 100);
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 + 13) % 257) as f32 / 128.0 - 1.0).collect();
    let names = [
        "w8",
        "w4",
        "w3-g40",
        "w2",
        "w5-g64",
        "u8",
        "u7",
        "u4-g32",
        "u2-tensor",
        "ternary",
        "nf4-g64",
        "nf4dq-b50",
        "fp8",
        "mxfp4",
        "nvfp4",
        "w4-b64",
    ];
    for name in names {
        let plain = name.parse::<Coding>().unwrap().encode(&values, rows, cols).unwrap();
        let laid = plain.for_products();
        // Blocks of 64 end at other columns in every row of 100.
        assert_eq!(laid.packed().is_none(), name == "w4-b64", "{name}");
        assert_eq!(laid.codes(), plain.codes(), "{name}");
        assert_eq!(laid.decode(), plain.decode(), "{name}");
        let (mut a, mut b) = (vec![0; cols], vec![0; cols]);
        for row in 0..rows {
            laid.integers(row, &mut a);
            plain.integers(row, &mut b);
            assert_eq!(a, b, "{name} row {row}");
        }
    }
}

/// Blocks of 64 end at other columns in each row of 160 and of 136: products of few rows are those of the numbers all the same.
#[test]
fn blocks_across_rows_are_laid_out_for_products() {
    for (rows, cols) in [(37, 160), (20, 136), (9, 32), (5, 192)] {
        let values: Vec<f32> =
            (0..rows * cols).map(|i| ((i * 7919 + 13) % 257) as f32 / 128.0 - 1.0).collect();
        let plain = "nf4dq".parse::<Coding>().unwrap().encode(&values, rows, cols).unwrap();
        let laid = plain.for_products();
        assert!(laid.packed().is_some(), "{rows} × {cols}");
        assert_eq!(laid.codes(), plain.codes());
        let values = plain.decode();
        assert_eq!(laid.decode(), values);
        for m in [1, 3] {
            let x: Vec<f32> = (0..m * cols).map(|i| ((i * 31 + 7) % 101) as f32 / 50.0 - 1.0).collect();
            let mut y = vec![f32::NAN; m * rows];
            if !laid.product(m, &x, &mut y) {
                println!("SKIPPED: products of few rows straight from codes (no AVX-512)");
                return;
            }
            for (ij, y) in y.into_iter().enumerate() {
                let (i, j) = (ij / rows, ij % rows);
                let far = far(y, &x[i * cols..][..cols], &values[j * cols..][..cols]);
                assert!(far <= 2e-6, "{m}×{cols}×{rows}: {far}");
            }
        }
    }
}

/// Products over blocks of GGUF are those of the numbers that they stand for, with a minimum and without, laid out and not.
#[test]
fn blocks_that_are_kept_multiply_as_what_they_stand_for() {
    let (rows, cols) = (37, 96);
    let noise = |len: usize, seed: usize| (0..len).map(move |i| ((i + seed) * 7919 + 13) % 257);
    for (bits, min) in [(8, false), (5, false), (4, false), (5, true), (4, true)] {
        let coding = Coding::of(Format::Ggml { bits, min });
        let codes: Vec<u8> = noise(rows * cols, 1).map(|x| x as u8 & (u8::MAX >> (8 - bits))).collect();
        let halves = |seed: usize, middle: f32| {
            noise(rows * cols / 32, seed)
                .map(|x| f16::from_f32((x as f32 - middle) / 1000.0))
                .collect::<Vec<_>>()
        };
        let scales = Scales::F16(halves(2, 40.0), min.then(|| halves(3, 200.0)));
        let kept = Encoded::new(coding, rows, cols, &codes, scales);
        let values = kept.decode();
        assert_eq!(kept.bytes(), rows * cols / 32 * (2 + 4 * usize::from(bits) + 2 * usize::from(min)));
        for m in [1, 3, 40] {
            let x: Vec<f32> = noise(m * cols, 4).map(|x| x as f32 / 128.0 - 1.0).collect();
            let x = quantize_rows(&x, cols, 8, None);
            let rounded = x.values();
            for kept in [kept.clone(), kept.for_products()] {
                let mut y = vec![f32::NAN; m * rows];
                kept.integer_product(&x, &mut y);
                for (ij, y) in y.into_iter().enumerate() {
                    let (i, j) = (ij / rows, ij % rows);
                    let far = far(y, &rounded[i * cols..][..cols], &values[j * cols..][..cols]);
                    assert!(far <= 2e-6, "{coding}, {m} rows: {far}");
                }
            }
        }
        let error = coding.encode(&values, rows, cols).unwrap_err().to_string();
        assert!(
            error.contains(&format!("blocks of {coding} are kept where a file has them, not made")),
            "{error}"
        );
    }
}
