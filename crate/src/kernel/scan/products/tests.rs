use super::*;
use crate::kernel::scan::channels::{self, Inputs};
use crate::kernel::scan::{CHUNK, chunked, scan};

fn noise(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| (((i + seed) * 7919 + 13) % 10_007) as f32 / 5003.0 - 1.0).collect()
}

const SMOOTHED: [Smooth; 5] = [Smooth::None, Smooth::K, Smooth::Q, Smooth::Qk, Smooth::QkDropped];

fn every() -> impl Iterator<Item = Products> {
    SMOOTHED.into_iter().enumerate().flat_map(|(i, smooth)| {
        SUBS.into_iter().flat_map(move |sub| {
            [(4, Share::Block), (8, Share::Row), (2, Share::Row), (8, Share::Block)].map(|(bits, share)| {
                Products { scores: Some(Scores { bits, share, smooth }), fp8_values: i % 2 == 1, sub }
            })
        })
    })
}

/// Codes of `rows` rows that share a scale, as what they stand for: the code itself, and the scale.
fn rounded(x: &[f32], key: usize, bits: u8, rows: usize) -> (Vec<f32>, Vec<f32>) {
    let top = ((1i32 << (bits - 1)) - 1) as f32;
    let (mut codes, mut scales) = (vec![], vec![]);
    for block in x.chunks(rows * key) {
        let scale = block.iter().fold(0.0f32, |top, x| top.max(x.abs())) / top;
        codes.extend(block.iter().map(|x| if scale > 0.0 { (x / scale).round_ties_even() } else { 0.0 }));
        scales.extend(vec![scale; block.len() / key]);
    }
    (codes, scales)
}

/// The definition of one sub-chunk's scores, [count, first]: what the codes stand for multiplied in f32, in which products of codes are
/// exact sums.
fn definition(
    products: Products,
    key: usize,
    first: usize,
    count: usize,
    q: &[f32],
    k: &[f32],
    a: &[f32],
) -> Vec<f32> {
    let Scores { bits, share, smooth } = products.scores.unwrap();
    let decays = |from: usize, to: usize, d: usize| (from + 1..=to).map(|t| a[t * key + d]).product::<f32>();
    let mut left: Vec<f32> =
        (0..count * key).map(|i| q[first * key + i] * decays(first, first + i / key, i % key)).collect();
    let mut right: Vec<f32> = (0..first * key).map(|i| k[i] * decays(i / key, first, i % key)).collect();
    let mean = |x: &[f32]| -> Vec<f32> {
        let rows = x.len() / key;
        (0..key).map(|d| x.iter().skip(d).step_by(key).sum::<f32>() / rows as f32).collect()
    };
    let [q_mean, k_mean] = [mean(&left), mean(&right)];
    if smooth.queries() {
        left.iter_mut().enumerate().for_each(|(i, x)| *x -= q_mean[i % key]);
    }
    if smooth.keys() {
        right.iter_mut().enumerate().for_each(|(i, x)| *x -= k_mean[i % key]);
    }
    let rows = if share == Share::Row { 1 } else { usize::from(products.sub) };
    let ((ql, qs), (kl, ks)) = (rounded(&left, key, bits, rows), rounded(&right, key, bits, rows));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let mut scores = vec![];
    for t in 0..count {
        for s in 0..first {
            let [q, k] = [&left[t * key..][..key], &right[s * key..][..key]];
            let mut score = dot(&ql[t * key..][..key], &kl[s * key..][..key]) * ks[s] * qs[t];
            if smooth.queries() {
                score += dot(&q_mean, k);
            }
            if matches!(smooth, Smooth::K | Smooth::Qk) {
                score += dot(q, &k_mean);
            }
            if smooth == Smooth::Qk {
                score += dot(&q_mean, &k_mean);
            }
            scores.push(score);
        }
    }
    scores
}

#[test]
fn scores_are_their_definition_at_odd_sizes() {
    for (len, key) in [(64, 128), (64, 16), (37, 5), (50, 70), (33, 1), (9, 40)] {
        let (q, k) = (noise(len * key, 1), noise(len * key, 2));
        let mut a: Vec<f32> = noise(len * key, 3).iter().map(|x| 0.5 + 0.5 * x.abs()).collect();
        for (decaying, from) in [(true, Some((&*a.clone(), key))), (false, None)] {
            if !decaying {
                a.fill(1.0);
            }
            for products in every() {
                let mut room = Room::new(key);
                let mut found = vec![f32::NAN; CHUNK * CHUNK];
                room.scores(products, len, Operands { q: (&q, key), k: (&k, key), a: from }, &mut found);
                let sub = usize::from(products.sub);
                for first in (sub..len).step_by(sub) {
                    let count = sub.min(len - first);
                    let expected = definition(products, key, first, count, &q, &k, &a);
                    let top = expected.iter().fold(0.0f32, |top, x| top.max(x.abs()));
                    // A code may be the next one where decays or means are added up in another order: few, and by one.
                    let unit = 2.1 * top / ((1 << (products.scores.unwrap().bits - 1)) - 1) as f32;
                    let mut moved = 0;
                    for (i, expected) in expected.iter().enumerate() {
                        let found = found[(first + i / first) * CHUNK + i % first];
                        let error = (found - expected).abs();
                        assert!(
                            error < unit + 1e-5 * top,
                            "{products:?} {len}×{key} at {first}, {i}: {found}, not {expected}"
                        );
                        moved += usize::from(error > 1e-5 * top);
                    }
                    assert!(moved * 10 <= expected.len(), "{products:?} {len}×{key} at {first}: {moved}");
                }
                let written = found.iter().filter(|x| !x.is_nan()).count();
                let all: usize = (sub..len).step_by(sub).map(|first| sub.min(len - first) * first).sum();
                assert_eq!(written, all, "{products:?}: writes elsewhere");
            }
        }
    }
}

