//! One model in every layout it may come in: original and Hugging Face, safetensors and pickled, with and without config.

use super::command_line::{lowbit, refused};
use super::fixture::{FIXTURE, Folder, config, logits, tensors};
use super::pickled;
use candle_core::{DType, Tensor};
use lowbit::family::{Config, mamba2};
use lowbit::model::{Loading, Model, init};
use serde_json::{Value, json};
use std::collections::BTreeMap;

type Tensors = BTreeMap<String, Tensor>;

/// The tensors under the names of state-spaces/mamba.
pub fn renamed(tensors: &Tensors) -> Tensors {
    let name = |name: &String| name.replace("backbone.embeddings.", "backbone.embedding.");
    tensors.iter().map(|(n, tensor)| (name(n), tensor.clone())).collect()
}

/// The fixture's settings as state-spaces/mamba writes them: the vocabulary is the one before padding, and what is
/// as the code's defaults have it is left out.
pub fn original() -> Value {
    json!({
        "d_model": 64, "d_intermediate": 0, "n_layer": 2, "vocab_size": 250,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 16},
        "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
        "pad_vocab_size_multiple": 16, "tie_embeddings": true,
    })
}

#[test]
fn the_original_layout_is_the_same_model() {
    let hugging_face = Model::load(FIXTURE).unwrap();
    let expected = logits(&hugging_face);
    let renamed = renamed(&tensors());
    assert!(renamed.contains_key("backbone.embedding.weight"));
    let mut untied = original();
    untied["tie_embeddings"] = Value::Null;
    let mut bare = original();
    bare["ssm_cfg"] = json!({"layer": "Mamba2"});
    for config in [Some(original()), Some(untied), Some(bare), None] {
        let safetensors = Folder::checkpoint(&renamed, config.as_ref());
        let pickle = Folder::new();
        // PyTorch saves a shared matrix under both its names.
        let shared = [("lm_head.weight", "backbone.embedding.weight")];
        pickled::save(&pickle.at("pytorch_model.bin"), &renamed, &shared);
        if let Some(config) = &config {
            pickle.write("config.json", config.to_string());
        }
        for folder in [safetensors, pickle] {
            let model = folder.load();
            assert_eq!(model.config, hugging_face.config, "{config:?}");
            assert_eq!(model.parameters(), hugging_face.parameters(), "{config:?}");
            assert!(logits(&model) == expected, "{config:?}");
        }
    }
}

#[test]
fn every_setting_of_the_original_layout_counts() {
    let variant = mamba2::Config {
        hidden_size: 24,
        num_hidden_layers: 2,
        state_size: 8,
        head_dim: 6,
        num_heads: 4,
        n_groups: 2,
        conv_kernel: 3,
        use_bias: true,
        time_step_limit: (0.02, 0.05),
        tie_word_embeddings: false,
        ..mamba2::Config::default()
    };
    let config = Config::Mamba2(variant.clone());
    let tensors = init::initialize(&config, 5).unwrap();
    let expected =
        Model::from_tensors("variant", config.clone(), tensors.clone(), &Loading::default()).unwrap();
    let original = |ssm: Value| {
        let mut config = json!({"d_model": 24, "n_layer": 2, "vocab_size": 256, "tie_embeddings": false});
        config["ssm_cfg"] = ssm;
        config
    };
    let full = json!({
        "layer": "Mamba2", "d_state": 8, "d_conv": 3, "headdim": 6, "ngroups": 2, "bias": true, "conv_bias": true,
        "dt_limit": [0.02, 0.05], "chunk_size": 256, "norm_before_gate": false,
    });
    // Shapes know the product of groups and states: either setting gives the other.
    let states = json!({"layer": "Mamba2", "d_state": 8, "dt_limit": [0.02, 0.05]});
    let groups = json!({"layer": "Mamba2", "ngroups": 2, "dt_limit": [0.02, 0.05]});
    for ssm in [full, states, groups] {
        let model = Folder::checkpoint(&renamed(&tensors), Some(&original(ssm.clone()))).load();
        assert_eq!(model.config, config, "{ssm}");
        assert!(logits(&model) == logits(&expected), "{ssm}");
        assert!(!model.assumed.iter().any(|what| what.contains("time_step_limit")), "{:?}", model.assumed);
    }
    // What shapes and names cannot tell must not be passed over.
    for (key, value) in [
        ("/rms_norm", json!(false)),
        ("/d_intermediate", json!(48)),
        ("/attn_layer_idx", json!([1])),
        ("/ssm_cfg/layer", json!("Mamba1")),
        ("/ssm_cfg/norm_before_gate", json!(true)),
        ("/ssm_cfg/rmsnorm", json!(false)),
    ] {
        let mut config = original(json!({"d_state": 8, "ngroups": 2}));
        let (object, name) = key.rsplit_once('/').unwrap();
        config.pointer_mut(object).unwrap()[name] = value.clone();
        let folder = Folder::checkpoint(&renamed(&tensors), Some(&config));
        let (code, sentence) = refused(&["info", &folder.path().to_string_lossy()]);
        let part = format!("config.json: {} = {value} calls for", key[1..].replace('/', "."));
        assert!(code == 2 && sentence.contains(&part), "{part}: {sentence}");
    }
}

