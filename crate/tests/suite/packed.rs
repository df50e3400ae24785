//! `lowbit pack`: one compressed file, within a budget.

use super::command_line::{lowbit, refused};
use super::fixture::Folder;
use lowbit::model::Model;
use std::fs;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lowrankq-tiny");

#[test]
fn a_model_becomes_one_file_that_loads() {
    let folder = Folder::new();
    let (file, text) = (folder.at("small.lowbit"), folder.at("text.txt"));
    let named = |path: &std::path::Path| path.to_str().unwrap().to_string();
    fs::write(&text, "Brevity is the soul of wit, and so the fewest bytes. ".repeat(60)).unwrap();
    let pack = |flags: &[&str]| {
        let output = lowbit().args(["pack", MODEL, "--out", &named(&file)]).args(flags).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let told = pack(&["--scheme", "w6a16-sf16", "--beside", "1000"]);
    let bytes = fs::metadata(&file).unwrap().len();
    assert!(told.contains(&format!("{bytes} bytes")) && told.contains("bytes by their entropy"), "{told}");
    assert!(told.contains(&format!("{} bytes with the 1000 beside it", bytes + 1000)), "{told}");
    let loaded = Model::load(&named(&file)).unwrap();
    let (plain, scheme) = (Model::load(MODEL).unwrap(), "w6a16-sf16".parse().unwrap());
    let ids: Vec<u32> = (0..40).map(|i| i * 31 % 256).collect();
    assert_eq!(loaded.nll(&ids, 39).unwrap(), plain.quantized(&scheme).unwrap().nll(&ids, 39).unwrap());

    let calibration =
        ["--calibration", &named(&text), "--calibration-samples", "2", "--calibration-length", "64"];
    let budget = (bytes * 4 / 5).to_string();
    let told = pack(&[&["--scheme", "w6a16-sf16", "--budget", &budget], &calibration[..]].concat());
    assert!(told.contains("taken: w") && told.contains("nats a token"), "{told}");
    assert!(fs::metadata(&file).unwrap().len() <= bytes * 4 / 5);
    let refuse = |flags: &[&str]| {
        let out = named(&file);
        refused(&[&["pack", MODEL, "--out", &out], flags, &calibration[..]].concat()).1
    };
    let error = refuse(&["--scheme", "w6a16", "--budget", "3000"]);
    assert!(
        error.contains("no scheme near w6a16 makes a file of 3000 bytes; the smallest file is"),
        "{error}"
    );
    assert!(refuse(&["--budget", "3000"]).contains("no scheme is named"));
    let error = refused(&["pack", MODEL, "--scheme", "w6a16", "--out", &named(&folder.at("x.bin"))]).1;
    assert!(error.contains("x.bin: a packed model is loaded by the ending of its name; name it"), "{error}");
}
