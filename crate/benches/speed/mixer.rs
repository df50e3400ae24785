//! The steps of a mixer between its products, at the sizes of the 130M shape.

use crate::check::{hold, noise, some};
use crate::table::{Bound, Table};
use lowbit::kernel::integer::quantize_rows;
use lowbit::kernel::{conv, norm, scan};

/// Tokens of a prompt.
pub const TIME: usize = 512;
pub const HIDDEN: usize = 768;
/// Channels of the mixer.
pub const INNER: usize = 1536;
/// Rows of the matrix before it: z, x, B, C, Δ.
pub const PROJECTED: usize = 3352;

/// All of them.
pub fn all(table: &mut Table) {
    recurrence(table);
    convolution(table);
    gated_norm(table);
    rounding(table);
}

/// The scan of a prompt, for f32 weights and for narrower ones, and one token of every layer.
fn recurrence(table: &mut Table) {
    const LAYERS: usize = 24;
    let shape =
        |time| scan::Shape { batch: 1, time, heads: 24, head_dim: 64, groups: 1, state: 128, out: INNER };
    let (a, d): (Vec<f32>, Vec<f32>) =
        ((0..24).map(|head| -0.1 - 0.1 * head as f32).collect(), vec![0.5; 24]);
    let size = 24 * 64 * 128;
    let inputs = |time: usize| {
        let dt = noise(time * 24, 2).into_iter().map(|x| (3.0 * x - 3.0).exp()).collect::<Vec<_>>();
        (noise(time * shape(time).row(), 1), dt)
    };
    for (name, fine, slack) in [("scan f32", true, 1e-5), ("scan", false, 5e-5)] {
        let (inputs, a, d) = (&inputs, &a, &d);
        table.case(
            &format!("{name} {TIME}"),
            || Bound::Float(operations_of_scan(TIME)),
            move || {
                let (xbc, dt) = inputs(TIME);
                let (mut h, mut y, a, d) = (noise(size, 3), vec![0.0; TIME * INNER], a.clone(), d.clone());
                let exact = recurrence_in_f64(shape(TIME), &xbc, &dt, &a, &d, &h);
                scan::scan(shape(TIME), fine, &xbc, &dt, &a, &d, &mut h, &mut y);
                hold(name, &y, &exact, slack);
                move || scan::scan(shape(TIME), fine, &xbc, &dt, &a, &d, &mut h, &mut y)
            },
        );
    }
    table.case(
        &format!("scan 1, {LAYERS} layers"),
        || Bound::Bytes(2 * 4 * LAYERS * size),
        || {
            let (xbc, dt) = inputs(1);
            let (mut h, mut y, a, d) = (noise(LAYERS * size, 3), vec![0.0; INNER], a.clone(), d.clone());
            let exact = recurrence_in_f64(shape(1), &xbc, &dt, &a, &d, &h[..size]);
            scan::scan(shape(1), true, &xbc, &dt, &a, &d, &mut h[..size], &mut y);
            hold("a token's scan", &y, &exact, 1e-6);
            move || {
                for h in h.chunks_mut(size) {
                    scan::scan(shape(1), true, &xbc, &dt, &a, &d, h, &mut y);
                }
            }
        },
    );
}

/// In chunks of Q tokens: C Bᵀ, and of each head its product with x, the state read and the state written.
pub fn operations_of_scan(time: usize) -> usize {
    time * (2 * scan::CHUNK * 128 + 24 * (2 * scan::CHUNK * 64 + 4 * 64 * 128))
}

/// h ← e^{Δ A} h + Δ x ⊗ B, y = h C + D x, of one sequence and one group.
fn recurrence_in_f64(
    shape: scan::Shape,
    xbc: &[f32],
    dt: &[f32],
    a: &[f32],
    d: &[f32],
    h: &[f32],
) -> Vec<f64> {
    let (mut h, mut y): (Vec<f64>, Vec<f64>) = (h.iter().map(|h| f64::from(*h)).collect(), vec![]);
    for (row, dt) in xbc.chunks(shape.row()).zip(dt.chunks(shape.heads)) {
        let (x, bc) = row.split_at(shape.heads * shape.head_dim);
        let (b, c) = bc.split_at(shape.state);
        for (channel, h) in h.chunks_mut(shape.state).enumerate() {
            let (head, x) = (channel / shape.head_dim, f64::from(x[channel]));
            let dt = f64::from(dt[head]);
            let (keep, mut sum) = ((dt * f64::from(a[head])).exp(), f64::from(d[head]) * x);
            for ((h, b), c) in h.iter_mut().zip(b).zip(c) {
                *h = keep * *h + dt * x * f64::from(*b);
                sum += *h * f64::from(*c);
            }
            y.push(sum);
        }
    }
    y
}

