//! The gradient of a loss, by the kernels on a CPU. Candle's own walk back over the definition gives the same, several times
//! slower: see the test below.

use super::{Block, Mamba2};
use crate::family::Gradients;
use crate::kernel::norm::add;
use crate::layer::mamba2::{Gradients as Places, Parts, Trace};
use crate::layer::op::with_floats;
use crate::layer::room::{Buffer, Room};
use candle_core::{Device, Error, Result, Tensor, bail};
use std::collections::BTreeMap;

/// A block on the way there.
struct Kept {
    /// The residual stream that enters it, [T, hidden].
    stream: Buffer,
    /// What its mixer reads, [T, hidden].
    u: Buffer,
    trace: Trace,
}

const EMBEDDING: &str = "backbone.embeddings.weight";

impl Mamba2 {
    /// See [`crate::family::Network::gradients`].
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
        let mut kept = Vec::with_capacity(self.blocks.len());
        for Block { norm, mixer } in &self.blocks {
            let [mut u, mut after] = [(); 2].map(|()| room.take(time * hidden));
            norm.apply(&stream, &mut u)?;
            let trace = mixer.trace(&u, &mut after, room)?;
            add(&stream, &mut after);
            kept.push(Kept { stream: std::mem::replace(&mut stream, after), u, trace });
        }
        let [mut last, mut dlast, mut dstream] = [(); 3].map(|()| room.take(time * hidden));
        let [mut logits, mut dlogits] = [(); 2].map(|()| room.take(time * vocab));
        self.norm.apply(&stream, &mut last)?;
        self.head.trace(&last, &mut logits)?;
        let value = loss(&logits, &mut dlogits);

        let head = if self.embedding.is_some() { "lm_head.weight" } else { EMBEDDING };
        self.head.backward(&last, &dlogits, &mut dlast, place(grads, head)?, None)?;
        self.norm.backward(&stream, &dlast, &mut dstream, place(grads, "backbone.norm_f.weight")?)?;
        let (mut du, mut dx) = (last, dlast);
        for (i, Kept { stream, u, trace }) in kept.into_iter().enumerate().rev() {
            let (Block { norm, mixer }, at) = (&self.blocks[i], format!("backbone.layers.{i}."));
            mixer_places(grads, &at, |places| mixer.backward(&u, trace, &dstream, &mut du, places, room))?;
            norm.backward(&stream, &du, &mut dx, place(grads, &format!("{at}norm.weight"))?)?;
            add(&dx, &mut dstream);
            room.give(stream);
            room.give(u);
        }
        let dembedding = place(grads, EMBEDDING)?;
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
    grads.get_mut(name).map(Vec::as_mut_slice).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    Error::Msg(format!("no place for the gradient of {name}"))
}

/// Lets `f` write the gradients of the mixer of the block whose names begin with `at`.
fn mixer_places<R>(grads: &mut Gradients, at: &str, f: impl FnOnce(Places<'_>) -> Result<R>) -> Result<R> {
    let of_block = grads.range_mut(at.to_string()..).map_while(|(name, values)| {
        Some((name.strip_prefix(at)?.strip_prefix("mixer.").unwrap_or(name), values.as_mut_slice()))
    });
    let mut of_block: BTreeMap<&str, &mut [f32]> = of_block.collect();
    let mut optional = |name: &str| of_block.remove(name);
    let (in_bias, out_bias, conv_bias) =
        (optional("in_proj.bias"), optional("out_proj.bias"), optional("conv1d.bias"));
    let mut get = |name: &str| of_block.remove(name).ok_or_else(|| missing(&format!("{at}mixer.{name}")));
    let (conv_weight, dt_bias) = (get("conv1d.weight")?, get("dt_bias")?);
    let mut unused = vec![];
    f(Places {
        in_proj: get("in_proj.weight")?,
        in_bias,
        out_proj: get("out_proj.weight")?,
        out_bias,
        parts: Parts {
            conv_weight,
            conv_bias: conv_bias.unwrap_or(&mut unused),
            dt_bias,
            a_log: get("A_log")?,
            d: get("D")?,
            norm: get("norm.weight")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Config, Init, Network, TensorSpec, Tensors};
    use candle_core::{D, Var};

    /// Nothing that training starts from: every parameter is to matter.
    fn tensors(config: &Config) -> Tensors {
        let specs = config.tensors().into_iter().enumerate();
        let one = |(seed, spec): (usize, TensorSpec)| {
            let middle = if let Init::Constant(value) = spec.init { value } else { 0.0 };
            let wave = |i: usize| middle + ((i * 7919 + seed * 31 + 13) % 1009) as f32 / 1009.0 - 0.5;
            let values = (0..spec.shape.iter().product()).map(wave).collect::<Vec<f32>>();
            (spec.name, Tensor::from_vec(values, spec.shape, &Device::Cpu).unwrap())
        };
        specs.map(one).collect()
    }

    #[test]
    fn gradients_are_those_of_the_definition() {
        let plain = super::super::Config {
            hidden_size: 24,
            num_hidden_layers: 2,
            vocab_size: 50,
            num_heads: 4,
            head_dim: 16,
            state_size: 8,
            ..Default::default()
        };
        let other = super::super::Config {
            use_bias: true,
            use_conv_bias: false,
            tie_word_embeddings: false,
            n_groups: 2,
            conv_kernel: 3,
            ..plain.clone()
        };
        for (config, time) in [(plain.clone(), 130), (plain, 5), (other, 70)] {
            let config = Config::Mamba2(config);
            let tensors = tensors(&config);
            let ids: Vec<u32> = (0..=time as u32).map(|i| i * i % 50).collect();
            let vars: BTreeMap<String, Var> = tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
                .collect();
            let tracked = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
            let network = Network::new(&config, &tracked, &Default::default()).unwrap();
            let tokens = Tensor::from_slice(&ids[..time], (1, time), &Device::Cpu).unwrap();
            let logits = network.logits(&network.hidden(&tokens, None).unwrap()).unwrap();
            // A loss with a different slope at every logit.
            let pull: Vec<f32> =
                (0..time * 50).map(|i| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0).collect();
            let pulled = Tensor::from_slice(&pull, logits.shape(), &Device::Cpu).unwrap();
            let loss = (logits * pulled).unwrap().sum_all().unwrap();
            let defined = loss.backward().unwrap();

            let network = Network::new(&config, &tensors, &Default::default()).unwrap();
            let mut grads = config.zero_gradients();
            grads.values_mut().for_each(|grad| grad.fill(f32::NAN));
            let by_pull = |logits: &[f32], dlogits: &mut [f32]| {
                dlogits.copy_from_slice(&pull);
                logits.iter().zip(&pull).map(|(a, b)| a * b).sum()
            };
            let mut room = Room::default();
            let value = network.gradients(&ids[..time], by_pull, &mut grads, &mut room).unwrap();
            let expected = loss.to_scalar::<f32>().unwrap();
            assert!((value - expected).abs() < 1e-3 * expected.abs().max(1.0), "{value} {expected}");
            assert_eq!(grads.len(), vars.len());
            for (name, var) in vars {
                let expected = defined.get(&var).unwrap().flatten_all().unwrap();
                let found = Tensor::new(grads[&name].as_slice(), &Device::Cpu).unwrap();
                let size: f32 = expected.abs().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap();
                let far = (found - expected).unwrap().abs().unwrap().max(0).unwrap();
                let far = far.to_scalar::<f32>().unwrap();
                assert!(far < 1e-3 * size, "{name} of {time} tokens: {far} of {size}");
            }
        }
    }
}
