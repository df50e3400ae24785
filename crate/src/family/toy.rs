//! A family in one file, to show what adding one takes: a config that is a [`Family`], a branch, and a recipe.
//!
//! Its blocks mix each token with the mean of those before it: x ← x + W (norm(x) + mean). It is in no registry, because it
//! is nobody's; a real one has its [`About`] and a line in `families!` beside.

use super::site::Residual;
use super::{Ends, Family, Init, Parts, Site, Sizes, Stack, TensorSpec, Tensors};
use crate::error::Result;
use crate::layer::branch::Branch;
use crate::layer::linear::Linear;
use crate::layer::op::in_place;
use crate::layer::room::Room;
use crate::layer::state::LayerState;
use candle_core::{DType, Device, Tensor, bail};
use serde_json::{Map, Value};

/// The shape.
#[derive(Clone, Debug)]
struct Config {
    hidden: usize,
    layers: usize,
    vocabulary: usize,
}

/// W (u_t + mean of u_0 … u_t).
#[derive(Clone, Debug)]
struct Mean {
    mix: Linear,
}

impl Branch for Mean {
    fn forward(&self, u: &Tensor, state: Option<&mut LayerState>) -> candle_core::Result<Tensor> {
        if state.is_some() {
            bail!("the definition starts from nothing")
        }
        let sums = u.cumsum(1)?; // [B, T, hidden]
        let counts = Tensor::arange(1.0, 1.0 + u.dim(1)? as f32, u.device())?.reshape((1, (), 1))?;
        self.mix.forward(&(u + sums.broadcast_div(&counts)?)?)
    }

    fn apply(
        &self,
        u: &mut [f32],
        (batch, time): (usize, usize),
        state: &mut LayerState,
        room: &mut Room,
    ) -> candle_core::Result<()> {
        let hidden = u.len() / (batch * time);
        let mut mixed = room.take(u.len());
        // Of each sequence: sums of all tokens so far, then how many they were.
        in_place(state.recurrence()?, |held| {
            for (held, (u, mixed)) in
                held.chunks_mut(hidden + 1).zip(u.chunks(time * hidden).zip(mixed.chunks_mut(time * hidden)))
            {
                let (sums, count) = held.split_at_mut(hidden);
                for (u, mixed) in u.chunks(hidden).zip(mixed.chunks_mut(hidden)) {
                    count[0] += 1.0;
                    for ((mixed, u), sum) in mixed.iter_mut().zip(u).zip(&mut *sums) {
                        *sum += u;
                        *mixed = u + *sum / count[0];
                    }
                }
            }
        })?;
        self.mix.apply(&mixed, u, room)?;
        room.give(mixed);
        Ok(())
    }

    fn zero_state(&self, batch: usize, device: &Device) -> candle_core::Result<LayerState> {
        let width = self.mix.weight.shape()?.1 + 1;
        let recurrent = Tensor::zeros((batch, 1, 1, width), DType::F32, device)?;
        Ok(LayerState { recurrent: Some(recurrent), ..LayerState::default() })
    }

    fn linears(&self) -> Vec<(&str, &Linear)> {
        vec![("mix", &self.mix)]
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        vec![("mix", &mut self.mix)]
    }

    fn copied(&self) -> Box<dyn Branch> {
        Box::new(self.clone())
    }
}

impl Family for Config {
    fn check(&self) -> Result<()> {
        super::setting::check_sizes(&[("hidden", self.hidden), ("layers", self.layers)])
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        let Self { hidden, layers, vocabulary } = *self;
        let spec = |name: String, shape: &[usize]| {
            let (init, matrix) = match shape.len() {
                1 => (Init::Constant(1.0), false),
                _ => (Init::Normal(0.3), true),
            };
            TensorSpec { name, shape: shape.to_vec(), init, matrix }
        };
        let blocks = (0..layers).flat_map(|i| {
            let (norm, mix) = (format!("blocks.{i}.norm.weight"), format!("blocks.{i}.mean.mix.weight"));
            [spec(norm, &[hidden]), spec(mix, &[hidden, hidden])]
        });
        let ends =
            [spec("embedding.weight".into(), &[vocabulary, hidden]), spec("norm.weight".into(), &[hidden])];
        blocks.chain(ends).collect()
    }

