//! Models from GGUF files against numbers from elsewhere, through the front door.

use super::fixture::Folder;
use candle_core::{DType, Device, Tensor};
use lowbit::model::{Model, Positions};
use serde_json::Value;
use std::collections::HashMap;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf-tiny");

const FILES: [&str; 9] = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "k-mixed"];

fn golden() -> (HashMap<String, Tensor>, Value) {
    let tensors = candle_core::safetensors::load(format!("{FIXTURE}/golden.safetensors"), &Device::Cpu);
    let text = std::fs::read_to_string(format!("{FIXTURE}/golden.json")).unwrap();
    (tensors.unwrap(), serde_json::from_str(&text).unwrap())
}

fn load(name: &str) -> Model {
    Model::load(&format!("{FIXTURE}/{name}.gguf")).unwrap()
}

/// Logits for the golden tokens.
fn logits(model: &Model, ids: &Tensor) -> Tensor {
    model.forward(&ids.to_dtype(DType::U32).unwrap(), None, Positions::All).unwrap()
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn every_file_gives_the_golden_logits_and_continuation() {
    let (tensors, about) = golden();
    for name in FILES {
        let (model, ids) = (load(name), &tensors[&format!("{name}.input_ids")]);
        let error = far(&logits(&model, ids), &tensors[&format!("{name}.logits")]);
        println!("{name}: logits within {error:.1e}");
        assert!(error < 1e-4, "{name}: logits differ by {error}");
        let prompt: Vec<u32> = ids.to_dtype(DType::U32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let greedy: Vec<u64> =
            about[name]["greedy"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        let found: Vec<u64> =
            model.continue_greedily(&prompt, greedy.len()).unwrap().into_iter().map(u64::from).collect();
        assert_eq!(found, greedy, "{name}");
    }
}

#[test]
fn a_model_from_gguf_is_saved_as_others_are() {
    let (tensors, _) = golden();
    for name in FILES {
        let (model, ids, folder) = (load(name), &tensors[&format!("{name}.input_ids")], Folder::new());
        let saved = folder.path().join("saved");
        model.save(&saved).unwrap();
        let again = Model::load(saved.to_str().unwrap()).unwrap();
        assert_eq!(far(&logits(&again, ids), &logits(&model, ids)), 0.0, "{name}");
        assert_eq!(again.config, model.config, "{name}");
        assert_eq!(again.tokenizer.hash(), model.tokenizer.hash(), "{name}");
        assert!(saved.join("tokenizer_config.json").is_file(), "{name}");
    }
}

#[test]
fn the_card_and_the_records_say_what_weights_are_stored_in() {
    let model = load("q4_1");
    let told = "Q4_1 (14 matrices), Q8_0 (embedding), F32";
    assert_eq!(model.stored_as.as_deref(), Some(told));
    assert!(model.to_string().contains(told) && model.to_string().contains("as f32"), "{model}");
    assert_eq!(lowbit::measure::subject(&model).stored_as.as_deref(), Some(told));
    // The numbers, and not what they were stored in, go on to other types.
    assert_eq!(model.cast(DType::BF16).unwrap().stored_as.as_deref(), Some(told));
}
