//! The low-rank-Q transformer against numbers from the published scripts.

use super::fixture::Folder;
use super::pickled;
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use lowbit::family::stack::bucket;
use lowbit::family::{Config, lowrankq};
use lowbit::model::{Loading, Model, Positions};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;

pub(super) const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lowrankq-tiny");

pub(super) fn tensors(file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(format!("{FIXTURE}/{file}.safetensors"), &Device::Cpu).unwrap()
}

pub(super) fn scalars() -> Value {
    serde_json::from_str(&fs::read_to_string(format!("{FIXTURE}/golden.json")).unwrap()).unwrap()
}

pub(super) fn far(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// The first 33 and the last 33 of each sequence.
pub(super) fn inputs_and_targets(golden: &HashMap<String, Tensor>) -> (Tensor, Tensor) {
    let ids = golden["ids"].to_dtype(DType::U32).unwrap(); // [2, 34]
    (ids.narrow(1, 0, 33).unwrap().contiguous().unwrap(), ids.narrow(1, 1, 33).unwrap().contiguous().unwrap())
}

#[test]
fn the_fixture_is_reproduced() {
    let (model, golden) = (Model::load(FIXTURE).unwrap(), tensors("golden"));
    assert_eq!(model.assumed, ["max_position_embeddings = 1024 (train_seq_len)"]);
    assert_eq!((model.unused.len(), model.parameters()), (0, 109_777));
    let (tokens, _) = inputs_and_targets(&golden);
    let logits = model.forward(&tokens, None, Positions::All).unwrap();
    let error = far(&logits, &golden["logits"]);
    println!("logits within {error:.1e}");
    assert!(error < 1e-4, "{error}");
    let stack = model.config.stack(model.tensors(), &Default::default()).unwrap();
    let mut stream = stack.embed(&tokens.narrow(0, 0, 1).unwrap()).unwrap();
    for layer in 0..=4 {
        let x = stack.residual(&stream).unwrap().squeeze(0).unwrap();
        let error = far(&x, &golden["stream_row0"].get(layer).unwrap());
        assert!(error < 1e-4, "the stream before layer {layer} differs by {error}");
        if layer < 4 {
            stream = stack.through(stream, layer..layer + 1, None).unwrap();
        }
    }
    let expected = golden["bigram_index"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
    for (ids, expected) in tokens.to_vec2::<u32>().unwrap().iter().zip(expected) {
        let before = std::iter::once(None).chain(ids.iter().copied().map(Some));
        let found: Vec<u32> = ids.iter().zip(before).map(|(id, before)| bucket(*id, before, 64)).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn split_prefill_and_steps_equal_the_whole_prefill() {
    let (model, golden) = (Model::load(FIXTURE).unwrap(), tensors("golden"));
    let (tokens, _) = inputs_and_targets(&golden);
    let whole = model.forward(&tokens, None, Positions::All).unwrap();
    for cuts in [vec![1], vec![2, 20], vec![5, 6, 30], (1..33).collect()] {
        let (mut state, mut first, mut pieces) = (model.state(2).unwrap(), 0, vec![]);
        for cut in cuts.into_iter().chain([33]) {
            let piece = tokens.narrow(1, first, cut - first).unwrap();
            pieces.push(model.forward(&piece, Some(&mut state), Positions::All).unwrap());
            first = cut;
        }
        let error = far(&Tensor::cat(&pieces, 1).unwrap(), &whole);
        assert!(error < 1e-5, "{error}");
        assert_eq!(state.bytes(), model.state_bytes(2, 33));
    }
    // Longer than the pieces that follow one another through the layers; one by one; and back again.
    let ids: Vec<u32> = (0..700).map(|i| i * i * 31 % 251).collect();
    let whole = model.forward(&model.tokens(&ids).unwrap(), None, Positions::Last).unwrap();
    let whole = whole.flatten_all().unwrap();
    let logits = |found: Vec<f32>| Tensor::from_vec(found, 256, &Device::Cpu).unwrap();
    let mut state = model.state(1).unwrap();
    assert!(far(&logits(model.prefill(&ids, &mut state).unwrap()), &whole) < 2e-5);
    assert!(state.rewind(301).unwrap());
    model.prefill(&ids[301..690], &mut state).unwrap();
    let last = ids[690..].iter().map(|id| model.step(*id, &mut state).unwrap()).last().unwrap();
    assert!(far(&logits(last), &whole) < 2e-5);
}

/// Loss and gradients of the differentiable definition; the fused way back is held to it beside the code.
#[test]
fn gradients_are_those_of_the_scripts() {
    let (model, golden, expected) = (Model::load(FIXTURE).unwrap(), tensors("golden"), tensors("grads"));
    let vars: BTreeMap<String, Var> = model
        .tensors()
        .iter()
        .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
        .collect();
    let tracked = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let stack = model.config.stack(&tracked, &Default::default()).unwrap();
    let (tokens, targets) = inputs_and_targets(&golden);
    let logits = stack.logits(&stack.hidden(&tokens, None).unwrap()).unwrap();
    let error = far(&logits.detach(), &golden["logits"]);
    assert!(error < 1e-4, "{error}");
    let rows = logits.reshape(((), 256)).unwrap();
    let loss = cross_entropy(&rows, &targets.flatten_all().unwrap()).unwrap();
    let value = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((value - scalars()["loss_f64"].as_f64().unwrap()).abs() < 1e-5, "{value}");
    let grads = loss.backward().unwrap();
    assert_eq!(expected.len(), vars.len());
    let mut furthest = 0.0f32;
    for (name, var) in &vars {
        let expected = &expected[&**name];
        let found = grads.get(var).unwrap().reshape(expected.shape()).unwrap();
        let error = far(&found, expected);
        assert!(error < 1e-5, "{name}: {error}");
        furthest = furthest.max(error);
    }
    println!("gradients within {furthest:.1e}");
}

/// A state dict as the scripts save it: no config, embeddings in bf16.
#[test]
fn a_bare_state_dict_loads() {
    let model = Model::load(FIXTURE).unwrap();
    let folder = Folder::new();
    let narrowed = model.tensors().iter().map(|(name, tensor)| {
        let dtype = if name.contains("emb") { DType::BF16 } else { DType::F32 };
        (name.clone(), tensor.to_dtype(dtype).unwrap())
    });
    let narrowed: BTreeMap<String, Tensor> = narrowed.collect();
    pickled::save(&folder.at("final_model.pt"), &narrowed, &[]);
    let bare = Model::load(folder.at("final_model.pt").to_str().unwrap()).unwrap();
    assert_eq!(bare.config, model.config);
    let assumed = [
        "logit_softcap = 30",
        "rope_base = 10000",
        "norm_eps = 0.00000011920928955078125",
        "train_seq_len = 1024",
        "max_position_embeddings = 1024 (train_seq_len)",
        "the head is the embedding (there is no lm_head.weight)",
    ];
    assert_eq!(bare.assumed, assumed);
    let ids: Vec<u32> = (0..40).map(|i| i * 37 % 256).collect();
    let (found, expected) = (bare.nll(&ids, 39).unwrap(), model.nll(&ids, 39).unwrap());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 0.2), "bf16 embeddings");
}

#[test]
fn a_saved_model_is_itself_again() {
    let (model, folder) = (Model::load(FIXTURE).unwrap(), Folder::new());
    model.save(&folder.at("saved")).unwrap();
    let again = Model::load(folder.at("saved").to_str().unwrap()).unwrap();
    assert_eq!((&again.config, again.assumed.len()), (&model.config, 0));
    let ids: Vec<u32> = (0..40).map(|i| i * 31 % 256).collect();
    assert_eq!(again.nll(&ids, 39).unwrap(), model.nll(&ids, 39).unwrap());
}

/// Beyond the training length the rotary base grows with the length that is asked for, and with it the furthest token.
#[test]
fn positions_beyond_the_training_length_are_asked_for() {
    let with = |change: &dyn Fn(&mut Value)| {
        let folder = Folder::new();
        let text = fs::read_to_string(format!("{FIXTURE}/config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        change(&mut config);
        folder.write("config.json", config.to_string());
        fs::copy(format!("{FIXTURE}/model.safetensors"), folder.at("model.safetensors")).unwrap();
        Model::load(folder.at("").to_str().unwrap())
    };
    let ids: Vec<u32> = (0..34).map(|i| i * 31 % 256).collect();
    let nll = |model: &Model| Tensor::new(model.nll(&ids, 33).unwrap(), &Device::Cpu).unwrap();
    let plain = with(&|_| {}).unwrap();
    let short = with(&|config| config["train_seq_len"] = 20.into()).unwrap();
    let error = short.nll(&ids, 33).unwrap_err().to_string();
    assert!(error.contains("longer than the model can read, which is 20"), "{error}");
    let longer = with(&|config| {
        config["train_seq_len"] = 20.into();
        config["max_position_embeddings"] = 33.into();
    })
    .unwrap();
    // The base written out: 10000 · 1.65^(16 / 14).
    let same = with(&|config| config["rope_base"] = (10_000.0 * 1.65f64.powf(16.0 / 14.0)).into()).unwrap();
    assert!(far(&nll(&longer), &nll(&same)) < 1e-5);
    assert!(far(&nll(&longer), &nll(&plain)) > 1e-4);
    let Config::LowrankQ(config) = &longer.config else { panic!("{:?}", longer.config) };
    assert_eq!((config.max_position_embeddings, config.q_rank.clone()), (33, lowrankq::Rank::All(16)));

    for ((key, value), part) in [
        (("num_kv_heads", 3.into()), "num_kv_heads = 3 does not divide num_heads = 4"),
        (("q_rank", "wide".into()), "q_rank must be a number or a list"),
        (("q_rank", serde_json::json!([16, 16])), "q_rank has 2 ranks for 4 layers"),
        (("q_rank", 0.into()), "lacks what the config calls for"),
        (("tie_embeddings", false.into()), "lacks lm_head.weight"),
        (("logit_softcap", serde_json::json!(-1)), "logit_softcap must be 0 or a positive number"),
        (("bigram_dim", 12.into()), "expected shape [64, 12], found [64, 16]"),
    ] {
        let error = with(&|config| config[key] = Value::clone(&value)).unwrap_err().to_string();
        assert!(error.contains(part), "{key}: {error}");
    }
}

/// Weights round, tokens still agree with a whole prompt, and what no rotation passes says so.
#[test]
fn schemes_apply() {
    let (model, golden) = (Model::load(FIXTURE).unwrap(), tensors("golden"));
    let (tokens, _) = inputs_and_targets(&golden);
    let exact = model.forward(&tokens, None, Positions::All).unwrap();
    let mut before = 0.0;
    for scheme in ["w8a8", "w4a8+c_q_up=w8+bigram=w8+bigram_proj=w8", "w2a8"] {
        let small = model.quantized(&scheme.parse().unwrap()).unwrap();
        let found = small.forward(&tokens, None, Positions::All).unwrap();
        let error = (found - &exact).unwrap().sqr().unwrap().mean(D::Minus1).unwrap().mean_all().unwrap();
        let error = error.to_scalar::<f32>().unwrap();
        assert!(error > 2.0 * before, "{scheme}: {error}");
        before = error;
    }
    let error = model.quantized(&"w4a4-rot".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("its channels are weighed one by one"), "{error}");
}

/// Blocks that are passed again are blocks with the same weights, one after the other; each pass has keys and values of its own.
#[test]
fn shared_layers_are_layers_of_equal_weights() {
    let model = Model::load(FIXTURE).unwrap();
    let Config::LowrankQ(config) = &model.config else { panic!("{:?}", model.config) };
    // One block, passed twice, has no half to skip to; of two the second has.
    let one = lowrankq::Config { num_layers: 1, iterations: 2, ..config.clone() };
    let two = lowrankq::Config { num_layers: 2, iterations: 1, ..config.clone() };
    let of = |config: lowrankq::Config, from: &dyn Fn(&str) -> Option<Tensor>| {
        let config = Config::LowrankQ(config);
        let tensors = config.tensors().into_iter().map(|spec| {
            let tensor = from(&spec.name).unwrap_or_else(|| model.tensors()[&spec.name].clone());
            (spec.name, tensor)
        });
        Model::from_tensors("shared", config.clone(), tensors.collect(), &Loading::default()).unwrap()
    };
    let shared = of(one, &|_| None);
    let unrolled = of(two, &|name| match name.strip_prefix("blocks.1.") {
        Some(rest) => Some(model.tensors()[&format!("blocks.0.{rest}")].clone()),
        None => (name == "skip_weights").then(|| Tensor::zeros((1, 64), DType::F32, &Device::Cpu).unwrap()),
    });
    let ids: Vec<u32> = (0..300).map(|i| i * i * 31 % 251).collect();
    let tokens = shared.tokens(&ids).unwrap();
    let all = |model: &Model| model.forward(&tokens, None, Positions::All).unwrap();
    assert_eq!(far(&all(&shared), &all(&unrolled)), 0.0);
    assert_eq!(shared.state_bytes(1, 100), unrolled.state_bytes(1, 100));
    assert!(shared.parameters() < unrolled.parameters());

    // With skips, in pieces and step by step, and through a file.
    let (deep, folder) = (of(lowrankq::Config { iterations: 3, ..config.clone() }, &|_| None), Folder::new());
    let whole = deep.forward(&tokens, None, Positions::Last).unwrap().flatten_all().unwrap();
    let mut state = deep.state(1).unwrap();
    deep.prefill(&ids[..290], &mut state).unwrap();
    let last = ids[290..].iter().map(|id| deep.step(*id, &mut state).unwrap()).last().unwrap();
    let error = far(&Tensor::from_vec(last, 256, &Device::Cpu).unwrap(), &whole);
    assert!(error < 2e-5, "{error}");
    assert_eq!(state.bytes(), deep.state_bytes(1, 300));
    deep.save(&folder.at("deep")).unwrap();
    let again = Model::load(folder.at("deep").to_str().unwrap()).unwrap();
    assert_eq!((&again.config, again.assumed.len()), (&deep.config, 0));
}
