//! The recurrence with a decay for each channel of the keys, and the products of its chunks in f32, in integers and in FP8.

use crate::check::{hold, noise};
use crate::table::{Bound, Table};
use half::bf16;
use lowbit::kernel::integer::{IntegerRows, Integers, Run, quantize_rows};
use lowbit::kernel::linear::{self, Weight};
use lowbit::kernel::packed::{self, Packed};
use lowbit::kernel::scan::CHUNK;
use lowbit::kernel::scan::channels::{Inputs, Shape, chunked, scan};
use lowbit::kernel::scan::products::{Operands, Products, Room, Scores, Share, Smooth, Values, round_scores};
use lowbit::kernel::tile::{View, matmul_add, transpose};

/// Channels of a key.
const KEYS: [usize; 3] = [64, 128, 256];
/// Tokens of a sub-chunk.
const SUB: usize = 16;
/// Tokens of a chunk; the recurrence's own are of 64.
const LENGTHS: [usize; 4] = [32, 64, 128, 256];
/// Tokens of a case, for times that can be told.
const TOKENS: usize = 4096;

/// All of them.
pub fn all(table: &mut Table) {
    for key in KEYS {
        recurrence(table, key);
    }
    for (key, len) in KEYS.into_iter().flat_map(|key| LENGTHS.map(|len| (key, len))) {
        scores(table, len, key);
    }
    LENGTHS.into_iter().filter(|len| *len <= CHUNK).for_each(|len| values(table, len));
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

/// Multiplications and additions of the scores between the sub-chunks of a chunk of `len` tokens.
fn between(len: usize, key: usize) -> usize {
    2 * key * (0..len).map(|t| t / SUB * SUB).sum::<usize>()
}

/// Queries and keys of a chunk of `len` tokens, [len, key] each.
fn rows(len: usize, key: usize) -> (Vec<f32>, Vec<f32>) {
    (noise(len * key, 1), noise(len * key, 2))
}

/// Their exact scores between sub-chunks, row by row, those of a row `apart` values after the row before.
fn exact(len: usize, key: usize, apart: usize) -> Vec<f64> {
    let (q, k) = rows(len, key);
    let of = |i: usize| {
        let (t, s) = (i / apart, i % apart);
        let dot = |d: usize| f64::from(q[t * key + d]) * f64::from(k[s * key + d]);
        if s < t / SUB * SUB { (0..key).map(dot).sum() } else { 0.0 }
    };
    (0..len * apart).map(of).collect()
}

/// The scores of [`TOKENS`] tokens in chunks of `len`: in f32 and bf16 of queries and keys that are ready, in integers with all that
/// makes them, and the product of codes alone.
fn scores(table: &mut Table, len: usize, key: usize) {
    let chunks = TOKENS / len;
    let operations = chunks * between(len, key);
    let name = |products: &str| format!("scores of chunks of {len}, keys of {key}, {products}");
    let about = |products: &str| [("products", products.into()), ("key", key.into()), ("chunk", len.into())];
    let each = |mut one: Box<dyn FnMut() + Send>| move || (0..chunks).for_each(|_| one());
    let (float, bf16, int8) = (Bound::Float(operations), Bound::Bf16(operations), Bound::Int8(operations));
    table.case_about(&name("f32"), &about("f32"), || float, || each(in_f32(len, key)));
    table.case_about(&name("bf16"), &about("bf16"), || bf16, || each(in_bf16(len, key)));
    for bits in [8, 4] {
        let codes = format!("int{bits} codes alone");
        table.case_about(&name(&codes), &about(&codes), || int8, || each(of_codes(len, key, bits)));
    }
    // The recurrence has chunks of this length at most.
    if len <= CHUNK {
        for (kind, bits, smooth) in
            [("int8", 8, Smooth::None), ("int4", 4, Smooth::None), ("int4 smoothed", 4, Smooth::Qk)]
        {
            let rounded = format!("{kind} with rounding");
            let set_up = || each(with_rounding(len, key, bits, smooth));
            table.case_about(&name(&rounded), &about(&rounded), || int8, set_up);
        }
    }
}

fn in_f32(len: usize, key: usize) -> Box<dyn FnMut() + Send> {
    let ((q, k), mut to) = (rows(len, key), vec![0.0; len * len]);
    let mut turned = vec![0.0; len * key];
    transpose(len, key, &k, key, &mut turned, len);
    let run = move |to: &mut [f32]| {
        to.fill(0.0);
        for first in (SUB..len).step_by(SUB) {
            let left = View::rows(&q[first * key..], key);
            matmul_add(SUB, key, first, left, &turned, len, &mut to[first * len..], len);
        }
    };
    run(&mut to);
    hold("scores in f32", &to, &exact(len, key, len), 1e-5);
    Box::new(move || run(&mut to))
}

fn in_bf16(len: usize, key: usize) -> Box<dyn FnMut() + Send> {
    let (q, k) = rows(len, key);
    let k: Vec<bf16> = k.into_iter().map(bf16::from_f32).collect();
    let mut blocks: Vec<(usize, Vec<f32>)> =
        (SUB..len).step_by(SUB).map(|first| (first, vec![0.0; SUB * first])).collect();
    let run = move |blocks: &mut [(usize, Vec<f32>)]| {
        for (first, y) in blocks {
            let (q, k) = (&q[*first * key..][..SUB * key], Weight::Bf16(&k[..*first * key]));
            linear::forward(SUB, key, *first, q, k, y);
        }
    };
    run(&mut blocks);
    let mut all = vec![0.0; len * len];
    for (first, y) in &blocks {
        for (t, y) in y.chunks(*first).enumerate() {
            all[(first + t) * len..][..*first].copy_from_slice(y);
        }
    }
    hold("scores in bf16", &all, &exact(len, key, len), 0.02);
    Box::new(move || run(&mut blocks))
}

fn with_rounding(len: usize, key: usize, bits: u8, smooth: Smooth) -> Box<dyn FnMut() + Send> {
    let scores = Scores { bits, share: Share::Block, smooth };
    let products = Products { scores: Some(scores), fp8_values: false, sub: SUB as u8 };
    let ((q, k), mut room, mut to) = (rows(len, key), Room::new(key), vec![0.0; len * CHUNK]);
    let mut run = move |to: &mut [f32]| {
        room.scores(products, len, Operands { q: (&q, key), k: (&k, key), a: None }, to);
    };
    run(&mut to);
    hold("rounded scores", &to, &exact(len, key, CHUNK), if bits == 8 { 0.02 } else { 0.4 });
    Box::new(move || run(&mut to))
}

fn of_codes(len: usize, key: usize, bits: u8) -> Box<dyn FnMut() + Send> {
    let (q, k) = rows(len, key);
    let block = |first: usize| {
        let q = quantize_rows(&q[first * key..][..SUB * key], key, bits, None);
        let k = quantize_rows(&k[..first * key], key, bits, None);
        let packed = Packed::new(first, key, &Codes(&k, bits)).expect("rows of one group");
        let mut y = vec![0.0; SUB * first];
        packed::forward(&q, &packed, &mut y);
        let exact = (0..SUB * first).map(|i| {
            let code = |of: &Integers, row: usize, d: usize| i64::from(of.codes[row * key + d]);
            let (t, s) = (i / first, i % first);
            let sum: i64 = (0..key).map(|d| code(&q, t, d) * code(&k, s, d)).sum();
            f64::from(sum as f32 * k.scales[s] * q.scales[t])
        });
        hold("a product of codes", &y, &exact.collect::<Vec<_>>(), 0.0);
        (q, packed, y)
    };
    let mut blocks: Vec<(Integers, Packed, Vec<f32>)> = (SUB..len).step_by(SUB).map(block).collect();
    Box::new(move || blocks.iter_mut().for_each(|(q, k, y)| packed::forward(q, k, y)))
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
fn values(table: &mut Table, len: usize) {
    const VALUE: usize = 64;
    let chunks = TOKENS / len;
    let products = Products { scores: None, fp8_values: true, sub: SUB as u8 };
    // Rows are as far apart as the recurrence has them.
    let lower = || -> Vec<f32> {
        let all = noise(len * CHUNK, 1).into_iter().enumerate();
        all.map(|(i, x)| if i % CHUNK <= i / CHUNK { x } else { 0.0 }).collect()
    };
    let bound = Bound::Float(chunks * len * len * VALUE);
    let in_f32 = move |scores: &[f32], v: &[f32], y: &mut [f32]| {
        y.fill(0.0);
        for first in (0..len).step_by(SUB) {
            let rows = View::rows(&scores[first * CHUNK..], CHUNK);
            matmul_add(SUB, first + SUB, VALUE, rows, v, VALUE, &mut y[first * VALUE..], VALUE);
        }
    };
    let definition = move |scores: &[f32], v: &[f32]| -> Vec<f64> {
        let of = |i: usize| {
            let (t, c) = (i / VALUE, i % VALUE);
            (0..=t).map(|s| f64::from(scores[t * CHUNK + s]) * f64::from(v[s * VALUE + c])).sum()
        };
        (0..len * VALUE).map(of).collect()
    };
    let name = |products: &str| format!("values of chunks of {len}, {VALUE} wide, {products}");
    let about =
        |products: &str| [("products", products.into()), ("value", VALUE.into()), ("chunk", len.into())];
    table.case_about(
        &name("f32"),
        &about("values in f32"),
        || bound,
        || {
            let (scores, v, mut y) = (lower(), noise(len * VALUE, 2), vec![0.0; len * VALUE]);
            in_f32(&scores, &v, &mut y);
            hold("values in f32", &y, &definition(&scores, &v), 1e-5);
            move || (0..chunks).for_each(|_| in_f32(&scores, &v, &mut y))
        },
    );
    table.case_about(
        &name("FP8 simulated"),
        &about("values in FP8, simulated"),
        || bound,
        || {
            let (scores, v) = (lower(), noise(len * VALUE, 2));
            let (mut values, mut y) = (Values::default(), vec![0.0; len * VALUE]);
            let mut rounded = scores.clone();
            round_scores(products, len, &mut rounded);
            values.add(products, len, VALUE, &rounded, &v, &mut y);
            hold("values in FP8", &y, &definition(&scores, &v), 0.1);
            move || {
                for _ in 0..chunks {
                    rounded.copy_from_slice(&scores);
                    y.fill(0.0);
                    round_scores(products, len, &mut rounded);
                    values.add(products, len, VALUE, &rounded, &v, &mut y);
                }
            }
        },
    );
}