#[test]
fn infinity_is_read_in_every_spelling() {
    let (model, mut config) = (Model::load(FIXTURE).unwrap(), config());
    let expected = logits(&model);
    config["time_step_limit"] = json!("LIMIT");
    let folder = Folder::checkpoint(&tensors(), None);
    let with = |limit: &str| {
        folder.write("config.json", config.to_string().replace("\"LIMIT\"", limit));
        folder.load()
    };
    for limit in [
        "[0.0, Infinity]",
        "[0.0, null]",
        "[0, {\"__float__\": \"Infinity\"}]",
        "[0.0, \"Infinity\"]",
        "[\"0.0\", \"inf\"]",
        "null",
    ] {
        let model = with(limit);
        let Config::Mamba2(config) = &model.config else { panic!("{:?}", model.config) };
        assert_eq!(config.time_step_limit, (0.0, f64::INFINITY), "{limit}");
        assert!(logits(&model) == expected, "{limit}");
    }
    assert!(logits(&with("[0.0, 0.001]")) != expected, "a limit has no effect");
    // What is saved is read again, here and by Python, which spells infinity like this.
    let saved = Folder::new();
    model.save(saved.path()).unwrap();
    let text = std::fs::read_to_string(saved.at("config.json")).unwrap();
    assert!(text.contains("\"time_step_limit\": [\n    0.0,\n    Infinity\n  ]"), "{text}");
    assert_eq!(saved.load().config, model.config);
}

#[test]
fn a_large_vocabulary_without_tokenizer_is_told() {
    let card = |vocab_size: usize, tokenizer: bool| {
        let shape =
            mamba2::Config { vocab_size, hidden_size: 8, num_hidden_layers: 1, ..mamba2::Config::default() };
        let config = Config::Mamba2(shape);
        let tensors = init::initialize(&config, 1).unwrap();
        let folder = Folder::checkpoint(&tensors, Some(&serde_json::to_value(&config).unwrap()));
        if tokenizer {
            folder.write(
                "tokenizer.json",
                r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
                    "post_processor": null, "decoder": null, "truncation": null, "padding": null,
                    "model": {"type": "WordLevel", "vocab": {"[unk]": 0}, "unk_token": "[unk]"}}"#,
            );
        }
        let output = lowbit().arg("info").arg(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let told = card(50_288, false);
    assert!(told.contains("50288 (no tokenizer: token ids only)"), "{told}");
    // Bytes with some special tokens, padded, may be bytes.
    let told = card(288, false);
    assert!(
        told.contains("assumed") && told.contains("text is bytes, though the vocabulary has 288"),
        "{told}"
    );
    for (vocab, tokenizer) in [(256, false), (50_288, true)] {
        let card = card(vocab, tokenizer);
        assert!(!card.contains("assumed"), "{card}");
    }
}

#[test]
fn saving_and_loading_keeps_every_logit() {
    let folder = Folder::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let how = Loading { dtype: Some(dtype), ..Loading::default() };
        let model = Model::load_with("random:mamba2-tiny", &how).unwrap();
        model.save(folder.path()).unwrap();
        let again = folder.load();
        assert_eq!((again.dtype, again.bytes()), (dtype, model.bytes()));
        assert!(logits(&model) == logits(&again), "{dtype:?}");
    }
}
