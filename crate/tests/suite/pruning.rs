//! What is left of a pruned model goes every way that a model goes.

use lowbit::family::{Config, itera};
use lowbit::model::Model;
use lowbit::prune::Pruning;
use lowbit::quantize::Calibration;
use lowbit::train::Training;
use lowbit::train::data::Mixture;
use lowbit::train::distill::Distillation;
use serde_json::Value;
use std::fs;

/// Prune, fine-tune on the predictions of the model before, quantize, pack: one after the other.
#[test]
fn a_pruned_model_learns_from_the_one_before_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for split in ["train", "valid"] {
        fs::create_dir_all(at("corpus")).unwrap();
        fs::write(at(&format!("corpus/{split}.txt")), "what is left learns from what it was. ".repeat(60))
            .unwrap();
    }
    let config =
        itera::Config { vocab_size: 256, hidden_size: 32, num_layers: 2, ..itera::Config::default() };
    let config = itera::Config { moe_layers: vec![1], max_seq_length: 32, ..config };
    let mixture = Mixture { batch_size: 4, seq_len: 32, passkey: 0.0, ..Mixture::default() };
    let training = Training {
        model: Config::IteraLite(config),
        corpus: at("corpus"),
        steps: 40,
        mixture,
        validate_every: 40,
        validate_windows: 4,
        ..Training::default()
    };
    let whole = training.run(&at("whole")).unwrap();
    let teacher = whole.model.to_str().unwrap().to_string();
    let calibration = Calibration { samples: 4, length: 32, ..Calibration::of(at("corpus/train.txt")) };
    let how = Pruning { keep: 0.7, calibration, ..Pruning::default() };
    let pruned = Model::load(&teacher).unwrap().pruned(&how).unwrap();
    pruned.model.save(&at("pruned")).unwrap();
    let fine = Training {
        model: pruned.model.config.clone(),
        start: Some(at("pruned").to_str().unwrap().to_string()),
        distillation: Some(Distillation { teacher, share: 0.5, temperature: 2.0 }),
        ..training.clone()
    };
    let tuned = fine.run(&at("tuned")).unwrap();
    assert!(tuned.valid_bits_per_byte < whole.valid_bits_per_byte + 0.2);
    let losses: Vec<f64> = fs::read_to_string(at("tuned/log.jsonl"))
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64())
        .collect();
    assert!(losses[39] < losses[0], "{losses:?}");
    let packed =
        Model::load(tuned.model.to_str().unwrap()).unwrap().quantized(&"nf4dq".parse().unwrap()).unwrap();
    packed.artifact().unwrap().write(&at("left.lowbit")).unwrap();
    let again = Model::load(at("left.lowbit").to_str().unwrap()).unwrap();
    assert_eq!(again.config, pruned.model.config);
    let other = Training {
        distillation: Some(Distillation {
            teacher: "random:mamba2-130m".into(),
            share: 0.5,
            temperature: 1.0,
        }),
        ..training
    };
    let error = other.run(&at("other")).unwrap_err().to_string();
    assert!(error.contains("the teacher has a vocabulary of 50288, and the model one of 256"), "{error}");
}
