use super::*;
use crate::measure::divergence;
use crate::model::quantization::Backend;
use crate::record::read_lines;
use tempfile::TempDir;

fn settings(scheme: &str) -> (TempDir, Sensitivity) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "One link of the chain is weaker than all others; which is it? ".repeat(6))
        .unwrap();
    let calibration = Calibration { samples: 2, length: 60, ..Calibration::of(&file) };
    let sensitivity = Sensitivity { seq_len: 80, calibration, ..Sensitivity::to([scheme]) };
    (folder, sensitivity.on(file))
}

fn model() -> Model {
    Model::load("random:mamba2-tiny").unwrap()
}

/// What a unit is measured to do is what two full evaluations say of the model that is quantized there alone.
#[test]
fn a_units_harm_is_that_of_a_model_quantized_only_there() {
    let (_folder, sensitivity) = settings("w2a16+head=w2");
    let model = model();
    let readings = sensitivity.measure(&model).unwrap();
    assert_eq!(readings.len(), 1 + 48 + 12);
    let how = Quantizing { backend: Backend::Fake, ..Quantizing::default() };
    let text = divergence::Divergence::default().on(&sensitivity.corpus).windows(80, 80);
    for number in [0, 1, 20, 30, 48] {
        let reading = &readings[number];
        let only = format!("w2a16+*=keep+{}=w2", reading.values["unit"].as_str().unwrap());
        let quantized = model.quantized_with(&only.parse().unwrap(), &how).unwrap();
        let expected = &text.compare(&model, &quantized).unwrap()[0];
        let same = |name: &str, other: &str| {
            let (found, expected) = (reading.number(name).unwrap(), expected.number(other).unwrap());
            assert!(expected != 0.0 && (found - expected).abs() < 1e-12, "{only} {name}: {found} {expected}");
        };
        same("kl", "kl");
        same("delta_nll", "ln_ppl_ratio");
    }
    // The last layer is read by one block, the embedding by all.
    let blocks = [0, 1, 20, 48].map(|i| readings[i].number("blocks_read").unwrap());
    assert_eq!(blocks, [8.0, 8.0, 5.0, 1.0]);
    let ranking = readings.last().unwrap();
    // Twice for the base, the head, six units in each layer.
    assert_eq!(ranking.number("blocks_read"), Some(f64::from(16 + 8 + 6 * 36)));
    assert_eq!((ranking.number("units"), ranking.number("blocks_whole")), (Some(49.0), Some(400.0)));
    assert!(ranking.number("tau").is_some_and(|tau| tau > 0.0 && tau <= 1.0));
}

#[test]
fn eight_bits_hurt_less_than_two_and_predictors_agree() {
    let mean = |scheme: &str, name: &str| {
        let (_folder, sensitivity) = settings(scheme);
        let readings = sensitivity.by(Grain::Matrix).measure(&model()).unwrap();
        readings[..16].iter().map(|reading| reading.number(name).unwrap()).sum::<f64>() / 16.0
    };
    for name in ["kl", "hessian", "fisher"] {
        let (narrow, wide) = (mean("w2a16", name), mean("w8a16", name));
        assert!(wide > 0.0 && narrow > 100.0 * wide, "{name}: {narrow} {wide}");
    }
    // Six decibel a bit.
    let gained = mean("w8a16", "output_sqnr_db") - mean("w5a16", "output_sqnr_db");
    assert!((16.0..20.5).contains(&gained), "{gained}");
}

#[test]
fn an_interrupted_sweep_goes_on_where_it_stopped() {
    let (_folder, sensitivity) = settings("w3a16");
    let (model, root) = (model(), tempfile::tempdir().unwrap());
    let whole = Run::create_in(root.path(), "whole").unwrap();
    let sensitivity = sensitivity.by(Grain::Matrix);
    sensitivity.record(&model, &whole).unwrap();
    let rows = |run: &Run| read_lines(run.path().join("metrics.jsonl")).unwrap().rows;
    let told = |run: &Run| {
        let lines = rows(run).iter().map(crate::record::without_timing).collect::<Vec<_>>();
        serde_json::to_string(&lines).unwrap()
    };
    assert_eq!(rows(&whole).len(), 16 + 12);

    // The first five parts, as a process that was killed leaves them.
    let cut = Run::create_in(root.path(), "cut").unwrap();
    let mut left = 5;
    let stopped = sensitivity.sweep(
        &model,
        |_| false,
        |_| Ok(vec![]),
        |readings| {
            left -= 1;
            if left < 0 { Err(Error::input("the power is gone")) } else { cut.record(readings) }
        },
    );
    assert!(stopped.is_err() && rows(&cut).len() == 5);
    sensitivity.record(&model, &cut).unwrap();
    assert_eq!(told(&cut), told(&whole));
    sensitivity.record(&model, &cut).unwrap();
    assert_eq!(rows(&cut).len(), 16 + 12, "a finished measurement is not repeated");
}

#[test]
fn bad_settings_are_one_sentence() {
    let (_folder, good) = settings("w3a16");
    for (bad, part) in [
        (Sensitivity { schemes: vec![], ..good.clone() }, "no scheme is named"),
        (Sensitivity { schemes: vec!["w4a16-mix4".into()], ..good.clone() }, "chooses widths by itself"),
        (Sensitivity { schemes: vec!["w4a16-g512".into()], ..good.clone() }, "groups of 512 are larger"),
        (Sensitivity { seq_len: 0, ..good.clone() }, "seq_len must be at least 1"),
    ] {
        let error = bad.measure(&model()).unwrap_err().to_string();
        assert!(error.contains(part) && error.lines().count() == 1, "{error}");
    }
}