    fn sites(&self) -> Vec<Site> {
        let block = |i| Site {
            layer: Some(i),
            norm: Some(format!("blocks.{i}.norm.weight")),
            ..Site::new(
                format!("blocks.{i}.mean.mix"),
                (self.hidden, self.hidden),
                "mix",
                // It reads and writes: no rotation of the stream passes a matrix that is both.
                Residual::Apart,
            )
        };
        (0..self.layers).map(block).chain(Site::of_ends(self.ends(), self.sizes(), true)).collect()
    }

    fn stack(&self, parts: &Parts<'_>) -> candle_core::Result<Stack> {
        let block = |i| {
            let path = format!("blocks.{i}.mean");
            let mix = parts.linear(&format!("{path}.mix"), false)?;
            Ok(vec![parts.step(format!("blocks.{i}.norm"), 1e-5, path, Mean { mix })?])
        };
        let blocks = (0..self.layers).map(block).collect::<candle_core::Result<_>>()?;
        Stack::new(parts, self.ends(), true, blocks, parts.norm("norm", 1e-5)?)
    }

    fn ends(&self) -> Ends {
        Ends { embedding: "embedding", blocks: "blocks.", norm: Some("norm"), head: "head" }
    }

    fn sizes(&self) -> Sizes {
        Sizes { vocabulary: self.vocabulary, layers: self.layers, hidden: self.hidden }
    }

    fn tied(&self) -> bool {
        true
    }

    fn untie(&mut self) {}

    fn hugging_face(&self, _source: Option<&Value>) -> Result<Map<String, Value>> {
        Ok(Map::new())
    }
}

#[test]
fn one_file_is_a_family() {
    let config = Config { hidden: 12, layers: 3, vocabulary: 20 };
    let wave = |(seed, spec): (usize, TensorSpec)| {
        let values =
            (0..spec.shape.iter().product()).map(|i: usize| ((i * 31 + seed * 7) % 17) as f32 / 17.0 - 0.4);
        (spec.name, Tensor::from_vec(values.collect::<Vec<_>>(), spec.shape, &Device::Cpu).unwrap())
    };
    let tensors: Tensors = config.tensors().into_iter().enumerate().map(wave).collect();
    let matrices = Default::default();
    let stack = config.stack(&Parts::new(&tensors, &matrices)).unwrap();
    let paths: Vec<String> = stack.linears().into_iter().map(|(path, _)| path).collect();
    assert!(paths.iter().eq(config.sites().iter().map(|site| &site.path)));
    // Prefill in kernels, the definition, and single steps.
    let ids: Vec<u32> = (0..30).map(|i| i * 7 % 20).collect();
    let tokens = Tensor::from_slice(&ids, (1, 30), &Device::Cpu).unwrap();
    let logits = |stack: &Stack, tokens: &Tensor| stack.logits(&stack.hidden(tokens, None).unwrap()).unwrap();
    let found = logits(&stack, &tokens); // [1, 30, 20]
    let track = |(name, tensor): (&String, &Tensor)| {
        (name.clone(), candle_core::Var::from_tensor(tensor).unwrap().as_tensor().clone())
    };
    let tracked: Tensors = tensors.iter().map(track).collect();
    let defined = logits(&config.stack(&Parts::new(&tracked, &matrices)).unwrap(), &tokens).detach();
    let far = |a: &Tensor, b: &Tensor| -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    };
    assert!(far(&found, &defined) < 1e-4, "{}", far(&found, &defined));
    let (mut state, mut last) = (stack.zero_state(1, &Device::Cpu).unwrap(), vec![0.0; 20]);
    ids.iter().for_each(|id| stack.read(&[*id], &mut state, Some(&mut last)).unwrap());
    let last = Tensor::from_vec(last, 20, &Device::Cpu).unwrap();
    assert!(far(&last, &found.get(0).unwrap().get(29).unwrap()) < 1e-4);
    // The way back comes with the definition.
    let mut grads = config
        .tensors()
        .into_iter()
        .map(|spec| (spec.name, vec![f32::NAN; spec.shape.iter().product()]))
        .collect();
    let loss = |logits: &[f32], grad: &mut [f32]| {
        grad.fill(1.0);
        logits.iter().sum()
    };
    stack.gradients(&ids, loss, 0.0, &mut grads, &mut Room::default()).unwrap();
    assert!(grads.values().flatten().all(|grad| grad.is_finite()));
    assert!(grads.values().all(|grad| grad.iter().any(|grad| *grad != 0.0)));
}
