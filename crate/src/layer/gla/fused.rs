//! The way back through the mixer by the kernels, on a CPU. Products of chunks that are rounded on the way there are taken for exact on
//! the way back (straight-through, Bengio et al. 2013).

use super::{Gla, Projected};
use crate::kernel::decay::{decays, decays_grad};
use crate::kernel::gated::{silu_product, silu_product_grad};
use crate::kernel::norm::{add, rms_norm, rms_norm_grad};
use crate::kernel::scan::channels::{Gradients, scan_grad};
use crate::layer::branch::Places;
use crate::layer::linear::Linear;
use crate::layer::op::with_floats;
use crate::layer::room::{Buffer, Room};
use candle_core::{Result, bail};

/// What the way back needs of the way there.
pub(super) struct Kept {
    projected: Projected<Buffer>,
    /// Between the matrices of the gates, [T, R], and what they gave, [T, G·K].
    low: Buffer,
    gates: Buffer,
    /// Before the norm, after it, g, and what o_proj read, [T, H·V] each.
    y: Buffer,
    normed: Buffer,
    g: Option<Buffer>,
    out: Buffer,
    time: usize,
}

impl Gla {
    /// From a zero state: `u` and `out` [T, hidden], `out` overwritten.
    pub(super) fn trace_kept(
        &self,
        u: &[f32],
        out: &mut [f32],
        time: usize,
        room: &mut Room,
    ) -> Result<Kept> {
        if self.recurrence.has_no_way_back() {
            bail!("a quantized recurrence has no gradients")
        }
        let (s, p) = (self.sizes, &self.parts);
        let mut trace = |linear: &Linear, x: &[f32]| {
            let mut to = room.take(time * linear.weight.shape()?.0);
            linear.trace(x, &mut to)?;
            Result::Ok(to)
        };
        let [mut q, k, v] = [trace(&p.q_proj, u)?, trace(&p.k_proj, u)?, trace(&p.v_proj, u)?];
        let low = trace(&p.gk_proj[0], u)?;
        let gates = trace(&p.gk_proj[1], &low)?;
        let g = p.g_proj.as_ref().map(|g_proj| trace(g_proj, u)).transpose()?;
        q.iter_mut().for_each(|q| *q *= s.scale());
        let mut a = room.take(gates.len());
        a.copy_from_slice(&gates);
        decays(&mut a, s.clamp_min);
        let projected = Projected { q, k, v, a };
        let [mut y, mut normed, mut read] = [(); 3].map(|()| room.take(time * s.heads * s.value));
        let mut state = room.take(s.heads * s.key * s.value);
        state.fill(0.0);
        self.scan_f32(s.scan(1, time), projected.inputs(), &mut state, &mut y);
        room.give(state);
        with_floats([&p.norm], |[norm]| rms_norm(&y, norm, s.eps, &mut normed))?;
        match &g {
            Some(g) => {
                read.copy_from_slice(g);
                silu_product(&mut read, &normed);
            }
            None => read.copy_from_slice(&normed),
        }
        p.o_proj.trace(&read, out)?;
        Ok(Kept { projected, low, gates, y, normed, g, out: read, time })
    }

    /// The gradients where [`trace_kept`](Self::trace_kept) read `u` and that of its output is `dout`: `du` [T, hidden] and
    /// all of `places` are overwritten.
    pub(super) fn backward(
        &self,
        u: &[f32],
        kept: Kept,
        dout: &[f32],
        du: &mut [f32],
        places: &mut Places<'_>,
        room: &mut Room,
    ) -> Result<()> {
        let (s, p) = (self.sizes, &self.parts);
        let Kept { projected, low, gates, y, mut normed, g, out, time } = kept;
        let [mut dread, mut dy] = [(); 2].map(|()| room.take(y.len()));
        let bias = places.optional("o_proj.bias");
        p.o_proj.backward(&out, dout, &mut dread, places.take("o_proj.weight")?, bias)?;
        // From here on g is its own gradient, and what the norm gave that of it.
        let dg = match g {
            Some(mut g) => {
                silu_product_grad(&mut g, &mut normed, &dread);
                Some(g)
            }
            None => {
                normed.copy_from_slice(&dread);
                None
            }
        };
        let dnorm = match places.optional("g_norm_swish_gate.weight") {
            Some(place) => place,
            None => places.take("g_norm.weight")?,
        };
        dnorm.fill(0.0);
        with_floats([&p.norm], |[norm]| rms_norm_grad(&y, norm, s.eps, &normed, &mut dy, dnorm))?;

        let Projected { q, k, v, a } = &projected;
        let [mut dq, mut dk, mut dv, mut dgates] = [q, k, v, a].map(|like| room.take(like.len()));
        let mut ds = room.take(s.heads * s.key * s.value);
        ds.fill(0.0);
        let grads = Gradients { q: &mut dq, k: &mut dk, v: &mut dv, log_a: &mut dgates, s: &mut ds };
        scan_grad(s.scan(1, time), projected.inputs(), None, &dy, grads);
        dq.iter_mut().for_each(|dq| *dq *= s.scale());
        decays_grad(&gates, s.clamp_min, &mut dgates);

        let mut dlow = room.take(low.len());
        let (weight, bias) = (places.take("gk_proj.1.weight")?, places.optional("gk_proj.1.bias"));
        p.gk_proj[1].backward(&low, &dgates, &mut dlow, weight, bias)?;
        let mut part = room.take(du.len());
        let mut back = |name: &str, linear: &Linear, d: &[f32], first: bool| {
            let bias = places.optional(&format!("{name}.bias"));
            let weight = places.take(&format!("{name}.weight"))?;
            match first {
                true => linear.backward(u, d, du, weight, bias)?,
                false => {
                    linear.backward(u, d, &mut part, weight, bias)?;
                    add(&part, du);
                }
            }
            Result::Ok(())
        };
        back("q_proj", &p.q_proj, &dq, true)?;
        back("k_proj", &p.k_proj, &dk, false)?;
        back("v_proj", &p.v_proj, &dv, false)?;
        back("gk_proj.0", &p.gk_proj[0], &dlow, false)?;
        if let (Some(g_proj), Some(dg)) = (&p.g_proj, &dg) {
            back("g_proj", g_proj, dg, false)?;
        }
        projected.give(room);
        for buffer in
            [low, gates, y, normed, out, dread, dy, dq, dk, dv, dgates, ds, dlow, part].into_iter().chain(dg)
        {
            room.give(buffer);
        }
        Ok(())
    }
}
