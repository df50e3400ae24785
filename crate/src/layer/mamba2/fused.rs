//! The mixer's core by the kernels, on a CPU: from a state, or from zero with gradients.

use super::super::op::{floats, gradients, with_floats};
use super::{Core, LayerState, Parts, Recurrence, Sizes};
use crate::kernel::{conv, norm, round, scan, scan_grad, softplus};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use std::sync::Mutex;

impl Core {
    /// From a zero state, with gradients.
    pub(super) fn fused(&self, zxbcdt: &Tensor, fine: bool) -> Result<Tensor> {
        zxbcdt.apply_op2(&self.packed, Fused { sizes: self.sizes, fine, saved: Mutex::new(None) })
    }

    /// From `state`, which is changed in place.
    pub(super) fn advance(&self, zxbcdt: &Tensor, state: &mut LayerState, fine: bool) -> Result<Tensor> {
        let (s, r, (batch, time, _)) = (self.sizes, self.recurrence, zxbcdt.dims3()?);
        if r.feedback() {
            state.keep_feedback()?;
        }
        let y = with_floats([zxbcdt, &self.packed], |[zxbcdt, packed]| {
            state.update(|conv, h, e| run(s, r, fine, batch, time, zxbcdt, &slices(s, packed), conv, h, e).1)
        })??;
        Tensor::from_vec(y, (batch, time, s.inner()), zxbcdt.device())
    }
}

impl Sizes {
    fn conv(&self, batch: usize, time: usize) -> conv::Shape {
        conv::Shape { batch, time, channels: self.channels(), width: self.conv_width, row: self.rows() }
    }

    fn scan(&self, batch: usize, time: usize) -> scan::Shape {
        let Self { heads, head_dim, groups, state, .. } = *self;
        scan::Shape { batch, time, heads, head_dim, groups, state }
    }
}

fn slices(s: Sizes, mut packed: &[f32]) -> Parts<&[f32]> {
    Parts::cut(s, |len| {
        let (part, rest) = packed.split_at(len);
        packed = rest;
        part
    })
}

fn slices_mut(s: Sizes, mut packed: &mut [f32]) -> Parts<&mut [f32]> {
    Parts::cut(s, |len| {
        let (part, rest) = std::mem::take(&mut packed).split_at_mut(len);
        packed = rest;
        part
    })
}

/// A of every head.
fn rates(a_log: &[f32]) -> Vec<f32> {
    a_log.iter().map(|a| -a.exp()).collect()
}

/// What the backward pass needs of the forward pass.
struct Saved {
    /// After conv and SiLU, [B, T, C].
    xbc: Vec<f32>,
    /// Δ, [B, T, H].
    dt: Vec<f32>,
    /// Before the gated norm, [B, T, I].
    y: Vec<f32>,
}

/// The fused forward pass: everything saved, and the output [B, T, I]. `error` is the feedback of a quantized state.
fn run(
    s: Sizes,
    recurrence: Recurrence,
    fine: bool,
    batch: usize,
    time: usize,
    zxbcdt: &[f32],
    p: &Parts<&[f32]>,
    conv: &mut [f32],
    h: &mut [f32],
    error: Option<&mut [f32]>,
) -> (Saved, Vec<f32>) {
    let (rows, inner, channels) = (s.rows(), s.inner(), s.channels());
    let mut xbc = vec![0.0; batch * time * channels];
    conv::conv_silu(s.conv(batch, time), &zxbcdt[inner..], p.conv_weight, p.conv_bias, conv, &mut xbc);
    recurrence.round_inputs(s, &mut xbc);
    let mut dt = vec![0.0; batch * time * s.heads];
    softplus::step_sizes(zxbcdt, rows, p.dt_bias, s.dt_limit, &mut dt);
    let mut y = vec![0.0; batch * time * inner];
    let (shape, rates) = (s.scan(batch, time), rates(p.a_log));
    match recurrence.state {
        None => scan::scan(shape, fine, &xbc, &dt, &rates, p.d, h, &mut y),
        Some(state) => {
            let error = error.filter(|_| state.feedback);
            round::recurrent_rounded(shape, &xbc, &dt, &rates, p.d, h, &mut y, state.bits, error);
        }
    }
    let mut out = vec![0.0; batch * time * inner];
    norm::gated_rms_norm(&y, zxbcdt, rows, p.norm, inner / s.groups, s.eps, &mut out);
    (Saved { xbc, dt, y }, out)
}

