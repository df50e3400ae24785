//! RMSNorm (Zhang & Sennrich 2019), plain and with Mamba2's gate, and their gradients.
//!
//! Plain: y = x / √(mean x² + ε) · w. Gated: u = x · SiLU(z) first, then the norm of u over each group of channels.

use super::Scatter;
use super::simd::{Lanes, dispatch};
use rayon::prelude::*;

/// Rows a task handles at once: large enough to be worth a task, small enough to share.
pub(super) const ROWS: usize = 64;

/// y = RMSNorm(x) · w for rows of `w.len()` values.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let width = w.len();
    each_block(y, width, |first, y| norm_rows(&x[first * width..][..y.len()], w, eps, width, y));
}

/// Gradients of [`rms_norm`]: `dx` is overwritten, `dw` added to.
pub fn rms_norm_grad(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let width = w.len();
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(ROWS * width)
        .enumerate()
        .map(|(i, dx)| {
            let at = i * ROWS * width;
            let mut dw = vec![0.0; width];
            norm_rows_grad(&x[at..][..dx.len()], w, eps, width, &dy[at..][..dx.len()], dx, &mut dw);
            dw
        })
        .collect();
    sum_into(parts, dw);
}

/// y = RMSNorm per group (x · SiLU(z)) · w.
///
/// `y` is [rows, C]; `x` and `z` come with the distance of their rows; each row has C / `group` groups.
pub fn gated_rms_norm(
    (x, x_row): (&[f32], usize),
    (z, z_row): (&[f32], usize),
    w: &[f32],
    group: usize,
    eps: f32,
    y: &mut [f32],
) {
    let width = w.len();
    each_block(y, width, |first, y| {
        for (row, y) in (first..).zip(y.chunks_mut(width)) {
            gate(&x[row * x_row..][..width], &z[row * z_row..][..width], y);
            norm_rows_in_place(w, eps, group, y);
        }
    });
}

/// Gradients of [`gated_rms_norm`]: `dx` and `dz` (rows `z_row` apart) are overwritten, `dw` added to.
pub fn gated_rms_norm_grad(
    x: &[f32],
    z: &[f32],
    z_row: usize,
    w: &[f32],
    group: usize,
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dz: &mut [f32],
    dw: &mut [f32],
) {
    gated_rows_grad((x, dy), (z, z_row), w.len(), (dx, dz, dw), |row, dw, [u, du]| {
        gate(row.x, row.z, u);
        norm_rows_grad(u, w, eps, group, row.dy, du, dw);
        gate_grad(row.x, row.z, du, row.dx, row.dz);
    });
}

/// A row with a gate: what it read, the gradient of what it gave, and where the others go.
pub(super) struct GatedRow<'a> {
    pub x: &'a [f32],
    pub z: &'a [f32],
    pub dy: &'a [f32],
    pub dx: &'a mut [f32],
    pub dz: &'a mut [f32],
}

