use super::*;
use crate::kernel::round::fake_int;
use half::bf16;

fn wave(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.0 - 1.0).collect()
}

/// The definition in f64, row by row: q [B, T, H, D] of the last T tokens, k and v [B, all, KV, D].
fn defined(s: Shape, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let (group, all) = (s.heads / s.shared, k.len() / (s.batch * s.shared * s.dim));
    let mut y = vec![];
    for (i, q) in q.chunks(s.dim).enumerate() {
        let (token, head, sequence) = (i / s.heads % s.time, i % s.heads, i / s.heads / s.time);
        let at = |j: usize| ((sequence * all + j) * s.shared + head / group) * s.dim;
        let seen = all - s.time + token + 1;
        let dot = |j: usize| {
            let products = q.iter().zip(&k[at(j)..]).map(|(q, k)| f64::from(*q) * f64::from(*k));
            products.sum::<f64>() / (s.dim as f64).sqrt()
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

/// Shapes with one head, groups, odd sizes, few and many rows, and times around the borders of tiles.
fn cases() -> Vec<Shape> {
    let shape = |batch, time, heads, shared, dim| Shape { batch, time, heads, shared, dim };
    vec![
        shape(1, 1, 1, 1, 8),
        shape(2, 5, 4, 2, 12),
        shape(1, 64, 3, 1, 20),
        shape(1, 65, 9, 3, 64),
        shape(2, 131, 6, 6, 7),
        shape(1, 200, 8, 2, 33),
    ]
}

#[test]
fn tiles_are_the_definition_in_any_split() {
    for s in cases() {
        let Shape { batch, time, heads, shared, dim } = s;
        let [q, k, v] = [(heads, 1), (shared, 2), (shared, 3)]
            .map(|(heads, seed)| wave(batch * time * heads * dim, seed).iter().map(|x| 3.0 * x).collect());
        let (q, k, v): (Vec<f32>, Vec<f32>, Vec<f32>) = (q, k, v);
        let expected = defined(s, &q, &k, &v);
        for cuts in [vec![], vec![1], vec![time / 2], vec![3, 70], (1..time.min(70)).collect()] {
            let mut cache = Cache::new(batch * shared, dim, Width::F32);
            let (mut found, mut first) = (vec![0.0; q.len()], 0);
            for cut in cuts.into_iter().filter(|cut| (1..time).contains(cut)).chain([time]) {
                let part = |all: &[f32], heads: usize| -> Vec<f32> {
                    let rows = all.chunks(time * heads * dim);
                    rows.flat_map(|one| one[first * heads * dim..cut * heads * dim].to_vec()).collect()
                };
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
            let part = |all: &[f32]| -> Vec<f32> {
                let row = shared * dim;
                all.chunks(time * row).flat_map(|one| one[t * row..][..row].to_vec()).collect()
            };
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
                    Width::Int(bits) => fake_int(&mut expected, bits),
                }
                assert_eq!(found, expected, "{width:?}");
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    let s = Shape { batch: 1, time: 150, heads: 6, shared: 2, dim: 16 };
    let run = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let mut cache = Cache::new(2, 16, Width::Int(8));
            cache.push((1, 150), &wave(150 * 32, 6), &wave(150 * 32, 7));
            let mut q = wave(150 * 96, 8);
            attend(s, &mut q, &cache, None);
            q
        })
    };
    assert_eq!(run(1), run(3));
}
