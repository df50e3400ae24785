//! Broken checkpoints: each is refused in one sentence that names the file or tensor, what was expected and found.

use super::command_line::refused;
use super::fixture::{FIXTURE, Folder, config, tensors};
use candle_core::{DType, Tensor};
use serde_json::json;
use std::fs;

const OUT: &str = "backbone.layers.1.mixer.out_proj.weight";

/// `info` and `ppl` must both refuse the model, in the same sentence with these parts.
fn check(model: &str, code: i32, parts: &[&str]) {
    let (found, sentence) = refused(&["info", model]);
    assert_eq!(found, code, "{sentence}");
    parts.iter().for_each(|part| assert!(sentence.contains(part), "{part}: {sentence}"));
    assert_eq!(refused(&["ppl", model]), (found, sentence));
}

fn check_folder(folder: &Folder, parts: &[&str]) {
    let path = folder.path().to_string_lossy();
    check(&path, 2, &[&[&*path], parts].concat());
}

#[test]
fn what_is_not_there() {
    check("no/such/model.safetensors", 3, &["no/such/model.safetensors: no such file", "hub id"]);
    let folder = Folder::new();
    check_folder(&folder, &["no weights in this folder", "model.safetensors"]);
    folder.write("model.onnx", "");
    check(&folder.text("model.onnx"), 2, &["model.onnx: this file's ending", "expected .safetensors"]);
    folder.write("model.gguf", "");
    check(&folder.text("model.gguf"), 2, &["model.gguf: not a whole GGUF file", "copy or download"]);
}

