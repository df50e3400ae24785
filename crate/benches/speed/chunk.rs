//! The recurrence with a decay for each channel of the keys, and the products of its chunks in f32, in integers and in FP8.

use crate::check::{hold, noise};
use crate::table::{Bound, Table};
use lowbit::kernel::integer::{IntegerRows, Integers, Run, quantize_rows};
use lowbit::kernel::packed::{self, Packed};
use lowbit::kernel::scan::CHUNK;
use lowbit::kernel::scan::channels::{Inputs, Shape, chunked, scan};
use lowbit::kernel::scan::products::{Operands, Products, Room, Scores, Share, Smooth, Values, round_scores};
use lowbit::kernel::tile::{View, matmul_add, transpose};

/// Channels of a key.
const KEYS: [usize; 3] = [64, 128, 256];
/// Tokens of a sub-chunk.
const SUB: usize = 16;
/// Chunks of a case, for times that can be told.
const CHUNKS: usize = 64;

/// All of them.
pub fn all(table: &mut Table) {
    for key in KEYS {
        recurrence(table, key);
    }
    for key in KEYS {
        scores(table, key);
    }
    values(table);
}

/// A prompt of 1,024 tokens, four heads with values twice as wide as keys.
fn recurrence(table: &mut Table, key: usize) {
    const TIME: usize = 1024;
    let shape = Shape { batch: 1, time: TIME, heads: 4, groups: 4, key, value: 2 * key };
    // In chunks: half of the scores, their product with the values, the state read and the state written.
    let operations = TIME * 4 * (CHUNK * key + CHUNK * shape.value + 4 * key * shape.value);
    type Form = fn(Shape, Inputs<'_>, &mut [f32], &mut [f32]);
    let forms: [(&str, Form); 2] =
        [("scan", scan), ("in chunks", |shape, inputs, s, y| chunked(shape, None, inputs, s, y))];
    for (name, form) in forms {
        table.case(
            &format!("gla {name} {TIME}, keys of {key}"),
            || Bound::Float(operations),
            move || {
                let keys = TIME * 4 * key;
                let (q, k, v) = (noise(keys, 1), noise(keys, 2), noise(2 * keys, 3));
                let a: Vec<f32> = noise(keys, 4).iter().map(|x| 0.95 + 0.05 * x).collect();
                let (mut s, mut y) = (vec![0.0; 4 * shape.state()], vec![0.0; 2 * keys]);
                form(shape, Inputs { q: &q, k: &k, v: &v, a: &a }, &mut s, &mut y);
                hold(name, &y, &in_f64(shape, &q, &k, &v, &a), 1e-5);
                move || {
                    s.fill(0.0);
                    form(shape, Inputs { q: &q, k: &k, v: &v, a: &a }, &mut s, &mut y);
                }
            },
        );
    }
}

/// S ← diag(a) S + k vᵀ, y = Sᵀ q, of one sequence without groups.
fn in_f64(shape: Shape, q: &[f32], k: &[f32], v: &[f32], a: &[f32]) -> Vec<f64> {
    let Shape { time, heads, key, value, .. } = shape;
    let (mut s, mut y) = (vec![0.0f64; heads * key * value], vec![0.0; time * heads * value]);
    for token in 0..time * heads {
        let (s, y) = (&mut s[token % heads * key * value..][..key * value], &mut y[token * value..][..value]);
        for (d, s) in s.chunks_exact_mut(value).enumerate() {
            let of = |x: &[f32]| f64::from(x[token * key + d]);
            for ((s, v), y) in s.iter_mut().zip(&v[token * value..]).zip(&mut *y) {
                *s = of(a) * *s + of(k) * f64::from(*v);
                *y += of(q) * *s;
            }
        }
    }
    y
}

/// Multiplications and additions of the scores between sub-chunks of [`CHUNKS`] chunks.
fn between(width: usize) -> usize {
    CHUNKS * 2 * width * (0..CHUNK).map(|t| t / SUB * SUB).sum::<usize>()
}

/// The scores of chunks: in f32 from queries and keys that are ready, in integers with all that makes them, and the product of
/// codes alone.
fn scores(table: &mut Table, key: usize) {
    let rows = || (noise(CHUNK * key, 1), noise(CHUNK * key, 2));
    let in_f32 = move |q: &[f32], turned: &[f32], to: &mut [f32]| {
        to.fill(0.0);
        for first in (SUB..CHUNK).step_by(SUB) {
            let left = View::rows(&q[first * key..], key);
            matmul_add(SUB, key, first, left, turned, CHUNK, &mut to[first * CHUNK..], CHUNK);
        }
    };
    let ready = move || {
        let (q, k) = rows();
        let mut turned = vec![0.0; CHUNK * key];
        transpose(CHUNK, key, &k, key, &mut turned, CHUNK);
        (q, turned, vec![0.0; CHUNK * CHUNK])
    };
    table.case(
        &format!("{CHUNKS} chunks' scores, keys of {key}, f32"),
        || Bound::Float(between(key)),
        move || {
            let (q, turned, mut to) = ready();
            in_f32(&q, &turned, &mut to);
            let (_, k) = rows();
            let exact = (0..CHUNK * CHUNK).map(|i| {
                let (t, s) = (i / CHUNK, i % CHUNK);
                let dot = |d: usize| f64::from(q[t * key + d]) * f64::from(k[s * key + d]);
                if s < t / SUB * SUB { (0..key).map(dot).sum() } else { 0.0 }
            });
            hold("scores in f32", &to, &exact.collect::<Vec<f64>>(), 1e-5);
            move || (0..CHUNKS).for_each(|_| in_f32(&q, &turned, &mut to))
        },
    );
    for (name, bits, smooth, slack) in [
        ("int8", 8, Smooth::None, 0.02),
        ("int4", 4, Smooth::None, 0.4),
        ("int4 smoothed", 4, Smooth::Qk, 0.4),
    ] {
        let scores = Scores { bits, share: Share::Block, smooth };
        let products = Products { scores: Some(scores), fp8_values: false, sub: SUB as u8 };
        table.case(
            &format!("{CHUNKS} chunks' scores, keys of {key}, {name} with rounding"),
            || Bound::Int8(between(key)),
            move || {
                let ((q, k), mut room, mut to) = (rows(), Room::new(key), vec![0.0; CHUNK * CHUNK]);
                let (_, turned, mut exact) = ready();
                in_f32(&q, &turned, &mut exact);
                room.scores(products, CHUNK, Operands { q: (&q, key), k: (&k, key), a: None }, &mut to);
                hold(name, &to, &exact.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), slack);
                move || {
                    let operands = Operands { q: (&q, key), k: (&k, key), a: None };
                    (0..CHUNKS).for_each(|_| room.scores(products, CHUNK, operands, &mut to));
                }
            },
        );
        if smooth != Smooth::None {
            continue;
        }
        table.case(
            &format!("{CHUNKS} chunks' scores, keys of {key}, {name} codes alone"),
            || Bound::Int8(between(key)),
            move || {
                let (q, k) = rows();
                let blocks: Vec<(Integers, Packed, Vec<f32>)> = (SUB..CHUNK)
                    .step_by(SUB)
                    .map(|first| {
                        let q = quantize_rows(&q[first * key..][..SUB * key], key, bits, None);
                        let k = quantize_rows(&k[..first * key], key, bits, None);
                        let packed = Packed::new(first, key, &Codes(&k, bits)).expect("rows of one group");
                        let mut y = vec![0.0; SUB * first];
                        packed::forward(&q, &packed, &mut y);
                        let exact = (0..SUB * first).map(|i| {
                            let code =
                                |of: &Integers, row: usize, d: usize| i64::from(of.codes[row * key + d]);
                            let (t, s) = (i / first, i % first);
                            let sum: i64 = (0..key).map(|d| code(&q, t, d) * code(&k, s, d)).sum();
                            f64::from(sum as f32 * k.scales[s] * q.scales[t])
                        });
                        hold("a product of codes", &y, &exact.collect::<Vec<_>>(), 0.0);
                        (q, packed, y)
                    })
                    .collect();
                let mut blocks = blocks;
                move || {
                    for _ in 0..CHUNKS {
                        blocks.iter_mut().for_each(|(q, k, y)| packed::forward(q, k, y));
                    }
                }
            },
        );
    }
}

