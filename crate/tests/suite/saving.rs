//! Saving: never over the model itself, nothing of another model left beside, and everything of this one kept.

use super::command_line::{lowbit, refused};
use super::fixture::{FIXTURE, Folder, config, logits, tensors};
use lowbit::model::{Loading, Model};
use lowbit::prelude::*;
use serde_json::json;
use std::fs;
use std::path::Path;

const WORDS: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"[unk]": 0, "pass": 1, "key": 7}, "unk_token": "[unk]"}}"#;

/// A copy of the fixture.
fn copy() -> Folder {
    Folder::checkpoint(&tensors(), Some(&config()))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn convert(from: &Path, out: &Path) {
    let output = lowbit().arg("convert").arg(from).arg("--out").arg(out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_models_own_folder_is_refused_however_it_is_written() {
    let model = copy();
    let before = fs::read(model.at("model.safetensors")).unwrap();
    let (own, file) = (text(model.path()), model.text("model.safetensors"));
    let name = model.path().file_name().unwrap().to_string_lossy().into_owned();
    let elsewhere = Folder::new();
    let mut spellings =
        vec![own.clone(), format!("{own}/"), format!("{own}/."), format!("{own}/../{name}"), file.clone()];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(model.path(), elsewhere.at("link")).unwrap();
        spellings.push(elsewhere.text("link"));
    }
    for out in &spellings {
        for source in [&own, &file, out] {
            for command in [&["convert", "--dtype", "bf16"][..], &["quantize", "--scheme", "w2a16"]] {
                let (code, sentence) =
                    refused(&[command, &[source.as_str(), "--out", out.as_str()]].concat());
                assert!(
                    code == 2 && sentence.contains("the folder of the model itself"),
                    "{out}: {sentence}"
                );
            }
        }
        let error = Model::load(&own).unwrap().save(Path::new(out)).unwrap_err().to_string();
        assert!(error.contains("name another one"), "{error}");
    }
    // A folder of links, such as the hub's cache has: what they lead to is the model too.
    #[cfg(unix)]
    {
        fs::create_dir(elsewhere.at("snapshot")).unwrap();
        for file in ["model.safetensors", "config.json"] {
            std::os::unix::fs::symlink(model.at(file), elsewhere.at("snapshot").join(file)).unwrap();
        }
        let (code, sentence) = refused(&["convert", &elsewhere.text("snapshot"), "--out", &own]);
        assert!(code == 2 && sentence.contains("the folder of the model itself"), "{sentence}");
    }
    assert!(fs::read(model.at("model.safetensors")).unwrap() == before);
    assert_eq!(fs::read_dir(model.path()).unwrap().count(), 2, "nothing is left behind");
}

#[test]
fn a_training_does_not_save_over_its_start() {
    let folder = Folder::new();
    let start = folder.at("start/model");
    Model::load(FIXTURE).unwrap().save(&start).unwrap();
    let before = fs::read(start.join("model.safetensors")).unwrap();
    let model = serde_json::to_value(&Model::load(FIXTURE).unwrap().config).unwrap();
    let yaml = json!({"model": model, "start": text(&start), "steps": 1, "corpus": folder.text("corpus")});
    for split in ["train", "valid"] {
        fs::create_dir_all(folder.at("corpus")).unwrap();
        folder
            .write(&format!("corpus/{split}.txt"), "To be, or not to be, that is the question. ".repeat(200));
    }
    let yaml = folder.write("training.yaml", yaml.to_string());
    for out in ["start", "start/model"] {
        let (code, sentence) = refused(&["train", "--config", &yaml, "--out", &folder.text(out)]);
        assert!(code == 2 && sentence.contains("the folder of the model itself"), "{sentence}");
    }
    assert!(fs::read(start.join("model.safetensors")).unwrap() == before);
}

#[test]
fn nothing_of_another_model_is_left_or_lost() {
    let (with, without, out) = (copy(), copy(), Folder::new());
    with.write("tokenizer.json", WORDS);
    with.write("tokenizer_config.json", r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#);
    with.write("generation_config.json", r#"{"eos_token_id": 7}"#);
    convert(with.path(), out.path());
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(fs::read(out.at(file)).unwrap(), fs::read(with.at(file)).unwrap(), "{file}");
    }
    assert_eq!(out.load().tokenizer.hash(), with.load().tokenizer.hash());
    // Saved again from what was saved, it is the same but for where it came from.
    let again = Folder::new();
    convert(out.path(), again.path());
    for file in ["config.json", "tokenizer.json"] {
        assert_eq!(fs::read(out.at(file)).unwrap(), fs::read(again.at(file)).unwrap(), "{file}");
    }

    // An earlier save gives way, its tokenizer too; what someone put there does not.
    convert(without.path(), out.path());
    assert!(!out.at("tokenizer.json").exists() && !out.at("tokenizer_config.json").exists());
    assert!(logits(&out.load()) == logits(&without.load()));
    for stray in ["tokenizer.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "params.json"] {
        out.write(stray, WORDS);
        let (code, sentence) = refused(&["convert", &text(without.path()), "--out", &text(out.path())]);
        assert!(code == 2 && sentence.contains(stray), "{sentence}");
        assert_eq!(fs::read_to_string(out.at(stray)).unwrap(), WORDS);
        fs::remove_file(out.at(stray)).unwrap();
    }
    // The only copy of another model.
    let theirs = copy();
    let (code, sentence) =
        refused(&["quantize", &text(without.path()), "--scheme", "w2a16", "--out", &text(theirs.path())]);
    assert!(code == 2 && sentence.contains("model.safetensors"), "{sentence}");
    assert!(logits(&theirs.load()) == logits(&without.load()));
    let note = out.write("note.txt", "a file");
    let (code, sentence) = refused(&["convert", &text(without.path()), "--out", &note]);
    assert!(code == 3 && sentence.contains("there is a file of this name"), "{sentence}");
}

#[test]
fn a_head_of_its_own_is_saved() {
    let mut all = tensors();
    let embedding = all["backbone.embeddings.weight"].clone();
    all.insert("lm_head.weight".to_string(), (embedding * 0.5).unwrap());
    let mut settings = config();
    settings["tie_word_embeddings"] = false.into();
    let model = Folder::checkpoint(&all, Some(&settings));
    let (out, packed) = (Folder::new(), Folder::new());
    convert(model.path(), out.path());
    assert!(logits(&out.load()) == logits(&model.load()));
    let scheme: Scheme = "w8a16".parse().unwrap();
    let quantized = model.load().quantized(&scheme).unwrap();
    quantized.save(packed.path()).unwrap();
    assert!(logits(&packed.load()) == logits(&quantized));
    for folder in [&out, &packed] {
        let saved = lowbit::json::read(folder.at("config.json")).unwrap();
        assert_eq!(saved["tie_word_embeddings"], false);
    }
}

#[test]
fn what_is_saved_says_what_it_is() {
    let model = Model::load_with("random:mamba2-tiny", &Loading::default()).unwrap();
    let (plain, packed) = (Folder::new(), Folder::new());
    model.save(plain.path()).unwrap();
    model.quantized(&"w4a16".parse().unwrap()).unwrap().save(packed.path()).unwrap();
    // Other readers take packed weights for none of theirs.
    let header = |folder: &Folder| {
        let bytes = fs::read(folder.at("model.safetensors")).unwrap();
        String::from_utf8_lossy(&bytes[8..200]).into_owned()
    };
    assert!(
        header(&plain).contains("\"format\":\"pt\"") && header(&packed).contains("\"format\":\"lowbit\"")
    );
    // Keys that others add do not matter, and an older spelling of the limit is read.
    let mut saved = lowbit::json::read(packed.at("config.json")).unwrap();
    assert_eq!(saved["quantization_config"]["scheme"], "w4a16");
    assert_eq!((&saved["expand"], &saved["architectures"]), (&json!(2), &json!(["Mamba2ForCausalLM"])));
    let expected = logits(&packed.load());
    saved["time_step_limit"] = json!([0.0, null]);
    saved["mine"] = json!("yes");
    packed.write("config.json", saved.to_string());
    assert!(logits(&packed.load()) == expected);
}
