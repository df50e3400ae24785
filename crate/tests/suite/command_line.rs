//! The program as a user meets it: what it leaves behind, and the sentence for each mistake.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn lowbit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
    command.arg("--quiet").current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command
}

fn run(args: &[&str]) -> Output {
    lowbit().args(args).output().unwrap()
}

/// Runs a command that must fail; returns its exit code and its one sentence.
fn refused(args: &[&str]) -> (i32, String) {
    let output = run(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    (output.status.code().unwrap(), text)
}

#[test]
fn each_mistake_gets_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs").to_string_lossy().into_owned();
    for (args, code, part) in [
        (&["info", "no/such/model.safetensors"][..], 3, "no such file"),
        (&["info", "random:mamba3"], 2, "unknown shape"),
        (&["ppl", "--seq-len", "0", "--runs", &runs], 2, "seq_len must be at least 1"),
        (
            &["ppl", "--seq-len", "8", "--stride", "9", "--runs", &runs],
            2,
            "stride 9 is larger than seq_len 8",
        ),
        (&["ppl", "--corpus", "data/corpus", "--split", "tset", "--runs", &runs], 2, "no split 'tset'"),
        (&["passkey", "--lengths", "20", "--runs", &runs], 2, "20 tokens is shorter than the prompt"),
        (&["info", "--dtype", "int5"], 2, "unknown dtype"),
        (&["info", "--device", "gpu"], 2, "unknown device"),
    ] {
        let (found, sentence) = refused(args);
        assert!(sentence.contains(part), "{args:?}: {sentence}");
        assert_eq!(found, code, "{args:?}: {sentence}");
    }
}

#[test]
fn a_killed_training_resumes_to_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("small.yaml");
    fs::write(
        &config,
        "model: {model_type: mamba2, hidden_size: 16, num_hidden_layers: 2, num_heads: 2, head_dim: 16, state_size: 8}\n\
         steps: 120\nmixture: {batch_size: 2, seq_len: 96, passkey: 0.0}\nvalidate_windows: 2\ncheckpoint_every: 5\n",
    )
    .unwrap();
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
    let steps = |out: &Path| fs::read_to_string(out.join("log.jsonl")).unwrap().lines().count();
    assert_eq!(steps(&whole), steps(&killed));
}

#[test]
fn saving_and_loading_keeps_every_logit() {
    use lowbit::model::{Loading, Model, Positions};
    let folder = tempfile::tempdir().unwrap();
    for dtype in [candle_core::DType::F32, candle_core::DType::BF16, candle_core::DType::F16] {
        let how = Loading { dtype: Some(dtype), ..Loading::default() };
        let model = Model::load_with("random:mamba2-tiny", &how).unwrap();
        model.save(folder.path()).unwrap();
        let again = Model::load(&folder.path().to_string_lossy()).unwrap();
        assert_eq!((again.dtype, again.bytes()), (dtype, model.bytes()));
        let logits = |model: &Model| {
            let tokens = model.tokens(&[1, 2, 3, 250]).unwrap();
            model
                .forward(&tokens, None, Positions::All)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        assert_eq!(logits(&model), logits(&again));
    }
}