#[test]
fn files_that_were_cut_short() {
    let whole = fs::read(format!("{FIXTURE}/model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let folder = Folder::new();
    for (length, expected) in [(5, 8), (300, header), (header + 1000, whole.len())] {
        folder.write("model.safetensors", &whole[..length]);
        let (expected, found) = (format!(" {expected} bytes"), format!("found {length}; "));
        check_folder(&folder, &["model.safetensors: truncated", &expected, &found, "copy or download"]);
    }
    folder.write("model.safetensors", [&whole[..8], &[b'!'; 3000]].concat());
    check_folder(&folder, &["model.safetensors: the safetensors header is damaged"]);
}

#[test]
fn pickles_that_are_none() {
    let folder = Folder::new();
    for bytes in [&b"this is no pickle"[..], b"", b"PK\x03\x04 and no more"] {
        folder.write("pytorch_model.bin", bytes);
        check_folder(&folder, &["pytorch_model.bin: not a whole file of torch.save", "again"]);
    }
}

#[test]
fn tensors_of_another_shape() {
    for layer in [0, 1] {
        let name = format!("backbone.layers.{layer}.mixer.out_proj.weight");
        let folder = Folder::with_tensor(&name, |t| t.t().unwrap().contiguous().unwrap());
        check_folder(&folder, &[&name, "expected shape [64, 128], found [128, 64]", "config"]);
    }
    let folder = Folder::with_tensor("backbone.layers.0.mixer.conv1d.weight", |t| t.squeeze(1).unwrap());
    check_folder(&folder, &["mixer.conv1d.weight", "expected 3 dimensions, found shape [160, 4]"]);
    let folder = Folder::with_tensor("backbone.embeddings.weight", |t| t.narrow(0, 0, 200).unwrap());
    check_folder(&folder, &["embeddings.weight: expected shape [256, 64], found [200, 64]"]);
}

#[test]
fn tensors_too_few_and_too_many() {
    let mut fewer = tensors();
    fewer.remove("backbone.layers.1.mixer.A_log");
    let folder = Folder::checkpoint(&fewer, Some(&config()));
    check_folder(&folder, &["lacks what the config calls for: backbone.layers.1.mixer.A_log;"]);
    let mut more = tensors();
    more.insert(
        "backbone.layers.0.mixer.in_proj.bias".to_string(),
        tensors()["backbone.norm_f.weight"].clone(),
    );
    let folder = Folder::checkpoint(&more, Some(&config()));
    check_folder(&folder, &["does not call for: backbone.layers.0.mixer.in_proj.bias;"]);
    // What stands beside the network is no contradiction, and the card lists it.
    let mut beside = tensors();
    beside.insert("ema.decay".to_string(), tensors()["backbone.norm_f.weight"].clone());
    assert_eq!(Folder::checkpoint(&beside, Some(&config())).load().unused, ["ema.decay"]);
}

#[test]
fn a_config_that_contradicts_the_tensors() {
    for (key, value, parts) in [
        ("hidden_size", json!(65), &["embeddings.weight: expected shape [256, 65], found [256, 64]"][..]),
        ("vocab_size", json!(300), &["embeddings.weight: expected shape [300, 64], found [256, 64]"]),
        ("num_heads", json!(4), &["mixer.A_log: expected shape [4], found [8]"]),
        ("state_size", json!(8), &["mixer.conv1d", "expected shape [144", "found [160"]),
        // Fewer layers would run, and be another model.
        ("num_hidden_layers", json!(1), &["config.json: num_hidden_layers is 1, and the checkpoint has 2"]),
        ("num_hidden_layers", json!(3), &["config.json: num_hidden_layers is 3, and the checkpoint has 2"]),
        ("num_hidden_layers", json!(u64::MAX), &["and the checkpoint has 2"]),
        ("use_bias", json!(true), &["lacks", "backbone.layers.0.mixer.in_proj.bias", "disagree"]),
        (
            "use_conv_bias",
            json!(false),
            &["does not call for: backbone.layers.0.mixer.conv1d.bias", "disagree"],
        ),
        ("tie_word_embeddings", json!(false), &["lacks", "lm_head.weight"]),
        ("n_groups", json!(3), &["config.json: n_groups = 3 does not divide num_heads = 8"]),
        ("conv_kernel", json!(0), &["config.json: conv_kernel must be a positive integer, found 0"]),
        ("head_dim", json!("16"), &["config.json: head_dim must be a positive integer, found \"16\""]),
        ("use_bias", json!(0), &["config.json: use_bias must be true or false, found 0"]),
        ("time_step_limit", json!([0.1]), &["config.json: time_step_limit must be a pair", "found [0.1]"]),
        ("time_step_limit", json!([0.2, 0.1]), &["time_step_limit must be a range, found [0.2, 0.1]"]),
        ("hidden_act", json!("gelu"), &["config.json: hidden_act = \"gelu\" calls for an architecture"]),
        ("model_type", json!("gpt2"), &["config.json: unknown model family \"gpt2\"", "knows: mamba2"]),
        (
            "model_type",
            json!("llama"),
            &["config.json: model_type is llama, and the tensors are those of a mamba2"],
        ),
        ("model_type", json!(2), &["config.json: model_type must be a name", "found 2"]),
    ] {
        check_folder(&Folder::with_setting(key, value), parts);
    }
    let folder = Folder::checkpoint(&tensors(), Some(&json!([1])));
    check_folder(&folder, &["config.json: expected an object of settings, found [1]"]);
    folder.write("config.json", "{\"hidden_size\": 64,\n \"n_groups\" 1}");
    check_folder(&folder, &["config.json: line 2, column 13: not JSON: expected `:`"]);
}

#[test]
fn weights_that_are_no_numbers() {
    let spoil = |value: f32| {
        move |tensor: &Tensor| {
            let mut values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            values[5] = value;
            Tensor::from_vec(values, tensor.dims(), tensor.device()).unwrap()
        }
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for dtype in [DType::F32, DType::BF16] {
            let folder = Folder::with_tensor(OUT, |t| spoil(value)(t).to_dtype(dtype).unwrap());
            check_folder(&folder, &[OUT, "1 of 8192 weights are NaN or infinite", "use another one"]);
        }
    }
    // Finite as it is stored, infinite as it is asked for.
    let folder = Folder::with_tensor(OUT, spoil(1e6));
    let path = folder.path().to_string_lossy();
    assert!(
        refused(&["info", &path, "--dtype", "f16"])
            .1
            .contains(&format!("{OUT}: a weight is too large for f16; ask"))
    );
    folder.load();
}

#[test]
fn a_tokenizer_of_another_model() {
    let folder = Folder::checkpoint(&tensors(), Some(&config()));
    folder.write(
        "tokenizer.json",
        r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"[unk]": 0, "pass": 1, "key": 256}, "unk_token": "[unk]"}}"#,
    );
    check_folder(
        &folder,
        &["tokenizer.json: ", "has 257 tokens", "embeddings for 256", "belongs to this checkpoint"],
    );
    folder.write("tokenizer.json", "{\"version\": 1}");
    check_folder(&folder, &["tokenizer.json: not a tokenizer.json: "]);
}

#[test]
fn a_hub_id_without_network_says_where_to_put_the_files() {
    let cache = Folder::new();
    let mut command = super::command_line::lowbit();
    for name in ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    // Nothing listens on the discard port of the own machine.
    command.env("HF_HOME", cache.path()).env("HF_ENDPOINT", "http://127.0.0.1:9");
    let output = command.current_dir(cache.path()).args(["info", "org/name"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.lines().count()), (Some(3), 1), "{text}");
    for part in ["org/name: the hub's model (revision main) cannot be had", "config.json, model.safetensors"]
    {
        assert!(text.contains(part), "{text}");
    }
    // The advice is right: with the files in that folder the same command works.
    let folder = text.trim_end().rsplit_once(' ').unwrap().1;
    fs::create_dir_all(folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(format!("{FIXTURE}/{name}"), format!("{folder}/{name}")).unwrap();
    }
    let mut again = super::command_line::lowbit();
    let again = again.current_dir(cache.path()).args(["info", "org/name"]).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}
