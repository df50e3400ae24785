//! Training through the program.

use super::command_line::lowbit;
use std::fs;
use std::path::Path;
use std::process::Stdio;

/// A Mamba2 with AdamW alone, and a low-rank-Q transformer with everything that a run keeps beside its weights.
const CONFIGS: [&str; 2] = [
    "model: {model_type: mamba2, hidden_size: 16, num_hidden_layers: 2, num_heads: 2, head_dim: 16, state_size: 8}\n\
     steps: 120\nmixture: {batch_size: 2, seq_len: 96, passkey: 0.0}\nvalidate_windows: 2\ncheckpoint_every: 5\n",
    "model: {model_type: lowrank_q, model_dim: 16, num_layers: 2, num_heads: 2, num_kv_heads: 1, mlp_hidden: 32, q_rank: 4,\n\
     \x20 bigram_vocab_size: 64, bigram_dim: 8}\n\
     steps: 120\nmixture: {batch_size: 2, seq_len: 96, passkey: 0.0}\nvalidate_windows: 2\ncheckpoint_every: 5\n\
     schedule: {peak: 0.02, warmup: 5, floor: 0.0, warmdown: 40}\nmuon: {weight_decay: 0.04}\novertone: true\n\
     average: {ema: {decay: 0.9}}\nqat: {scheme: w4a8-g4+head=keep, from: 0.1, noise: true}\nrow_gradients: 3\n",
];

#[test]
fn a_killed_training_resumes_to_the_same_weights() {
    for config in CONFIGS {
        killed_and_resumed(config);
    }
}

fn killed_and_resumed(settings: &str) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("small.yaml");
    fs::write(&config, settings).unwrap();
    let train = |out: &Path| {
        let mut command = lowbit();
        command.arg("train").arg("--config").arg(&config).arg("--out").arg(out).stdout(Stdio::null());
        command
    };
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    assert!(train(&whole).status().unwrap().success());

    let mut child = train(&killed).spawn().unwrap();
    while !killed.join("checkpoint.safetensors").exists() {
        assert!(child.try_wait().unwrap().is_none(), "training ended without a checkpoint");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.join("model").exists(), "it was to be killed before its end");
    assert!(train(&killed).status().unwrap().success());

    let weights = |out: &Path| fs::read(out.join("model/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&killed), "the weights differ");
    let rows = |out: &Path| fs::read(out.join("rows.safetensors")).ok();
    assert_eq!(rows(&whole).is_some(), settings.contains("row_gradients"));
    assert!(rows(&whole) == rows(&killed), "the gradients of rows differ");
    let steps = |out: &Path| fs::read_to_string(out.join("log.jsonl")).unwrap().lines().count();
    assert_eq!(steps(&whole), steps(&killed));
}
