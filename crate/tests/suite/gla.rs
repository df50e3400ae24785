//! Gated linear attention against numbers from flash-linear-attention.

use candle_core::{DType, Device, Tensor, Var};
use lowbit::family::{Config, gla};
use lowbit::kernel::scan::channels::{Gradients, Inputs, Shape, chunked, recurrent, scan, scan_grad};
use lowbit::model::quantization::Backend;
use lowbit::model::{Loading, Model, Positions};
use lowbit::quantize::Quantizing;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gla-tiny");

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(format!("{FIXTURE}/{name}.safetensors"), &Device::Cpu).unwrap()
}

fn about() -> Value {
    serde_json::from_str(&fs::read_to_string(format!("{FIXTURE}/golden.json")).unwrap()).unwrap()
}

fn load() -> Model {
    Model::load(FIXTURE).unwrap()
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn ids(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::U32).unwrap()
}

#[test]
fn the_fixture_is_reproduced() {
    let (model, golden) = (load(), tensors("golden"));
    assert_eq!((model.assumed.as_slice(), model.unused.as_slice()), (&[][..], &[][..]));
    let tokens = ids(&golden["input_ids"]); // [2, 37]
    let mut state = model.state(2).unwrap();
    let logits = model.forward(&tokens, Some(&mut state), Positions::All).unwrap();
    let error = far(&logits, &golden["logits"]);
    println!("logits within {error:.1e}");
    assert!(error < 1e-4, "logits differ by {error}");
    for (i, layer) in state.layers.iter().enumerate() {
        let error = far(layer.recurrent.as_ref().unwrap(), &golden["recurrent_states"].get(i).unwrap());
        assert!(error < 1e-4, "the state of layer {i} differs by {error}");
    }
    let stack = model.config.stack(model.tensors(), &Default::default()).unwrap();
    let mut stream = stack.embed(&tokens.narrow(0, 0, 1).unwrap()).unwrap();
    for layer in 0..=2 {
        let error = far(&stream.get(0).unwrap(), &golden["hidden_row0"].get(layer).unwrap());
        assert!(error < 1e-4, "the stream before layer {layer} differs by {error}");
        if layer < 2 {
            stream = stack.through(stream, layer..layer + 1, None).unwrap();
        }
    }
    let rows: Vec<Vec<u32>> = tokens.to_vec2().unwrap();
    let expected: Vec<u32> = ids(&golden["greedy_row0"]).to_vec1().unwrap();
    assert_eq!(model.continue_greedily(&rows[0], expected.len()).unwrap(), expected);
    let nll: Vec<f32> = rows.iter().flat_map(|row| model.nll(row, 36).unwrap()).collect();
    let mean = nll.iter().map(|x| f64::from(*x)).sum::<f64>() / nll.len() as f64;
    assert!((mean - about()["mean_nll"].as_f64().unwrap()).abs() < 1e-5, "{mean}");
}

#[test]
fn split_prefill_and_steps_equal_the_whole_prefill() {
    let model = load();
    let tokens = Tensor::from_iter((0..2 * 150_u32).map(|i| i * i % 251), &Device::Cpu).unwrap();
    let tokens = tokens.reshape((2, 150)).unwrap();
    let whole = model.forward(&tokens, None, Positions::All).unwrap();
    for cuts in [vec![1], vec![75], vec![5, 6, 70], (1..150).collect()] {
        let (mut state, mut first, mut pieces) = (model.state(2).unwrap(), 0, vec![]);
        for cut in cuts.into_iter().chain([150]) {
            let piece = tokens.narrow(1, first, cut - first).unwrap();
            pieces.push(model.forward(&piece, Some(&mut state), Positions::All).unwrap());
            first = cut;
        }
        let error = far(&Tensor::cat(&pieces, 1).unwrap(), &whole);
        assert!(error < 1e-4, "{error}");
    }
}

#[test]
fn the_differentiable_definition_gives_the_same_logits() {
    let (model, golden) = (load(), tensors("golden"));
    let track = |(name, tensor): (&String, &Tensor)| {
        (name.clone(), Var::from_tensor(tensor).unwrap().as_tensor().clone())
    };
    let tracked = model.tensors().iter().map(track).collect();
    let stack = model.config.stack(&tracked, &Default::default()).unwrap();
    let logits = stack.logits(&stack.hidden(&ids(&golden["input_ids"]), None).unwrap()).unwrap();
    assert!(logits.track_op());
    let error = far(&logits.detach(), &golden["logits"]);
    assert!(error < 1e-4, "{error}");
}

