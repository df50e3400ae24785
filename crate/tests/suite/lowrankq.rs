//! The low-rank-Q transformer against numbers from the published scripts.

use super::fixture::Folder;
use super::pickled;
use candle_core::safetensors::SliceSafetensors;
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use lowbit::family::stack::bucket;
use lowbit::family::{Config, Gradients, Tensors, lowrankq};
use lowbit::format::{Coding, Encoded};
use lowbit::measure::adaptation::Bias;
use lowbit::model::{Model, Positions, artifact, init};
use lowbit::train::optimizer::muon::Precision;
use lowbit::train::optimizer::{AdamW, Group, Muon, Optimizer, Settings};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lowrankq-tiny");

fn tensors(file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(format!("{FIXTURE}/{file}.safetensors"), &Device::Cpu).unwrap()
}

fn scalars() -> Value {
    serde_json::from_str(&fs::read_to_string(format!("{FIXTURE}/golden.json")).unwrap()).unwrap()
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// The first 33 and the last 33 of each sequence.
fn inputs_and_targets(golden: &HashMap<String, Tensor>) -> (Tensor, Tensor) {
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

/// The loss of the fixture's batch under these weights, and its gradients, by the differentiable definition.
fn loss_and_gradients(config: &Config, tensors: &Tensors) -> (f64, Gradients) {
    let vars: BTreeMap<String, Var> =
        tensors.iter().map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap())).collect();
    let tracked = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let stack = config.stack(&tracked, &Default::default()).unwrap();
    let (tokens, targets) = inputs_and_targets(&self::tensors("golden"));
    let logits = stack.logits(&stack.hidden(&tokens, None).unwrap()).unwrap().reshape(((), 256)).unwrap();
    let loss = cross_entropy(&logits, &targets.flatten_all().unwrap()).unwrap();
    let grads = loss.backward().unwrap();
    let grad = |var: &Var| grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let grads = vars.iter().map(|(name, var)| (name.clone(), grad(var))).collect();
    (f64::from(loss.to_scalar::<f32>().unwrap()), grads)
}

/// Two steps on one batch: the weights after each, and the losses before them and after.
fn two_steps(muon: Muon) -> ([Tensors; 2], Vec<f64>) {
    let model = Model::load(FIXTURE).unwrap();
    let group = |suffix: &str, lr: f64| Group { suffix: suffix.into(), lr, decay: 1.0, muon: None };
    let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, clip: 0.0 };
    // What Muon moves takes the rate of its group as a factor.
    let groups = ["tok_emb.weight", "bigram.embed.weight"].map(|name| group(name, 0.03));
    let others = ["skip_weights", "scale", "resid_mix", "q_gain", "smear.gate"].map(|name| group(name, 0.02));
    let groups = groups.into_iter().chain(others).collect();
    let settings = Settings { adamw, muon: Some(Muon { lr: 0.02, ..muon }), groups };
    let mut optimizer = Optimizer::new(settings, &model.config, model.tensors()).unwrap();
    let mut losses = vec![];
    let steps = [(); 2].map(|()| {
        let (loss, grads) = loss_and_gradients(&model.config, &optimizer.tensors());
        losses.push(loss);
        optimizer.update(&grads, 1.0).unwrap();
        let copied = optimizer.tensors().into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap()));
        copied.collect::<Tensors>()
    });
    losses.push(loss_and_gradients(&model.config, &steps[1]).0);
    (steps, losses)
}