/// The convolution over x, B and C, which lie within the rows of the projection.
fn convolution(table: &mut Table) {
    let channels = INNER + 2 * 128;
    let shape = conv::Shape { batch: 1, time: TIME, channels, width: 4, row: PROJECTED };
    table.case(
        &format!("conv {TIME}"),
        || Bound::Bytes(2 * 4 * TIME * channels),
        || {
            let (x, w, bias) = (noise(TIME * PROJECTED, 1), noise(4 * channels, 2), noise(channels, 3));
            let (mut state, mut y) = (vec![0.0; 4 * channels], vec![0.0; TIME * channels]);
            conv::conv_silu(shape, &x, &w, &bias, &mut state, &mut y);
            for t in some(TIME) {
                let exact = (0..channels).map(|c| {
                    let past = (0..4).filter(|j| t + j >= 3);
                    let taps =
                        past.map(|j| f64::from(w[c * 4 + j]) * f64::from(x[(t + j - 3) * PROJECTED + c]));
                    let sum = f64::from(bias[c]) + taps.sum::<f64>();
                    sum / (1.0 + (-sum).exp())
                });
                hold("the convolution", &y[t * channels..][..channels], &exact.collect::<Vec<_>>(), 1e-6);
            }
            move || conv::conv_silu(shape, &x, &w, &bias, &mut state, &mut y)
        },
    );
}

/// The norm behind the gate.
fn gated_norm(table: &mut Table) {
    table.case(
        &format!("gated norm {TIME}"),
        || Bound::Bytes(3 * 4 * TIME * INNER),
        || {
            let (x, z, w) = (noise(TIME * INNER, 1), noise(TIME * PROJECTED, 2), noise(INNER, 3));
            let mut y = vec![0.0; TIME * INNER];
            norm::gated_rms_norm((&x, INNER), (&z, PROJECTED), &w, INNER, 1e-5, &mut y);
            for t in some(TIME) {
                let gated = x[t * INNER..][..INNER].iter().zip(&z[t * PROJECTED..]);
                let gated = gated
                    .map(|(x, z)| (f64::from(*x), f64::from(*z)))
                    .map(|(x, z)| x * z / (1.0 + (-z).exp()));
                let gated: Vec<f64> = gated.collect();
                let mean = gated.iter().map(|u| u * u).sum::<f64>() / INNER as f64;
                let exact: Vec<f64> =
                    gated.iter().zip(&w).map(|(u, w)| u / (mean + 1e-5).sqrt() * f64::from(*w)).collect();
                hold("the gated norm", &y[t * INNER..][..INNER], &exact, 1e-6);
            }
            move || norm::gated_rms_norm((&x, INNER), (&z, PROJECTED), &w, INNER, 1e-5, &mut y)
        },
    );
}

/// Activations rounded to integers of 8 bits, a scale for each token.
fn rounding(table: &mut Table) {
    table.case(
        &format!("quantize rows {TIME}×{INNER}"),
        || Bound::Bytes(5 * TIME * INNER),
        || {
            let x = noise(TIME * INNER, 1);
            let rounded = quantize_rows(&x, INNER, 8, None);
            for t in some(TIME) {
                let row = &x[t * INNER..][..INNER];
                let scale = row.iter().fold(0.0f32, |top, x| top.max(x.abs())) / 127.0;
                let codes: Vec<i8> = row.iter().map(|x| (x / scale).round_ties_even() as i8).collect();
                assert!(
                    rounded.scales[t] == scale && rounded.codes[t * INNER..][..INNER] == codes,
                    "token {t} is rounded wrong"
                );
            }
            move || {
                std::hint::black_box(quantize_rows(&x, INNER, 8, None));
            }
        },
    );
}
