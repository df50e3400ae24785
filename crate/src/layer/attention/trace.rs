//! The fused way back through attention.

use super::{Attention, Heads, Query, Room, Sizes, kernel};
use crate::kernel::attention::{Traced, Width, attend, attend_grad};
use crate::kernel::norm::{add, dot};
use crate::layer::branch::Back;
use crate::layer::room::Buffer;
use candle_core::{Result, bail};

/// See [`Branch::trace`](super::Branch::trace).
pub(super) fn trace<'a>(
    layer: &'a Attention,
    u: &[f32],
    y: &mut [f32],
    time: usize,
    room: &mut Room,
) -> Result<Back<'a>> {
    if layer.width != Width::F32 {
        bail!("a cache in few bits has no gradients")
    }
    layer.admit(0, time)?;
    let Sizes { heads, shared, dim, .. } = layer.sizes;
    let shape = layer.shape((1, time));
    let (mut q, mut out) = (room.take(time * heads * dim), room.take(time * heads * dim));
    let [mut k, mut v] = [(); 2].map(|()| room.take(time * shared * dim));
    let mut logs = room.take(time * heads);
    let between = match &layer.q {
        Query::Full(full) => {
            full.trace(u, &mut q)?;
            None
        }
        Query::LowRank([first, second]) => {
            let mut between = room.take(time * first.weight.shape()?.0);
            first.trace(u, &mut between)?;
            second.trace(&between, &mut q)?;
            Some(between)
        }
    };
    layer.k_proj.trace(u, &mut k)?;
    layer.weigh_keys(&mut k);
    layer.v_proj.trace(u, &mut v)?;
    let raw_q = placed(layer, time, &mut q, room)?;
    let raw_k = placed(layer, time, &mut k, room)?;
    let turned = layer.heads.is_some().then(|| copy(&q, room));
    layer.gain(&mut q)?;
    let mut cache = kernel::Cache::new(shared, dim, Width::F32);
    cache.push((1, time), &k, &v);
    out.copy_from_slice(&q);
    attend(shape, &mut out, &cache, Some(&mut logs));
    layer.o_proj.trace(&out, y)?;
    Ok(Back::new(move |u, dy, du, places, room| {
        let names = layer.names;
        let [mut dout, mut dq] = [(); 2].map(|()| room.take(out.len()));
        let [mut dk, mut dv] = [(); 2].map(|()| room.take(k.len()));
        layer.o_proj.pull(names.o, (&out, dy), &mut dout, places)?;
        let traced = Traced { q: &q, k: &k, v: &v, y: &out, logs: &logs, dy: &dout };
        attend_grad(shape, traced, &mut dq, &mut dk, &mut dv);
        if let Some(turned) = &turned {
            let dgain = places.take(names.gain)?;
            dgain.fill(0.0);
            for (dq, turned) in dq.chunks(heads * dim).zip(turned.chunks(heads * dim)) {
                let each = dq.chunks(dim).zip(turned.chunks(dim));
                dgain.iter_mut().zip(each).for_each(|(dgain, (dq, turned))| *dgain += dot(dq, turned));
            }
            layer.gain(&mut dq)?;
        }
        unplaced(layer, time, raw_q.as_deref(), &mut dq, room)?;
        unplaced(layer, time, raw_k.as_deref(), &mut dk, room)?;
        layer.weigh_keys(&mut dk);
        match (&layer.q, &between) {
            (Query::LowRank([first, second]), Some(between)) => {
                let mut dbetween = room.take(between.len());
                second.pull(names.low_rank[1], (between, &dq), &mut dbetween, places)?;
                first.pull(names.low_rank[0], (u, &dbetween), du, places)?;
                room.give(dbetween);
            }
            (Query::LowRank(_), None) => bail!("queries of low rank without what is between"),
            (Query::Full(full), _) => full.pull(names.q, (u, &dq), du, places)?,
        }
        let mut part = room.take(du.len());
        layer.k_proj.pull(names.k, (u, &dk), &mut part, places)?;
        add(&part, du);
        layer.v_proj.pull(names.v, (u, &dv), &mut part, places)?;
        add(&part, du);
        let kept = [raw_q, raw_k, turned, between].into_iter().flatten();
        kept.chain([q, k, v, out, logs, dout, dq, dk, dv, part]).for_each(|buffer| room.give(buffer));
        Ok(())
    }))
}

fn copy(x: &[f32], room: &mut Room) -> Buffer {
    let mut to = room.take(x.len());
    to.copy_from_slice(x);
    to
}

/// [`Attention::place_heads`] from the first token on; what the norm of heads read, if there is one.
fn placed(layer: &Attention, time: usize, x: &mut [f32], room: &mut Room) -> Result<Option<Buffer>> {
    let raw = layer.heads.is_some().then(|| copy(x, room));
    layer.place_heads((1, time), 0, x, room)?;
    Ok(raw)
}

/// The way back through [`placed`]: the gradient of heads, in place.
fn unplaced(
    layer: &Attention,
    time: usize,
    raw: Option<&[f32]>,
    dx: &mut [f32],
    room: &mut Room,
) -> Result<()> {
    if let Some(rotary) = &layer.rotary {
        rotary.turn((1, time), 0, dx, true);
    }
    if let (Some(Heads { norm, .. }), Some(raw)) = (&layer.heads, raw) {
        let (dy, mut unused) = (copy(dx, room), vec![0.0; norm.channels()]);
        norm.backward(raw, &dy, dx, (&mut unused, &mut []))?;
        room.give(dy);
    }
    Ok(())
}