#[test]
fn optimizer_steps_are_those_of_the_scripts() {
    let (expected, scalars) = (tensors("step"), scalars());
    let muon = Muon { weight_decay: 0.04, ..Muon::default() };
    let (steps, losses) = two_steps(muon.clone());
    let golden = &scalars["optimizer"]["losses_before_step1_step2_after"];
    let losses_of = |name: &str| -> Vec<f64> {
        golden[name].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect()
    };
    for (found, expected) in losses.iter().zip(losses_of("f64")) {
        assert!((found - expected).abs() < 1e-4, "{losses:?}");
    }
    let moved: Vec<&str> = scalars["optimizer"]["groups"]["muon"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (step, tensors) in ["step1", "step2"].into_iter().zip(&steps) {
        for (name, expected) in expected.iter().filter_map(|(name, x)| Some((name.strip_prefix(step)?, x))) {
            let name = &name[1..];
            let (found, expected) = (values(&tensors[name]), values(expected)); // of tok_emb the first rows
            let errors: Vec<f32> = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).collect();
            let most = errors.iter().fold(0.0f32, |most, error| most.max(*error));
            let bound = if moved.contains(&name) { 1e-5 } else { 1e-4 };
            assert!(most < bound, "{step} {name}: {most}");
            let far = errors.iter().filter(|error| **error >= 1e-5).count();
            assert!(far * 1000 <= errors.len(), "{step} {name}: {far} of {}", errors.len());
        }
        for (name, found) in tensors {
            let sums = &scalars["optimizer"]["checksums"][step][name];
            let found = values(found);
            let square: f64 = found.iter().map(|x| f64::from(*x).powi(2)).sum();
            let expected = sums[1].as_f64().unwrap();
            assert!((square / expected - 1.0).abs() < 1e-4, "{step} {name}: {square} for {expected}");
        }
    }
    // In bf16, and with the decay behind the step.
    let name = "blocks.1.attn.c_q_up.weight";
    let bf16 = two_steps(Muon { precision: Precision::Bf16, ..muon });
    let last = two_steps(Muon { weight_decay: 0.02, decay_last: true, ..Muon::default() });
    for (of, (steps, losses), bound) in [("script_bf16", bf16, 2e-3), ("pr316_order", last, 1e-5)] {
        for (step, tensors) in ["step1", "step2"].into_iter().zip(&steps) {
            let error = far(&tensors[name], &expected[&format!("{of}.{step}.{name}")]);
            println!("{of} {step}: within {error:.1e}");
            assert!(error < bound, "{of} {step}: {error}");
        }
        for (found, expected) in losses.iter().zip(losses_of(of)) {
            assert!(
                (found - expected).abs() < if of == "script_bf16" { 2e-3 } else { 1e-4 },
                "{of}: {losses:?}"
            );
        }
    }
}

