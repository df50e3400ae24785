//! The model against numbers from elsewhere: a Hugging Face fixture, and the reference in plain loops.

use super::reference;
use candle_core::{DType, Device, Tensor};
use lowbit::family::{Config, mamba2};
use lowbit::model::{Loading, Model, Positions, init};
use std::collections::HashMap;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mamba2-tiny");

fn golden() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(format!("{FIXTURE}/golden.safetensors"), &Device::Cpu).unwrap()
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// The largest difference between logits and those of the reference; one that is not a number counts as infinite.
fn farthest(found: &[Vec<f32>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    let far = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs();
    pairs.map(far).fold(0.0, |most, far| if far.is_nan() { f64::INFINITY } else { most.max(far) })
}

fn ids(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::U32).unwrap()
}

#[test]
fn the_hugging_face_fixture_is_reproduced() {
    let (model, golden) = (Model::load(FIXTURE).unwrap(), golden());
    let mut state = model.state(2).unwrap();
    let logits = model.forward(&ids(&golden["input_ids"]), Some(&mut state), Positions::All).unwrap();
    let error = far(&logits, &golden["logits"]);
    println!("fixture: logits within {error:.1e}");
    assert!(error < 1e-4, "logits differ by {error}");
    for (i, layer) in state.layers.iter().enumerate() {
        let error = far(layer.recurrent.as_ref().unwrap(), &golden["ssm_states"].get(i).unwrap());
        println!("fixture: ssm state of layer {i} within {error:.1e}");
        assert!(error < 1e-4, "ssm state of layer {i} differs by {error}");
        let error = far(layer.conv.as_ref().unwrap(), &golden["conv_states"].get(i).unwrap());
        println!("fixture: conv state of layer {i} within {error:.1e}");
        assert!(error < 1e-4, "conv state of layer {i} differs by {error}");
    }
    let prompt: Vec<u32> = ids(&golden["input_ids"]).get(0).unwrap().to_vec1().unwrap();
    let expected: Vec<u32> = ids(&golden["greedy_row0"]).flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(model.continue_greedily(&prompt, expected.len()).unwrap(), expected);
}

#[test]
fn the_reference_in_plain_loops_reproduces_the_fixture_too() {
    let (model, golden) = (Model::load(FIXTURE).unwrap(), golden());
    let tensors =
        candle_core::safetensors::load(format!("{FIXTURE}/model.safetensors"), &Device::Cpu).unwrap();
    let Config::Mamba2(config) = &model.config else { panic!("{:?}", model.config) };
    let tokens: Vec<u32> = ids(&golden["input_ids"]).get(1).unwrap().to_vec1().unwrap();
    let expected = golden["logits"].get(1).unwrap().to_vec2::<f32>().unwrap();
    let found = reference::logits(config, &tensors.into_iter().collect(), &tokens);
    let error = farthest(&expected, &found);
    println!("plain loops against the fixture: logits within {error:.1e}");
    assert!(error < 1e-4, "logits differ by {error}");
}

/// Every switch of the family, away from its usual position.
fn variants() -> Vec<mamba2::Config> {
    let small = mamba2::Config {
        hidden_size: 24,
        num_hidden_layers: 2,
        vocab_size: 31,
        state_size: 8,
        head_dim: 6,
        num_heads: 4,
        ..mamba2::Config::default()
    };
    vec![
        mamba2::Config { n_groups: 2, ..small.clone() },
        mamba2::Config { n_groups: 4, conv_kernel: 3, ..small.clone() },
        mamba2::Config { tie_word_embeddings: false, use_bias: true, ..small.clone() },
        mamba2::Config { use_conv_bias: false, conv_kernel: 2, ..small.clone() },
        mamba2::Config { time_step_limit: (0.02, 0.05), ..small.clone() },
        mamba2::Config { time_step_limit: (0.0, 0.03), state_size: 5, head_dim: 7, num_heads: 3, ..small },
    ]
}

/// Seeded weights in which biases and norms are not at their starting values.
fn tensors(config: &mamba2::Config) -> lowbit::family::Tensors {
    let mut tensors = init::initialize(&Config::Mamba2(config.clone()), 5).unwrap();
    for (i, tensor) in tensors.values_mut().enumerate().filter(|(_, t)| t.rank() == 1) {
        let n = tensor.elem_count();
        let wave: Vec<f32> = (0..n).map(|j| ((i + 3 * j) as f32).sin() * 0.3).collect();
        *tensor = (&*tensor + Tensor::from_vec(wave, n, &Device::Cpu).unwrap()).unwrap();
    }
    tensors
}

#[test]
fn every_variant_is_the_reference_at_any_length() {
    let mut most = 0.0f64;
    for config in variants() {
        let tensors = tensors(&config);
        let model = Model::from_tensors(
            "variant",
            Config::Mamba2(config.clone()),
            tensors.clone(),
            &Loading::default(),
        )
        .unwrap();
        for length in [1, 7, 63, 64, 65, 130] {
            let tokens: Vec<u32> = (0..length as u32).map(|t| (t * t + 3) % 31).collect();
            let logits = model.forward(&model.tokens(&tokens).unwrap(), None, Positions::All).unwrap();
            let found = logits.get(0).unwrap().to_vec2::<f32>().unwrap();
            let error = farthest(&found, &reference::logits(&config, &tensors, &tokens));
            assert!(error < 1e-4, "{config:?} at length {length}: {error}");
            most = most.max(error);
        }
    }
    println!("variants against plain loops: logits within {most:.1e}");
}

