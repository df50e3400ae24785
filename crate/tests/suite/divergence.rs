//! Divergence and noise through the program: two forms of one model compared, recorded, and drawn.

use super::command_line::{lowbit, refused};
use super::fixture::{FIXTURE, Folder};
use lowbit::frame::Frame;
use std::fs;

#[test]
fn a_narrow_model_is_compared_with_the_checkpoint() {
    let folder = Folder::new();
    let runs = folder.text("runs");
    let args = ["divergence", FIXTURE, "--dtype", "bf16", "--reference", FIXTURE, "--runs", &runs];
    let output = lowbit().args(args).args(["--seq-len", "128", "--max-tokens", "700"]).output().unwrap();
    let (told, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{complaint}");
    assert!(told.contains("same_top") && told.contains("plots/divergence.png"), "{told}");
    let run = fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let rows = Frame::load(&run).unwrap();
    let number = |name: &str| rows.numbers(name).unwrap()[0].unwrap();
    assert!(number("kl") > 0.0 && number("kl") < 0.01 && number("kl") <= number("kl_max"));
    assert!(number("same_top") > 0.8 && number("same_top") <= number("same_top_high"));
    assert_eq!((number("n_tokens"), number("stride")), (699.0, 64.0));
    let texts = ["dtype", "reference_dtype"].map(|name| rows.texts(name).unwrap()[0].clone().unwrap());
    assert_eq!(texts, ["bf16", "f32"]);
    assert!(run.join("plots/divergence.svg").exists());
}

#[test]
fn a_comparison_with_nothing_is_refused() {
    let folder = Folder::new();
    let runs = folder.text("runs");
    let (code, sentence) = refused(&["divergence", FIXTURE, "--runs", &runs, "--reference", "no/such.pt"]);
    assert!(code == 3 && sentence.contains("no/such.pt: no such file"), "{sentence}");
    assert!(!folder.at("runs").exists());
}

#[test]
fn every_matrix_of_a_quantized_model_has_its_ratios() {
    let folder = Folder::new();
    let runs = folder.text("runs");
    let args =
        ["sqnr", FIXTURE, "--scheme", "w8a8", "--max-tokens", "300", "--seq-len", "100", "--runs", &runs];
    let output = lowbit().args(args).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("worst_layer"), "{told}");
    let run = fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let rows = Frame::load(&run).unwrap();
    let layers = rows.filter("row", "layer").unwrap();
    assert_eq!((rows.height(), layers.height()), (6, 5)); // two blocks of two, the head, and a summary
    let worst = rows.filter("row", "summary").unwrap().numbers("worst_sqnr_db").unwrap()[0].unwrap();
    let lowest = layers.numbers("sqnr_db").unwrap().into_iter().flatten().fold(f64::INFINITY, f64::min);
    assert!(worst == lowest && (20.0..60.0).contains(&worst), "{worst} {lowest}");
    let args = ["sqnr", FIXTURE, "--scheme", "w8a8-rot", "--runs", &runs];
    assert!(refused(&args).1.contains("different bases or scales"));
}

#[test]
fn what_choosing_widths_took_is_recorded() {
    let folder = Folder::new();
    let (runs, file) = (folder.text("runs"), folder.text("text.txt"));
    fs::write(&file, "So foul and fair a day I have not seen. ".repeat(40)).unwrap();
    let calibration = ["--calibration", &file, "--calibration-samples", "4", "--calibration-length", "50"];
    let args = ["making", FIXTURE, "--scheme", "w4a16-mix4.5", "--runs", &runs];
    let output = lowbit().args(args).args(calibration).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("choosing_tokens"), "{told}");
    let run = fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let rows = Frame::load(&run).unwrap();
    let number = |name: &str| rows.numbers(name).unwrap()[0].unwrap();
    assert!(number("choosing_tokens") > 200.0 && number("choosing_tokens") <= number("quantizing_tokens"));
    assert!(number("budget_used_bytes") <= number("budget_bytes"));
}
