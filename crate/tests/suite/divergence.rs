//! Divergence through the program: two forms of one model compared, recorded, and drawn.

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
    assert!(told.contains("same_top") && told.contains("2 figures"), "{told}");
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
