use super::run::Work;
use super::*;
use crate::family::mamba2;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Model, init};
use crate::train::data::Mixture;
use std::fs;

/// A model of one layer.
fn small() -> Config {
    let sizes = mamba2::Config {
        hidden_size: 8,
        num_hidden_layers: 1,
        num_heads: 1,
        head_dim: 16,
        ..Default::default()
    };
    Config::Mamba2(sizes)
}

/// A corpus whose splits are this text.
fn corpus(folder: &std::path::Path, text: &str) {
    fs::create_dir(folder).unwrap();
    for split in ["train", "valid"] {
        fs::write(folder.join(format!("{split}.txt")), text).unwrap();
    }
}

#[test]
fn a_sequence_in_which_nothing_counts_changes_nothing() {
    let mixture = Mixture { seq_len: 12, ..Mixture::default() };
    let training = Training { mixture, model: small(), ..Training::default() };
    let network = training.model.stack(&init::initialize(&training.model, 0).unwrap(), &Default::default());
    let network = network.unwrap();
    let of = |weights: &[f32]| {
        let ids = |first: usize| (first..first + weights.len()).map(|i| (i * 7 % 251) as u32).collect();
        let batch = data::Batch { inputs: ids(0), targets: ids(1), weights: weights.to_vec() };
        let mut work = Work::default();
        let (loss, grads) = training.gradients(&network, None, &batch, &mut work)?;
        Ok::<_, Error>((loss, grads.clone()))
    };
    let (one, two) = ([1.0; 12], [[1.0; 12], [0.0; 12]].concat());
    assert_eq!(of(&one).unwrap(), of(&two).unwrap());
    let error = of(&[0.0; 24]).unwrap_err().to_string();
    assert!(error.contains("there is nothing to learn from it"), "{error}");
}

#[test]
fn a_llama_trains_on_the_pieces_of_a_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let words = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[unk]": 0, "to": 1, "be": 2, "or": 3, "not": 4}, "unk_token": "[unk]"}}"#;
    fs::write(at("tokenizer.json"), words).unwrap();
    corpus(&at("corpus"), &"to be or not to be ".repeat(40));
    let model = crate::family::llama::Config {
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        vocab_size: 5,
        max_position_embeddings: 12,
        ..Default::default()
    };
    let training = Training {
        model: Config::Llama(model),
        tokenizer: Some(at("tokenizer.json").display().to_string()),
        corpus: at("corpus"),
        steps: 3,
        mixture: Mixture { batch_size: 2, seq_len: 12, passkey: 0.0, ..Mixture::default() },
        validate_windows: 2,
        ..Training::default()
    };
    let outcome = training.run(&at("out")).unwrap();
    assert!(outcome.valid_bits_per_byte.is_finite() && outcome.valid_bits_per_byte > 0.0);
    let trained = Model::load(&outcome.model.to_string_lossy()).unwrap();
    let own = Tokenizer::load(at("tokenizer.json")).unwrap();
    assert_eq!(trained.tokenizer.hash(), own.hash());
    // What goes on from it reads as it does.
    let start = Some(outcome.model.display().to_string());
    let next = Training { start, tokenizer: None, ..training.clone() }.run(&at("next")).unwrap();
    assert_eq!(Model::load(&next.model.to_string_lossy()).unwrap().tokenizer.hash(), own.hash());
    let error = |training: Training| training.run(&at("bad")).unwrap_err().to_string();
    let bytes = error(Training { tokenizer: None, ..training.clone() });
    assert!(bytes.contains("'bytes' has 256 tokens, and the model has embeddings for 5"), "{bytes}");
    let long = Mixture { seq_len: 13, ..training.mixture.clone() };
    let long = error(Training { mixture: long, ..training });
    assert!(long.contains("mixture.seq_len must be at most 12, found 13"), "{long}");
}

#[test]
fn a_folder_that_another_training_writes_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    corpus(&at("corpus"), &"What is written once is written well. ".repeat(40));
    let training = Training {
        model: small(),
        corpus: at("corpus"),
        steps: 2,
        mixture: Mixture { batch_size: 1, seq_len: 16, passkey: 0.0, ..Mixture::default() },
        validate_windows: 1,
        ..Training::default()
    };
    fs::create_dir(at("out")).unwrap();
    let other = crate::whole::lock(&at("out")).unwrap().unwrap();
    let error = training.run(&at("out")).unwrap_err().to_string();
    assert!(error.contains("another process trains into this folder") && error.contains("out"), "{error}");
    assert!(!at("out").join("training.yaml").exists());
    drop(other);
    training.run(&at("out")).unwrap();
}

#[test]
fn products_of_chunks_are_rounded_on_the_way_there_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    corpus(&at("corpus"), &"What is rounded must be trained as rounded. ".repeat(40));
    let training = Training {
        model: Config::Gla(crate::family::gla::Config::tiny()),
        corpus: at("corpus"),
        steps: 2,
        mixture: Mixture { batch_size: 2, seq_len: 96, passkey: 0.0, copying: 0.5, ..Mixture::default() },
        validate_windows: 2,
        ..Training::default()
    };
    let losses = |products: Option<&str>, name: &str| {
        let training = Training { products: products.map(String::from), ..training.clone() };
        training.run(&at(name))?;
        let log = fs::read_to_string(at(name).join("log.jsonl")).unwrap();
        let rows = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        Ok::<_, Error>(rows.filter_map(|row| row["loss"].as_f64()).collect::<Vec<_>>())
    };
    let (exact, rounded) = (losses(None, "exact").unwrap(), losses(Some("qk2-svfp8"), "rounded").unwrap());
    assert_eq!(rounded, losses(Some("qk2-svfp8"), "again").unwrap());
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert!(exact != rounded && (exact - rounded).abs() < 0.1 * exact, "{exact}, {rounded}");
    }
    let error = losses(Some("qk4-smooth"), "bad").unwrap_err().to_string();
    assert!(error.starts_with("products:") && error.contains("unknown part \"smooth\""), "{error}");
    let llama = Config::Llama(crate::family::llama::Config { hidden_size: 32, ..Default::default() });
    let llama = Training { model: llama, products: Some("qk4".into()), ..training.clone() };
    assert!(llama.run(&at("llama")).unwrap_err().to_string().contains("no recurrence"));
    let shares = Mixture { passkey: 0.6, ..training.mixture.clone() };
    let shares = Training { mixture: shares, ..training }.run(&at("shares")).unwrap_err().to_string();
    assert!(shares.contains("their sum is a share from 0 to 1, found 1.1"), "{shares}");
}
