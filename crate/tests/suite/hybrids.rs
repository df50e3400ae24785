//! Hybrids of Mamba2 and attention against numbers from transformers, in both spellings of their configs.

use super::lowrankq::far;
use candle_core::{DType, Device, Tensor};
use lowbit::layer::attention::Cache;
use lowbit::measure::sqnr::Sqnr;
use lowbit::model::{Model, Positions};
use lowbit::record::Reading;
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hybrids-tiny");

/// Fixtures with their family.
const SHAPES: [(&str, &str); 7] = [
    ("granite-rope", "granitemoehybrid"),
    ("granite-nope-dense", "granitemoehybrid"),
    ("bamba", "bamba"),
    ("falcon-gate", "falcon_h1"),
    ("falcon-norm", "falcon_h1"),
    ("nemotron", "nemotron_h"),
    ("nemotron-moe", "nemotron_h"),
];

fn folder(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn load(name: &str) -> Model {
    Model::load(folder(name).to_str().unwrap()).unwrap()
}

/// The model of a fixture with its config changed.
fn with(name: &str, file: &str, change: impl FnOnce(&mut Value)) -> lowbit::Result<Model> {
    let place = tempfile::tempdir().unwrap();
    // Python's bare word for what JSON cannot write.
    let text = fs::read_to_string(folder(name).join(file)).unwrap().replace(" Infinity", " null");
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut config);
    fs::write(place.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(folder(name).join("model.safetensors"), place.path().join("model.safetensors")).unwrap();
    Model::load(place.path().to_str().unwrap())
}

fn golden(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder(name).join("golden.safetensors"), &Device::Cpu).unwrap()
}

fn ids(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::U32).unwrap()
}

fn scalars(name: &str) -> Value {
    let all = fs::read_to_string(Path::new(FIXTURES).join("golden.json")).unwrap();
    serde_json::from_str::<Value>(&all).unwrap()[name].clone()
}

#[test]
fn every_spelling_of_a_config_loads_the_same_model_with_no_tensor_left() {
    for (name, family) in SHAPES {
        let model = load(name);
        assert_eq!((model.config.family(), model.unused.len()), (family, 0), "{name}: {:?}", model.unused);
        assert_eq!(model.assumed, Vec::<String>::new(), "{name}");
        assert_eq!(model.parameters() as u64, scalars(name)["parameters"].as_u64().unwrap(), "{name}");
        let legacy = tempfile::tempdir().unwrap();
        fs::copy(folder(name).join("config.legacy.json"), legacy.path().join("config.json")).unwrap();
        fs::copy(folder(name).join("model.safetensors"), legacy.path().join("model.safetensors")).unwrap();
        let legacy = Model::load(legacy.path().to_str().unwrap()).unwrap();
        assert_eq!((&legacy.config, &legacy.assumed), (&model.config, &model.assumed), "{name}");
    }
}

#[test]
fn the_fixtures_are_reproduced() {
    for (name, _) in SHAPES {
        let (model, golden) = (load(name), golden(name));
        let tokens = ids(&golden["input_ids"]);
        let mut state = model.state(2).unwrap();
        let logits = model.forward(&tokens, Some(&mut state), Positions::All).unwrap();
        let error = far(&logits, &golden["logits"]);
        let (mut mixers, mut attentions, mut worst) = (0, 0, 0f32);
        let mut hold = |found: &Tensor, of: &str, at: usize| {
            let error = far(found, &golden[of].get(at).unwrap());
            assert!(error < 1e-4, "{name}: {of} {at} differs by {error}");
            worst = worst.max(error);
        };
        for layer in &state.layers {
            if let (Some(h), Some(conv)) = (&layer.recurrent, &layer.conv) {
                hold(h, "ssm_states", mixers);
                hold(conv, "conv_states", mixers);
                mixers += 1;
            }
            if let Some(Cache::Kernel(cache)) = &layer.cache {
                for (found, of) in cache.widened().into_iter().zip(["k_cache", "v_cache"]) {
                    let expected = golden[of].get(attentions).unwrap(); // [2, KV, 37, D]
                    let found = Tensor::from_vec(found, expected.shape(), &Device::Cpu).unwrap();
                    hold(&found, of, attentions);
                }
                attentions += 1;
            }
        }
        assert_eq!(golden["ssm_states"].dim(0).unwrap(), mixers);
        assert_eq!(golden["k_cache"].dim(0).unwrap(), attentions);
        let stack = model.config.stack(model.tensors(), &Default::default()).unwrap();
        let mut stream = stack.embed(&tokens.narrow(0, 0, 1).unwrap()).unwrap();
        for layer in 0..=model.config.layers() {
            hold(&stream.squeeze(0).unwrap(), "hidden_row0", layer);
            if layer < model.config.layers() {
                stream = stack.through(stream, layer..layer + 1, None).unwrap();
            }
        }
        println!("{name}: logits within {error:.1e}, states and stream within {worst:.1e}");
        assert!(error < 1e-4, "{name}: {error}");
        let prompt: Vec<u32> = tokens.get(0).unwrap().to_vec1().unwrap();
        let expected: Vec<u32> = ids(&golden["greedy_row0"]).to_vec1().unwrap();
        assert_eq!(model.continue_greedily(&prompt, expected.len()).unwrap(), expected, "{name}");
        let nll = model.nll(&prompt, prompt.len() - 1).unwrap();
        assert_eq!(nll.len(), prompt.len() - 1);
    }
}

