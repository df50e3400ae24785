//! Llama-type models against numbers from transformers.

use candle_core::{DType, Device, Tensor, Var};
use lowbit::family::{Config, llama};
use lowbit::layer::attention::Cache;
use lowbit::model::{Loading, Model, Positions, init};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama-tiny");
const SHAPES: [&str; 3] = ["gqa", "tied-bias-llama3", "linear-mlpbias"];

fn golden(shape: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(format!("{FIXTURES}/{shape}/golden.safetensors"), &Device::Cpu).unwrap()
}

fn load(shape: &str) -> Model {
    Model::load(&format!("{FIXTURES}/{shape}")).unwrap()
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn ids(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::U32).unwrap()
}

#[test]
fn every_fixture_is_reproduced() {
    for shape in SHAPES {
        let (model, golden) = (load(shape), golden(shape));
        assert_eq!((model.assumed.as_slice(), model.unused.as_slice()), (&[][..], &[][..]), "{shape}");
        let tokens = ids(&golden["input_ids"]); // [2, 37]
        let mut state = model.state(2).unwrap();
        let logits = model.forward(&tokens, Some(&mut state), Positions::All).unwrap();
        let error = far(&logits, &golden["logits"]);
        println!("{shape}: logits within {error:.1e}");
        assert!(error < 1e-4, "{shape}: logits differ by {error}");
        for (i, layer) in state.layers.iter().enumerate() {
            let Some(Cache::Kernel(cache)) = &layer.cache else { panic!("{layer:?}") };
            for (found, name) in cache.widened().into_iter().zip(["k_cache", "v_cache"]) {
                let expected = golden[name].get(i).unwrap(); // [2, KV, 37, D]
                let error = far(&Tensor::from_vec(found, expected.shape(), &Device::Cpu).unwrap(), &expected);
                assert!(error < 1e-4, "{shape}: {name} of layer {i} differs by {error}");
            }
        }
        let stack = model.config.stack(model.tensors(), &Default::default()).unwrap();
        let mut stream = stack.embed(&tokens.narrow(0, 0, 1).unwrap()).unwrap();
        let expected = &golden["hidden_row0"];
        for layer in 0..=model.config.layers() {
            let error = far(&stream.get(0).unwrap(), &expected.get(layer).unwrap());
            assert!(error < 1e-4, "{shape}: the stream before layer {layer} differs by {error}");
            if layer < model.config.layers() {
                stream = stack.through(stream, layer..layer + 1, None).unwrap();
            }
        }
        let prompt: Vec<u32> = tokens.get(0).unwrap().to_vec1().unwrap();
        let expected: Vec<u32> = ids(&golden["greedy_row0"]).flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(model.continue_greedily(&prompt, expected.len()).unwrap(), expected, "{shape}");
        let Config::Llama(config) = &model.config else { panic!("{:?}", model.config) };
        let found = config.rope.frequencies(config.head_dim);
        let expected = golden["inv_freq"].to_vec1::<f32>().unwrap();
        assert!(
            found.iter().zip(&expected).all(|(a, b)| (a / b - 1.0).abs() < 3e-7),
            "{found:?} {expected:?}"
        );
    }
}

#[test]
fn the_older_spelling_is_the_same_model() {
    for shape in SHAPES {
        let folder = tempfile::tempdir().unwrap();
        let from = Path::new(FIXTURES).join(shape);
        fs::copy(from.join("config.legacy.json"), folder.path().join("config.json")).unwrap();
        fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let model = Model::load(folder.path().to_str().unwrap()).unwrap();
        assert_eq!(model.config, load(shape).config, "{shape}");
    }
}

#[test]
fn split_prefill_and_steps_equal_the_whole_prefill() {
    for shape in SHAPES {
        let (model, golden) = (load(shape), golden(shape));
        let tokens = ids(&golden["input_ids"]);
        let whole = model.forward(&tokens, None, Positions::All).unwrap();
        for cuts in [vec![1], vec![20], vec![5, 6, 30], (1..37).collect()] {
            let (mut state, mut first, mut pieces) = (model.state(2).unwrap(), 0, vec![]);
            for cut in cuts.into_iter().chain([37]) {
                let piece = tokens.narrow(1, first, cut - first).unwrap();
                pieces.push(model.forward(&piece, Some(&mut state), Positions::All).unwrap());
                first = cut;
            }
            let error = far(&Tensor::cat(&pieces, 1).unwrap(), &whole);
            assert!(error < 1e-5 * 10.0, "{shape}: {error}");
        }
    }
}

#[test]
fn the_differentiable_definition_gives_the_same_logits() {
    let (model, golden) = (load("tied-bias-llama3"), golden("tied-bias-llama3"));
    let track = |(name, tensor): (&String, &Tensor)| {
        (name.clone(), Var::from_tensor(tensor).unwrap().as_tensor().clone())
    };
    let tracked = model.tensors().iter().map(track).collect();
    let stack = model.config.stack(&tracked, &Default::default()).unwrap();
    let hidden = stack.hidden(&ids(&golden["input_ids"]), None).unwrap();
    let logits = stack.logits(&hidden).unwrap();
    assert!(logits.track_op());
    let error = far(&logits.detach(), &golden["logits"]);
    assert!(error < 1e-4, "{error}");
}

