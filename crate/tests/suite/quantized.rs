//! Quantization through the program, and its sentence for each scheme that cannot be.

use super::command_line::{lowbit, refused};
use super::fixture::{FIXTURE, Folder};
use lowbit::Model;
use lowbit::layer::linear::{Linear, Weight};
use lowbit::layer::quantized::Block;

#[test]
fn a_quantized_model_is_saved_and_measured_like_any_other() {
    let folder = Folder::new();
    let path = folder.at("int4");
    let output = lowbit()
        .args(["quantize", FIXTURE, "--scheme", "w4a8-g32-gptq+dt=w8", "--calibration-samples", "2"])
        .args(["--calibration-length", "64", "--out"])
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["backbone.layers.0.mixer.in_proj", "dt", "w4-g32", "w8", "lm_head", "gptq", "2 × 64 tokens"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let info = lowbit().args(["info", "--linears"]).arg(&path).output().unwrap();
    let info = String::from_utf8(info.stdout).unwrap();
    assert!(info.contains("quantized   w4a8-g32-gptq+dt=w8"), "{info}");
    let measured = lowbit()
        .args(["ppl", "--max-tokens", "300", "--runs"])
        .arg(folder.at("runs"))
        .arg(&path)
        .output()
        .unwrap();
    let table = String::from_utf8(measured.stdout).unwrap();
    assert!(measured.status.success() && table.contains("w4a8-g32-gptq+dt=w8"), "{table}");
}

/// Which blocks of a matrix are in the order of the instructions that multiply them.
fn laid_out(linear: &Linear) -> Vec<bool> {
    let Weight::Quantized(matrix) = &linear.weight else { return vec![] };
    let packed = |block: &Block| matches!(block, Block::Packed(encoded) if encoded.packed().is_some());
    matrix.blocks().iter().map(packed).collect()
}

#[test]
fn a_loaded_model_is_as_fast_as_the_one_that_was_saved() {
    let folder = Folder::new();
    let path = folder.at("w8");
    let model = Model::load(FIXTURE).unwrap().quantized(&"w8a8".parse().unwrap()).unwrap();
    model.save(&path).unwrap();
    let loaded = Model::load(path.to_str().unwrap()).unwrap();
    for ((name, loaded), (_, saved)) in loaded.linears().into_iter().zip(model.linears()) {
        assert_eq!(laid_out(loaded), laid_out(saved), "{name}");
    }
    assert!(model.linears().iter().any(|(_, linear)| laid_out(linear).contains(&true)));
}

#[test]
fn the_names_are_listed() {
    let output = lowbit().arg("schemes").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "w4a8-g64-gptq",
        "gptqseq",
        "nf4dq",
        "smooth0.5",
        "+dt=w8",
        "mix1460608B",
        "h8ef8",
        "40 bits a value",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn each_scheme_that_cannot_be_has_its_sentence() {
    let folder = Folder::new();
    let short = folder.write("short.txt", "too short");
    let short = short.as_str();
    for (scheme, parts) in [
        ("w4a9", &["scheme \"w4a9\": no number format begins like this", "near it are w4a"][..]),
        ("w4a8-gtpq", &["unknown part \"gtpq\"", "lowbit schemes"]),
        ("w4a8-g4096", &["backbone.layers.0.mixer.in_proj: groups of 4096 are larger than the row of"]),
        ("w4a8+router=w8", &["the pattern \"router\" fits no matrix of the model", "in_proj"]),
        ("w4a8-gptq", &["9 tokens are fewer than one calibration window of 512"]),
        ("w4a8-rot-smooth0.5", &["rotation and smoothing", "choose rot or smooth"]),
        ("nf4-mix4.5", &["mixed precision needs integers by row or by group"]),
    ] {
        let (code, sentence) = refused(&["ppl", FIXTURE, "--scheme", scheme, "--calibration", short]);
        assert_eq!(code, 2, "{sentence}");
        parts.iter().for_each(|part| assert!(sentence.contains(part), "{part}: {sentence}"));
    }
    let (code, sentence) = refused(&["quantize", FIXTURE, "--out", short]);
    assert!(code == 2 && sentence.contains("no scheme is named"), "{sentence}");
}
