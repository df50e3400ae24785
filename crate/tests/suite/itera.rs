//! Itera-Lite against numbers from its own model code, in every layout in which its training scripts saved it.

use super::command_line::refused;
use super::lowrankq::far;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ops::softmax;
use lowbit::Study;
use lowbit::family::{Config, itera};
use lowbit::layer::linear::Tap;
use lowbit::measure::Measure;
use lowbit::measure::salted::Salted;
use lowbit::model::{Loading, Model, Positions};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::{Arc, Mutex};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/itera-tiny");

const FILES: [&str; 4] = ["top1", "mix3", "oldnames", "object-config"];

fn load(name: &str) -> Model {
    Model::load(&format!("{FIXTURE}/{name}.pt")).unwrap()
}

fn golden(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(format!("{FIXTURE}/{name}.golden.safetensors"), &Device::Cpu).unwrap()
}

fn scalars(name: &str) -> Value {
    let all: Value =
        serde_json::from_str(&fs::read_to_string(format!("{FIXTURE}/golden.json")).unwrap()).unwrap();
    all[name].clone()
}

fn ids(golden: &HashMap<String, Tensor>) -> Tensor {
    golden["input_ids"].to_dtype(DType::U32).unwrap() // [2, 33]
}

fn shape(model: &Model) -> itera::Config {
    match &model.config {
        Config::IteraLite(config) => config.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_layout_loads_with_its_config() {
    for name in FILES {
        let (model, expected) = (load(name), scalars(name));
        let (config, stated) = (shape(&model), &expected["config"]);
        let found = serde_json::to_value(&config).unwrap();
        for key in [
            "vocab_size",
            "hidden_size",
            "num_layers",
            "ssm_state_size",
            "ssm_conv_kernel",
            "ssm_expand_factor",
            "num_experts",
            "expert_size",
            "top_k_experts",
            "moe_layers",
            "load_balance_loss_weight",
            "max_seq_length",
            "layer_norm_eps",
        ] {
            assert_eq!(found[key], stated[key], "{name}: {key}");
        }
        assert!(config.tie_word_embeddings && config.layer_sizes.is_empty());
        assert_eq!(model.parameters() as u64, expected["params"].as_u64().unwrap(), "{name}");
        let assumed: &[&str] = match name {
            "top1" | "object-config" => &[],
            _ => &["top_k_experts = 2", "load_balance_loss_weight = 0.01", "layer_norm_eps = 0.00001"],
        };
        assert_eq!(model.assumed[..assumed.len()], *assumed, "{name}");
        let told = match name {
            "top1" => "4 in 1 of the layers, 1 of them for each token",
            "mix3" => "3 in 2 of the layers, 2 of them for each token",
            "oldnames" => "4 in 1 of the layers, 2 of them for each token",
            _ => "2 in 1 of the layers, 1 of them for each token",
        };
        assert!(model.card().contains(&("experts".to_string(), told.to_string())), "{:?}", model.card());
        // How often experts were used, and, of a trainer, the state of its optimizer.
        assert!(model.unused.iter().any(|name| name.ends_with("router.expert_counts")), "{:?}", model.unused);
        // Every matrix that is a module of its own upstream is a site; positions are another.
        let sites: Vec<String> = model.config.sites().into_iter().map(|site| site.path).collect();
        let linears: Vec<String> = serde_json::from_value(expected["linear_names"].clone()).unwrap();
        let linears: Vec<String> =
            linears.into_iter().map(|name| name.replace(".moe.moe.", ".moe.layer.")).collect();
        assert!(linears.iter().all(|name| sites.contains(name)), "{name}: {linears:?} {sites:?}");
        assert_eq!(sites.len(), linears.len() + 1, "{name}");
    }
}

#[test]
fn the_fixtures_are_reproduced() {
    for name in FILES {
        let (model, golden) = (load(name), golden(name));
        let tokens = ids(&golden);
        let mut state = model.state(2).unwrap();
        let logits = model.forward(&tokens, Some(&mut state), Positions::All).unwrap();
        let error = far(&logits, &golden["logits"]);
        println!("{name}: logits within {error:.1e}");
        assert!(error < 1e-4, "{name}: {error}");
        for (layer, state) in state.layers.iter().enumerate() {
            let (h, conv) = (state.recurrent.as_ref().unwrap(), state.conv.as_ref().unwrap());
            let expected = &golden["ssm_states"].get(layer).unwrap(); // [B, N]
            assert!(far(&h.reshape(expected.shape()).unwrap(), expected) < 1e-5, "{name}");
            let kept = conv.narrow(2, 1, 3).unwrap(); // the oldest of four is never needed again
            assert!(far(&kept, &golden["conv_states"].get(layer).unwrap()) < 1e-5, "{name}");
        }
        let stack = model.config.stack(model.tensors(), &Default::default()).unwrap();
        let mut stream = stack.embed(&tokens.narrow(0, 0, 1).unwrap()).unwrap();
        for layer in 0..=model.config.layers() {
            let error = far(&stream.squeeze(0).unwrap(), &golden["hidden_row0"].get(layer).unwrap());
            assert!(error < 1e-4, "{name}: the stream before layer {layer} differs by {error}");
            if layer < model.config.layers() {
                stream = stack.through(stream, layer..layer + 1, None).unwrap();
            }
        }
    }
}

#[test]
fn split_prefill_and_steps_equal_the_whole_prefill() {
    for name in FILES {
        let (model, golden) = (load(name), golden(name));
        let tokens = ids(&golden);
        let whole = model.forward(&tokens, None, Positions::All).unwrap();
        for cuts in [vec![1], vec![2, 20], vec![5, 6, 30], (1..33).collect()] {
            let (mut state, mut first, mut pieces) = (model.state(2).unwrap(), 0, vec![]);
            for cut in cuts.into_iter().chain([33]) {
                let piece = tokens.narrow(1, first, cut - first).unwrap();
                pieces.push(model.forward(&piece, Some(&mut state), Positions::All).unwrap());
                first = cut;
            }
            let error = far(&Tensor::cat(&pieces, 1).unwrap(), &whole);
            assert!(error < 5e-5, "{name}: {error}"); // f32 itself is 2e-5 from f64 here
            assert_eq!(state.bytes(), model.state_bytes(2, 33));
        }
        let ids = tokens.get(0).unwrap().to_vec1::<u32>().unwrap();
        let mut state = model.state(1).unwrap();
        model.prefill(&ids[..20], &mut state).unwrap();
        let last = ids[20..].iter().map(|id| model.step(*id, &mut state).unwrap()).last().unwrap();
        let last = Tensor::from_vec(last, model.config.vocab_size(), &Device::Cpu).unwrap();
        assert!(far(&last, &whole.get(0).unwrap().get(32).unwrap()) < 5e-5, "{name}");
    }
}

/// Loss, loss of unequal use, and gradients of the differentiable definition over a batch; the fused way back is held to it beside
/// the code.
#[test]
fn gradients_are_those_of_its_own_code() {
    let (model, golden, scalars) = (load("mix3"), golden("mix3"), scalars("mix3"));
    let vars: BTreeMap<String, Var> = model
        .tensors()
        .iter()
        .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
        .collect();
    let tracked = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let mut stack = model.config.stack(&tracked, &Default::default()).unwrap();
    // What each router reads, with the graph behind it.
    let read = Arc::new(Mutex::new(vec![]));
    for (path, linear) in stack.linears_mut() {
        if path.ends_with("router.gate") {
            let (seen, weight) = (read.clone(), vars[&format!("{path}.weight")].clone());
            linear.tap = Some(Tap(Arc::new(move |u: &Tensor| {
                seen.lock().unwrap().push((u.clone(), weight.clone()));
                Ok(())
            })));
        }
    }
    let tokens = ids(&golden);
    let logits = stack.logits(&stack.hidden(&tokens, None).unwrap()).unwrap();
    let rows = logits.narrow(1, 0, 32).unwrap().contiguous().unwrap().reshape(((), 90)).unwrap();
    let targets = tokens.narrow(1, 1, 32).unwrap().contiguous().unwrap().flatten_all().unwrap();
    let text = cross_entropy(&rows, &targets).unwrap();
    let unequal = |(u, gate): &(Tensor, Var)| -> Result<Tensor> {
        let logits = u.reshape(((), 24))?.matmul(&gate.as_tensor().t()?)?; // [tokens, 3]
        let shares = softmax(&logits, D::Minus1)?.mean(0)?;
        let mean = shares.mean_all()?;
        let variance = (shares.broadcast_sub(&mean)?.sqr()?.sum_all()? / 2.0)?;
        (variance / (mean + 1e-6)?.sqr()?)? * 0.01
    };
    let unequal =
        read.lock().unwrap().iter().map(|read| unequal(read).unwrap()).reduce(|a, b| (a + b).unwrap());
    let unequal = unequal.unwrap();
    let value = |x: &Tensor| f64::from(x.to_scalar::<f32>().unwrap());
    assert!((value(&text) - scalars["cross_entropy_shifted"].as_f64().unwrap()).abs() < 2e-6);
    assert!((value(&unequal) - scalars["aux_loss"].as_f64().unwrap()).abs() < 1e-7);
    let grads = (text + unequal).unwrap().backward().unwrap();
    let mut furthest = 0.0f32;
    for (name, var) in &vars {
        let expected = &golden[&format!("grad.{name}")];
        let error = far(&grads.get(var).unwrap().reshape(expected.shape()).unwrap(), expected);
        assert!(error < 1e-5, "{name}: {error}");
        furthest = furthest.max(error);
    }
    println!("gradients within {furthest:.1e}");
}

/// All linears as NF4 with double quantization: with the head, which the embedding then no longer equals, and without.
#[test]
fn nf4_gives_the_published_logits() {
    let (model, golden) = (load("mix3"), golden("mix3"));
    let tokens = ids(&golden);
    let kept = model.quantized(&"nf4dq+router=nf4dq+head=keep".parse().unwrap()).unwrap();
    let error = far(&kept.forward(&tokens, None, Positions::All).unwrap(), &golden["nf4_head_kept.logits"]);
    println!("head kept: logits within {error:.1e}");
    assert!(error < 1e-4, "{error}");
    let mut untied = shape(&model);
    untied.tie_word_embeddings = false;
    let mut tensors = model.tensors().clone();
    tensors.insert("lm_head.weight".to_string(), tensors["embedding.weight"].clone());
    let untied =
        Model::from_tensors("untied", Config::IteraLite(untied), tensors, &Loading::default()).unwrap();
    let scheme = "nf4dq+router=nf4dq+head=nf4dq".parse().unwrap();
    let both = untied.quantized(&scheme).unwrap();
    let error = far(&both.forward(&tokens, None, Positions::All).unwrap(), &golden["nf4.logits"]);
    println!("head too: logits within {error:.1e}");
    assert!(error < 1e-4, "{error}");
    // A tied head is one matrix, quantized or not.
    let tied = model.quantized(&scheme).unwrap();
    assert!(tied.config.tied().is_some() && tied.bytes() < both.bytes());
}

#[test]
fn a_model_is_saved_and_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    for (name, scheme) in
        [("top1", None), ("mix3", None), ("oldnames", Some("nf4dq")), ("top1", Some("w4a8"))]
    {
        let (model, golden) = (load(name), golden(name));
        let model = match scheme {
            Some(scheme) => model.quantized(&scheme.parse().unwrap()).unwrap(),
            None => model,
        };
        let path = folder.path().join(format!("{name}-{}", scheme.unwrap_or("f32")));
        model.save(&path).unwrap();
        let again = Model::load(path.to_str().unwrap()).unwrap();
        assert_eq!(shape(&again), shape(&model));
        let [a, b] = [&model, &again].map(|m| m.forward(&ids(&golden), None, Positions::All).unwrap());
        assert_eq!(far(&a, &b), 0.0, "{name} {scheme:?}");
    }
}

#[test]
fn no_sequence_is_longer_than_the_table_of_positions() {
    let model = load("mix3");
    let tokens = Tensor::zeros((1, 41), DType::U32, &Device::Cpu).unwrap();
    let error = model.forward(&tokens, None, Positions::All).unwrap_err().to_string();
    assert!(
        error.contains("a sequence of 41 tokens is longer than the model can read, which is 40"),
        "{error}"
    );
    let mut state = model.state(1).unwrap();
    model.prefill(&[1; 40], &mut state).unwrap();
    let error = model.step(1, &mut state).unwrap_err().to_string();
    assert!(error.contains("41 tokens is longer"), "{error}");
    let path = format!("{FIXTURE}/mix3.pt");
    // What reads no more goes, and so does the estimate of how long it takes.
    let salted = Salted { samples: 2, seq_len: 40, salts: 1, ..Salted::default() };
    assert_eq!(salted.measure(&model).unwrap().len(), 2);
    let study = Study::new("short").models([&path]).measure(salted);
    assert!(study.expected().unwrap() < std::time::Duration::from_secs(600));
    let (_, error) = refused(&["cost", &path, "--lengths", "64"]);
    assert!(error.contains("longer than the model can read, which is 40"), "{error}");
}

#[test]
fn what_is_missing_or_contradicts_itself_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let write = |tensors: &HashMap<String, Tensor>| candle_core::safetensors::save(tensors, &path).unwrap();
    let all: HashMap<String, Tensor> = load("mix3").tensors().clone().into_iter().collect();
    let sentence = || Model::load(folder.path().to_str().unwrap()).unwrap_err().to_string();
    // As in a published file: the router without rows, and no expert.
    let mut without = all.clone();
    without.retain(|name, _| !name.contains(".experts."));
    for layer in [0, 3] {
        let gate = format!("layers.{layer}.moe.layer.router.gate.weight");
        without.insert(gate, Tensor::zeros((0, 24), DType::F32, &Device::Cpu).unwrap());
    }
    write(&without);
    let expected = "layers.0.moe and layers.3.moe have a router for 0 experts: the expert weights are missing from this file";
    assert!(sentence().contains(expected), "{}", sentence());
    let mut one = all.clone();
    one.remove("layers.3.moe.layer.experts.1.w2.weight");
    write(&one);
    assert!(
        sentence().contains("lacks what the config calls for: layers.3.moe.layer.experts.1.w2.weight"),
        "{}",
        sentence()
    );
    write(&all);
    for (config, told) in [
        (
            r#"{"model_type": "itera_lite", "top_k_experts": 4}"#,
            "top_k_experts = 4 is more than num_experts = 3",
        ),
        (
            r#"{"model_type": "itera_lite", "moe_layers": [1, 3]}"#,
            "moe_layers is [1,3], and the layers that have a router are [0,3]",
        ),
        (r#"{"model_type": "itera_lite", "num_experts": 4}"#, "lacks what the config calls for"),
        (r#"{"model_type": "llama"}"#, "the tensors are those of a itera_lite"),
    ] {
        fs::write(folder.path().join("config.json"), config).unwrap();
        assert!(sentence().contains(told), "{}", sentence());
    }
}

/// Layers of different widths, as pruning leaves them, are told by the shapes.
#[test]
fn layers_may_differ_in_size() {
    let layer = |inner, widths: &[usize]| itera::Layer { inner, widths: widths.to_vec() };
    let config = itera::Config {
        vocab_size: 256,
        hidden_size: 16,
        num_layers: 2,
        num_experts: 4,
        moe_layers: vec![1],
        max_seq_length: 40,
        layer_sizes: vec![layer(24, &[9]), layer(32, &[5, 12, 7])],
        ..itera::Config::default()
    };
    let how = Loading::default();
    let model = Model::random("pruned", Config::IteraLite(config.clone()), 3, &how).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tensors: HashMap<String, Tensor> = model.tensors().clone().into_iter().collect();
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    let found = shape(&Model::load(folder.path().to_str().unwrap()).unwrap());
    assert_eq!(found.layer_sizes, config.layer_sizes);
    model.save(&folder.path().join("saved")).unwrap();
    let again = Model::load(folder.path().join("saved").to_str().unwrap()).unwrap();
    assert_eq!(shape(&again), config);
}

/// The files that were published, by a path: `LOWBIT_ITERA_LITE`.
#[test]
fn the_published_files_load_or_are_refused_with_their_sentence() {
    let Ok(folder) = std::env::var("LOWBIT_ITERA_LITE") else {
        println!("skipped: LOWBIT_ITERA_LITE does not name the folder of the published files");
        return;
    };
    let load = |name: &str| Model::load(&format!("{folder}/itera_lite_{name}.pt"));
    let golden =
        candle_core::safetensors::load(format!("{folder}/golden.safetensors"), &Device::Cpu).unwrap();
    let model = load("micro_distilled").unwrap();
    assert!(model.assumed.contains(&"top_k_experts = 2".to_string()), "{:?}", model.assumed);
    let tokens = golden["input_ids"].to_dtype(DType::U32).unwrap();
    let logits = model.forward(&tokens, None, Positions::All).unwrap(); // [B, T, V]
    let expected = &golden["logits"];
    let positions: Vec<u32> = (0..expected.dim(1).unwrap() as u32).map(|i| 16 * i).collect();
    let at = Tensor::new(positions, &Device::Cpu).unwrap();
    let error = far(&logits.index_select(&at, 1).unwrap(), expected);
    println!("logits within {error:.1e}");
    assert!(error < 1e-4, "{error}");
    let int4 = load("int4").unwrap();
    let told = "33 tensors are already fake-quantized";
    assert!(int4.stored_as.as_ref().is_some_and(|line| line.contains(told)), "{:?}", int4.stored_as);
    for (name, told) in [
        (
            "mixed_precision",
            "layers.1.moe and layers.3.moe have a router for 0 experts: the expert weights are missing from this file",
        ),
        ("tiny_int8", "PyTorch dynamic-int8 packed weights (layers.0.ssm.in_proj._packed_params)"),
    ] {
        let error = load(name).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}
