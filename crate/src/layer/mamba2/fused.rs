//! The mixer's core by the kernels, on a CPU: from a state, or from zero and back again with gradients, to which rounded products of
//! chunks are exact (straight-through).

use super::super::op::{Values, with_floats};
use super::{Core, End, LayerState, Parts, Sizes};
use crate::kernel::{conv, conv_grad, norm, norm_gated, scan, scan_grad, softplus};
use crate::layer::recurrence::Recurrence;
use crate::layer::room::{Buffer, Room};
use candle_core::{Result, bail};
use smallvec::SmallVec;

impl Core {
    /// From `state`, which is changed in place: zxbcdt [B, T, R] → y [B, T, I]. In the place of x is then y before the gated
    /// norm: a buffer less.
    pub(super) fn apply(
        &self,
        zxbcdt: &mut [f32],
        (batch, time): (usize, usize),
        state: &mut LayerState,
        fine: bool,
        room: &mut Room,
    ) -> Result<Buffer> {
        let (s, r) = (self.sizes, self.recurrence);
        r.shape(state)?;
        let (mut xbc, mut dt) = (room.take(batch * time * s.channels()), room.take(batch * time * s.heads));
        with_floats([&self.packed], |[packed]| {
            let parts = slices(s, packed);
            let shape = s.scan(batch, time, s.rows());
            state.update(|conv, h, error| {
                inputs(s, r, (batch, time), zxbcdt, &parts, conv, &mut xbc, &mut dt);
                scan(r, fine, shape, &xbc, &dt, &parts, (h, error), &mut zxbcdt[s.inner()..]);
            })?;
            xbc.shorten(batch * time * s.inner());
            gated_norm(s, (&zxbcdt[s.inner()..], s.rows()), zxbcdt, &parts, &mut xbc);
            Result::Ok(())
        })??;
        room.give(dt);
        Ok(xbc)
    }
}

impl Sizes {
    /// The norm that a gate follows, if there is one.
    fn norm_before_gate<'a>(&self, p: &Parts<&'a [f32]>) -> Option<norm_gated::Norm<'a>> {
        (self.end == End::NormThenGate).then_some((p.norm, self.inner() / self.groups, self.eps))
    }

    pub(super) fn conv(&self, batch: usize, time: usize) -> conv::Shape {
        conv::Shape { batch, time, channels: self.channels(), width: self.conv_width, row: self.rows() }
    }

    /// With rows of y so far apart.
    pub(super) fn scan(&self, batch: usize, time: usize, out: usize) -> scan::Shape {
        let Self { heads, head_dim, groups, state, .. } = *self;
        scan::Shape { batch, time, heads, head_dim, groups, state, out }
    }
}

pub(super) fn slices(s: Sizes, mut packed: &[f32]) -> Parts<&[f32]> {
    Parts::cut(s, |len| {
        let (part, rest) = packed.split_at(len);
        packed = rest;
        part
    })
}