/// 421 tokens are cut into three pieces: with a cut of its own for each count of threads, an expert would meet other tokens side
/// by side, and another kernel.
#[test]
fn logits_are_the_same_on_any_number_of_threads() {
    for (name, scheme) in SHAPES.iter().flat_map(|(name, _)| [(name, None), (name, Some("w8a8"))]) {
        let mut model = load(name);
        if let Some(scheme) = scheme {
            model = model.quantized(&scheme.parse().unwrap()).unwrap();
        }
        let prompt: Vec<u32> = (0..421).map(|at| at * at * 31 % 96).collect();
        let tokens = model.tokens(&prompt).unwrap();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let logits = pool.install(|| {
                let mut state = model.state(1).unwrap();
                model.forward(&tokens, Some(&mut state), Positions::All).unwrap()
            });
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let alone = on(1);
        for threads in [2, 3] {
            assert!(on(threads) == alone, "{name} in {scheme:?}: {threads} threads");
        }
    }
}

#[test]
fn steps_are_the_prefill_and_a_clamp_holds_in_both() {
    for (name, _) in SHAPES {
        let (model, golden) = (load(name), golden(name));
        let tokens = ids(&golden["input_ids"]);
        for cuts in [vec![1], vec![2, 20], vec![16, 17, 32], (1..37).collect()] {
            let (mut state, mut first, mut pieces) = (model.state(2).unwrap(), 0, vec![]);
            for cut in cuts.into_iter().chain([37]) {
                let piece = tokens.narrow(1, first, cut - first).unwrap();
                pieces.push(model.forward(&piece, Some(&mut state), Positions::All).unwrap());
                first = cut;
            }
            let error = far(&Tensor::cat(&pieces, 1).unwrap(), &golden["logits"]);
            assert!(error < 1e-4, "{name}: {error}");
            assert_eq!(state.bytes(), model.state_bytes(2, 37), "{name}");
        }
        let ids = tokens.get(1).unwrap().to_vec1::<u32>().unwrap();
        let mut state = model.state(1).unwrap();
        model.prefill(&ids[..20], &mut state).unwrap();
        let last = ids[20..].iter().map(|id| model.step(*id, &mut state).unwrap()).last().unwrap();
        let last = Tensor::from_vec(last, model.config.vocab_size(), &Device::Cpu).unwrap();
        let error = far(&last, &golden["logits"].get(1).unwrap().get(36).unwrap());
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn without_its_clamp_a_model_is_another() {
    for (name, _) in SHAPES.into_iter().filter(|(name, _)| ["granite-nope-dense", "nemotron"].contains(name))
    {
        let golden = golden(name);
        let model = with(name, "config.json", |config| config["time_step_limit"] = Value::Null).unwrap();
        let logits = model.forward(&ids(&golden["input_ids"]), None, Positions::All).unwrap();
        assert!(far(&logits, &golden["logits"]) > 0.5, "{name}");
        assert_eq!(model.assumed, ["time_step_limit = [0, inf]"]);
    }
}

#[test]
fn a_saved_model_is_itself_again_in_the_layout_of_hugging_face() {
    for (name, _) in SHAPES {
        let (model, place) = (load(name), tempfile::tempdir().unwrap());
        let path = place.path().join("saved");
        model.save(&path).unwrap();
        let again = Model::load(path.to_str().unwrap()).unwrap();
        assert_eq!((&again.config, again.assumed.len()), (&model.config, 0), "{name}");
        let names = |folder: &Path| {
            let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu);
            let mut all: Vec<_> =
                tensors.unwrap().into_iter().map(|(name, tensor)| (name, tensor.dims().to_vec())).collect();
            all.sort();
            all
        };
        assert_eq!(names(&path), names(&folder(name)), "{name}");
        let tokens: Vec<u32> = (0..40).map(|i| i * 31 % 96).collect();
        assert_eq!(again.nll(&tokens, 39).unwrap(), model.nll(&tokens, 39).unwrap(), "{name}");
    }
}

#[test]
fn schemes_keep_the_function_and_come_back_from_a_file() {
    let tokens: Vec<u32> = (0..60).map(|i| i * 31 % 96).collect();
    for (name, _) in SHAPES {
        let model = load(name);
        let exact = model.nll(&tokens, 50).unwrap();
        // Where experts are chosen by the skin of their teeth, rounding sends tokens elsewhere.
        let rounded = if name == "nemotron-moe" { 1.5 } else { 0.2 };
        for (scheme, most) in [
            ("w16a16-rot", 1e-3),
            ("w8a16", rounded),
            ("w8a16-rot", rounded),
            ("w8a16-kv8", rounded),
            ("nf4-g8", 3.0),
        ] {
            let made = model.quantized(&scheme.parse().unwrap()).unwrap();
            let found = made.nll(&tokens, 50).unwrap();
            let squares = exact.iter().zip(&found).map(|(a, b)| f64::from(a - b).powi(2));
            let error = (squares.sum::<f64>() / exact.len() as f64).sqrt();
            println!("{name} {scheme}: NLL moves by {error:.4}");
            assert!(error > 0.0 && error < most, "{name} {scheme}: {error}");
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("saved");
            made.save(&path).unwrap();
            let again = Model::load(path.to_str().unwrap()).unwrap();
            assert_eq!(again.nll(&tokens, 50).unwrap(), found, "{name} {scheme}");
        }
    }
}

/// Experts, routers, recurrences and attention are found where they are side by side.
#[test]
fn measurements_see_the_tokens_of_each_expert() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    fs::write(&file, "Who is sent to whom is what a router says, and rounding says it otherwise. ".repeat(6))
        .unwrap();
    for (shape, router, expert) in [
        ("granite-hybrid-tiny", "block_sparse_moe.router.layer", "block_sparse_moe.experts.1.input_linear"),
        ("nemotron-h-tiny", "mixer.gate", "mixer.experts.1.up_proj"),
    ] {
        let model = Model::load(&format!("random:{shape}")).unwrap();
        let coarse = model.quantized(&"w3a16+router=w2".parse().unwrap()).unwrap();
        let rows = Sqnr { seq_len: 128, ..Sqnr::default() }.on(&file).compare(&model, &coarse).unwrap();
        let of = |path: &str| {
            let found = |row: &&Reading| {
                row.values.get("layer").and_then(Value::as_str).is_some_and(|at| at.ends_with(path))
            };
            rows.iter().find(found).unwrap()
        };
        assert!(of(router).values.get("sent_alike").is_none());
        let (sent, ratio) = (of(expert).number("sent_alike").unwrap(), of(expert).number("sqnr_db").unwrap());
        assert!((0.1..1.0).contains(&sent) && (2.0..30.0).contains(&ratio), "{shape}: {sent} {ratio}");
    }
}

