//! The ends of Mamba2's mixers that [`norm`](super::norm) does not have: the gate after the norm, y = RMSNorm(x) · w · SiLU(z), and the
//! gate alone, y = x · SiLU(z); and their gradients.

use super::norm::{each_block, gate, gate_grad, gated_rows_grad, norm_rows, norm_rows_grad};

/// The norm: its weight, the width of its groups, and ε.
pub type Norm<'a> = (&'a [f32], usize, f32);

/// y = x · SiLU(z), or RMSNorm per group (x) · w · SiLU(z).
///
/// `y` is [rows, `width`]; `x` and `z` come with the distance of their rows.
pub fn norm_gated(
    (x, x_row): (&[f32], usize),
    (z, z_row): (&[f32], usize),
    norm: Option<Norm<'_>>,
    width: usize,
    y: &mut [f32],
) {
    each_block(y, width, |first, y| {
        let mut normed = vec![0.0; width];
        for (row, y) in (first..).zip(y.chunks_mut(width)) {
            let (x, z) = (&x[row * x_row..][..width], &z[row * z_row..][..width]);
            gate(after(x, norm, &mut normed), z, y);
        }
    });
}

/// Gradients of [`norm_gated`]: `dx` and `dz` (rows `z_row` apart) are overwritten, `dw`, empty where there is no norm, added to.
pub fn norm_gated_grad(
    x: &[f32],
    (z, z_row): (&[f32], usize),
    norm: Option<Norm<'_>>,
    width: usize,
    dy: &[f32],
    dx: &mut [f32],
    dz: &mut [f32],
    dw: &mut [f32],
) {
    gated_rows_grad((x, dy), (z, z_row), width, (dx, dz, dw), |row, dw, [normed, dnormed]| match norm {
        None => gate_grad(row.x, row.z, row.dy, row.dx, row.dz),
        Some((w, group, eps)) => {
            gate_grad(after(row.x, norm, normed), row.z, row.dy, dnormed, row.dz);
            norm_rows_grad(row.x, w, eps, group, dnormed, row.dx, dw);
        }
    });
}

/// What the gate meets.
fn after<'a>(x: &'a [f32], norm: Option<Norm<'_>>, normed: &'a mut [f32]) -> &'a [f32] {
    let Some((w, group, eps)) = norm else { return x };
    norm_rows(x, w, eps, group, normed);
    normed
}
