//! The gradient of a loss: the outer way back, written once, through each branch's own.

use super::{Stack, Step};
use crate::family::Gradients;
use crate::kernel::norm::add;
use crate::layer::branch::{Back, Places};
use crate::layer::op::with_floats;
use crate::layer::room::{Buffer, Room};
use candle_core::{Device, Error, Result, Tensor, bail};

/// A step on the way there.
struct Kept<'a> {
    step: &'a Step,
    /// The residual stream that enters it, [T, hidden].
    stream: Buffer,
    /// What its branch reads, [T, hidden].
    u: Buffer,
    back: Back<'a>,
}

impl Stack {
    /// Reads `tokens` from nothing, on a CPU, and returns what `loss` gives for their logits [T, vocabulary] in f32.
    /// `loss` also writes its gradient with respect to them; from it come those of all tensors: `grads` has a place for
    /// each, see [`Config::zero_gradients`](crate::family::Config::zero_gradients), and all are overwritten.
    ///
    /// Products are as exact as those of training: see [`kernel::linear::trained`](crate::kernel::linear::trained).
    ///
    /// # Errors
    /// If the stack is rotated or anything of it is quantized or stored in less than f32.
    pub(crate) fn gradients(
        &self,
        tokens: &[u32],
        loss: impl FnOnce(&[f32], &mut [f32]) -> f32,
        grads: &mut Gradients,
        room: &mut Room,
    ) -> Result<f32> {
        if self.rotation.is_some() {
            bail!("a rotated model has no gradient")
        }
        let (time, (vocab, hidden)) = (tokens.len(), self.head.weight.shape()?);
        let embedded = self.embed(&Tensor::from_slice(tokens, (1, time), &Device::Cpu)?)?; // [1, T, hidden]
        let mut stream = room.take(time * hidden);
        with_floats([&embedded], |[x]| stream.copy_from_slice(x))?;
        let mut kept = vec![];
        for step in self.steps() {
            let [mut u, mut after] = [(); 2].map(|()| room.take(time * hidden));
            step.norm.apply(&stream, &mut u)?;
            let back = step.branch.trace(&u, &mut after, time, room)?;
            add(&stream, &mut after);
            kept.push(Kept { step, stream: std::mem::replace(&mut stream, after), u, back });
        }
        let [mut last, mut dlast, mut dstream] = [(); 3].map(|()| room.take(time * hidden));
        let [mut logits, mut dlogits] = [(); 2].map(|()| room.take(time * vocab));
        self.norm.apply(&stream, &mut last)?;
        self.head.trace(&last, &mut logits)?;
        let value = loss(&logits, &mut dlogits);

        let names =
            [self.ends.embedding, self.ends.norm, self.ends.head].map(|path| format!("{path}.weight"));
        let [embedding, norm, own_head] = &names;
        let head = if self.embedding.is_some() { own_head } else { embedding };
        self.head.backward(&last, &dlogits, &mut dlast, place(grads, head)?, None)?;
        self.norm.backward(&stream, &dlast, &mut dstream, place(grads, norm)?)?;
        let (mut du, mut dx) = (last, dlast);
        for Kept { step, stream, u, back } in kept.into_iter().rev() {
            let mut places = places(grads, &step.path);
            back(&u, &dstream, &mut du, &mut places, room)?;
            if let Some(name) = places.all.keys().next() {
                bail!("the gradient of {}.{name} was not written", step.path)
            }
            step.norm.backward(
                &stream,
                &du,
                &mut dx,
                place(grads, &format!("{}.weight", step.norm_path))?,
            )?;
            add(&dx, &mut dstream);
            room.give(stream);
            room.give(u);
        }
        let dembedding = place(grads, embedding)?;
        if self.embedding.is_some() {
            dembedding.fill(0.0); // a tied one has the head's gradient already
        }
        for (token, dstream) in tokens.iter().zip(dstream.chunks(hidden)) {
            add(dstream, &mut dembedding[*token as usize * hidden..][..hidden]);
        }
        for buffer in [stream, dstream, du, dx, logits, dlogits] {
            room.give(buffer);
        }
        Ok(value)
    }
}

fn place<'a>(grads: &'a mut Gradients, name: &str) -> Result<&'a mut [f32]> {
    let missing = || Error::Msg(format!("no place for the gradient of {name}"));
    grads.get_mut(name).map(Vec::as_mut_slice).ok_or_else(missing)
}

/// The places of the parameters whose names begin with `path` and a dot.
fn places<'a>(grads: &'a mut Gradients, path: &str) -> Places<'a> {
    let start = format!("{path}.");
    let all = grads.range_mut(start.clone()..);
    let all = all.map_while(|(name, values)| Some((name.strip_prefix(&start)?, values.as_mut_slice())));
    Places { path: path.to_string(), all: all.collect() }
}
