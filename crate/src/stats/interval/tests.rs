use super::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::Value;
use std::collections::BTreeMap;

/// A series in which each value keeps `keep` of the one before it: mean 0, variance 1.
fn series(len: usize, keep: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut normal = || -> f64 { StandardNormal.sample(rng) };
    let mut x = normal();
    (0..len)
        .map(|_| {
            x = keep * x + (1.0 - keep * keep).sqrt() * normal();
            x
        })
        .collect()
}

/// Share of intervals that hold what they are to hold.
fn covered(found: impl IntoIterator<Item = (Estimate, f64)>) -> f64 {
    let (mut held, mut all) = (0, 0);
    for (found, truth) in found {
        held += usize::from(found.low <= truth && truth <= found.high);
        all += 1;
    }
    f64::from(held as u32) / f64::from(all)
}

#[test]
fn intervals_cover_where_neighbours_hold_together() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut of = |keep: f64, interval: Interval| {
        covered((0..600).map(|_| (interval.mean(&series(2_000, keep, &mut rng), &[]).unwrap(), 0.0)))
    };
    for keep in [0.0, 0.7, 0.97] {
        let found = of(keep, Interval::default());
        assert!((0.94..=0.99).contains(&found), "{keep}: {found}");
    }
    // Values taken for independent: √((1 + .7) / (1 − .7)) = 2.4 times too narrow, 59 % by theory.
    // Small p-values are not much more frequent than they say, also where six values of 400 are independent.
    for keep in [0.0, 0.7, 0.97] {
        let small = (0..2_000)
            .filter(|_| Interval::default().mean(&series(400, keep, &mut rng), &[]).unwrap().p < 0.01);
        let share = small.count() as f64 / 2_000.0;
        assert!(share < 0.03, "{keep}: {share}");
    }
    let mut of = |keep: f64, interval: Interval| {
        covered((0..600).map(|_| (interval.mean(&series(2_000, keep, &mut rng), &[]).unwrap(), 0.0)))
    };
    let single = of(0.7, Interval::default().blocks(2_000));
    assert!((0.5..0.7).contains(&single), "{single}");
}

/// Rises of real losses, document by document: see the README beside the file.
fn rises() -> BTreeMap<String, Vec<Vec<f64>>> {
    let text = include_str!("../../../tests/fixtures/losses/rises.json");
    let all: Value = serde_json::from_str(text).unwrap();
    serde_json::from_value(all["rises"].clone()).unwrap()
}

/// Each part of a document against the whole of it. A part is of the whole, so that its error is smaller by √(1 − share).
#[test]
fn real_losses_are_covered_within_documents() {
    let (rises, interval) = (rises(), Interval::default());
    assert_eq!(rises.len(), 2);
    let mut found = vec![];
    for documents in rises.values() {
        for document in documents {
            let n = document.len();
            let truth = document.iter().sum::<f64>() / n as f64;
            for parts in [2, 3, 4, 6] {
                let shrunk = (1.0 - 1.0 / f64::from(parts as u32)).sqrt();
                for i in 0..parts {
                    let part = interval.mean(&document[n * i / parts..n * (i + 1) / parts], &[]).unwrap();
                    found.push((
                        Estimate {
                            low: part.value - shrunk * (part.value - part.low),
                            high: part.value + shrunk * (part.high - part.value),
                            ..part
                        },
                        truth,
                    ));
                }
            }
        }
    }
    let found = covered(found);
    assert!((0.93..=0.98).contains(&found), "{found}");
}

/// Texts of some documents against the mean of all: the long correlation, since documents differ more than their insides.
#[test]
fn real_losses_are_covered_across_documents() {
    let (rises, interval) = (rises(), Interval::default());
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for documents in [1, 2, 3, 4, 6, 8, 12, 16, 24] {
        let mut found = vec![];
        for all in rises.values() {
            let means: Vec<f64> = all.iter().map(|d| d.iter().sum::<f64>() / d.len() as f64).collect();
            let truth = means.iter().sum::<f64>() / means.len() as f64;
            for _ in 0..500 {
                let drawn: Vec<&Vec<f64>> = (0..documents)
                    .map(|_| &all[rand::RngExt::random_range(&mut rng, 0..all.len())])
                    .collect();
                let lengths: Vec<usize> = drawn.iter().map(|d| d.len()).collect();
                let text: Vec<f64> = drawn.into_iter().flatten().copied().collect();
                found.push((interval.mean(&text, &lengths).unwrap(), truth));
            }
        }
        let found = covered(found);
        assert!((0.93..=0.985).contains(&found), "{documents} documents: {found}");
    }
}

