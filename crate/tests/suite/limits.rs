//! Numbers that no model and no machine has: one sentence each, from the library too.

use super::command_line::refused;
use super::fixture::Folder;
use candle_core::{DType, Device, Tensor};
use lowbit::error::Kind;
use lowbit::family::{Config, mamba2};
use lowbit::model::{Loading, Model, Positions};
use std::fs;

#[test]
fn a_token_outside_the_vocabulary_is_an_error_on_every_path() {
    for tied in [true, false] {
        let config =
            mamba2::Config { vocab_size: 300, tie_word_embeddings: tied, ..mamba2::Config::default() };
        let model = Model::random("small", Config::Mamba2(config), 1, &Loading::default()).unwrap();
        for scheme in ["f32", "bf16", "bf16-lossless", "w8a8", "w4a8-g64", "w4a16-rot", "nf4", "ternary"] {
            let model = model.quantized(&scheme.parse().unwrap()).unwrap();
            let tensor = |ids: &[u32]| Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
            for id in [300, 301, 65_536, u32::MAX] {
                let mut state = model.state(1).unwrap();
                let mut logits = vec![];
                let errors = [
                    model.tokens(&[1, id]).map(|_| ()),
                    model.forward(&tensor(&[1, id]), None, Positions::All).map(|_| ()),
                    model.forward(&tensor(&[id]), Some(&mut state), Positions::Last).map(|_| ()),
                    model.prefill(&[1, id, 2], &mut state).map(|_| ()),
                    model.step(id, &mut state).map(|_| ()),
                    model.step_into(id, &mut state, &mut logits),
                    model.nll(&[1, 2, id], 1).map(|_| ()),
                    model.nll(&[1, id, 2], 1).map(|_| ()),
                    model.continue_greedily(&[id], 2).map(|_| ()),
                ];
                for (i, found) in errors.into_iter().enumerate() {
                    let error = found.unwrap_err();
                    let sentence = error.to_string();
                    assert_eq!(error.kind(), Kind::Input, "{scheme} {i}: {sentence}");
                    assert!(
                        sentence.contains(&format!("token {id} lies outside the model's vocabulary of 300")),
                        "{scheme} {i}: {sentence}"
                    );
                }
                assert_eq!(state.position, 0, "nothing was read");
                // Below the model, where rows are looked up.
                let last = model.linears().pop().unwrap().1.weight.clone();
                assert!(last.lookup(&tensor(&[1, id])).is_err(), "{scheme}");
            }
        }
    }
}

#[test]
fn tokens_of_another_shape_are_one_sentence() {
    let model = Model::load("random:mamba2-tiny").unwrap();
    let mut two = model.state(2).unwrap();
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    for (tokens, part) in [
        (zeros(&[4], DType::U32), "tokens are [B, T] in u32, found [4] in u32"),
        (zeros(&[1, 4], DType::I64), "found [1, 4] in i64"),
        (zeros(&[1, 4], DType::F32), "found [1, 4] in f32"),
        (zeros(&[2, 0], DType::U32), "no tokens to read"),
        (zeros(&[3, 4], DType::U32), "3 sequences cannot move a state of 2 on"),
    ] {
        let error = model.forward(&tokens, Some(&mut two), Positions::Last).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(model.generate("", 3).is_err() && model.nll(&[1], 1).is_err() && model.nll(&[], 0).is_err());
}

#[test]
fn numbers_beyond_measure_are_one_sentence() {
    let folder = Folder::new();
    let text = folder.write("text.txt", "To be, or not to be: that is the question. ".repeat(40));
    let (runs, most) = (folder.text("runs"), usize::MAX.to_string());
    let most = most.as_str();
    for (args, part) in [
        (&["ppl", "--seq-len", most][..], "seq_len must be at most 4294967295, found 18446744073709551615"),
        (&["ppl", "--seq-len", most, "--stride", most], "seq_len must be at most"),
        (&["ppl", "--stride", most], "larger than seq_len"),
        (&["divergence", "--seq-len", most], "seq_len must be at most"),
        (&["sqnr", "--seq-len", most], "seq_len must be at most"),
        (&["outliers", "--seq-len", most], "seq_len must be at most"),
        (&["sensitivity", "--seq-len", most], "seq_len must be at most"),
        (&["drift", "--length", most], "length must be at most"),
        (&["drift", "--samples", most], "samples must be at most"),
        (&["stability", "--lengths", most], "lengths must be at most"),
        (&["stability", "--gen-len", most], "gen_len must be at most"),
        (&["stability", "--prompts", most], "must be at most"),
        (&["stability", "--prompts", "60000000", "--lengths", "1"], "ask for fewer prompts"),
        (&["context", "--lengths", "9223372036854775808"], "lengths must be at most"),
        (&["context", "--lengths", "2147483648"], "fewer than one window of 2147483648"),
        (&["context", "--lengths", most], "powers of two"),
    ] {
        let (code, sentence) = refused(&[args, &["--corpus", &text, "--runs", &runs]].concat());
        assert!(code == 2 && sentence.contains(part), "{args:?}: {sentence}");
    }
    for (args, part) in [
        (&["passkey", "--lengths", most][..], "lengths must be at most"),
        (&["passkey", "--lengths", "1000000000000"], "lengths must be at most"),
        (&["passkey", "--digits", most], "digits must be at most 1000"),
        (&["passkey", "--trials", most], "trials must be at most"),
        (&["passkey", "--depths", "0"], "at least one digit and one depth"),
        (&["cost", "--lengths", most], "lengths must be at most"),
        (&["cost", "--gen-len", most], "gen_len must be at most"),
        (&["cost", "--repetitions", most], "repetitions must be at most"),
        (&["cost", "--gen-len", "0"], "at least 1"),
    ] {
        let (code, sentence) = refused(&[args, &["--runs", &runs]].concat());
        assert!(code == 2 && sentence.contains(part), "{args:?}: {sentence}");
    }
    let file = folder.write("settings.yaml", format!("ngram: 0\nprompts: {most}"));
    let (_, sentence) = refused(&["stability", "--corpus", &text, "--runs", &runs, "--config", &file]);
    assert!(sentence.contains("ngram must be at least 1"), "{sentence}");
    assert!(!fs::exists(&runs).unwrap());
    // That a text is too short shows when it is read.
    let drift =
        ["drift", "--samples", "60000000", "--length", "60000000", "--corpus", &text, "--runs", &runs];
    let (code, sentence) = refused(&drift);
    assert!(code == 2 && sentence.contains("tokens are fewer than one piece of 60000000"), "{sentence}");
}

#[test]
fn more_than_there_is_means_all_of_it() {
    let folder = Folder::new();
    let text = folder.write("text.txt", "To be, or not to be: that is the question. ".repeat(4));
    let (runs, most) = (folder.text("runs"), usize::MAX.to_string());
    for args in [
        &["ppl", "--max-tokens", &most][..],
        &["ppl", "--seq-len", "4294967295"],
        &[
            "stability",
            "--config",
            &folder.write("s.yaml", format!("ngram: {most}\nlengths: [8]\nprompts: 2\ngen_len: 4")),
        ],
    ] {
        let mut command = super::command_line::lowbit();
        let output = command.args(args).args(["--corpus", &text, "--runs", &runs]).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
