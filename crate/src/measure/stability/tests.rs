use super::*;

fn text() -> (tempfile::TempDir, Stability) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    let text: String = (0..300).map(|i| format!("{} green bottles. ", i * i % 977)).collect();
    std::fs::write(&file, text).unwrap();
    let stability = Stability::lengths([20, 50]).on(file).prompts(3).generate(40);
    (folder, Stability { reference: Some("random:mamba2-tiny".into()), ..stability })
}

#[test]
fn a_model_goes_its_own_way_with_itself() {
    let (_folder, stability) = text();
    let model = Model::load("random:mamba2-tiny").unwrap();
    let rows = stability.measure(&model).unwrap();
    assert_eq!(rows.len(), 2 * (3 + 1));
    for summary in rows.iter().filter(|row| row.row == "summary") {
        assert_eq!(
            (summary.number("together_median"), summary.number("never_parted")),
            (Some(40.0), Some(1.0))
        );
        assert_eq!(
            (summary.number("delta_repetition"), summary.number("delta_entropy")),
            (Some(0.0), Some(0.0))
        );
        // A random model is as unsure as can be: close to ln 256.
        assert!((4.0..5.55).contains(&summary.number("entropy").unwrap()));
    }
}

#[test]
fn prompts_decoded_together_are_those_decoded_alone() {
    let (_folder, stability) = text();
    let model = Model::load("random:mamba2-tiny").unwrap();
    let ids = stability.sliding().cut(&model).unwrap().ids;
    let prompts = [&ids[..50], &ids[1000..1050]];
    let progress = Progress::new("test", 0, "steps");
    let together = stability.decode(&model, &prompts, &progress).unwrap();
    for (prompt, found) in prompts.iter().zip(&together) {
        assert_eq!(found.tokens, model.continue_greedily(prompt, 40).unwrap());
    }
}

#[test]
fn coarse_weights_part_early() {
    let (_folder, stability) = text();
    let model = Model::load("random:mamba2-tiny").unwrap();
    let median = |scheme: &str| {
        let rows = stability.measure(&model.quantized(&scheme.parse().unwrap()).unwrap()).unwrap();
        let prompts = rows.iter().filter(|row| row.row == "prompt" && row.number("parted") == Some(1.0));
        assert!(prompts.clone().all(|row| row.number("together") < Some(40.0)));
        rows[3].number("together_median").unwrap()
    };
    let (fine, coarse) = (median("w8a16"), median("w2a16"));
    assert!(coarse < fine && coarse < 10.0, "{fine} {coarse}");
}

#[test]
fn repetition_and_entropy_are_their_definitions() {
    assert_eq!(repetition(&[1, 2, 3, 4], 2), 0.0);
    assert_eq!(repetition(&[1, 2, 1, 2, 1], 2), 0.5); // 12, 21, 12, 21
    assert_eq!(repetition(&[1], 2), 0.0);
    assert!((entropy(&[3.0; 16]) - 16_f64.ln()).abs() < 1e-6);
    assert!(entropy(&[0.0, -1000.0, f32::NEG_INFINITY]).abs() < 1e-6);
}

#[test]
fn bad_settings_are_refused_in_a_sentence() {
    let (folder, stability) = text();
    let model = Model::load("random:mamba2-tiny").unwrap();
    let error = |s: Stability| s.measure(&model).unwrap_err().to_string();
    assert!(error(stability.clone().prompts(0)).contains("prompts must be at least 1"));
    assert!(error(Stability { lengths: vec![], ..stability.clone() }).contains("lengths must be at least 1"));
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "to be or not").unwrap();
    let part = "12 tokens are fewer than one prompt of 20";
    assert!(error(stability.clone().on(&short)).contains(part));
    assert!(stability.clone().on(short).check(&model).unwrap_err().to_string().contains(part));
    // The last length is refused before the first is measured.
    let long = Stability { lengths: vec![20, 100_000], ..stability };
    let sentence = long.check(&model).unwrap_err().to_string();
    assert!(sentence.contains("fewer than one prompt of 100000"), "{sentence}");
}