/// Without decays and means all that is added up is exact, and so are the scores: packed codes are what they stand for, bit for bit.
#[test]
fn packed_codes_are_what_they_stand_for() {
    for (len, key) in [(64, 128), (64, 256), (45, 33), (17, 7)] {
        let (q, k, a) = (noise(len * key, 4), noise(len * key, 5), vec![1.0; len * key]);
        for products in every().filter(|products| products.scores.unwrap().smooth == Smooth::None) {
            let mut found = vec![0.0; CHUNK * CHUNK];
            Room::new(key).scores(
                products,
                len,
                Operands { q: (&q, key), k: (&k, key), a: None },
                &mut found,
            );
            let sub = usize::from(products.sub);
            for first in (sub..len).step_by(sub) {
                let expected = definition(products, key, first, sub.min(len - first), &q, &k, &a);
                for (i, expected) in expected.iter().enumerate() {
                    let found = found[(first + i / first) * CHUNK + i % first];
                    // A sum of nothing may be −0 where it is of floats.
                    assert_eq!(
                        found.to_bits(),
                        (expected + 0.0).to_bits(),
                        "{products:?} {len}×{key} at {first}, {i}"
                    );
                }
            }
        }
    }
}

/// Scores of 8 bits and values of FP8 are near the exact recurrence, those of 2 bits are far; both families, any length, with a
/// state before.
#[test]
fn rounded_chunks_are_near_the_recurrence() {
    let error = |found: &[f32], exact: &[f32]| {
        let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let apart: Vec<f32> = found.iter().zip(exact).map(|(a, b)| a - b).collect();
        (square(&apart) / square(exact)).sqrt()
    };
    let products = |bits, fp8_values, sub| {
        let scores = Scores { bits, share: Share::Row, smooth: Smooth::Qk };
        Some(Products { scores: Some(scores), fp8_values, sub })
    };
    for time in [64, 65, 150, 200] {
        let shape = channels::Shape { batch: 2, time, heads: 4, groups: 2, key: 24, value: 70 };
        let keys = 2 * time * 2 * 24;
        let log: Vec<f32> = noise(keys, 4).iter().map(|x| (-(4.0 * x).exp() / 60.0).exp()).collect();
        let (q, k, v) = (noise(2 * time * 4 * 24, 1), noise(keys, 2), noise(2 * time * 2 * 70, 3));
        let inputs = Inputs { q: &q, k: &k, v: &v, a: &log };
        let before = noise(8 * shape.state(), 5);
        let run = |products| {
            let (mut s, mut y) = (before.clone(), vec![f32::NAN; 2 * time * 4 * 70]);
            channels::chunked(shape, products, inputs, &mut s, &mut y);
            (s, y)
        };
        let (state, exact) = run(None);
        let wide =
            super::super::Shape { batch: 2, time, heads: 4, head_dim: 30, groups: 2, state: 40, out: 120 };
        let (xbc, dt) = (noise(2 * time * wide.row(), 6), vec![0.2; 2 * time * 4]);
        let mamba = |products: Option<Products>| {
            let (mut h, mut y) = (noise(8 * 1200, 7), vec![f32::NAN; 2 * time * 120]);
            match products {
                None => scan(wide, true, &xbc, &dt, &[-0.3; 4], &[0.5; 4], &mut h, &mut y),
                some => chunked(wide, some, &xbc, &dt, &[-0.3; 4], &[0.5; 4], &mut h, &mut y),
            }
            (h, y)
        };
        let (h, plain) = mamba(None);
        for sub in SUBS {
            for (name, near, far) in [
                ("channels", run(products(8, true, sub)), run(products(2, false, sub))),
                ("head", mamba(products(8, true, sub)), mamba(products(2, false, sub))),
            ] {
                let (exact, state, slack) =
                    if name == "head" { (&plain, &h, 1e-5) } else { (&exact, &state, 0.0) };
                // What goes to the state is not rounded.
                assert!(error(&near.0, state) <= slack && error(&far.0, state) <= slack);
                let (near, far) = (error(&near.1, exact), error(&far.1, exact));
                assert!(
                    0.0 < near && near < 0.1 && far > 3.0 * near,
                    "{name} {time} sub {sub}: {near}, {far}"
                );
            }
        }
    }
}
