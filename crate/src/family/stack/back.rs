//! The gradient of a loss: the outer way back, written once, through each branch's own.

use super::block::Pass;
use super::{Stack, Step};
use crate::family::Gradients;
use crate::kernel::diagonal::weight_grad;
use crate::kernel::norm::add;
use crate::layer::branch::{Back, Places};
use crate::layer::norm::Norm;
use crate::layer::room::{Buffer, Room};
use candle_core::{Error, Result, bail};

/// A step on the way there.
struct Kept<'a> {
    step: &'a Step,
    /// The residual stream that enters it, [T, hidden].
    stream: Buffer,
    /// What its branch reads, [T, hidden].
    u: Buffer,
    /// What its branch gives, [T, hidden], where that is weighed.
    given: Option<Buffer>,
    back: Back<'a>,
}

/// A pass through a block on the way there.
struct Passed<'a> {
    pass: Pass<'a>,
    /// The residual stream that enters it, after the skip and before the shares, [T, hidden], where anything is mixed in.
    mixed: Option<Buffer>,
    steps: Vec<Kept<'a>>,
}

impl Stack {
    /// Reads `tokens` from nothing, on a CPU, and returns what `loss` gives for their logits [T, vocabulary] in f32, and the sum
    /// of the branches' own losses. `loss` also writes its gradient with respect to the logits; from it, and from the own losses
    /// times `own`, come those of all tensors: `grads` has a place for each, see
    /// [`Config::zero_gradients`](crate::family::Config::zero_gradients), and all are overwritten.
    ///
    /// Products are as exact as those of training: see [`kernel::linear::trained`](crate::kernel::linear::trained).
    ///
    /// # Errors
    /// If the stack is rotated or anything of it is quantized or stored in less than f32.
    pub(crate) fn gradients(
        &self,
        tokens: &[u32],
        loss: impl FnOnce(&[f32], &mut [f32]) -> f32,
        own: f32,
        grads: &mut Gradients,
        room: &mut Room,
    ) -> Result<(f32, f32)> {
        if self.rotation.is_some() {
            bail!("a rotated model has no gradient")
        }
        let (time, (vocab, hidden)) = (tokens.len(), self.head.weight.shape()?);
        let mut stream = room.take(time * hidden);
        let entered = match &self.entry {
            Some(entry) => Some(entry.trace(self.embedding(), tokens, &mut stream, room)?),
            None => {
                self.embedding().weight.rows(tokens, &mut stream)?;
                None
            }
        };
        let mut copies = self.copies_of(&stream, room);
        let (mut passed, mut own_losses) = (vec![], 0.0);
        for pass in self.passes(0..self.blocks.len()) {
            let Pass { block, first, last } = pass;
            let mut mixed = None;
            if let Some(mixing) = &block.mixing {
                mixing.skip(&mut stream, &copies, first)?;
                let mut after = room.take(time * hidden);
                after.copy_from_slice(&stream);
                mixing.share(&mut after, &copies)?;
                mixed = Some(std::mem::replace(&mut stream, after));
            }
            let mut steps = vec![];
            for step in &block.steps {
                let [mut u, mut after] = [(); 2].map(|()| room.take(time * hidden));
                step.norm.apply(&stream, &mut u)?;
                let back = step.branch.trace(&u, &mut after, time, room)?;
                own_losses += back.own;
                let given = step.weights().map(|_| {
                    let mut given = room.take(time * hidden);
                    given.copy_from_slice(&after);
                    given
                });
                step.weigh(&mut after)?;
                add(&stream, &mut after);
                steps.push(Kept { step, stream: std::mem::replace(&mut stream, after), u, given, back });
            }
            if let Some(copy) = block.keeps.filter(|_| last) {
                copies[copy].copy_from_slice(&stream);
            }
            passed.push(Passed { pass, mixed, steps });
        }
        let [mut last, mut dlast, mut dstream] = [(); 3].map(|()| room.take(time * hidden));
        let [mut logits, mut dlogits] = [(); 2].map(|()| room.take(time * vocab));
        self.norm.apply(&stream, &mut last)?;
        self.head.trace(&last, &mut logits)?;
        self.exit.apply(&mut logits);
        let value = loss(&logits, &mut dlogits);
        self.exit.back(&logits, &mut dlogits);

        let [embedding, own_head] =
            [self.ends.embedding, self.ends.head].map(|path| format!("{path}.weight"));
        let head = if self.embedding.is_some() { &own_head } else { &embedding };
        self.head.backward(&last, &dlogits, &mut dlast, place(grads, head)?, None)?;
        let mut unused = vec![0.0; hidden];
        norm_back(&self.norm, self.ends.norm, (&stream, &dlast), &mut dstream, grads, &mut unused)?;
        let (mut du, mut dx, mut dy) = (last, dlast, room.take(time * hidden));
        let mut dcopies: Vec<Buffer> = copies.iter().map(|_| room.take(time * hidden)).collect();
        dcopies.iter_mut().for_each(|dcopy| dcopy.fill(0.0));
        for skip in self.blocks.iter().filter_map(|block| block.mixing.as_ref()?.skip.as_ref()) {
            place(grads, &skip.weights.name)?.fill(0.0); // rows of one tensor
        }
        for Passed { pass: Pass { block, first, last }, mixed, steps } in passed.into_iter().rev() {
            let later = if last { vec![] } else { block.own(grads) };
            if let Some(copy) = block.keeps.filter(|_| last) {
                add(&dcopies[copy], &mut dstream);
            }
            for Kept { step, stream, u, given, back } in steps.into_iter().rev() {
                let mut dgiven = &*dstream;
                if let (Some(weights), Some(given)) = (step.weights(), given) {
                    let dweights = place(grads, &weights.name)?;
                    dweights.fill(0.0);
                    weight_grad(&given, &dstream, dweights);
                    room.give(given);
                }
                if step.scale.is_some() {
                    dy.copy_from_slice(&dstream);
                    step.weigh(&mut dy)?;
                    dgiven = &dy;
                }
                let mut places = places(grads, step, own);
                (back.pull)(&u, dgiven, &mut du, &mut places, room)?;
                places.all_taken()?;
                let path = step.norm_path.as_deref();
                norm_back(&step.norm, path, (&stream, &du), &mut dx, grads, &mut unused)?;
                add(&dx, &mut dstream);
                room.give(stream);
                room.give(u);
            }
            if let (Some(mixing), Some(mixed)) = (&block.mixing, mixed) {
                mixing.back(&mixed, &copies, &mut dstream, &mut dcopies, grads, first)?;
                room.give(mixed);
            }
            later.iter().try_for_each(|(name, grad)| place(grads, name).map(|all| add(grad, all)))?;
        }
        if let Some(dfirst) = dcopies.first() {
            add(dfirst, &mut dstream);
        }
        if let (Some(entry), Some(entered)) = (&self.entry, entered) {
            entry.back(entered, &mut dstream, grads, room)?;
        }
        let dembedding = place(grads, &embedding)?;
        if self.embedding.is_some() {
            dembedding.fill(0.0); // a tied one has the head's gradient already
        }
        for (token, dstream) in tokens.iter().zip(dstream.chunks(hidden)) {
            add(dstream, &mut dembedding[*token as usize * hidden..][..hidden]);
        }
        let used = [stream, dstream, du, dx, dy, logits, dlogits];
        used.into_iter().chain(copies).chain(dcopies).for_each(|buffer| room.give(buffer));
        Ok((value, own_losses))
    }
}

