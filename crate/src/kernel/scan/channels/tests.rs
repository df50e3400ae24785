use super::*;
use crate::kernel::scan::definition;

fn noise(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| (((i + seed) * 7919 + 13) % 10_007) as f32 / 5003.0 - 1.0).collect()
}

/// q, k, v, and the logarithms of the decays: from channels that forget nothing to some that forget all at once.
fn inputs(shape: Shape) -> [Vec<f32>; 4] {
    let Shape { batch, time, heads, groups, key, value } = shape;
    let keys = batch * time * groups * key;
    let log = noise(keys, 4).iter().map(|x| -(4.0 * x).exp() / 6.0).collect();
    [noise(batch * time * heads * key, 1), noise(keys, 2), noise(batch * time * groups * value, 3), log]
}

fn decays(log: &[f32]) -> Vec<f32> {
    log.iter().map(|log| log.exp()).collect()
}

/// The recurrence in f64: y and the state.
fn exact(shape: Shape, [q, k, v, log]: &[Vec<f64>; 4], s: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let Shape { batch, time, heads, groups, key, value } = shape;
    let (mut s, mut y) = (s.to_vec(), vec![0.0; batch * time * heads * value]);
    for (index, s) in s.chunks_mut(shape.state()).enumerate() {
        let (b, head) = (index / heads, index % heads);
        for token in b * time..(b + 1) * time {
            let of = |values: &[f64], width: usize| {
                values[(token * groups + shape.group_of(head)) * width..][..width].to_vec()
            };
            let a: Vec<f64> = of(log, key).iter().map(|log| log.exp()).collect();
            let at = token * heads + head;
            let read = definition::step(s, &a, &of(k, key), &of(v, value), &q[at * key..][..key]);
            y[at * value..][..value].copy_from_slice(&read);
        }
    }
    (y, s)
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

fn cases() -> Vec<Shape> {
    [
        (1, 1, 1, 1, 1, 1),
        (1, 63, 2, 1, 5, 3),
        (2, 65, 4, 2, 16, 33),
        (1, 130, 3, 3, 20, 70),
        (1, 200, 2, 2, 64, 128),
        (3, 17, 2, 1, 9, 16),
        (1, 300, 1, 1, 70, 24),
    ]
    .map(|(batch, time, heads, groups, key, value)| Shape { batch, time, heads, groups, key, value })
    .to_vec()
}

fn hold(name: &str, shape: Shape, found: &[f32], exact: &[f64], bound: f64) {
    let size = exact.iter().fold(0.0f64, |size, x| size.max(x.abs()));
    for (at, (found, exact)) in found.iter().zip(exact).enumerate() {
        let error = (f64::from(*found) - exact).abs() / size;
        assert!(error < bound, "{name} {shape:?} at {at}: {found}, not {exact}");
    }
}

#[test]
fn every_form_is_the_definition_at_odd_sizes() {
    type Form = fn(Shape, Inputs<'_>, &mut [f32], &mut [f32]);
    let forms: [(&str, Form); 4] = [
        ("recurrent", recurrent::<f32>),
        ("near", near),
        ("chunked", |shape, inputs, s, y| chunked(shape, None, inputs, s, y)),
        ("scan", scan),
    ];
    for shape in cases() {
        let all = inputs(shape);
        let s = noise(shape.batch * shape.heads * shape.state(), 5);
        let (y, after) = exact(shape, &all.each_ref().map(|x| wide(x)), &wide(&s));
        let [q, k, v, log] = &all;
        let inputs = Inputs { q, k, v, a: &decays(log) };
        for (name, run) in forms {
            let (mut s, mut found) = (s.clone(), vec![f32::NAN; y.len()]);
            run(shape, inputs, &mut s, &mut found);
            hold(name, shape, &found, &y, 2e-6);
            hold(name, shape, &s, &after, 2e-6);
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let shape = cases()[3];
    let [q, k, v, log] = &inputs(shape);
    let a = decays(log);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut s, mut y) = (vec![0.5; 3 * shape.state()], vec![0.0; shape.time * 3 * shape.value]);
        pool.install(|| chunked(shape, None, Inputs { q, k, v, a: &a }, &mut s, &mut y));
        (s, y)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_rounded_state_is_one_that_is_rounded_after_every_token() {
    let shape = Shape { batch: 1, time: 40, heads: 2, groups: 1, key: 9, value: 20 };
    let [q, k, v, log] = &inputs(shape);
    let a = decays(log);
    for bits in [3, 8] {
        let (mut s, mut y) = (vec![0.5; 2 * shape.state()], vec![f32::NAN; 40 * 2 * 20]);
        let (mut step, mut expected) = (s.clone(), y.clone());
        recurrent_rounded(shape, Inputs { q, k, v, a: &a }, &mut s, &mut y, bits, None);
        for (t, y) in expected.chunks_mut(2 * 20).enumerate() {
            let of = |x: &[f32], width: usize| x[t * width..][..width].to_vec();
            let (q, k, v, a) = (of(q, 2 * 9), of(k, 9), of(v, 20), of(&a, 9));
            let one = Shape { time: 1, ..shape };
            recurrent(one, Inputs { q: &q, k: &k, v: &v, a: &a }, &mut step[..], y);
            step.chunks_mut(shape.state()).for_each(|s| crate::kernel::round::fake_int(s, bits));
        }
        assert_eq!((y, s), (expected, step));
    }
}

/// The gradient along a direction is the slope along it, of every input alone.
#[test]
fn gradients_are_the_slope() {
    for shape in cases() {
        let all = inputs(shape);
        let [q, k, v, log] = &all;
        let s = noise(shape.batch * shape.heads * shape.state(), 5);
        let (wy, ws) = (noise(shape.batch * shape.time * shape.heads * shape.value, 6), noise(s.len(), 7));
        let mut grads = all.each_ref().map(|x| vec![f32::NAN; x.len()]);
        let mut ds = ws.clone();
        let [dq, dk, dv, log_a] = &mut grads;
        let inputs = Inputs { q, k, v, a: &decays(log) };
        scan_grad(shape, inputs, Some(&s), &wy, Gradients { q: dq, k: dk, v: dv, log_a, s: &mut ds });
        let loss = |all: &[Vec<f64>; 4], s: &[f64]| -> f64 {
            let (y, after) = exact(shape, all, s);
            let dot = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum::<f64>();
            dot(&y, &wy) + dot(&after, &ws)
        };
        for which in 0..5 {
            let along = noise(if which < 4 { all[which].len() } else { s.len() }, 8);
            let moved = |by: f64| {
                let (mut all, mut s) = (all.each_ref().map(|x| wide(x)), wide(&s));
                let to = if which < 4 { &mut all[which] } else { &mut s };
                to.iter_mut().zip(&along).for_each(|(x, along)| *x += by * f64::from(*along));
                loss(&all, &s)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let grad = if which < 4 { &grads[which] } else { &ds };
            let terms = || grad.iter().zip(&along).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let (found, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            assert!((found - slope).abs() < 1e-5 * size, "{shape:?} input {which}: {found}, not {slope}");
        }
    }
}