/// Rows of codes, each with its scale.
struct Codes<'a>(&'a Integers, u8);

impl IntegerRows for Codes<'_> {
    fn integers(&self, row: usize, to: &mut [i8]) {
        to.copy_from_slice(&self.0.codes[row * self.0.k..][..self.0.k]);
    }

    fn runs(&self, row: usize, to: &mut Vec<Run>) {
        to.push(Run { end: self.0.k, scale: self.0.scales[row], zero: 0.0 });
    }

    fn range(&self) -> (i8, i8) {
        let top = (1i16 << (self.1 - 1)) - 1;
        (-top as i8, top as i8)
    }
}

/// Scores with values: in f32, and in FP8, which is simulated and so can only be slower.
fn values(table: &mut Table) {
    const VALUE: usize = 64;
    let products = Products { scores: None, fp8_values: true, sub: SUB as u8 };
    let lower = || -> Vec<f32> {
        let all = noise(CHUNK * CHUNK, 1).into_iter().enumerate();
        all.map(|(i, x)| if i % CHUNK <= i / CHUNK { x } else { 0.0 }).collect()
    };
    let operations = CHUNKS * CHUNK * CHUNK * VALUE;
    let in_f32 = |scores: &[f32], v: &[f32], y: &mut [f32]| {
        y.fill(0.0);
        for first in (0..CHUNK).step_by(SUB) {
            let rows = View::rows(&scores[first * CHUNK..], CHUNK);
            matmul_add(SUB, first + SUB, VALUE, rows, v, VALUE, &mut y[first * VALUE..], VALUE);
        }
    };
    let definition = |scores: &[f32], v: &[f32]| -> Vec<f64> {
        let of = |i: usize| {
            let (t, c) = (i / VALUE, i % VALUE);
            (0..=t).map(|s| f64::from(scores[t * CHUNK + s]) * f64::from(v[s * VALUE + c])).sum()
        };
        (0..CHUNK * VALUE).map(of).collect()
    };
    table.case(
        &format!("{CHUNKS} chunks' values, {VALUE} wide, f32"),
        || Bound::Float(operations),
        move || {
            let (scores, v, mut y) = (lower(), noise(CHUNK * VALUE, 2), vec![0.0; CHUNK * VALUE]);
            in_f32(&scores, &v, &mut y);
            hold("values in f32", &y, &definition(&scores, &v), 1e-5);
            move || (0..CHUNKS).for_each(|_| in_f32(&scores, &v, &mut y))
        },
    );
    table.case(
        &format!("{CHUNKS} chunks' values, {VALUE} wide, FP8 simulated"),
        || Bound::Float(operations),
        move || {
            let (scores, v) = (lower(), noise(CHUNK * VALUE, 2));
            let (mut values, mut y) = (Values::default(), vec![0.0; CHUNK * VALUE]);
            let mut rounded = scores.clone();
            round_scores(products, CHUNK, &mut rounded);
            values.add(products, CHUNK, VALUE, &rounded, &v, &mut y);
            hold("values in FP8", &y, &definition(&scores, &v), 0.1);
            move || {
                for _ in 0..CHUNKS {
                    rounded.copy_from_slice(&scores);
                    y.fill(0.0);
                    round_scores(products, CHUNK, &mut rounded);
                    values.add(products, CHUNK, VALUE, &rounded, &v, &mut y);
                }
            }
        },
    );
}
