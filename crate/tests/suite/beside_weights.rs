//! What stands beside weights: configs as other programs leave them, and what a pickle says of itself.

use super::command_line::lowbit;
use super::fixture::{FIXTURE, Folder, logits, tensors};
use super::left_by_training::{folder, renamed, sentence};
use super::pickled::{File, int};
use lowbit::family::{Config, mamba2};
use lowbit::model::safetensors::save_safetensors;
use lowbit::model::{Model, init};
use serde_json::json;
use std::collections::BTreeMap;

#[test]
fn mistrals_params_are_a_config() {
    let shape = mamba2::Config {
        hidden_size: 32,
        num_hidden_layers: 2,
        state_size: 4,
        head_dim: 8,
        num_heads: 8,
        n_groups: 2,
        tie_word_embeddings: false,
        ..mamba2::Config::default()
    };
    let config = Config::Mamba2(shape);
    let weights = init::initialize(&config, 3).unwrap();
    let folder = Folder::new();
    let own = |name: &str| format!("model.{}", name.replace("backbone.embeddings.", "backbone.embedding."));
    save_safetensors(&folder.at("consolidated.safetensors"), &renamed(&weights, own), &BTreeMap::new())
        .unwrap();
    let params = json!({
        "dim": 32, "n_layers": 2, "vocab_size": 256, "n_groups": 2, "rms_norm": true, "residual_in_fp32": true,
        "fused_add_norm": true, "pad_vocab_size_multiple": 1, "tie_embeddings": false, "model_type": "mamba",
    });
    folder.write("params.json", format!("\u{feff}{params}"));
    let model = folder.load();
    assert_eq!(model.config, config);
    assert!(!model.assumed.iter().any(|what| what.contains("n_groups")), "{:?}", model.assumed);
    let mut deeper = params;
    deeper["n_layers"] = json!(3);
    folder.write("params.json", deeper.to_string());
    assert!(sentence(&folder).contains("params.json: num_hidden_layers is 3, and the checkpoint has 2"));
}

#[test]
fn other_programs_keys_in_a_quantized_models_config_do_not_matter() {
    let folder = Folder::new();
    let to = folder.path().to_string_lossy().into_owned();
    let output = lowbit().args(["quantize", FIXTURE, "--scheme", "w8", "--out", &to]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = folder.load();
    let text = std::fs::read_to_string(folder.at("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text.replace("Infinity", "null")).unwrap();
    config["architectures"] = json!(["Mamba2ForCausalLM"]);
    config["torch_dtype"] = json!("float32");
    folder.write("config.json", config.to_string());
    let model = folder.load();
    assert!(model.config == expected.config && logits(&model) == logits(&expected));
    config["hidden_act"] = json!("gelu");
    folder.write("config.json", config.to_string());
    assert!(sentence(&folder).contains("config.json: hidden_act = \"gelu\" calls for an architecture"));
}

#[test]
fn a_config_beside_pickled_weights_is_not_asked_where_the_family_has_a_file_for_it() {
    let mut file = File::new(2);
    let weights = file.weights(&tensors(), &[]);
    let config = file.dict(&[("hidden_size", int(7)), ("n_groups", int(3))]);
    let (alone, beside) = (Folder::new(), Folder::new());
    file.save(&alone.at("last.pt"), &file.dict(&[("model", weights.clone())]));
    file.save(&beside.at("last.pt"), &file.dict(&[("config", config), ("model", weights)]));
    let (alone, beside) = (alone.load(), beside.load());
    assert_eq!((alone.config, alone.assumed), (beside.config, beside.assumed));
}

#[test]
fn what_a_pickle_says_of_quantization_is_told_and_kept() {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = File::new(2);
    let weights = file.weights(&tensors(), &[]);
    let scales = file.dict(&[("a", b"F0.5\n".to_vec()), ("b", b"F0.25\n".to_vec())]);
    let info = ("quantization_info", file.dict(&[("scales", scales)]));
    let config = ("quantization_config", file.subclass(&[("bnb_4bit_quant_type", text("nf4"))]));
    let rounded = "f32; 2 tensors are already fake-quantized (quantization_info)";
    for (told, line) in [(info, rounded), (config, "f32, though quantization_config says NF4")] {
        let (folder, to) = (folder(), Folder::new());
        file.save(&folder.at("last.pt"), &file.dict(&[("model", weights.clone()), told]));
        let model = folder.load();
        assert_eq!(model.stored_as.as_deref(), Some(line));
        assert!(model.card().contains(&("stored as".to_string(), line.to_string())));
        model.save(&to.at("saved")).unwrap();
        let saved = Model::load(&to.text("saved")).unwrap();
        assert_eq!(saved.stored_as.as_deref(), Some(line));
    }
}

#[test]
fn a_pickled_config_that_cannot_be_used_is_told_with_its_place() {
    let itera = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/itera-tiny/object-config.pt");
    let (folder, mut file) = (Folder::new(), File::new(4));
    let weights = file.weights(Model::load(itera).unwrap().tensors(), &[]);
    let config = file.subclass(&[("model_type", b"U\x03gpt".to_vec())]);
    file.save(&folder.at("last.pt"), &file.dict(&[("model_state_dict", weights), ("config", config)]));
    let told = sentence(&folder);
    assert!(told.contains("last.pt: config: unknown model family \"gpt\""), "{told}");
}