/// The way back through a norm that read `x`: `dx`, overwritten, and the gradients of its weight and bias where it has them.
fn norm_back(
    norm: &Norm,
    path: Option<&str>,
    (x, dy): (&[f32], &[f32]),
    dx: &mut [f32],
    grads: &mut Gradients,
    unused: &mut [f32],
) -> Result<()> {
    let Some(path) = path else { return norm.backward(x, dy, dx, (unused, &mut [])) };
    let (weight, bias) = (format!("{path}.weight"), format!("{path}.bias"));
    let mut dbias = if norm.has_bias() {
        std::mem::take(grads.get_mut(&bias).ok_or_else(|| unplaced(&bias))?)
    } else {
        vec![]
    };
    norm.backward(x, dy, dx, (place(grads, &weight)?, &mut dbias))?;
    if norm.has_bias() {
        grads.insert(bias, dbias);
    }
    Ok(())
}

pub(super) fn place<'a>(grads: &'a mut Gradients, name: &str) -> Result<&'a mut [f32]> {
    grads.get_mut(name).map(Vec::as_mut_slice).ok_or_else(|| unplaced(name))
}

fn unplaced(name: &str) -> Error {
    Error::Msg(format!("no place for the gradient of {name}"))
}

/// The places of the parameters of a branch: those whose names begin with its path, a dot and what the branch says, but for the
/// norm's before it.
fn places<'a>(grads: &'a mut Gradients, step: &Step, own: f32) -> Places<'a> {
    let Step { path, norm_path, branch, .. } = step;
    let (start, starts) = (format!("{path}."), branch.starts());
    let norms = norm_path.as_ref().map(|norm| ["weight", "bias"].map(|part| format!("{norm}.{part}")));
    let all = grads.range_mut(start.clone()..).take_while(|(name, _)| name.starts_with(&start));
    let all = all.filter(|(name, _)| norms.as_ref().is_none_or(|norms| !norms.contains(name)));
    let all = all.map(|(name, values)| (&name[start.len()..], values.as_mut_slice()));
    let all = all.filter(|(name, _)| starts.iter().any(|start| name.starts_with(start)));
    Places { path: path.to_string(), all: all.collect(), own }
}
