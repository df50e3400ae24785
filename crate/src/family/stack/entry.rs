//! What happens to the embedding before the first block, where anything does: a constant factor, a hash of token pairs is added, a norm,
//! a gate that mixes each token with the one before it, and vectors of positions.

use super::back::place;
use super::block::Parameter;
use crate::family::Gradients;
use crate::kernel::diagonal::{add_scaled, add_times, multiply, weight_grad};
use crate::kernel::norm::{add, dot};
use crate::layer::linear::Linear;
use crate::layer::norm::Norm;
use crate::layer::op::with_floats;
use crate::layer::room::{Buffer, Room};
use candle_core::{D, Result, Tensor};
use candle_nn::ops::sigmoid;

/// e = norm(f · embedding(id) + scale · proj(table(h))), then x_t = (1 − σ(g)) ⊙ e_t + σ(g) ⊙ e_{t−1} + p_t, where h is the hash of a
/// token and the one before it, e_{−1} = 0, and p are vectors of positions.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// A constant factor f on the embedding.
    pub factor: Option<f32>,
    /// Without weights.
    pub norm: Option<Norm>,
    /// Vectors for pairs of tokens.
    pub pairs: Option<Pairs>,
    /// The gate g `[hidden]` (SmearGate).
    pub gate: Option<Parameter>,
    /// A vector for each position.
    pub positions: Option<Positions>,
}

/// A table of positions, whose rows are added.
#[derive(Clone, Debug)]
pub struct Positions {
    /// What the name of its parameter begins with.
    pub path: String,
    /// [positions, hidden].
    pub table: Linear,
}

/// Vectors for pairs of tokens, by their hash (BigramHash).
#[derive(Clone, Debug)]
pub struct Pairs {
    /// What the names of its parameters begin with.
    pub path: String,
    /// [buckets, width].
    pub table: Linear,
    /// [hidden, width]; none where the table is as wide as the stream.
    pub proj: Option<Linear>,
    /// A factor on all of them, one number.
    pub scale: Parameter,
}

/// The bucket, of `buckets`, of a token behind another: ((36313 · id) ⊕ (27191 · before)) mod (buckets − 1) in 32-bit integers;
/// the last one for the first token of a sequence.
pub fn bucket(id: u32, before: Option<u32>, buckets: usize) -> u32 {
    let last = buckets as i32 - 1;
    match before {
        Some(before) if last > 0 => {
            let mixed = (id as i32).wrapping_mul(36313) ^ (before as i32).wrapping_mul(27191);
            mixed.rem_euclid(last) as u32
        }
        _ => last.max(0) as u32,
    }
}

/// What the way back through an entry needs.
pub(super) struct Traced {
    buckets: Vec<u32>,
    /// Rows of the table [T, width], and what became of them [T, hidden].
    pairs: Option<(Buffer, Buffer)>,
    /// What the norm read, and what it gave, [T, hidden].
    sums: Buffer,
    normed: Buffer,
}

/// Tokens before those that are read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before<'a> {
    /// Which they were, where that matters.
    pub ids: &'a [u32],
    /// How many they were.
    pub count: usize,
}

impl Entry {
    /// Tokens before a token that its vector depends on, at most.
    pub fn looks_back(&self) -> usize {
        usize::from(self.pairs.is_some()) + usize::from(self.gate.is_some())
    }

    /// The matrices with their paths.
    pub(super) fn linears(&self) -> impl Iterator<Item = (String, &Linear)> {
        let pairs = self.pairs.iter().flat_map(|Pairs { path, table, proj, .. }| {
            let proj = proj.iter().map(move |proj| (format!("{path}.proj"), proj));
            std::iter::once((format!("{path}.embed"), table)).chain(proj)
        });
        pairs.chain(self.positions.iter().map(|Positions { path, table }| (path.clone(), table)))
    }

