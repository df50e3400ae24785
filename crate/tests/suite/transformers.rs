//! Saved models as PyPI's transformers reads them, where it is installed: the interpreter is `LOWBIT_PYTHON`, or `python3`.

use super::command_line::lowbit;
use super::fixture::{FIXTURE, Folder, config, tensors};
use super::layouts::{original, renamed};
use super::pickled;
use candle_core::{DType, Device, Tensor};
use lowbit::family::{Config, mamba2};
use lowbit::model::safetensors::save_safetensors;
use lowbit::model::{Loading, Model, Positions, init};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const BARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/models/bard");

/// The interpreter, if it has what the check needs.
fn python() -> Option<OsString> {
    let python = std::env::var_os("LOWBIT_PYTHON").unwrap_or_else(|| "python3".into());
    let needed = "import torch, safetensors; from transformers import Mamba2ForCausalLM";
    let output = Command::new(&python).args(["-c", needed]).output();
    if output.as_ref().is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    // Not by a macro: the test harness would swallow it.
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED: what is saved was not compared with transformers ({} has no torch and transformers; \
         LOWBIT_PYTHON names another interpreter)",
        Path::new(&python).display()
    );
    None
}

/// Puts down what lowbit computes from a saved model, beside it: in f32, as transformers does, and in the dtype of the
/// matrices, of which bf16 rounds what it multiplies too.
fn expect(case: &Path) {
    let source = case.join("model").to_string_lossy().into_owned();
    let logits = |dtype: Option<DType>| {
        let model = Model::load_with(&source, &Loading { dtype, ..Loading::default() }).unwrap();
        let vocab = model.config.vocab_size() as u32;
        let ids: Vec<u32> = (0..300).map(|t| (t * t * 7 + 3 * t) % 251 % vocab).collect();
        let ids = model.tokens(&ids).unwrap();
        let logits = model.forward(&ids, None, Positions::All).unwrap();
        (ids.to_dtype(DType::I64).unwrap(), logits, model.dtype)
    };
    let ((ids, exact, _), (_, stored, dtype)) = (logits(Some(DType::F32)), logits(None));
    let tolerance = if dtype == DType::BF16 { 0.1f32 } else { 1e-4 };
    let all = [
        ("input_ids", ids),
        ("f32.logits", exact),
        ("f32.tolerance", Tensor::new(1e-4f32, &Device::Cpu).unwrap()),
        ("stored.logits", stored),
        ("stored.tolerance", Tensor::new(tolerance, &Device::Cpu).unwrap()),
    ];
    let all = all.map(|(name, tensor)| (name.to_string(), tensor)).into_iter().collect();
    save_safetensors(&case.join("logits.safetensors"), &all, &BTreeMap::new()).unwrap();
}

/// Every switch of the family, away from its usual position.
fn variants() -> Vec<(&'static str, mamba2::Config)> {
    let small = mamba2::Config {
        hidden_size: 24,
        num_hidden_layers: 2,
        vocab_size: 259,
        state_size: 8,
        head_dim: 6,
        num_heads: 8,
        ..mamba2::Config::default()
    };
    vec![
        ("untied", mamba2::Config { tie_word_embeddings: false, ..small.clone() }),
        ("biases", mamba2::Config { use_bias: true, ..small.clone() }),
        ("no-conv-bias", mamba2::Config { use_conv_bias: false, conv_kernel: 3, ..small.clone() }),
        ("groups", mamba2::Config { n_groups: 4, ..small.clone() }),
        (
            "limited",
            mamba2::Config { time_step_limit: (0.02, 0.05), layer_norm_epsilon: 1e-3, ..small.clone() },
        ),
        ("narrow", mamba2::Config { num_heads: 4, vocab_size: 256, ..small }),
    ]
}

#[test]
fn transformers_reads_what_is_saved() {
    let Some(python) = python() else { return };
    let folder = Folder::new();
    let mut cases: Vec<PathBuf> = vec![];
    let mut case = |name: &str, save: &dyn Fn(&Path)| {
        let path = folder.at(name);
        save(&path.join("model"));
        expect(&path);
        cases.push(path);
    };
    let convert = |args: &[&str], out: &Path| {
        let output = lowbit().arg("convert").args(args).arg("--out").arg(out).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    case("bard", &|out| convert(&[BARD], out));
    case("fixture", &|out| convert(&[FIXTURE], out));
    for dtype in ["f32", "bf16", "f16"] {
        case(dtype, &|out| convert(&[FIXTURE, "--dtype", dtype], out));
    }
    let safetensors = Folder::checkpoint(&renamed(&tensors()), Some(&original()));
    let pickle = Folder::new();
    pickled::save(
        &pickle.at("pytorch_model.bin"),
        &renamed(&tensors()),
        &[("lm_head.weight", "backbone.embedding.weight")],
    );
    pickle.write("config.json", original().to_string());
    case("original", &|out| convert(&[&safetensors.path().to_string_lossy()], out));
    case("original-pickled", &|out| convert(&[&pickle.path().to_string_lossy()], out));
    let bare = Folder::checkpoint(&tensors(), None);
    case("without-config", &|out| convert(&[&bare.path().to_string_lossy()], out));
    let mut swish = config();
    swish["hidden_act"] = "swish".into();
    swish["eos_token_id"] = 50_256.into();
    let swish = Folder::checkpoint(&tensors(), Some(&swish));
    case("ids-beyond-the-vocabulary", &|out| convert(&[&swish.path().to_string_lossy()], out));
    for (name, variant) in variants() {
        let config = Config::Mamba2(variant);
        let weights = init::initialize(&config, 3).unwrap();
        let model = Model::from_tensors(name, config, weights, &Loading::default()).unwrap();
        case(name, &|out| model.save(out).unwrap());
    }
    // Of nemotron_h that which clamps no time step: transformers reads no limit of it.
    for hybrid in
        ["granite-rope", "granite-nope-dense", "bamba", "falcon-gate", "falcon-norm", "nemotron-moe"]
    {
        let from = format!("{}/tests/fixtures/hybrids-tiny/{hybrid}", env!("CARGO_MANIFEST_DIR"));
        case(hybrid, &|out| Model::load(&from).unwrap().save(out).unwrap());
    }
    // As it ships.
    case("shipped", &|out| {
        std::fs::create_dir_all(out).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(format!("{BARD}/{file}"), out.join(file)).unwrap();
        }
    });

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transformers/check.py");
    let output = Command::new(python).arg(script).args(&cases).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(told.lines().filter(|line| line.contains("logits within")).count(), cases.len(), "{told}");
}