#[test]
fn the_error_is_that_of_theory() {
    // For independent values the error of the mean is s / √n, and many blocks have the quantile of the normal.
    let values = series(4_000, 0.0, &mut ChaCha8Rng::seed_from_u64(5));
    let found = Interval::default().blocks(4_000).mean(&values, &[]).unwrap();
    let error = crate::stats::Mean::of(&values).unwrap().error;
    assert!((found.error / error - 1.0).abs() < 1e-9, "{found:?} {error}");
    assert!(((found.high - found.low) / (2.0 * crate::stats::Z95 * error) - 1.0).abs() < 1e-3);
    // Blocks by hand: means 1, 2, 6 and 7, s = 2.944, t(3) = 3.182, t = 4 / 1.472 = 2.718: p = .0727.
    let found = Interval::default().blocks(4).mean(&[0.0, 2.0, 2.0, 2.0, 5.0, 7.0, 7.0, 7.0], &[]).unwrap();
    assert!((found.value, found.blocks) == (4.0, 4.0) && (found.error - 1.471_960).abs() < 1e-6, "{found:?}");
    assert!(
        (found.high - 4.0 - 3.182_446 * 1.471_960).abs() < 1e-5 && (found.p - 0.0727).abs() < 2e-4,
        "{found:?}"
    );
}

#[test]
fn documents_are_drawn_where_there_are_enough() {
    // Four documents, each the same throughout: blocks within them see nothing, and their number is what counts.
    let values: Vec<f64> = (0..400).map(|i| f64::from(i / 100)).collect();
    let found = Interval::default().mean(&values, &[100; 4]).unwrap();
    assert_eq!((found.value, found.blocks), (1.5, 4.0));
    assert!((found.error - (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12, "{found:?}");
    // One of nearly all the text is no four.
    let uneven = Interval::default().mean(&values, &[397, 1, 1, 1]).unwrap();
    assert!(BLOCKS.contains(&(uneven.blocks as usize)), "{uneven:?}");
    // The block that the correlation asks for: two halves that differ leave four blocks.
    let halves: Vec<f64> = (0..320).map(|i| f64::from(i / 160) + 0.01 * f64::from(i % 7)).collect();
    assert_eq!(Interval::default().mean(&halves, &[160, 160]).unwrap().blocks, 4.0);
}

#[test]
fn pairs_cancel_what_they_share() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let text = series(3_000, 0.5, &mut rng);
    let noise = series(3_000, 0.0, &mut rng);
    let other: Vec<f64> = text.iter().zip(&noise).map(|(t, e)| t + 0.02 + 0.1 * e).collect();
    let interval = Interval::default();
    let paired = interval.of([&other, &text], &[], |[a, b]| a - b).unwrap();
    assert!(paired.low > 0.0 && paired.high < 0.04 && paired.p < 0.01, "{paired:?}");
    assert!(interval.mean(&text, &[]).unwrap().low < -0.02);
    // The same as the interval of the differences themselves.
    let differences: Vec<f64> = other.iter().zip(&text).map(|(a, b)| a - b).collect();
    let direct = interval.mean(&differences, &[]).unwrap();
    assert!((direct.low - paired.low).abs() < 1e-9 && (direct.p - paired.p).abs() < 1e-9);
    // Of other tokens nothing cancels.
    let apart = interval.mean(&other, &[]).unwrap().above(&interval.mean(&text, &[]).unwrap(), 0.95);
    assert!((apart.value - paired.value).abs() < 1e-9 && apart.error > 5.0 * paired.error, "{apart:?}");
}

#[test]
fn odd_lengths_and_nothing_at_all() {
    let interval = Interval::default();
    // A series that never changes has no spread, whatever its length.
    for len in [4, 7, 17, 100] {
        let found = interval.mean(&vec![2.0; len], &[]).unwrap();
        assert!([found.value, found.low, found.high].iter().all(|v| (v - 2.0).abs() < 1e-12), "{found:?}");
    }
    let zero = interval.mean(&[0.0; 9], &[]).unwrap();
    assert_eq!((zero.value, zero.low, zero.high, zero.p), (0.0, 0.0, 0.0, 1.0));
    // Three values say nothing of how far a fourth may be.
    let little = interval.mean(&[1.0, 2.0, 3.0], &[]).unwrap();
    assert!(little.is_alone() && little.value == 2.0 && little.p.is_nan(), "{little:?}");
    assert!(!zero.is_alone());
    assert_eq!(interval.mean(&[], &[]), None);
    for odd in [f64::NAN, f64::INFINITY] {
        let found = interval.mean(&[1.0, 1.0, 1.0, 1.0, odd], &[]).unwrap();
        assert!(!found.value.is_finite() && [found.low, found.high, found.p].iter().all(|x| x.is_nan()));
        assert!(!found.is_alone());
    }
    for (bad, part) in [
        (interval.blocks(1), "interval: blocks must be at least 2, found 1"),
        (Interval { level: f64::NAN, ..interval }, "level is a share between 0 and 1, found NaN"),
        (Interval { level: 1.0, ..interval }, "level is a share between 0 and 1, found 1"),
    ] {
        let sentence = bad.check().unwrap_err().to_string();
        assert!(sentence.contains(part), "{sentence}");
    }
    assert!(interval.check().is_ok());
    assert_eq!(interval.of([&[1.0, 2.0], &[1.0]], &[], |[a, b]| a / b), None);
}
