//! The mixer's core by the kernels, on a CPU: from a state, or from zero with gradients.

use super::super::op::{floats, gradients, with_floats};
use super::{Core, LayerState, Parts, Recurrence, Sizes};
use crate::kernel::{conv, norm, round, scan, scan_grad, softplus};
use crate::layer::room::Room;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use std::sync::Mutex;

impl Core {
    /// From a zero state, with gradients.
    pub(super) fn fused(&self, zxbcdt: &Tensor, fine: bool) -> Result<Tensor> {
        zxbcdt.apply_op2(&self.packed, Fused { sizes: self.sizes, fine, saved: Mutex::new(None) })
    }

    /// From `state`, which is changed in place: zxbcdt [B, T, R] → y [B, T, I], overwritten.
    pub(super) fn apply(
        &self,
        zxbcdt: &[f32],
        (batch, time): (usize, usize),
        state: &mut LayerState,
        fine: bool,
        y: &mut [f32],
        room: &mut Room,
    ) -> Result<()> {
        let (s, r) = (self.sizes, self.recurrence);
        if r.feedback() {
            state.keep_feedback()?;
        }
        let (mut xbc, mut dt) = (room.take(batch * time * s.channels()), room.take(batch * time * s.heads));
        with_floats([&self.packed], |[packed]| {
            let between = Between { xbc: &mut *xbc, dt: &mut *dt, y: &mut *y };
            let parts = slices(s, packed);
            state
                .update(|conv, h, e| run(s, r, fine, (batch, time), zxbcdt, &parts, (conv, h, e), between))?;
            gated_norm(s, zxbcdt, &parts, y);
            Result::Ok(())
        })??;
        room.give(xbc);
        room.give(dt);
        Ok(())
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

/// What the steps hand on, and what the backward pass needs of them.
struct Between<T> {
    /// After conv and SiLU, [B, T, C].
    xbc: T,
    /// Δ, [B, T, H].
    dt: T,
    /// Before the gated norm, [B, T, I].
    y: T,
}

/// The fused forward pass up to the gated norm, from a state of convolution, recurrence, and error of a quantized one.
fn run(
    s: Sizes,
    recurrence: Recurrence,
    fine: bool,
    (batch, time): (usize, usize),
    zxbcdt: &[f32],
    p: &Parts<&[f32]>,
    (conv, h, error): (&mut [f32], &mut [f32], Option<&mut [f32]>),
    Between { xbc, dt, y }: Between<&mut [f32]>,
) {
    let (rows, inner) = (s.rows(), s.inner());
    conv::conv_silu(s.conv(batch, time), &zxbcdt[inner..], p.conv_weight, p.conv_bias, conv, xbc);
    recurrence.round_inputs(s, xbc);
    softplus::step_sizes(zxbcdt, rows, p.dt_bias, s.dt_limit, dt);
    let (shape, rates) = (s.scan(batch, time), rates(p.a_log));
    match recurrence.state {
        None => scan::scan(shape, fine, xbc, dt, &rates, p.d, h, y),
        Some(state) => {
            let error = error.filter(|_| state.feedback);
            round::recurrent_rounded(shape, xbc, dt, &rates, p.d, h, y, state.bits, error);
        }
    }
}

/// The gated norm, in the place of y [B, T, I].
fn gated_norm(s: Sizes, zxbcdt: &[f32], p: &Parts<&[f32]>, y: &mut [f32]) {
    norm::gated_rms_norm(zxbcdt, s.rows(), p.norm, s.inner() / s.groups, s.eps, y);
}

/// [`Core`] from a zero state, with gradients.
struct Fused {
    sizes: Sizes,
    fine: bool,
    saved: Mutex<Option<Between<Vec<f32>>>>,
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
        let zeros = |width: usize| vec![0.0; batch * time * width];
        let mut saved = Between { xbc: zeros(s.channels()), dt: zeros(s.heads), y: zeros(s.inner()) };
        let between = Between { xbc: &mut *saved.xbc, dt: &mut *saved.dt, y: &mut *saved.y };
        let (zxbcdt, state) = (floats(s1, l1)?, (&mut *conv, &mut *h, None));
        run(s, exact, self.fine, (batch, time), zxbcdt, &parts, state, between);
        let mut y = saved.y.clone();
        gated_norm(s, zxbcdt, &parts, &mut y);
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
        saved: Between<Vec<f32>>,
        dout: &[f32],
        dzxbcdt: &mut [f32],
        dp: Parts<&mut [f32]>,
    ) {
        let s = self.sizes;
        let (inner, channels, heads) = (s.inner(), s.channels(), s.heads);
        let Between { xbc, dt, y } = saved;
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