#[test]
fn recurrences_are_found_by_the_matrix_that_feeds_them() {
    for (name, _) in SHAPES {
        let model = load(name);
        let stack = model.config.stack(model.tensors(), &Default::default()).unwrap();
        let (sites, all) = (model.config.sites(), stack.recurrences());
        assert_eq!(all.len(), golden(name)["ssm_states"].dim(0).unwrap());
        for recurring in all {
            let site = &sites[recurring.entry];
            assert_eq!((site.roles.as_slice(), site.layer), (&["in_proj"][..], Some(recurring.layer)));
        }
    }
}

#[test]
fn the_names_of_transformers_5_are_read_and_heads_for_more_tokens_left_alone() {
    let (golden, place) = (golden("nemotron-moe"), tempfile::tempdir().unwrap());
    let tensors =
        candle_core::safetensors::load(folder("nemotron-moe").join("model.safetensors"), &Device::Cpu);
    let renamed = |(name, tensor): (String, Tensor)| (name.replacen("backbone.", "model.", 1), tensor);
    let mut tensors: HashMap<String, Tensor> = tensors.unwrap().into_iter().map(renamed).collect();
    for name in ["mtp.layers.0.norm.weight", "mtp.layers.0.mixer.q_proj.weight"] {
        tensors.insert(name.to_string(), Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap());
    }
    candle_core::safetensors::save(&tensors, place.path().join("model.safetensors")).unwrap();
    fs::copy(folder("nemotron-moe").join("config.json"), place.path().join("config.json")).unwrap();
    let model = Model::load(place.path().to_str().unwrap()).unwrap();
    assert_eq!(model.unused, ["mtp.layers.0.mixer.q_proj.weight", "mtp.layers.0.norm.weight"]);
    let logits = model.forward(&ids(&golden["input_ids"]), None, Positions::All).unwrap();
    assert!(far(&logits, &golden["logits"]) < 1e-4);
}