/// The gradients of rows of `width` values with a gate, `z` and `dz` `z_row` apart, row by row in parallel: `each` overwrites those
/// of the row and adds to the task's own `dw`; two rows are its working memory.
pub(super) fn gated_rows_grad(
    (x, dy): (&[f32], &[f32]),
    (z, z_row): (&[f32], usize),
    width: usize,
    (dx, dz, dw): (&mut [f32], &mut [f32], &mut [f32]),
    each: impl Fn(GatedRow<'_>, &mut [f32], [&mut [f32]; 2]) + Sync,
) {
    let dz = Scatter::new(dz);
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(ROWS * width)
        .enumerate()
        .map(|(i, dx)| {
            let [mut dw, mut a, mut b] = [(); 3].map(|()| vec![0.0; width]);
            for (row, dx) in (i * ROWS..).zip(dx.chunks_mut(width)) {
                let [x, dy] = [x, dy].map(|values| &values[row * width..][..width]);
                // SAFETY: every row is written by one task.
                let dz = unsafe { dz.slice(row * z_row, width) };
                let row = GatedRow { x, z: &z[row * z_row..][..width], dy, dx, dz };
                each(row, &mut dw, [&mut a, &mut b]);
            }
            dw
        })
        .collect();
    sum_into(parts, dw);
}

/// x += y, then y = RMSNorm(x) · w: from one layer of a residual stream to the next.
pub fn add_rms_norm(x: &mut [f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let (width, x) = (w.len(), Scatter::new(x));
    each_block(y, width, |first, y| {
        // SAFETY: these rows belong to this task.
        let x = unsafe { x.slice(first * width, y.len()) };
        add(y, x);
        norm_rows(x, w, eps, width, y);
    });
}

pub(super) fn each_block(y: &mut [f32], width: usize, run: impl Fn(usize, &mut [f32]) + Sync) {
    if y.len() <= ROWS * width {
        run(0, y);
    } else {
        y.par_chunks_mut(ROWS * width).enumerate().for_each(|(i, y)| run(i * ROWS, y));
    }
}

/// Adds the parts in their order, so that the sum does not depend on scheduling.
pub(super) fn sum_into(parts: Vec<Vec<f32>>, sum: &mut [f32]) {
    for part in parts {
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += part;
        }
    }
}

dispatch! {
    /// y += x.
    pub fn add(x: &[f32], y: &mut [f32]) = add_body;
}

#[expect(clippy::extra_unused_type_parameters, reason = "the compiler chooses the vectors of this loop")]
#[inline(always)]
fn add_body<V: Lanes>(x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

dispatch! { pub(super) fn norm_rows(x: &[f32], w: &[f32], eps: f32, group: usize, y: &mut [f32]) = norm_rows_body; }

#[inline(always)]
fn norm_rows_body<V: Lanes>(x: &[f32], w: &[f32], eps: f32, group: usize, y: &mut [f32]) {
    for (i, (x, y)) in x.chunks(group).zip(y.chunks_mut(group)).enumerate() {
        let scale = 1.0 / (dot_body::<V>(x, x) / group as f32 + eps).sqrt();
        let w = &w[i * group % w.len()..];
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * scale * w;
        }
    }
}

dispatch! { fn norm_rows_in_place(w: &[f32], eps: f32, group: usize, y: &mut [f32]) = norm_in_place_body; }

#[inline(always)]
fn norm_in_place_body<V: Lanes>(w: &[f32], eps: f32, group: usize, y: &mut [f32]) {
    for (i, y) in y.chunks_mut(group).enumerate() {
        let scale = 1.0 / (dot_body::<V>(y, y) / group as f32 + eps).sqrt();
        for (y, w) in y.iter_mut().zip(&w[i * group % w.len()..]) {
            *y *= scale * w;
        }
    }
}

dispatch! {
    /// With r = 1/√(mean x² + ε), x̂ = r x and g = dy · w: dw += dy · x̂, dx = r (g − x̂ · mean(g · x̂)).
    pub(super) fn norm_rows_grad(x: &[f32], w: &[f32], eps: f32, group: usize, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) = norm_rows_grad_body;
}

#[inline(always)]
fn norm_rows_grad_body<V: Lanes>(
    x: &[f32],
    w: &[f32],
    eps: f32,
    group: usize,
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let width = w.len();
    for (i, ((x, dy), dx)) in x.chunks(group).zip(dy.chunks(group)).zip(dx.chunks_mut(group)).enumerate() {
        let at = i * group % width;
        let (w, dw) = (&w[at..][..group], &mut dw[at..][..group]);
        let whole = group / V::N * V::N;
        let [mut squares, mut pulls] = [V::splat(0.0); 2];
        for c in (0..whole).step_by(V::N) {
            let x = V::load(&x[c..]);
            squares = x.fma(x, squares);
            pulls = V::load(&dy[c..]).mul(V::load(&w[c..])).fma(x, pulls);
        }
        let rest = |of: fn(f32, f32, f32) -> f32| (whole..group).map(|c| of(x[c], dy[c], w[c])).sum::<f32>();
        let squares = squares.sum() + rest(|x, _, _| x * x);
        let pulls = pulls.sum() + rest(|x, dy, w| dy * w * x);
        let scale = 1.0 / (squares / group as f32 + eps).sqrt();
        let mean = pulls * scale * scale / group as f32;
        let (scales, means) = (V::splat(scale), V::splat(mean));
        for c in (0..whole).step_by(V::N) {
            let (x, dy) = (V::load(&x[c..]), V::load(&dy[c..]));
            dy.mul(V::load(&w[c..])).sub(x.mul(means)).mul(scales).store(&mut dx[c..]);
            x.mul(scales).fma(dy, V::load(&dw[c..])).store(&mut dw[c..]);
        }
        for c in whole..group {
            dx[c] = scale * (dy[c] * w[c] - x[c] * mean);
            dw[c] += dy[c] * x[c] * scale;
        }
    }
}

dispatch! {
    /// Σ a b.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body;
}

#[inline(always)]
pub(super) fn dot_body<V: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = V::splat(0.0);
    let (a, b) = (a.chunks_exact(V::N), b.chunks_exact(V::N));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        sum = V::load(a).fma(V::load(b), sum);
    }
    sum.sum() + rest
}

dispatch! {
    /// u = x · SiLU(z)
    pub fn gate(x: &[f32], z: &[f32], u: &mut [f32]) = gate_body;
}

#[inline(always)]
fn gate_body<V: Lanes>(x: &[f32], z: &[f32], u: &mut [f32]) {
    let (x, z) = (&x[..u.len()], &z[..u.len()]);
    let whole = u.len() / V::N * V::N;
    for i in (0..whole).step_by(V::N) {
        V::load(&x[i..]).mul(V::load(&z[i..]).silu()).store(&mut u[i..]);
    }
    let rest = whole..u.len();
    V::load_part(&x[rest.clone()]).mul(V::load_part(&z[rest.clone()]).silu()).store_part(&mut u[rest]);
}

dispatch! {
    /// dx = du · SiLU(z), dz = du · x · SiLU′(z)
    pub fn gate_grad(x: &[f32], z: &[f32], du: &[f32], dx: &mut [f32], dz: &mut [f32]) = gate_grad_body;
}

#[inline(always)]
fn gate_grad_body<V: Lanes>(x: &[f32], z: &[f32], du: &[f32], dx: &mut [f32], dz: &mut [f32]) {
    let whole = dx.len() / V::N * V::N;
    for i in (0..whole).step_by(V::N) {
        let (x, z, du) = (V::load(&x[i..]), V::load(&z[i..]), V::load(&du[i..]));
        du.mul(z.silu()).store(&mut dx[i..]);
        du.mul(x).mul(z.silu_slope()).store(&mut dz[i..]);
    }
    let rest = whole..dx.len();
    let (x, z, du) =
        (V::load_part(&x[rest.clone()]), V::load_part(&z[rest.clone()]), V::load_part(&du[rest.clone()]));
    du.mul(z.silu()).store_part(&mut dx[rest.clone()]);
    du.mul(x).mul(z.silu_slope()).store_part(&mut dz[rest]);
}