/// [`Core`] from a zero state, with gradients.
struct Fused {
    sizes: Sizes,
    fine: bool,
    saved: Mutex<Option<Saved>>,
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "mamba2-core"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (s, (batch, time, _)) = (self.sizes, l1.shape().dims3()?);
        let parts = slices(s, floats(s2, l2)?);
        let mut conv = vec![0.0; batch * s.channels() * s.conv_width];
        let mut h = vec![0.0; batch * s.inner() * s.state];
        let exact = Recurrence::default();
        let (saved, y) =
            run(s, exact, self.fine, batch, time, floats(s1, l1)?, &parts, &mut conv, &mut h, None);
        *self.saved.lock().map_err(|_| candle_core::Error::Msg("a forward pass panicked".into()))? =
            Some(saved);
        Ok((CpuStorage::F32(y), (batch, time, s.inner()).into()))
    }

    fn bwd(
        &self,
        zxbcdt: &Tensor,
        packed: &Tensor,
        _y: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().ok().and_then(|mut saved| saved.take());
        let Some(saved) = saved else { bail!("a graph can be walked backwards only once") };
        let (dims, dout) = (zxbcdt.dims3()?, &dout.contiguous()?);
        let [dzxbcdt, dpacked] =
            gradients([zxbcdt, packed, dout], [zxbcdt, packed], |[x, p, dout], [dx, dp]| {
                self.gradients(dims, x, &slices(self.sizes, p), saved, dout, dx, slices_mut(self.sizes, dp));
            })?;
        Ok((dzxbcdt, dpacked))
    }
}

impl Fused {
    /// Norm, scan, Δ and conv, walked backwards.
    #[allow(clippy::too_many_arguments)]
    fn gradients(
        &self,
        (batch, time, rows): (usize, usize, usize),
        zxbcdt: &[f32],
        p: &Parts<&[f32]>,
        saved: Saved,
        dout: &[f32],
        dzxbcdt: &mut [f32],
        dp: Parts<&mut [f32]>,
    ) {
        let s = self.sizes;
        let (inner, channels, heads) = (s.inner(), s.channels(), s.heads);
        let Saved { xbc, dt, y } = saved;
        let mut dy = vec![0.0; y.len()];
        let group = inner / s.groups;
        norm::gated_rms_norm_grad(&y, zxbcdt, rows, p.norm, group, s.eps, dout, &mut dy, dzxbcdt, dp.norm);

        let (mut dxbc, mut ddt) = (vec![0.0; xbc.len()], vec![0.0; dt.len()]);
        let rates = rates(p.a_log);
        let grads = scan_grad::Gradients { xbc: &mut dxbc, dt: &mut ddt, a: &mut *dp.a_log, d: dp.d };
        scan_grad::scan_grad(s.scan(batch, time), &xbc, &dt, &rates, p.d, &y, &dy, grads);
        for (da_log, rate) in dp.a_log.iter_mut().zip(&rates) {
            *da_log *= rate; // dA/dA_log = A
        }

        // Softplus and clamp: no gradient where the limit holds.
        for ((row, ddt), (drow, dt)) in
            zxbcdt.chunks(rows).zip(ddt.chunks(heads)).zip(dzxbcdt.chunks_mut(rows).zip(dt.chunks(heads)))
        {
            for head in 0..heads {
                let raw = row[inner + channels + head] + p.dt_bias[head];
                let free = dt[head] > s.dt_limit.0 && dt[head] < s.dt_limit.1;
                let grad = if free { ddt[head] / (1.0 + (-raw).exp()) } else { 0.0 };
                drow[inner + channels + head] = grad;
                dp.dt_bias[head] += grad;
            }
        }

        let (x, dx) = (&zxbcdt[inner..], &mut dzxbcdt[inner..]);
        conv::conv_silu_grad(
            s.conv(batch, time),
            x,
            p.conv_weight,
            p.conv_bias,
            &dxbc,
            dx,
            dp.conv_weight,
            dp.conv_bias,
        );
    }
}
