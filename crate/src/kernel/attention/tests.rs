use super::*;
use crate::kernel::round::fake_int;
use half::bf16;

fn wave(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.0 - 1.0).collect()
}

/// The definition in f64, row by row: q [B, T, H, D] of the last T tokens, k and v [B, all, KV, D].
fn defined(s: Shape, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    defined_by(s, q, |_| k, v)
}

/// The same where `keys` tells the keys that the query of a token finds.
fn defined_by<'a>(s: Shape, q: &[f32], keys: impl Fn(usize) -> &'a [f32], v: &[f32]) -> Vec<f64> {
    let k = keys(0);
    let (group, all) = (s.heads / s.shared, k.len() / (s.batch * s.shared * s.dim));
    let mut y = vec![];
    for (i, q) in q.chunks(s.dim).enumerate() {
        let (token, head, sequence) = (i / s.heads % s.time, i % s.heads, i / s.heads / s.time);
        let at = |j: usize| ((sequence * all + j) * s.shared + head / group) * s.dim;
        let seen = all - s.time + token + 1;
        let k = keys(seen - 1);
        let dot = |j: usize| {
            let products = q.iter().zip(&k[at(j)..]).map(|(q, k)| f64::from(*q) * f64::from(*k));
            products.sum::<f64>() * f64::from(s.scale)
        };
        let scores: Vec<f64> = (0..seen).map(dot).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for c in 0..s.dim {
            let value = |(j, w): (usize, &f64)| w * f64::from(v[at(j) + c]);
            y.push(weights.iter().enumerate().map(value).sum::<f64>() / sum);
        }
    }
    y
}

fn shape(batch: usize, time: usize, heads: usize, shared: usize, dim: usize) -> Shape {
    Shape { batch, time, heads, shared, dim, scale: (dim as f32).sqrt().recip() }
}

/// Shapes with one head, groups, odd sizes, few and many rows, a scale of its own, and times around the borders of tiles.
fn cases() -> Vec<Shape> {
    vec![
        shape(1, 1, 1, 1, 8),
        shape(2, 5, 4, 2, 12),
        shape(1, 64, 3, 1, 20),
        shape(1, 65, 9, 3, 64),
        shape(2, 131, 6, 6, 7),
        Shape { scale: 0.4, ..shape(1, 200, 8, 2, 33) },
        shape(2, 517, 6, 2, 9),
    ]
}

/// Ways to read so many tokens in pieces.
fn cuts(time: usize) -> [Vec<usize>; 6] {
    let steps = (1..time.min(70)).collect();
    [vec![], vec![1], vec![time / 2], vec![3, 70], steps, vec![time.saturating_sub(3), time - 1]]
}

/// Some tokens of [B, time, width].
fn part(all: &[f32], time: usize, width: usize, tokens: Range<usize>) -> Vec<f32> {
    let sequences = all.chunks(time * width);
    sequences.flat_map(|one| one[tokens.start * width..tokens.end * width].to_vec()).collect()
}

#[test]
fn tiles_are_the_definition_in_any_split() {
    for s in cases() {
        let Shape { batch, time, heads, shared, dim, .. } = s;
        let [q, k, v] = [(heads, 1), (shared, 2), (shared, 3)]
            .map(|(heads, seed)| wave(batch * time * heads * dim, seed).iter().map(|x| 3.0 * x).collect());
        let (q, k, v): (Vec<f32>, Vec<f32>, Vec<f32>) = (q, k, v);
        let expected = defined(s, &q, &k, &v);
        for cuts in cuts(time) {
            let mut cache = Cache::new(batch * shared, dim, Width::F32);
            let (mut found, mut first) = (vec![0.0; q.len()], 0);
            for cut in cuts.into_iter().filter(|cut| (1..time).contains(cut)).chain([time]) {
                let part = |all: &[f32], heads: usize| part(all, time, heads * dim, first..cut);
                cache.push((batch, cut - first), &part(&k, shared), &part(&v, shared));
                let mut y = part(&q, heads);
                attend(Shape { time: cut - first, ..s }, &mut y, &cache, None);
                for (b, y) in y.chunks((cut - first) * heads * dim).enumerate() {
                    found[(b * time + first) * heads * dim..][..y.len()].copy_from_slice(y);
                }
                first = cut;
            }
            let far = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            // Scores reach 70, whose last bit in f32 is 8e-6 of a weight.
            assert!(far < 3e-5, "{s:?}: {far}");
        }
    }
}