/// A case of the operator alone, with queries scaled as the layer scales them.
struct Case {
    shape: Shape,
    /// q, k, v and the decays.
    inputs: [Vec<f32>; 4],
    scale: f32,
    before: Option<Vec<f32>>,
}

impl Case {
    fn new(all: &HashMap<String, Tensor>, name: &str) -> Self {
        let of = |what: &str| all.get(&format!("{name}.{what}"));
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let [q, k, v, gk] = ["q", "k", "v", "gk"].map(|what| of(what).unwrap());
        let (batch, time, heads, key) = q.dims4().unwrap();
        let scale = (key as f32).sqrt().recip();
        let q = values(q).iter().map(|q| q * scale).collect();
        let a = values(gk).iter().map(|gk| gk.exp()).collect();
        Self {
            shape: Shape { batch, time, heads, groups: heads, key, value: v.dims4().unwrap().3 },
            inputs: [q, values(k), values(v), a],
            scale,
            before: of("h0").map(values),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        let [q, k, v, a] = &self.inputs;
        Inputs { q, k, v, a }
    }
}

fn near(name: &str, found: &[f32], expected: &Tensor) {
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(found.len(), expected.len(), "{name}");
    let error = found.iter().zip(&expected).fold(0.0_f32, |far, (a, b)| far.max((a - b).abs()));
    println!("{name} within {error:.1e}");
    assert!(error < 1e-4, "{name}: {error}");
}

#[test]
fn every_form_of_the_operator_gives_the_golden_numbers() {
    type Form = fn(Shape, Inputs<'_>, &mut [f32], &mut [f32]);
    let in_chunks: Form = |shape, inputs, s, y| chunked(shape, None, inputs, s, y);
    let forms: [(&str, Form); 3] = [("recurrent", recurrent::<f32>), ("chunked", in_chunks), ("scan", scan)];
    let all = tensors("ops");
    for name in ["t37", "t64", "t130", "strong100"] {
        let case = Case::new(&all, name);
        let Shape { batch, time, heads, value, .. } = case.shape;
        for (form, run) in forms {
            let mut s = case.before.clone().unwrap_or_else(|| vec![0.0; batch * heads * case.shape.state()]);
            let mut y = vec![f32::NAN; batch * time * heads * value];
            run(case.shape, case.inputs(), &mut s, &mut y);
            near(&format!("{name} {form} o"), &y, &all[&format!("{name}.o")]);
            near(&format!("{name} {form} h"), &s, &all[&format!("{name}.h")]);
        }
    }
}

#[test]
fn gradients_of_the_operator_are_the_golden_ones() {
    let all = tensors("ops");
    let case = Case::new(&all, "grad");
    let values = |name: &str| all[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut grads = case.inputs.each_ref().map(|like| vec![f32::NAN; like.len()]);
    let (wo, mut ds) = (values("grad.wo"), values("grad.wh"));
    let [q, k, v, log_a] = &mut grads;
    let to = Gradients { q, k, v, log_a, s: &mut ds };
    scan_grad(case.shape, case.inputs(), case.before.as_deref(), &wo, to);
    let [q, k, v, log_a] = &mut grads;
    q.iter_mut().for_each(|q| *q *= case.scale);
    for (name, found) in [("dq", q), ("dk", k), ("dv", v), ("dgk", log_a), ("dh0", &mut ds)] {
        near(name, found, &all[&format!("grad.{name}")]);
    }
}

/// A copy of the fixture with another config and other tensors.
fn changed(
    config: &dyn Fn(&mut Value),
    weights: &dyn Fn(&mut HashMap<String, Tensor>),
) -> lowbit::Result<Model> {
    let folder = tempfile::tempdir().unwrap();
    let mut json: Value =
        serde_json::from_str(&fs::read_to_string(Path::new(FIXTURE).join("config.json")).unwrap()).unwrap();
    config(&mut json);
    fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    let mut all = tensors("model");
    weights(&mut all);
    candle_core::safetensors::save(&all, folder.path().join("model.safetensors")).unwrap();
    Model::load(folder.path().to_str().unwrap())
}

#[test]
fn what_is_not_here_is_refused_by_name() {
    let cases: [(&str, Value, &str); 17] = [
        ("use_short_conv", json!(true), "use_short_conv = true"),
        ("feature_map", json!("relu"), "feature_map = \"relu\""),
        ("attnres_block_size", json!(4), "attnres_block_size = 4"),
        ("hidden_act", json!("gelu"), "hidden_act = \"gelu\""),
        ("elementwise_affine", json!(false), "elementwise_affine = false"),
        ("use_gk", json!(false), "use_gk = false"),
        ("use_gv", json!(true), "use_gv = true"),
        ("gate_logit_normalizer", json!(8), "gate_logit_normalizer = 8"),
        ("attn", json!({"layers": [1], "num_heads": 2, "window_size": 64}), "attn.window_size = 64"),
        ("attn", json!({"layers": [1], "num_heads": 2, "sinks": 4}), "attn.sinks calls for"),
        ("attn", json!({"layers": [2], "num_heads": 2}), "attn.layers names layer 2"),
        ("attn", json!({"layers": [1], "num_heads": 2}), "attn.k_proj.weight: expected shape [64, 64]"),
        ("num_kv_heads", json!(1), "expected shape [16], found [32]"),
        ("num_heads", json!(4), "expected shape [16], found [32]"),
        ("expand_k", json!(1.0), "expected shape [64], found [32]"),
        ("intermediate_size", Value::Null, "expected shape [64, 256], found [64, 96]"),
        ("use_output_gate", json!(false), "lacks what the config calls for"),
    ];
    for (key, value, part) in cases {
        let error = changed(&|config| config[key] = value.clone(), &|_| {}).unwrap_err().to_string();
        assert!(error.contains(part), "{key}: {error}");
    }
}

#[test]
fn settings_of_the_mathematics_are_honoured() {
    let golden = tensors("golden");
    let logits = |model: &Model| model.forward(&ids(&golden["input_ids"]), None, Positions::All).unwrap();
    let plain = logits(&load());
    let rename = |all: &mut HashMap<String, Tensor>, from: &str, to: Option<&str>| {
        for name in all.keys().filter(|name| name.contains(from)).cloned().collect::<Vec<_>>() {
            let tensor = all.remove(&name).unwrap();
            if let Some(to) = to {
                all.insert(name.replace(from, to), tensor);
            }
        }
    };
    // The other name of the norm computes the same.
    let unfused = changed(&|config| config["fuse_norm"] = json!(false), &|all| {
        rename(all, "g_norm_swish_gate", Some("g_norm"));
    });
    assert_eq!(far(&logits(&unfused.unwrap()), &plain), 0.0);
    let differs = |model: lowbit::Result<Model>| far(&logits(&model.unwrap()), &plain) > 1e-3;
    // A decay of at least e^−.001 forgets less than these do.
    assert!(differs(changed(&|config| config["clamp_min"] = json!(-0.001), &|_| {})));
    let free = changed(&|config| config["clamp_min"] = json!(-1000.0), &|_| {}).unwrap();
    assert_eq!(far(&logits(&free), &plain), 0.0);
    assert!(differs(changed(&|config| config["use_output_gate"] = json!(false), &|all| {
        rename(all, "g_norm_swish_gate", Some("g_norm"));
        rename(all, "g_proj", None);
    })));
    assert!(differs(changed(&|config| config["tie_word_embeddings"] = json!(true), &|all| {
        all.remove("lm_head.weight");
    })));
    // One group is two groups that are equal.
    let halves = |all: &mut HashMap<String, Tensor>, twice: bool| {
        let shared = ["k_proj.weight", "v_proj.weight", "gk_proj.1.weight", "gk_proj.1.bias"];
        for (name, tensor) in all.iter_mut().filter(|(name, _)| shared.iter().any(|s| name.ends_with(s))) {
            let half = tensor.narrow(0, 0, tensor.dim(0).unwrap() / 2).unwrap();
            let both = Tensor::cat(&[&half, &half], 0).unwrap();
            *tensor = if twice { both } else { half.contiguous().unwrap() };
            assert!(!name.is_empty());
        }
    };
    let one = changed(&|config| config["num_kv_heads"] = json!(1), &|all| halves(all, false)).unwrap();
    let two = changed(&|_| {}, &|all| halves(all, true)).unwrap();
    assert!(far(&logits(&one), &logits(&two)) < 1e-5);
}

/// Blocks with attention are those of a Llama under other names.
#[test]
fn a_hybrid_reads_through_attention_too() {
    let hybrid =
        gla::Hybrid { layers: vec![1], num_heads: 4, num_kv_heads: 2, qkv_bias: true, rope_theta: 10_000.0 };
    let config = gla::Config { attn: Some(hybrid), max_position_embeddings: 80, ..gla::Config::tiny() };
    let model = Model::random("hybrid", Config::Gla(config), 3, &Loading::default()).unwrap();
    assert_eq!(model.config.longest(), Some(80));
    let tokens: Vec<u32> = (0..80).map(|i| i * i % 251).collect();
    let whole = model.nll(&tokens, 79).unwrap();
    let (folder, mut state) = (tempfile::tempdir().unwrap(), model.state(1).unwrap());
    let steps: Vec<f32> = tokens
        .windows(2)
        .map(|pair| {
            let logits = model.step(pair[0], &mut state).unwrap();
            let top = logits.iter().fold(f32::MIN, |top, x| top.max(*x));
            top + logits.iter().map(|x| (x - top).exp()).sum::<f32>().ln() - logits[pair[1] as usize]
        })
        .collect();
    assert!(whole.iter().zip(&steps).all(|(a, b)| (a - b).abs() < 1e-4));
    let path = folder.path().join("saved");
    model.save(&path).unwrap();
    let again = Model::load(path.to_str().unwrap()).unwrap();
    assert_eq!(again.config, model.config);
    assert_eq!(again.nll(&tokens, 79).unwrap(), whole);
}

#[test]
fn a_saved_model_is_itself_again_and_needs_no_config() {
    let (model, folder) = (load(), tempfile::tempdir().unwrap());
    let path = folder.path().join("saved");
    model.save(&path).unwrap();
    let again = Model::load(path.to_str().unwrap()).unwrap();
    assert_eq!((&again.config, again.assumed.len()), (&model.config, 0));
    let tokens: Vec<u32> = (0..40).map(|i| i * 31 % 128).collect();
    assert_eq!(again.nll(&tokens, 39).unwrap(), model.nll(&tokens, 39).unwrap());
    let bare = Model::load(&format!("{FIXTURE}/model.safetensors")).unwrap();
    assert_eq!(bare.nll(&tokens, 39).unwrap(), model.nll(&tokens, 39).unwrap());
}

#[test]
fn packed_and_simulated_matrices_are_equal_and_segments_are_known() {
    let model = load();
    let how = Quantizing::default();
    for name in ["w4a8-g32", "w8a8+gk=w8+q=w4", "w4a16-g16-rot", "w4a8-g32+gk_out=w8-g16"] {
        let packed = model.quantized_with(&name.parse().unwrap(), &how).unwrap();
        let fake = Quantizing { backend: Backend::Fake, ..how.clone() };
        let fake = model.quantized_with(&name.parse().unwrap(), &fake).unwrap();
        let all = packed.linears().into_iter().zip(fake.linears());
        for ((path, packed), (_, fake)) in all {
            let weights = (packed.weight.values().unwrap(), fake.weight.values().unwrap());
            assert_eq!(far(&weights.0, &weights.1), 0.0, "{name}: {path}");
            let input = Tensor::arange(0.0, weights.0.dim(1).unwrap() as f32, &Device::Cpu).unwrap();
            let input = ((input * 0.7).unwrap().sin().unwrap() * 2.0).unwrap().unsqueeze(0).unwrap();
            let (a, b) = (packed.forward(&input).unwrap(), fake.forward(&input).unwrap());
            let size = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(far(&a, &b) <= 2e-6 * size, "{name}: {path}: {}", far(&a, &b));
        }
    }
    let rounded = model.quantized(&"w16a16-h8".parse().unwrap()).unwrap();
    let tokens: Vec<u32> = (0..60).map(|i| i * 31 % 128).collect();
    let (a, b) = (rounded.nll(&tokens, 59).unwrap(), model.nll(&tokens, 59).unwrap());
    assert!(a != b && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 0.3));
}