#[test]
fn a_longer_sequence_than_it_reads_is_refused_before_anything_is_read() {
    let model = load("gqa");
    let long: Vec<u32> = (0..513).map(|i| i % 128).collect();
    let refused = |error: lowbit::Error| {
        let error = error.to_string();
        assert!(error.contains("513 tokens is longer than the model can read, which is 512"), "{error}");
    };
    refused(model.tokens(&long).unwrap_err());
    refused(model.nll(&[&long[..], &[1]].concat(), 5).unwrap_err());
    let mut state = model.state(1).unwrap();
    model.prefill(&long[..512], &mut state).unwrap();
    refused(model.step(1, &mut state).unwrap_err());
    refused(model.continue_greedily(&long[..500], 14).unwrap_err());
}

#[test]
fn what_is_not_here_is_refused_by_name() {
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let folder = tempfile::tempdir().unwrap();
        let from = Path::new(FIXTURES).join("gqa");
        let text = fs::read_to_string(from.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        change(&mut config);
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        Model::load(folder.path().to_str().unwrap()).unwrap_err().to_string()
    };
    type Change = (&'static str, serde_json::Value);
    let cases: [(Change, &str); 8] = [
        (("model_type", "gpt_oss".into()), "unknown model family \"gpt_oss\""),
        (("rope_parameters", serde_json::json!({"rope_type": "longrope"})), "unknown rope_type \"longrope\""),
        (("rope_interleaved", true.into()), "rope_interleaved = true"),
        (("sliding_window", 4096.into()), "sliding_window = 4096"),
        (("hidden_act", "gelu".into()), "hidden_act = \"gelu\""),
        (("num_key_value_heads", 3.into()), "num_key_value_heads = 3 does not divide"),
        (("head_dim", 24.into()), "expected shape [48, 48], found [24, 48]"),
        (("attention_bias", true.into()), "lacks what the config calls for"),
    ];
    for ((key, value), part) in cases {
        let error = with(&|config| config[key] = value.clone());
        assert!(error.contains(part), "{key}: {error}");
    }
}

#[test]
fn a_saved_model_is_itself_again() {
    for shape in SHAPES {
        let (model, folder) = (load(shape), tempfile::tempdir().unwrap());
        let path = folder.path().join("saved");
        model.save(&path).unwrap();
        let again = Model::load(path.to_str().unwrap()).unwrap();
        assert_eq!((&again.config, again.assumed.len()), (&model.config, 0), "{shape}");
        let tokens: Vec<u32> = (0..40).map(|i| i * 31 % 128).collect();
        assert_eq!(again.nll(&tokens, 39).unwrap(), model.nll(&tokens, 39).unwrap());
    }
}

/// A real model, where `LOWBIT_STORIES260K` names its folder (stories260K in Hugging Face layout, with golden.safetensors).
#[test]
fn a_real_model_tells_its_story() {
    let Some(folder) = std::env::var_os("LOWBIT_STORIES260K") else {
        println!("skipped: LOWBIT_STORIES260K names no folder with stories260K");
        return;
    };
    let folder = Path::new(&folder);
    let golden = candle_core::safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).unwrap();
    let model = Model::load(folder.to_str().unwrap()).unwrap();
    let logits = model.forward(&ids(&golden["input_ids"]), None, Positions::All).unwrap();
    let error = far(&logits, &golden["logits"]);
    println!("stories260k: logits within {error:.1e}");
    assert!(error < 1e-4, "{error}");
    let greedy: Vec<u32> = ids(&golden["greedy"]).to_vec1().unwrap();
    let (prompt, rest) = greedy.split_at(5);
    assert_eq!(model.continue_greedily(prompt, rest.len()).unwrap(), rest);
    assert!(
        model
            .tokenizer
            .decode(&greedy)
            .unwrap()
            .contains("Once upon a time, there was a little girl named Lily.")
    );
}

/// Weights of a size at which schemes have something to round, and norms whose readers must share what is folded.
fn larger() -> Model {
    let config = llama::Config {
        hidden_size: 96,
        intermediate_size: 160,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 16,
        attention_bias: true,
        ..llama::Config::default()
    };
    let config = Config::Llama(config);
    let mut tensors = init::initialize(&config, 5).unwrap();
    for (i, tensor) in tensors.values_mut().enumerate() {
        let n = tensor.elem_count();
        let scale = if tensor.rank() == 1 { 0.4 } else { 0.1 };
        let wave: Vec<f32> = (0..n).map(|j| ((i * 7 + 3 * j) as f32).sin() * scale).collect();
        let wave = Tensor::from_vec(wave, tensor.shape(), &Device::Cpu).unwrap();
        *tensor = (&*tensor + wave).unwrap();
    }
    Model::from_tensors("larger", config, tensors, &Loading::default()).unwrap()
}