#[test]
fn split_prefill_and_steps_equal_the_whole_prefill() {
    let (model, golden) = (Model::load(FIXTURE).unwrap(), golden());
    let tokens = ids(&golden["input_ids"]); // [2, 37]
    let mut end = model.state(2).unwrap();
    let whole = model.forward(&tokens, Some(&mut end), Positions::All).unwrap();
    let mut most = 0.0f32;
    for first in 1..37 {
        let mut state = model.state(2).unwrap();
        let a =
            model.forward(&tokens.narrow(1, 0, first).unwrap(), Some(&mut state), Positions::All).unwrap();
        let b = model
            .forward(&tokens.narrow(1, first, 37 - first).unwrap(), Some(&mut state), Positions::All)
            .unwrap();
        let error = far(&Tensor::cat(&[a, b], 1).unwrap(), &whole);
        assert!(error < 1e-5, "split at {first}: {error}");
        most = most.max(error);
        assert!(state.distance(&end).unwrap() < 1e-5);
    }
    let mut state = model.state(2).unwrap();
    let steps: Vec<_> = (0..37)
        .map(|t| model.forward(&tokens.narrow(1, t, 1).unwrap(), Some(&mut state), Positions::Last).unwrap())
        .collect();
    let error = far(&Tensor::cat(&steps, 1).unwrap(), &whole);
    println!("split prefill within {most:.1e}, steps within {error:.1e} of the whole");
    assert!(error < 1e-5, "steps: {error}");
    assert_eq!(state.position, 37);
}

#[test]
fn a_cloned_state_goes_its_own_way() {
    let model = Model::load(FIXTURE).unwrap();
    let mut state = model.state(1).unwrap();
    model.prefill(&[1, 2, 3], &mut state).unwrap();
    let kept = state.clone();
    assert_eq!(kept.distance(&state).unwrap(), 0.0);
    let first = model.step(7, &mut state).unwrap();
    assert!(kept.distance(&state).unwrap() > 1e-3);
    assert_eq!(model.step(7, &mut kept.clone()).unwrap(), first);
    assert_eq!(state.bytes(), 4 * 2 * (8 * 16 * 16 + (128 + 2 * 16) * 4));
}

#[test]
fn the_tensor_definition_runs_the_whole_model() {
    // The path that a GPU takes: with a tracked weight, states go through the definition.
    let (model, golden) = (Model::load(FIXTURE).unwrap(), golden());
    let mut tensors: lowbit::family::Tensors =
        candle_core::safetensors::load(format!("{FIXTURE}/model.safetensors"), &Device::Cpu)
            .unwrap()
            .into_iter()
            .collect();
    for tensor in tensors.values_mut() {
        *tensor = candle_core::Var::from_tensor(tensor).unwrap().into_inner();
    }
    let tracked = model.config.stack(&tensors, &Default::default()).unwrap();
    let mut state = model.state(2).unwrap();
    let hidden = tracked.hidden(&ids(&golden["input_ids"]), Some(&mut state)).unwrap();
    let error = far(&tracked.logits(&hidden).unwrap(), &golden["logits"]);
    println!("definition against the fixture: logits within {error:.1e}");
    assert!(error < 1e-4, "{error}");
    assert!(far(state.layers[1].recurrent.as_ref().unwrap(), &golden["ssm_states"].get(1).unwrap()) < 1e-4);
}

#[test]
fn narrow_weights_stay_close_to_the_wide_ones() {
    let (model, golden) = (Model::load(FIXTURE).unwrap(), golden());
    let tokens = ids(&golden["input_ids"]);
    let whole = model.forward(&tokens, None, Positions::All).unwrap();
    let size: f32 = whole.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
    for (dtype, bound, apart) in [(DType::BF16, 3e-2, 8e-3), (DType::F16, 4e-3, 3e-5)] {
        let narrow = model.cast(dtype).unwrap();
        assert!(narrow.bytes() < model.bytes() * 6 / 10);
        let error = far(&narrow.forward(&tokens, None, Positions::All).unwrap(), &whole);
        println!("{dtype:?}: logits within {:.1e} of their size", error / size);
        assert!(error > 0.0 && error < bound * size, "{dtype:?}: {error} of {size}");
        // One token at a time takes the streaming product, many may take that of terms: the same weights, but an input
        // of f16 weights is split into terms that leave 2⁻¹⁷ over, and one of bf16 weights is rounded to 2⁻⁹, now up,
        // now down where sums in another order differ in their last bit.
        let mut state = narrow.state(2).unwrap();
        let steps: Vec<_> = (0..37)
            .map(|t| {
                narrow.forward(&tokens.narrow(1, t, 1).unwrap(), Some(&mut state), Positions::Last).unwrap()
            })
            .collect();
        let error =
            far(&Tensor::cat(&steps, 1).unwrap(), &narrow.forward(&tokens, None, Positions::All).unwrap());
        println!("{dtype:?}: steps within {:.1e} of the size of the whole", error / size);
        assert!(error < apart * size, "{dtype:?}: {error} of {size}");
    }
}
