//! The mixer by the kernels, on a CPU: from a state, or from zero and back again with gradients.

use super::{Parts, Places, Selective, Sizes};
use crate::kernel::conv::{self, conv_silu};
use crate::kernel::conv_grad::conv_silu_grad;
use crate::kernel::diagonal::{add_scaled, weight_grad};
use crate::kernel::linear::{self, Weight, trained};
use crate::kernel::norm::{add, gate, gate_grad};
use crate::kernel::softplus::{mean_steps, mean_steps_grad};
use crate::layer::room::{Buffer, Room};
use candle_core::Result;

/// What the steps hand on.
pub(super) struct There {
    /// What in_proj gave: a, then g, [B·T, 2·I].
    ag: Buffer,
    /// After conv and SiLU, [B·T, I].
    x: Buffer,
    /// What delta_proj gave, [B·T, I].
    raw: Buffer,
    /// Δ, [B·T].
    step: Buffer,
    /// B x, [B·T, N].
    written: Buffer,
    /// The states after each token, [B·T, N].
    states: Buffer,
    /// y before the gate, [B·T, I].
    y: Buffer,
    /// y ⊙ SiLU(g), [B·T, I].
    pub gated: Buffer,
}

impl There {
    fn take(rows: usize, Sizes { inner, state, .. }: Sizes, room: &mut Room) -> Self {
        let mut take = |width: usize| room.take(rows * width);
        Self {
            ag: take(2 * inner),
            x: take(inner),
            raw: take(inner),
            step: take(1),
            written: take(state),
            states: take(state),
            y: take(inner),
            gated: take(inner),
        }
    }

    pub(super) fn give(self, room: &mut Room) {
        let Self { ag, x, raw, step, written, states, y, gated } = self;
        [ag, x, raw, step, written, states, y, gated].into_iter().for_each(|buffer| room.give(buffer));
    }
}

/// The states after each token of one sequence, `states` [T, N], from what is `written` [T, N] and the steps [T]; `h` `[N]` moves
/// on: h ← e^(Δ A) ⊙ h + Δ w.
fn scan(rates: &[f32], steps: &[f32], written: &[f32], h: &mut [f32], states: &mut [f32]) {
    let n = rates.len();
    for ((step, written), states) in steps.iter().zip(written.chunks(n)).zip(states.chunks_mut(n)) {
        for (((h, rate), written), state) in h.iter_mut().zip(rates).zip(written).zip(states) {
            *h = (step * rate).exp() * *h + step * written;
            *state = *h;
        }
    }
}

/// The way back through [`scan`] from zero: the gradient of the `states` [T, N] becomes that of what was written, `dsteps` [T] and
/// `drates` `[N]` are overwritten.
fn scan_grad(
    rates: &[f32],
    steps: &[f32],
    written: &[f32],
    states: &[f32],
    dstates: &mut [f32],
    dsteps: &mut [f32],
    drates: &mut [f32],
) {
    let n = rates.len();
    let mut dh = vec![0.0; n];
    drates.fill(0.0);
    for t in (0..steps.len()).rev() {
        let step = steps[t];
        let mut dstep = 0.0;
        for c in 0..n {
            let decay = (step * rates[c]).exp();
            let before = if t > 0 { states[(t - 1) * n + c] } else { 0.0 };
            dh[c] += dstates[t * n + c];
            let kept = dh[c] * decay * before;
            dstep += kept * rates[c] + dh[c] * written[t * n + c];
            drates[c] += kept * step;
            dstates[t * n + c] = dh[c] * step;
            dh[c] *= decay;
        }
        dsteps[t] = dstep;
    }
}

impl Selective {
    fn conv(&self, batch: usize, time: usize) -> Result<conv::Shape> {
        let Sizes { inner, taps, .. } = self.sizes()?;
        Ok(conv::Shape { batch, time, channels: inner, width: taps, row: 2 * inner })
    }

    /// Everything up to out_proj: `u` [B·T, hidden], moving the states of the convolution and of the recurrence on.
    pub(super) fn there(
        &self,
        u: &[f32],
        size: (usize, usize),
        conv: &mut [f32],
        h: &mut [f32],
        room: &mut Room,
    ) -> Result<There> {
        let mut there = There::take(size.0 * size.1, self.sizes()?, room);
        self.in_proj.apply(u, &mut there.ag, room)?;
        self.convolve(size, conv, &mut there)?;
        self.delta_proj.apply(&there.x, &mut there.raw, room)?;
        self.recur(size, h, &mut there, |m, k, n, x, w, y| linear::forward(m, k, n, x, Weight::F32(w), y))?;
        Ok(there)
    }

    /// [`Self::there`] of one sequence on the way to gradients.
    pub(super) fn traced(
        &self,
        u: &[f32],
        time: usize,
        conv: &mut [f32],
        h: &mut [f32],
        room: &mut Room,
    ) -> Result<There> {
        let mut there = There::take(time, self.sizes()?, room);
        self.in_proj.trace(u, &mut there.ag)?;
        self.convolve((1, time), conv, &mut there)?;
        self.delta_proj.trace(&there.x, &mut there.raw)?;
        self.recur((1, time), h, &mut there, trained)?;
        Ok(there)
    }