/// A of every head.
pub(super) fn rates(a_log: &[f32]) -> SmallVec<[f32; 64]> {
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

/// What the recurrence reads: x|B|C [B, T, C] after the convolution, whose state moves on, and Δ [B, T, H].
#[allow(clippy::too_many_arguments)]
fn inputs(
    s: Sizes,
    recurrence: Recurrence,
    (batch, time): (usize, usize),
    zxbcdt: &[f32],
    p: &Parts<&[f32]>,
    conv: &mut [f32],
    xbc: &mut [f32],
    dt: &mut [f32],
) {
    let shape = s.conv(batch, time);
    conv::conv_silu(shape, &zxbcdt[s.inner()..], p.conv_weight, p.conv_bias, conv, xbc);
    s.round_inputs(recurrence, xbc);
    softplus::step_sizes(zxbcdt, s.rows(), p.dt_bias, s.dt_limit, dt);
}

/// The recurrence, in the precision of its state `h`, with the error of a quantized one.
#[allow(clippy::too_many_arguments)]
fn scan(
    recurrence: Recurrence,
    fine: bool,
    shape: scan::Shape,
    xbc: &[f32],
    dt: &[f32],
    p: &Parts<&[f32]>,
    (h, error): (Values<'_>, Option<&mut [f32]>),
    y: &mut [f32],
) {
    let rates = rates(p.a_log);
    match (h, recurrence.state) {
        (Values::Bf16(h), _) => scan::recurrent(shape, xbc, dt, &rates, p.d, h, y),
        (Values::F32(h), None) => match recurrence.products.filter(|products| products.round(shape.time)) {
            Some(products) => scan::chunked(shape, Some(products), xbc, dt, &rates, p.d, h, y),
            None => scan::scan(shape, fine, xbc, dt, &rates, p.d, h, y),
        },
        (Values::F32(h), Some(state)) => {
            let feedback = error.filter(|_| state.feedback).map(|error| (error, state.residual));
            scan::recurrent_rounded(shape, xbc, dt, &rates, p.d, h, y, state.bits, feedback);
        }
    }
}

/// Gate and norm of y, given with the distance of its rows, to `out` [B, T, I].
fn gated_norm(s: Sizes, y: (&[f32], usize), zxbcdt: &[f32], p: &Parts<&[f32]>, out: &mut [f32]) {
    let z = (zxbcdt, s.rows());
    match s.end {
        End::GateThenNorm => norm::gated_rms_norm(y, z, p.norm, s.inner() / s.groups, s.eps, out),
        _ => norm_gated::norm_gated(y, z, s.norm_before_gate(p), s.inner(), out),
    }
}

/// What the way back needs of the way there.
pub(super) struct Trace(Between<Buffer>);

impl Core {
    /// From a zero state: zxbcdt [B, T, R] → y [B, T, I], overwritten.
    pub(super) fn trace(
        &self,
        zxbcdt: &[f32],
        (batch, time): (usize, usize),
        y: &mut [f32],
        room: &mut Room,
    ) -> Result<Trace> {
        if self.recurrence.has_no_way_back() {
            bail!("a quantized recurrence has no gradients")
        }
        let s = self.sizes;
        let mut take = |width: usize| room.take(batch * time * width);
        let mut kept = Between { xbc: take(s.channels()), dt: take(s.heads), y: take(s.inner()) };
        let mut zeros = |len: usize| {
            let mut zeros = room.take(batch * len);
            zeros.fill(0.0);
            zeros
        };
        let (mut conv, mut h) = (zeros(s.channels() * s.conv_width), zeros(s.inner() * s.state));
        with_floats([&self.packed], |[packed]| {
            let parts = slices(s, packed);
            let Between { xbc, dt, y: before } = &mut kept;
            inputs(s, self.recurrence, (batch, time), zxbcdt, &parts, &mut conv, xbc, dt);
            // Finely: the gradient of a decay is a small difference of products of y.
            let (shape, state) = (s.scan(batch, time, s.inner()), (Values::F32(&mut h), None));
            scan(self.recurrence, true, shape, xbc, dt, &parts, state, before);
            gated_norm(s, (before, s.inner()), zxbcdt, &parts, y);
        })?;
        room.give(conv);
        room.give(h);
        Ok(Trace(kept))
    }

    /// The gradients where [`trace`](Self::trace) read `zxbcdt` and that of its y is `dout`: `dzxbcdt` and the parts `dp`
    /// are overwritten.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn backward(
        &self,
        zxbcdt: &[f32],
        Trace(Between { xbc, dt, y }): Trace,
        (batch, time): (usize, usize),
        dout: &[f32],
        dzxbcdt: &mut [f32],
        mut dp: Parts<&mut [f32]>,
        room: &mut Room,
    ) -> Result<()> {
        dp.each_mut().into_iter().for_each(|part| part.fill(0.0));
        let [mut dy, mut dxbc, mut ddt] = [&y, &xbc, &dt].map(|like| room.take(like.len()));
        with_floats([&self.packed], |[packed]| {
            let between = Between { xbc: &*xbc, dt: &*dt, y: &*y };
            let grads = Between { xbc: &mut *dxbc, dt: &mut *ddt, y: &mut *dy };
            let parts = slices(self.sizes, packed);
            gradients(self.sizes, (batch, time), zxbcdt, &parts, between, dout, dzxbcdt, grads, dp);
        })?;
        for buffer in [xbc, dt, y, dy, dxbc, ddt] {
            room.give(buffer);
        }
        Ok(())
    }
}

/// Norm, scan, Δ and conv, walked backwards.
#[allow(clippy::too_many_arguments)]
fn gradients(
    s: Sizes,
    (batch, time): (usize, usize),
    zxbcdt: &[f32],
    p: &Parts<&[f32]>,
    Between { xbc, dt, y }: Between<&[f32]>,
    dout: &[f32],
    dzxbcdt: &mut [f32],
    Between { xbc: dxbc, dt: ddt, y: dy }: Between<&mut [f32]>,
    dp: Parts<&mut [f32]>,
) {
    let (rows, inner, channels, heads) = (s.rows(), s.inner(), s.channels(), s.heads);
    let group = inner / s.groups;
    match s.end {
        End::GateThenNorm => {
            norm::gated_rms_norm_grad(y, zxbcdt, rows, p.norm, group, s.eps, dout, dy, dzxbcdt, dp.norm);
        }
        _ => {
            let norm = s.norm_before_gate(p);
            norm_gated::norm_gated_grad(y, (zxbcdt, rows), norm, inner, dout, dy, dzxbcdt, dp.norm);
        }
    }

    let rates = rates(p.a_log);
    let grads = scan_grad::Gradients { xbc: &mut *dxbc, dt: &mut *ddt, a: &mut *dp.a_log, d: dp.d };
    scan_grad::scan_grad(s.scan(batch, time, inner), xbc, dt, &rates, p.d, y, dy, grads);
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
    conv_grad::conv_silu_grad(
        s.conv(batch, time),
        x,
        p.conv_weight,
        p.conv_bias,
        dxbc,
        dx,
        dp.conv_weight,
        dp.conv_bias,
    );
}