#[test]
fn a_cache_in_few_bits_is_what_its_width_says() {
    let (batch, time, shared, dim) = (2, 37, 2, 13);
    let [k, v] = [4, 5].map(|seed| wave(batch * time * shared * dim, seed));
    for (width, bytes) in [(Width::F32, 52), (Width::Bf16, 26), (Width::Int(8), 17), (Width::Int(4), 11)] {
        let mut cache = Cache::new(batch * shared, dim, width);
        for t in 0..time {
            let part = |all: &[f32]| part(all, time, shared * dim, t..t + 1);
            cache.push((batch, 1), &part(&k), &part(&v));
        }
        assert_eq!(cache.bytes(), 2 * batch * shared * time * bytes);
        for (found, all) in cache.widened().iter().zip([&k, &v]) {
            for (i, found) in found.chunks(dim).enumerate() {
                let (head, t) = (i / time, i % time);
                let (b, head) = (head / shared, head % shared);
                let mut expected = all[((b * time + t) * shared + head) * dim..][..dim].to_vec();
                match width {
                    Width::F32 => {}
                    Width::Bf16 => expected.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
                    Width::Int(bits) | Width::Channel(bits) => fake_int(&mut expected, bits),
                }
                assert_eq!(found, expected, "{width:?}");
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    let s = shape(1, 150, 6, 2, 16);
    let run = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let mut cache = Cache::new(2, 16, Width::Int(8));
            cache.push((1, 150), &wave(150 * 32, 6), &wave(150 * 32, 7));
            let mut q = wave(150 * 96, 8);
            attend(s, &mut q, &cache, None);
            let mut one = q[..96].to_vec();
            cache.push((1, 400), &wave(400 * 32, 9), &wave(400 * 32, 10));
            attend(Shape { time: 1, ..s }, &mut one, &cache, None);
            [q, one]
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn spans_give_the_logarithms_too() {
    let s = shape(1, 600, 4, 2, 8);
    let [q, k, v] = [(32, 1), (16, 2), (16, 3)].map(|(width, seed)| wave(600 * width, seed));
    let mut cache = Cache::new(2, 8, Width::F32);
    cache.push((1, 600), &k, &v);
    let (mut whole, mut logs) = (q.clone(), vec![0.0; 600 * 4]);
    attend(s, &mut whole, &cache, Some(&mut logs));
    let (mut last, mut found) = (q[597 * 32..].to_vec(), [0.0; 12]);
    attend(Shape { time: 3, ..s }, &mut last, &cache, Some(&mut found));
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far(&found, &logs[597 * 4..]) < 1e-5 && far(&last, &whole[597 * 32..]) < 1e-5);
}

/// Keys [B, T, KV, D] of which the first `settled` tokens of each sequence are rounded by channel: in each group of 32 to
/// the levels between a minimum and a maximum, the least level and the distance of two in bf16 and rounded outward.
fn by_channel(s: Shape, k: &[f32], bits: u8, settled: usize) -> Vec<f32> {
    let (mut rounded, top) = (k.to_vec(), ((1u32 << bits) - 1) as f32);
    let width = s.shared * s.dim;
    let outward = |x: f32, up: f32| {
        let near = bf16::from_f32(x).to_bits();
        let steps =
            [near.wrapping_sub(1), near, near.wrapping_add(1)].map(|bits| bf16::from_bits(bits).to_f32());
        let beyond = steps.into_iter().filter(|own| (own - x) * up >= 0.0);
        beyond.min_by(|a, b| (a * up).total_cmp(&(b * up))).unwrap()
    };
    for (sequence, first) in (0..s.batch).flat_map(|b| (0..settled).step_by(32).map(move |first| (b, first)))
    {
        for channel in 0..width {
            let at = |token: usize| (sequence * s.time + first + token) * width + channel;
            let own: Vec<f32> = (0..32).map(|token| k[at(token)]).collect();
            let min = outward(own.iter().copied().fold(f32::INFINITY, f32::min), -1.0);
            let max = own.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = outward((max - min) / top, 1.0);
            for (token, key) in own.into_iter().enumerate() {
                rounded[at(token)] = min + ((key - min) / scale).round_ties_even().clamp(0.0, top) * scale;
            }
        }
    }
    rounded
}

#[test]
fn keys_by_channel_are_their_definition_in_any_split() {
    for (s, bits) in [(cases()[3], 4), (cases()[4], 8), (cases()[6], 4)] {
        let Shape { batch, time, heads, shared, dim, .. } = s;
        let [q, k, pushed] = [(heads, 1), (shared, 2), (shared, 3)].map(|(heads, seed)| {
            let mut all = wave(batch * time * heads * dim, seed);
            all.iter_mut().skip(2).step_by(dim).for_each(|x| *x += 9.0);
            all
        });
        let rounded: Vec<Vec<f32>> = (0..=time / 32).map(|g| by_channel(s, &k, bits, 32 * g)).collect();
        let mut v = pushed.clone();
        v.chunks_mut(dim).for_each(|row| fake_int(row, bits));
        let expected = defined_by(s, &q, |token| &rounded[(token + 1) / 32], &v);
        for cuts in cuts(time) {
            let mut cache = Cache::new(batch * shared, dim, Width::Channel(bits));
            let (mut found, mut first) = (vec![0.0; q.len()], 0);
            for cut in cuts.into_iter().filter(|cut| (1..time).contains(cut)).chain([time]) {
                let part = |all: &[f32], heads: usize| part(all, time, heads * dim, first..cut);
                cache.push((batch, cut - first), &part(&k, shared), &part(&pushed, shared));
                let mut y = part(&q, heads);
                attend(Shape { time: cut - first, ..s }, &mut y, &cache, None);
                for (b, y) in y.chunks((cut - first) * heads * dim).enumerate() {
                    found[(b * time + first) * heads * dim..][..y.len()].copy_from_slice(y);
                }
                first = cut;
                cache.settle();
                assert_eq!(cache.bytes(), batch * shared * Width::Channel(bits).bytes(dim, cut));
            }
            let far = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(far < 1e-4, "{s:?} in {bits} bits: {far}");
            let [keys, _] = cache.widened();
            for (i, key) in keys.chunks(dim).enumerate() {
                let (head, token) = (i / time, i % time);
                let at = ((head / shared * time + token) * shared + head % shared) * dim;
                assert_eq!(key, &rounded[time / 32][at..][..dim]);
            }
        }
    }
    // 32 tokens of 64 channels: 4 bits, and 32 of scale and minimum for each channel; values with one scale a token.
    assert_eq!(Width::Channel(4).bytes(64, 32), 32 * 32 + 64 * 4 + 32 * 36);
    assert_eq!(Width::Channel(8).bytes(64, 33) - Width::Channel(8).bytes(64, 32), 64 * 4 + 68);
}

#[test]
fn a_cache_goes_back_where_nothing_is_missing() {
    let [k, v] = [4, 5].map(|seed| wave(100 * 6, seed));
    let read = |cache: &mut Cache, tokens: Range<usize>| {
        let own = tokens.start * 6..tokens.end * 6;
        cache.push((1, tokens.len()), &k[own.clone()], &v[own]);
        cache.settle();
    };
    for width in [Width::F32, Width::Int(4), Width::Channel(4)] {
        let (mut whole, mut cache) = (Cache::new(2, 3, width), Cache::new(2, 3, width));
        read(&mut whole, 0..100);
        read(&mut cache, 0..75);
        let lengths = [75, 70, 65, 64, 32, 0];
        assert!(lengths.into_iter().all(|len| cache.reaches(len)) && !cache.reaches(76));
        assert_eq!(cache.reaches(63), width != Width::Channel(4));
        for len in lengths {
            cache.truncate(len);
            let mut again = cache.clone();
            read(&mut again, len..100);
            assert_eq!((again.len(), again.bytes()), (100, whole.bytes()));
            assert_eq!(again.widened(), whole.widened(), "{width:?} back to {len}");
        }
    }
}

#[test]
fn what_is_not_finite_is_told_in_every_width() {
    for width in [Width::F32, Width::Bf16, Width::Int(8), Width::Int(4), Width::Channel(8), Width::Channel(4)]
    {
        for odd in [f32::NAN, f32::INFINITY] {
            let mut k = wave(64 * 4, 1);
            k[41] = odd;
            let mut cache = Cache::new(1, 4, width);
            cache.push((1, 64), &k, &k);
            let mut y = wave(4, 2);
            attend(shape(1, 1, 1, 1, 4), &mut y, &cache, None);
            assert!(y.iter().any(|y| !y.is_finite()), "{width:?} {odd}: {y:?}");
        }
    }
}