    fn convolve(&self, (batch, time): (usize, usize), state: &mut [f32], there: &mut There) -> Result<()> {
        let shape = self.conv(batch, time)?;
        self.with_small(|p| conv_silu(shape, &there.ag, p.conv_weight, p.conv_bias, state, &mut there.x))
    }

    /// From the steps to the gate, by `product` with B and C.
    fn recur(
        &self,
        (batch, time): (usize, usize),
        h: &mut [f32],
        there: &mut There,
        product: impl Fn(usize, usize, usize, &[f32], &[f32], &mut [f32]),
    ) -> Result<()> {
        let Sizes { inner, state: n, .. } = self.sizes()?;
        let (rows, There { ag, x, raw, step, written, states, y, gated }) = (batch * time, there);
        mean_steps(raw, step);
        self.with_small(|p| {
            product(rows, inner, n, x, p.b, written);
            let rates: Vec<f32> = p.a_log.iter().map(|a| -a.exp()).collect();
            let sequences = step.chunks(time).zip(written.chunks(time * n));
            for ((steps, written), (h, states)) in
                sequences.zip(h.chunks_mut(n).zip(states.chunks_mut(time * n)))
            {
                scan(&rates, steps, written, h, states);
            }
            product(rows, n, inner, states, p.c, y);
            for (y, x) in y.chunks_mut(inner).zip(x.chunks(inner)) {
                add_scaled(p.d, x, y);
            }
        })?;
        for ((y, ag), gated) in y.chunks(inner).zip(ag.chunks(2 * inner)).zip(gated.chunks_mut(inner)) {
            gate(y, &ag[inner..], gated);
        }
        Ok(())
    }

    /// The way back: the gradients where [`Self::traced`] read `u` and that of the output is `dy`.
    pub(super) fn backward(
        &self,
        u: &[f32],
        there: There,
        dy: &[f32],
        du: &mut [f32],
        places: &mut Places<'_>,
        room: &mut Room,
    ) -> Result<()> {
        let (s, time) = (self.sizes()?, there.step.len());
        let Sizes { inner, state: n, .. } = s;
        let There { ag, x, raw, step, written, states, y, gated } = &there;
        let mut back = There::take(time, s, room);
        let There { ag: dag, x: dx, raw: draw, step: dstep, states: dstates, y: dout, gated: dgated, .. } =
            &mut back;
        self.out_proj.pull("out_proj", (gated, dy), dgated, places)?;
        let rows = y.chunks(inner).zip(ag.chunks(2 * inner)).zip(dgated.chunks(inner));
        for (((y, ag), dgated), (dout, dag)) in
            rows.zip(dout.chunks_mut(inner).zip(dag.chunks_mut(2 * inner)))
        {
            gate_grad(y, &ag[inner..], dgated, dout, &mut dag[inner..]);
        }
        let mut take = |name| places.take(name);
        let [conv_weight, conv_bias, a_log, b, c, d] = Parts::<()>::NAMES.map(&mut take);
        let grads =
            Parts { conv_weight: conv_weight?, conv_bias: conv_bias?, a_log: a_log?, b: b?, c: c?, d: d? };
        self.with_small(|p| {
            grads.d.fill(0.0);
            weight_grad(x, dout, grads.d);
            linear::weight_grad(time, n, inner, dout, states, grads.c);
            linear::input_grad(time, n, inner, dout, p.c, dstates);
            let rates: Vec<f32> = p.a_log.iter().map(|a| -a.exp()).collect();
            scan_grad(&rates, step, written, states, dstates, dstep, grads.a_log);
            grads.a_log.iter_mut().zip(&rates).for_each(|(da, rate)| *da *= rate);
            linear::weight_grad(time, inner, n, dstates, x, grads.b);
            linear::input_grad(time, inner, n, dstates, p.b, dx);
            for (dx, dout) in dx.chunks_mut(inner).zip(dout.chunks(inner)) {
                add_scaled(p.d, dout, dx);
            }
        })?;
        draw.copy_from_slice(raw);
        mean_steps_grad(draw, dstep);
        self.delta_proj.pull("ssm.delta_proj", (x, draw), dgated, places)?;
        add(dgated, dx);
        let shape = self.conv(1, time)?;
        self.with_small(|p| {
            grads.conv_weight.fill(0.0);
            grads.conv_bias.fill(0.0);
            conv_silu_grad(
                shape,
                ag,
                p.conv_weight,
                p.conv_bias,
                dx,
                dag,
                grads.conv_weight,
                grads.conv_bias,
            );
        })?;
        self.in_proj.pull("in_proj", (u, dag), du, places)?;
        there.give(room);
        back.give(room);
        Ok(())
    }
}
