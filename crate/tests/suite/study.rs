//! A study from its settings to the records of its run.

use lowbit::frame;
use lowbit::prelude::*;

#[test]
fn every_model_is_measured_in_every_scheme_once() {
    let root = tempfile::tempdir().unwrap();
    let study = Study::new("grid")
        .models(["random:mamba2-tiny"])
        .schemes(["f32", "w4a8-g64"])
        .measure(Passkey { lengths: vec![260], trials: 2, ..Passkey::default() })
        .measure(Cost { lengths: vec![16], gen_len: 2, repetitions: 1, ..Cost::default() });
    let half = Study { schemes: vec!["w4a8-g64".into()], ..study.clone() };
    let half = half.run_into(|| study.open(root.path())).unwrap();
    // As if it had been cut short: the same run goes on and measures only what it lacks.
    std::fs::remove_file(half.path().join("finished")).unwrap();
    let (id, before) = (half.id().to_string(), Frame::load(half.path()).unwrap().height());
    drop(half);
    let run = study.run_into(|| study.open(root.path()).map(|run| run.notes("second try"))).unwrap();
    assert_eq!(run.id(), id);
    let rows = Frame::load(run.path()).unwrap();
    assert_eq!(rows.height(), 2 * before);
    for scheme in ["f32", "w4a8-g64"] {
        let summaries = rows.filter("scheme", scheme).unwrap().filter("row", "summary").unwrap();
        assert_eq!(summaries.texts("measure").unwrap().len(), 3); // passkey, prefill, decode
    }
    let noted = rows.filter("notes", "second try").unwrap();
    assert_eq!((noted.height(), noted.texts("scheme").unwrap()[0].as_deref()), (before, Some("f32")));
}