    /// As [`linears`](Self::linears), to be changed.
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear)> {
        let pairs = self.pairs.iter_mut().flat_map(|Pairs { path, table, proj, .. }| {
            let proj = proj.iter_mut().map({
                let path = path.clone();
                move |proj| (format!("{path}.proj"), proj)
            });
            std::iter::once((format!("{path}.embed"), table)).chain(proj)
        });
        pairs.chain(self.positions.iter_mut().map(|Positions { path, table }| (path.clone(), table)))
    }

    /// Of how many tokens `before` the first of `ids` vectors are needed as well: that of the gate.
    fn with_before<'a>(&self, ids: &'a [u32], before: &'a [u32]) -> (Vec<u32>, Option<u32>) {
        let more = usize::from(self.gate.is_some()).min(before.len());
        let (older, last) = before.split_at(before.len() - more);
        ([last, ids].concat(), older.last().copied())
    }

    /// The bucket of each of `ids`, of which the first follows `before`.
    fn buckets(&self, ids: &[u32], before: Option<u32>) -> Result<Vec<u32>> {
        let Some(pairs) = &self.pairs else { return Ok(vec![]) };
        let buckets = pairs.table.weight.shape()?.0;
        let earlier = std::iter::once(before).chain(ids.iter().map(|id| Some(*id)));
        Ok(ids.iter().zip(earlier).map(|(id, before)| bucket(*id, before, buckets)).collect())
    }

    /// tokens [B, T], of which each sequence follows `count` others, those of `before` where that matters → x₀ [B, T, hidden], in
    /// tensor operations.
    pub(super) fn definition(
        &self,
        embedding: &Linear,
        tokens: &Tensor,
        before: &[Vec<u32>],
        count: usize,
    ) -> Result<Tensor> {
        let (batch, time) = tokens.dims2()?;
        let sequences = tokens.to_vec2::<u32>()?.into_iter().enumerate().map(|(i, ids)| {
            let before = before.get(i).map_or(&[][..], Vec::as_slice);
            let (ids, earlier) = self.with_before(&ids, before);
            let buckets = self.buckets(&ids, earlier)?;
            let all = ids.len();
            let ids = Tensor::from_vec(ids, all, tokens.device())?;
            let mut e = embedding.weight.lookup(&ids)?; // [all, hidden]
            if let Some(factor) = self.factor {
                e = (e * f64::from(factor))?;
            }
            if let Some(Pairs { table, proj, scale, .. }) = &self.pairs {
                let rows = table.weight.lookup(&Tensor::from_vec(buckets, all, tokens.device())?)?;
                let rows = match proj {
                    Some(proj) => proj.forward(&rows)?,
                    None => rows,
                };
                e = (e + rows.broadcast_mul(&scale.values)?)?;
            }
            if let Some(norm) = &self.norm {
                e = norm.forward(&e)?;
            }
            let Some(gate) = &self.gate else { return Ok(e) };
            let share = sigmoid(&gate.values)?;
            let last = e.narrow(0, all - time, time)?;
            let before = match all > time {
                true => e.narrow(0, 0, time)?,
                false => Tensor::cat(&[e.narrow(0, 0, 1)?.zeros_like()?, e.narrow(0, 0, time - 1)?], 0)?,
            };
            let kept = last.broadcast_mul(&(1.0 - &share)?)?;
            kept + before.broadcast_mul(&share)?
        });
        let sequences = sequences.collect::<Result<Vec<_>>>()?;
        let x = Tensor::cat(&sequences, 0)?.reshape((batch, time, sequences[0].dim(D::Minus1)?))?;
        let Some(Positions { table, .. }) = &self.positions else { return Ok(x) };
        let at = Tensor::arange(count as u32, (count + time) as u32, tokens.device())?;
        x.broadcast_add(&table.weight.lookup(&at)?)
    }

    /// The same of one sequence by the kernels on a CPU: `x` [T, hidden], overwritten.
    pub(super) fn apply(
        &self,
        embedding: &Linear,
        ids: &[u32],
        before: Before<'_>,
        x: &mut [f32],
        room: &mut Room,
    ) -> Result<()> {
        let hidden = x.len() / ids.len();
        let (all, earlier) = self.with_before(ids, before.ids);
        let [mut sums, mut e] = [(); 2].map(|()| room.take(all.len() * hidden));
        embedding.weight.rows(&all, &mut sums)?;
        self.multiplied(&mut sums);
        if let Some(Pairs { table, proj, scale, .. }) = &self.pairs {
            let mut rows = room.take(all.len() * table.weight.shape()?.1);
            table.weight.rows(&self.buckets(&all, earlier)?, &mut rows)?;
            if let Some(proj) = proj {
                let mut projected = room.take(all.len() * hidden);
                proj.apply(&rows, &mut projected, room)?;
                room.give(std::mem::replace(&mut rows, projected));
            }
            with_floats([&scale.values], |[scale]| add_times(scale[0], &rows, &mut sums))?;
            room.give(rows);
        }
        self.normed(&sums, &mut e)?;
        let more = (all.len() - ids.len()) * hidden;
        x.copy_from_slice(&e[more..]);
        if let Some(gate) = &self.gate {
            let share = shares(gate)?;
            mix(&share, &e[more..], x);
            // The first token of a sequence has none before it.
            let first = hidden - more;
            add_scaled(&share, &e[..x.len() - first], &mut x[first..]);
        }
        self.place(before.count, &mut e[..x.len()], x)?;
        room.give(sums);
        room.give(e);
        Ok(())
    }

    /// x ← f · x.
    fn multiplied(&self, x: &mut [f32]) {
        if let Some(factor) = self.factor {
            multiply(factor, x);
        }
    }

    /// y ← norm(x).
    fn normed(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        match &self.norm {
            Some(norm) => norm.apply(x, y),
            None => {
                y.copy_from_slice(x);
                Ok(())
            }
        }
    }

    /// Adds the vectors of positions from `first` on to rows `x`; `free` is as long, and overwritten.
    fn place(&self, first: usize, free: &mut [f32], x: &mut [f32]) -> Result<()> {
        let Some(Positions { table, .. }) = &self.positions else { return Ok(()) };
        let time = x.len() / table.weight.shape()?.1;
        let at: Vec<u32> = (first as u32..).take(time).collect();
        table.weight.rows(&at, free)?;
        add(free, x);
        Ok(())
    }

    /// [`Self::apply`] of a whole sequence on the way to gradients.
    pub(super) fn trace(
        &self,
        embedding: &Linear,
        ids: &[u32],
        x: &mut [f32],
        room: &mut Room,
    ) -> Result<Traced> {
        let [mut sums, mut normed] = [(); 2].map(|()| room.take(x.len()));
        embedding.weight.rows(ids, &mut sums)?;
        self.multiplied(&mut sums);
        let buckets = self.buckets(ids, None)?;
        let mut pairs = None;
        if let Some(Pairs { table, proj, scale, .. }) = &self.pairs {
            let (mut rows, mut given) = (room.take(ids.len() * table.weight.shape()?.1), room.take(x.len()));
            table.weight.rows(&buckets, &mut rows)?;
            match proj {
                Some(proj) => proj.trace(&rows, &mut given)?,
                None => given.copy_from_slice(&rows),
            }
            with_floats([&scale.values], |[scale]| add_times(scale[0], &given, &mut sums))?;
            pairs = Some((rows, given));
        }
        self.normed(&sums, &mut normed)?;
        x.copy_from_slice(&normed);
        if let Some(gate) = &self.gate {
            let share = shares(gate)?;
            let before = x.len() - share.len();
            mix(&share, &normed, x);
            add_scaled(&share, &normed[..before], &mut x[share.len()..]);
        }
        let mut free = room.take(x.len());
        self.place(0, &mut free, x)?;
        room.give(free);
        Ok(Traced { buckets, pairs, sums, normed })
    }

    /// The way back: the gradient of x₀, `dx` [T, hidden], becomes that of the rows of the embedding; `grads` has places for
    /// the parameters, which are overwritten.
    pub(super) fn back(
        &self,
        traced: Traced,
        dx: &mut [f32],
        grads: &mut Gradients,
        room: &mut Room,
    ) -> Result<()> {
        let Traced { buckets, pairs, sums, normed } = traced;
        if let Some(Positions { path, .. }) = &self.positions {
            let dtable = place(grads, &format!("{path}.weight"))?;
            dtable.fill(0.0);
            dtable[..dx.len()].copy_from_slice(dx);
        }
        let mut de = room.take(dx.len());
        de.copy_from_slice(dx);
        if let Some(gate) = &self.gate {
            let share = shares(gate)?;
            let hidden = share.len();
            let before = dx.len() - hidden;
            mix(&share, dx, &mut de);
            add_scaled(&share, &dx[hidden..], &mut de[..before]);
            // Of σ(g): Σ_t dx_t ⊙ (e_{t−1} − e_t).
            let (mut kept, dgate) = (vec![0.0; hidden], place(grads, &gate.name)?);
            dgate.fill(0.0);
            weight_grad(&normed[..before], &dx[hidden..], dgate);
            weight_grad(&normed, dx, &mut kept);
            for ((dgate, kept), share) in dgate.iter_mut().zip(kept).zip(share) {
                *dgate = (*dgate - kept) * share * (1.0 - share);
            }
        }
        match &self.norm {
            Some(norm) => {
                let mut unused = vec![0.0; norm.channels()];
                norm.backward(&sums, &de, dx, (&mut unused, &mut []))?;
            }
            None => dx.copy_from_slice(&de),
        }
        if let (Some(Pairs { path, table, proj, scale, .. }), Some((rows, given))) = (&self.pairs, pairs) {
            place(grads, &scale.name)?[0] = dot(dx, &given);
            with_floats([&scale.values], |[scale]| {
                de.iter_mut().zip(&*dx).for_each(|(de, dx)| *de = scale[0] * dx);
            })?;
            let mut drows = room.take(rows.len());
            match proj {
                Some(proj) => {
                    let dproj = place(grads, &format!("{path}.proj.weight"))?;
                    proj.backward(&rows, &de, &mut drows, dproj, None)?;
                }
                None => drows.copy_from_slice(&de),
            }
            let (width, dtable) = (table.weight.shape()?.1, place(grads, &format!("{path}.embed.weight"))?);
            dtable.fill(0.0);
            for (bucket, drow) in buckets.iter().zip(drows.chunks(width)) {
                add(drow, &mut dtable[*bucket as usize * width..][..width]);
            }
            for buffer in [rows, given, drows] {
                room.give(buffer);
            }
        }
        self.multiplied(dx);
        for buffer in [sums, normed, de] {
            room.give(buffer);
        }
        Ok(())
    }
}

/// σ(g) of each channel.
fn shares(gate: &Parameter) -> Result<Vec<f32>> {
    with_floats([&gate.values], |[gate]| gate.iter().map(|g| 1.0 / (1.0 + (-g).exp())).collect())
}

/// x ← (1 − share) ⊙ e, row by row.
fn mix(share: &[f32], e: &[f32], x: &mut [f32]) {
    for (x, e) in x.chunks_mut(share.len()).zip(e.chunks(share.len())) {
        x.iter_mut().zip(e).zip(share).for_each(|((x, e), share)| *x = (1.0 - share) * e);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_32_bit_integers() {
        assert_eq!(bucket(7, None, 64), 63);
        assert_eq!(bucket(7, Some(3), 64), ((36313 * 7) ^ (27191 * 3)) % 63);
        // Products beyond 31 bits wrap round to negative numbers; the remainder is not negative.
        let wide = (60_000i64 * 36313) as i32 ^ (50_000i64 * 27191) as i32;
        assert_eq!(bucket(60_000, Some(50_000), 10_240), wide.rem_euclid(10_239) as u32);
        assert_eq!(bucket(5, Some(4), 1), 0);
    }
}