#[test]
fn schemes_keep_the_function_and_come_back_from_a_file() {
    let model = larger();
    let tokens: Vec<u32> = (0..60).map(|i| i * 31 % 256).collect();
    let nll = |model: &Model| model.nll(&tokens, 50).unwrap();
    let exact = nll(&model);
    let error = |found: &[f32]| {
        let squares = exact.iter().zip(found).map(|(a, b)| f64::from(a - b).powi(2));
        (squares.sum::<f64>() / exact.len() as f64).sqrt()
    };
    for (scheme, most) in
        [("w8a16", 0.05), ("w8a16-rot", 0.05), ("w8a8", 0.1), ("w4a8-g32", 1.0), ("w4a8-g32-rot", 1.0)]
    {
        let made = model.quantized(&scheme.parse().unwrap()).unwrap();
        let found = nll(&made);
        let error = error(&found);
        println!("{scheme}: NLL moves by {error:.4}");
        assert!(error > 0.0 && error < most, "{scheme}: {error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("saved");
        made.save(&path).unwrap();
        assert_eq!(nll(&Model::load(path.to_str().unwrap()).unwrap()), found, "{scheme}");
    }
}

#[test]
fn a_cache_in_few_bits_is_a_scheme_of_its_own() {
    let model = larger();
    let tokens: Vec<u32> = (0..60).map(|i| i * 31 % 256).collect();
    let exact = model.nll(&tokens, 50).unwrap();
    let mut before = 0.0;
    // Of the keys by channel a group of 32 tokens is rounded, with two bf16 for each of 16 channels, and 28 are f32.
    let by_channel = |codes: usize| 32 * codes + 16 * 4 + 28 * 16 * 4;
    for (scheme, bytes) in [
        ("w16a16-kv16", 60 * 2 * 2 * 16),
        ("w16a16-kv8c", by_channel(16) + 60 * (16 + 4)),
        ("w16a16-kv8", 60 * 2 * (16 + 4)),
        ("w16a16-kv4c", by_channel(8) + 60 * (8 + 4)),
        ("w16a16-kv4", 60 * 2 * (8 + 4)),
    ] {
        let made = model.quantized(&scheme.parse().unwrap()).unwrap();
        // Of two heads in each of three layers.
        assert_eq!(made.state_bytes(5, 60), 5 * 3 * 2 * bytes, "{scheme}");
        let found = made.nll(&tokens, 50).unwrap();
        let error = exact.iter().zip(&found).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
        assert!(error > before, "{scheme}: {error} beside {before}");
        before = error;
        // Token by token it is the same.
        let (mut state, mut last) = (made.state(1).unwrap(), vec![]);
        tokens.iter().for_each(|id| last = made.step(*id, &mut state).unwrap());
        let whole = made.prefill(&tokens, &mut made.state(1).unwrap()).unwrap();
        // But for a last bit that decides a rounding: by less than either is from what is not rounded.
        let plain = model.prefill(&tokens, &mut model.state(1).unwrap()).unwrap();
        let apart = |other: &[f32]| whole.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (far, rounded) = (apart(&last), apart(&plain));
        assert!(far < rounded.max(1e-4), "{scheme}: {far} beside {rounded}");
        assert_eq!(state.bytes(), made.state_bytes(1, 60));
        // Back within what was rounded together there is no way; elsewhere the way from there is the same again.
        let by_channel = scheme.ends_with('c');
        assert_eq!(state.clone().rewind(20).unwrap(), !by_channel, "{scheme}");
        let (back, mut again) = (if by_channel { 40 } else { 20 }, vec![]);
        assert!(state.rewind(back).unwrap(), "{scheme}");
        tokens[back..].iter().for_each(|id| again = made.step(*id, &mut state).unwrap());
        assert_eq!(again, last, "{scheme}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("saved");
        made.save(&path).unwrap();
        assert_eq!(Model::load(path.to_str().unwrap()).unwrap().nll(&tokens, 50).unwrap(), found, "{scheme}");
    }
}

#[test]
fn what_has_no_recurrence_and_no_norm_of_its_own_is_told() {
    let model = larger();
    let error = |scheme: &str| model.quantized(&scheme.parse().unwrap()).unwrap_err().to_string();
    let sentence = error("w16a16-h8");
    assert!(
        sentence.contains("no recurrence whose inputs, state or products could be rounded"),
        "{sentence}"
    );
    let mamba2 = Model::load("random:mamba2-tiny").unwrap();
    let sentence = mamba2.quantized(&"w16a16-kv8".parse().unwrap()).unwrap_err().to_string();
    assert!(sentence.contains("keeps no keys and values"), "{sentence}");
    let by_channel: lowbit::quantize::Scheme = "w8a8-perchannel+head=w8".parse().unwrap();
    let sentence = by_channel.check(&model, &Default::default()).unwrap_err().to_string();
    assert!(sentence.contains("lm_head: its input does not come from a norm"), "{sentence}");
    // Before time is spent.
    let rounded: lowbit::quantize::Scheme = "w8a8-gptq-h8".parse().unwrap();
    let sentence = rounded.check(&model, &Default::default()).unwrap_err().to_string();
    assert!(sentence.starts_with("scheme w8a8-gptq-h8: the model has no recurrence"), "{sentence}");
}