#[test]
fn a_nemotron_of_mixers_alone_is_told_from_a_mamba2_by_its_name() {
    let mamba2 = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mamba2-tiny");
    assert_eq!(Model::load(mamba2).unwrap().config.family(), "mamba2");
    let place = tempfile::tempdir().unwrap();
    fs::copy(format!("{mamba2}/model.safetensors"), place.path().join("model.safetensors")).unwrap();
    fs::write(place.path().join("config.json"), r#"{"model_type": "nemotron_h"}"#).unwrap();
    assert_eq!(Model::load(place.path().to_str().unwrap()).unwrap().config.family(), "nemotron_h");
}

#[test]
fn what_is_not_here_is_refused_by_key() {
    type Case = (&'static str, &'static str, Value, &'static str);
    let cases: Vec<Case> = vec![
        ("granite-rope", "hidden_act", "gelu".into(), "hidden_act = \"gelu\""),
        ("granite-rope", "position_embedding_type", "alibi".into(), "position_embedding_type = \"alibi\""),
        ("granite-rope", "num_local_experts", 3.into(), "num_local_experts is 3"),
        ("granite-rope", "num_experts_per_tok", Value::Null, "num_experts_per_tok is not stated"),
        ("granite-rope", "num_experts_per_tok", 5.into(), "num_experts_per_tok = 5 is more than"),
        (
            "granite-rope",
            "layer_types",
            serde_json::json!(["mamba", "mamba", "mamba", "mamba"]),
            "layer_types is",
        ),
        ("granite-rope", "layer_types", serde_json::json!(["conv"]), "layer_types: unknown variant `conv`"),
        ("granite-rope", "rope_parameters", serde_json::json!({"rope_type": "longrope"}), "longrope"),
        ("granite-rope", "num_hidden_layers", 5.into(), "num_hidden_layers is 5"),
        ("granite-rope", "logits_scaling", 0.into(), "logits_scaling must be a number other than 0"),
        ("granite-nope-dense", "mamba_n_groups", 4.into(), "mamba_n_groups = 4 does not divide"),
        ("granite-nope-dense", "time_step_limit", 3.into(), "time_step_limit must be a pair"),
        ("granite-nope-dense", "attention_bias", false.into(), "has what the config does not call for"),
        ("granite-nope-dense", "sliding_window", 16.into(), "sliding_window = 16"),
        ("bamba", "hidden_act", "gelu".into(), "hidden_act = \"gelu\""),
        ("bamba", "attn_layer_indices", serde_json::json!([1]), "attn_layer_indices is [1]"),
        ("bamba", "num_attention_heads", Value::Null, "num_attention_heads is not stated"),
        ("bamba", "mlp_bias", true.into(), "lacks what the config calls for"),
        ("bamba", "mamba_d_head", 4.into(), "expected shape"),
        (
            "bamba",
            "rope_parameters",
            serde_json::json!({"rope_theta": 1e4, "partial_rotary_factor": 0.4}),
            "3 of head_dim = 8 values cannot be turned in pairs",
        ),
        ("falcon-gate", "hidden_act", "gelu".into(), "hidden_act = \"gelu\""),
        (
            "falcon-gate",
            "mamba_d_ssm",
            48.into(),
            "mamba_d_ssm is 48, and mamba_n_heads × mamba_d_head is 40",
        ),
        ("falcon-gate", "mamba_rms_norm", true.into(), "lacks what the config calls for"),
        (
            "falcon-gate",
            "ssm_multipliers",
            serde_json::json!([1, 2]),
            "ssm_multipliers must be a list of 5 numbers",
        ),
        ("falcon-gate", "key_multiplier", "x".into(), "key_multiplier must be a number"),
        ("falcon-norm", "projectors_bias", false.into(), "has what the config does not call for"),
        ("falcon-norm", "sliding_window", 9.into(), "sliding_window = 9"),
        ("nemotron", "mlp_hidden_act", "silu".into(), "mlp_hidden_act = \"silu\""),
        ("nemotron", "layers_block_type", serde_json::json!(["mlp"]), "layers_block_type is"),
        ("nemotron", "hybrid_override_pattern", "M-M*-X".into(), "has a layer 'X'"),
        ("nemotron", "head_dim", 24.into(), "expected shape"),
        ("nemotron", "use_bias", true.into(), "lacks what the config calls for"),
        ("nemotron-moe", "moe_latent_size", 8.into(), "moe_latent_size = 8"),
        ("nemotron-moe", "n_group", 4.into(), "n_group = 4 and topk_group = 1 do not fit"),
        (
            "nemotron-moe",
            "num_experts_per_tok",
            4.into(),
            "num_experts_per_tok = 4 is more than the 3 experts",
        ),
        ("nemotron-moe", "n_shared_experts", 2.into(), "n_shared_experts = 2"),
    ];
    for (name, key, value, part) in cases {
        let error = with(name, "config.json", |config| config[key] = value.clone()).unwrap_err().to_string();
        assert!(error.contains(part), "{name} {key}: {error}");
    }
}