#[test]
fn what_there_is_to_do_is_told_beforehand() {
    let folder = super::fixture::Folder::new();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lowbit"));
    command.current_dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let output =
        command.args(["reproduce", "glance", "--small", "--runs", &folder.text("runs")]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    assert!(told.starts_with("lowbit: glance: 3 schemes × 2 measurements of data/models/bard; "), "{told}");
    assert!(told.lines().next().unwrap().ends_with(" on this machine"), "{told}");
}

#[test]
fn errors_are_followed_through_time() {
    let folder = super::fixture::Folder::new();
    let runs = folder.text("runs");
    let run = |args: &[&str]| {
        let output =
            super::command_line::lowbit().args(args).args(["--runs", &runs, "--small"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let shape = "random:mamba2-tiny";
    let told = run(&["reproduce", "drift", "--model", shape, "--schemes", "w4a16,w16a16-h4,w16a16-h4ef"]);
    for part in ["drift_median", "together_median", "plots/drift.png, and 2 more beside it", "w16a16-h4ef"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let told = run(&["reproduce", "outliers", "--model", shape, "--schemes", "f32"]);
    assert!(told.contains("persistence_far") && told.contains("out_proj"), "{told}");
    let plots: Vec<_> = ["drift", "drift_prediction", "stability", "outliers"]
        .iter()
        .flat_map(|name| {
            let runs = std::fs::read_dir(&runs).unwrap().map(|run| run.unwrap().path());
            runs.map(move |run| run.join(format!("plots/{name}.svg"))).filter(|plot| plot.exists())
        })
        .collect();
    assert_eq!(plots.len(), 4, "{plots:?}");
}

#[test]
fn the_schemes_of_a_run_stand_beside_their_baseline() {
    let folder = super::fixture::Folder::new();
    let runs = folder.text("runs");
    let text =
        folder.write("text.txt", "Now is the winter of our discontent made glorious summer. ".repeat(40));
    let config = format!(
        "name: beside\nmodels: ['random:mamba2-tiny']\nschemes: [f32, w8a8, w2a16]\nmeasures:\n\
         - perplexity: {{corpus: '{text}', split: null, seq_len: 64, stride: 64}}\n\
         - divergence: {{corpus: '{text}', split: null, seq_len: 64, stride: 64, interval: {{blocks: 8}}}}\n\
         - passkey: {{lengths: [260], trials: 2}}\n"
    );
    let config = folder.write("study.yaml", config);
    let run = |args: &[&str]| {
        let output = super::command_line::lowbit().args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let told = run(&["reproduce", "phase1", "--config", &config, "--runs", &runs]);
    let folder = std::fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let compared = run(&["compare", &folder.to_string_lossy()]);
    assert!(told.contains(compared.trim_end()), "{compared}");
    for part in ["baseline", "Δ [95 %]", "KL [95 %]", "keys at 260", "0/2"] {
        assert!(compared.contains(part), "{part}: {compared}");
    }
    let beside = Frame::load(&folder).unwrap().compare("w8a8").unwrap();
    // The same text twice over: only what depends on the baseline changes.
    let other = Frame::load(&folder).unwrap().compare("f32").unwrap();
    let delta = |rows: &frame::Comparison, i: usize| rows.rows[i].delta.unwrap().value;
    assert!((delta(&beside, 2) + delta(&other, 1) - delta(&other, 2)).abs() < 1e-9);
    assert_eq!((delta(&beside, 1), beside.rows[1].delta_p), (0.0, None));
    let kl = Frame::load(&folder).unwrap().filter("scheme", "w2a16").unwrap();
    assert_eq!(kl.filter("measure", "divergence").unwrap().numbers("kl_blocks").unwrap(), [Some(8.0)]);
}

#[test]
fn a_recorded_run_is_checked_against_a_second_measurement() {
    let folder = super::fixture::Folder::new();
    let runs = folder.text("runs");
    let text = folder
        .write("text.txt", "If it were done when tis done, then twere well it were done quickly. ".repeat(9));
    let config = format!(
        "name: checked\nmodels: ['random:mamba2-tiny']\nschemes: [f32, w4a8]\nmeasures:\n\
         - perplexity: {{corpus: '{text}', split: null, seq_len: 64, stride: 64}}\n\
         - passkey: {{lengths: [260], trials: 1}}\n"
    );
    let config = folder.write("study.yaml", config);
    let run = |args: &[&str]| super::command_line::lowbit().args(args).output().unwrap();
    assert!(run(&["reproduce", "phase1", "--config", &config, "--runs", &runs]).status.success());
    let recorded = std::fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let check = || {
        let output = run(&["reproduce", "--check", &recorded.to_string_lossy()]);
        let told = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), told)
    };
    let (code, told) = check();
    assert!(code == 0 && told.contains("differ           0 of "), "{told}");
    for part in [
        "measured values",
        "recorded on",
        "compared         bit for bit",
        "times, as ratios",
        "settings and names",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }

    // Times and the machine may be others, a reading may not.
    let metrics = recorded.join("metrics.jsonl");
    let lines = std::fs::read_to_string(&metrics).unwrap();
    let change = |column: &str, value: serde_json::Value| {
        let mut rows: Vec<serde_json::Map<String, serde_json::Value>> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let row = rows.iter_mut().rfind(|row| row.contains_key(column)).unwrap();
        row.insert(column.to_string(), value);
        let text: Vec<String> = rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
        std::fs::write(&metrics, text.concat()).unwrap();
    };
    change("host", serde_json::json!("another"));
    let (code, told) = check();
    assert!(code == 0 && told.contains("not compared     host"), "{told}");
    change("runtime_s", serde_json::json!(1e6));
    let (code, told) = check();
    assert!(code == 1 && told.contains("runtime_s") && told.contains("sizes of memory ("), "{told}");
    change("bits_per_byte", serde_json::json!(7.0));
    let (code, told) = check();
    assert!(code == 1 && told.contains("w4a8") && told.contains("bits_per_byte"), "{told}");
    // Shares are of what was measured: settings and names do not thin them out.
    let share = told.lines().find(|line| line.contains("differ           ")).unwrap();
    let compared: usize = share.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(share.contains("1 of ") && (10..60).contains(&compared), "{told}");
    assert!(told.contains(&format!("1 of {compared} measured values (")), "{told}");
    assert!(told.contains("are not what was recorded; see what changed"), "{told}");
}

/// The readings are there, the figures are not: the same command draws them, and measures nothing again.
#[test]
fn a_run_is_finished_by_its_figures() {
    let folder = super::fixture::Folder::new();
    let runs = folder.text("runs");
    let text =
        folder.write("text.txt", "Now is the winter of our discontent made glorious summer. ".repeat(20));
    let study = format!(
        "name: drawn\nmodels: ['random:mamba2-tiny']\nschemes: [f32, w4a8]\nmeasures:\n\
         - perplexity: {{corpus: '{text}', split: null, seq_len: 64, stride: 64}}\n\
         - passkey: {{lengths: [260], trials: 1}}\n"
    );
    let study = folder.write("study.yaml", study);
    for args in [
        vec!["reproduce", "phase1", "--config", &study],
        vec!["passkey", "random:mamba2-tiny", "--lengths", "260", "--trials", "1"],
    ] {
        let command = || super::command_line::lowbit().args(&args).args(["--runs", &runs]).output().unwrap();
        assert!(command().status.success());
        let run = std::fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
        let at = |name: &str| run.join(name);
        let readings = || std::fs::read(at("metrics.jsonl")).unwrap();
        let before = readings();
        // As a kill after the last reading leaves it; and where the figures cannot be drawn, it is not finished.
        std::fs::remove_file(at("finished")).unwrap();
        std::fs::remove_dir_all(at("plots")).unwrap();
        std::fs::write(at("plots"), "in the way").unwrap();
        assert!(!command().status.success());
        assert!(!at("finished").exists() && readings() == before);
        std::fs::remove_file(at("plots")).unwrap();
        let output = command();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(at("finished").exists() && readings() == before, "nothing was measured again");
        assert!(at("plots/passkey.svg").exists() && at("plots/passkey.png").exists());
        assert_eq!(std::fs::read_dir(&runs).unwrap().count(), 1, "no other run was begun");
        std::fs::remove_dir_all(&run).unwrap();
    }
}

/// What must fail at the second scheme or the second model fails before the first is measured.
#[test]
fn a_setting_that_must_fail_fails_before_measuring() {
    let folder = super::fixture::Folder::new();
    let text =
        folder.write("text.txt", "Now is the winter of our discontent made glorious summer. ".repeat(20));
    let int4 = folder.text("int4");
    let model = Model::load("random:mamba2-tiny").unwrap();
    model.quantized(&Scheme::w4a8()).unwrap().save(int4.as_ref()).unwrap();
    let study =
        |models: &[&str], schemes: &[&str]| Study::new("fails").models(models.to_vec()).schemes(schemes);
    let (tiny, passkey) = ("random:mamba2-tiny", Passkey::lengths([260]).trials(1));
    let calibration =
        Calibration { corpus: (&text).into(), split: None, samples: 2, length: 32, ..Calibration::default() };
    let parts = || Sensitivity {
        calibration: calibration.clone(),
        ..Sensitivity::to(["w3a16"]).on(&text).max_tokens(100)
    };
    let sqnr = Sqnr::default().on(&text);
    for (study, part) in [
        (
            study(&[tiny], &["f32", "w4a8"]).measure(parts()),
            "the parts of a quantized model cannot be quantized alone",
        ),
        (study(&[&int4], &[]).measure(parts()), "is quantized already"),
        (study(&[tiny], &["f32", "w4a16-rot"]).measure(sqnr), "other bases or scales"),
        (
            study(&[tiny], &["f32", "f16-lossless"]).measure(passkey.clone()),
            "exponents of f16 have too few bits",
        ),
        (study(&[tiny], &["f32", "w4a8-rot-smooth0.5"]).measure(passkey.clone()), "choose rot or smooth"),
        (study(&[tiny, &int4], &["f32"]).measure(passkey.clone()), "is quantized already"),
        (study(&[tiny], &["f32", "w4a8-perchannel+head=w8"]).measure(passkey), "a norm of its own"),
    ] {
        let opened = || -> Result<Run> { panic!("a run was made before: {part}") };
        let error = study.run_into(opened).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    // Without a scheme, a model is measured as it is, in few bits or not.
    let as_it_is = study(&[&int4], &[]).measure(Perplexity::of(&text).windows(64, 64));
    let run = as_it_is.run_into(|| as_it_is.open(folder.at("runs"))).unwrap();
    assert_eq!(Frame::load(run.path()).unwrap().texts("scheme").unwrap()[0].as_deref(), Some("w4a8"));
}