#[test]
fn codes_are_those_of_the_scripts() {
    let bytes = fs::read(format!("{FIXTURE}/quant.safetensors")).unwrap();
    let golden = SliceSafetensors::new(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let tensor = golden.load(name, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    // candle reads no i8.
    let integers = |name: &str| -> Vec<f32> {
        golden.get(name).unwrap().data().iter().map(|byte| f32::from(*byte as i8)).collect()
    };
    let matrix = |name: &str| -> (Vec<f32>, usize, usize) {
        let shape = golden.get(name).unwrap().shape().to_vec();
        (floats(name), shape[0], shape[1])
    };
    let encode = |scheme: &str, (values, rows, cols): &(Vec<f32>, usize, usize)| -> Encoded {
        scheme.parse::<Coding>().unwrap().encode(values, *rows, *cols).unwrap()
    };
    let codes = |encoded: &Encoded, bits: u8| -> Vec<f32> {
        let mut codes = vec![0; encoded.rows * encoded.cols];
        codes.chunks_mut(encoded.cols).enumerate().for_each(|(row, codes)| encoded.row_codes(row, codes));
        codes.into_iter().map(|code| f32::from(((code << (8 - bits)) as i8) >> (8 - bits))).collect()
    };
    let scales = |encoded: &Encoded| -> Vec<f32> {
        (0..encoded.rows).map(|row| encoded.row_scales(row).next().unwrap().1.scale).collect()
    };
    let w = matrix("W");
    for bits in [7, 6, 5] {
        let fake = encode(&format!("w{bits}-sf32-floor0.00000001"), &w).decode();
        assert_eq!(fake, floats(&format!("qat{bits}")), "{bits}");
    }
    for bits in [8, 7, 6, 5, 4] {
        let encoded = encode(&format!("w{bits}-q99.99984-sf16late-floor1"), &w);
        assert_eq!(codes(&encoded, bits), integers(&format!("export{bits}.codes")), "{bits}");
        let expected = floats(&format!("export{bits}.scale_f16"));
        assert!(scales(&encoded).iter().zip(&expected).all(|(a, b)| (a / b - 1.0).abs() < 1e-3), "{bits}");
    }
    let record = encode("w6-sf16", &w);
    assert_eq!(codes(&record, 6), integers("record_int6.codes"));
}

/// The shaped embedding has the singular values of the fixture's, and is as far from what it was.
#[test]
fn overtone_shapes_singular_values() {
    let bytes = fs::read(format!("{FIXTURE}/quant.safetensors")).unwrap();
    let golden = SliceSafetensors::new(&bytes).unwrap();
    for shape in ["tall", "wide"] {
        let tensor = |end: &str| golden.load(&format!("overtone.{shape}.{end}"), &Device::Cpu).unwrap();
        let shaped = init::overtone(Tensors::from([("x".to_string(), tensor("in"))]), "x").unwrap();
        let error = far(&shaped["x"], &tensor("out"));
        assert!(error < 1e-6, "{shape}: {error}");
    }
}

/// The sizes of the fixture's codes by the same encoder, and their entropies.
#[test]
fn compressed_sizes_are_those_of_the_scripts() {
    let bytes = fs::read(format!("{FIXTURE}/quant.safetensors")).unwrap();
    let (golden, sizes) = (SliceSafetensors::new(&bytes).unwrap(), scalars());
    for name in ["pr316_int6", "record_int6"] {
        let codes = golden.get(&format!("zstd.{name}.codes")).unwrap().data().to_vec();
        let expected = &sizes["quant"][format!("zstd.{name}")];
        assert_eq!(codes.len() as u64, expected["raw"].as_u64().unwrap());
        assert_eq!(artifact::compressed(&codes).unwrap().len() as u64, expected["zstd22"].as_u64().unwrap());
        let entropy = expected["entropy_bytes"].as_f64().unwrap();
        assert!((artifact::entropy(&codes) / entropy - 1.0).abs() < 1e-6, "{}", artifact::entropy(&codes));
    }
}

/// The bias after each batch, and the loss with it and without.
#[test]
fn a_bias_adapts_as_in_the_scripts() {
    let bytes = fs::read(format!("{FIXTURE}/quant.safetensors")).unwrap();
    let (golden, scalars) = (SliceSafetensors::new(&bytes).unwrap(), scalars());
    let load = |name: &str| golden.load(name, &Device::Cpu).unwrap();
    let table = load("ogd.table").to_vec2::<f32>().unwrap();
    let tokens = load("ogd.tokens").to_dtype(DType::U32).unwrap().to_vec1::<u32>().unwrap();
    let expected = load("ogd.bias_after_batch").to_vec2::<f32>().unwrap();
    let (mut bias, mut sums, mut count) = (Bias::new(32, 0.1), [0.0, 0.0], 0);
    let windows = [(0, 0), (4, 8), (8, 8), (12, 8), (16, 8)];
    for (batch, expected) in windows.chunks(2).zip(&expected) {
        for (start, first) in batch {
            let places = start + first..start + 12;
            let logits: Vec<f32> = places.clone().flat_map(|at| table[tokens[at] as usize].clone()).collect();
            let targets = &tokens[places.start + 1..places.end + 1];
            let plain = Bias::new(32, 0.0).score(&logits, targets);
            for (sum, nll) in sums.iter_mut().zip([plain, bias.score(&logits, targets)]) {
                *sum += nll.iter().map(|nll| f64::from(*nll)).sum::<f64>();
            }
            count += targets.len();
        }
        bias.step();
        assert!(bias.values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    assert_eq!(count, 28);
    for (sum, name) in sums.iter().zip(["off", "on"]) {
        let expected = scalars["quant"][format!("ogd.{name}")]["val_loss"].as_f64().unwrap();
        assert!((sum / 28.0 - expected).abs() < 1e-6, "{name}: {}", sum / 28.0);
    }
}
