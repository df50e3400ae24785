//! A model whose activations overflow: NaN is shown as NaN, told with the layer where it begins, and never a number.

use super::command_line::lowbit;
use super::fixture::{Folder, config, tensors};
use candle_core::DType;
use lowbit::frame::Frame;
use serde_json::json;
use std::process::Output;

/// The fixture with a matrix that makes the output of its first mixer overflow, and a text.
fn overflowing() -> (Folder, String) {
    let folder = Folder::with_tensor("backbone.layers.0.mixer.out_proj.weight", |tensor| {
        (tensor.ones_like().unwrap() * 3e38).unwrap()
    });
    let text =
        folder.write("text.txt", "A number that is none goes through all that is made of it. ".repeat(40));
    (folder, text)
}

fn run(folder: &Folder, args: &[&str], runs: &str) -> (Output, String, String) {
    let model = folder.path().to_string_lossy().into_owned();
    let all = [&[args[0], &model, "--runs", runs], &args[1..]].concat();
    let output = lowbit().args(all).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, told) = (text(&output.stdout), text(&output.stderr));
    (output, out, told)
}

#[test]
fn what_overflows_is_shown_and_its_layer_is_named() {
    let (folder, text) = overflowing();
    let runs = folder.text("runs");
    let windows = ["--corpus", &text, "--seq-len", "64", "--max-tokens", "256"];
    for (i, (args, measure)) in [
        (&["ppl"][..], "perplexity"),
        (&["ppl", "--dtype", "bf16"], "perplexity"),
        // The rounding of activations, dynamic and in a head of eight bits, makes no numbers of it.
        (&["ppl", "--scheme", "w8a8"], "perplexity"),
        (&["ppl", "--scheme", "w4a8-g32"], "perplexity"),
        (&["ppl", "--scheme", "nf4"], "perplexity"),
        (&["ppl", "--scheme", "w16a16-h8"], "perplexity"),
        (&["ppl", "--scheme", "w8a8", "--simulate"], "perplexity"),
        (&["divergence", "--scheme", "w8a8"], "divergence"),
        (&["sqnr", "--scheme", "w8a8"], "sqnr"),
        (&["outliers"], "outliers"),
    ]
    .into_iter()
    .enumerate()
    {
        let runs = format!("{runs}{i}");
        let (output, out, told) = run(&folder, &[args, &windows[..]].concat(), &runs);
        assert!(output.status.success(), "{args:?}: {told}");
        let layer = "the output of backbone.layers.0.mixer is not finite";
        assert!(told.contains(&format!("{measure} is NaN: ")) && told.contains(layer), "{args:?}: {told}");
        assert!(out.contains("NaN"), "{args:?}: {out}");
    }
    let path = std::fs::read_dir(format!("{runs}0")).unwrap().next().unwrap().unwrap().path();
    let frame = Frame::load(path).unwrap();
    for column in ["ppl", "nll", "bits_per_byte"] {
        assert!(frame.numbers(column).unwrap()[0].unwrap().is_nan(), "{column}");
    }
}

#[test]
fn measurements_of_lengths_pass_it_on_too() {
    let (folder, text) = overflowing();
    let runs = folder.text("runs");
    for (args, measure) in [
        (&["context", "--scheme", "w8a8", "--corpus", &text, "--lengths", "16,32"][..], "context"),
        (
            &["stability", "--scheme", "w8a8", "--corpus", &text, "--lengths", "16", "--gen-len", "4"],
            "stability",
        ),
        (&["drift", "--scheme", "w8a8", "--corpus", &text, "--samples", "1", "--length", "64"], "drift"),
        (&["passkey", "--lengths", "300", "--trials", "2"], "passkey"),
    ] {
        let (output, out, told) = run(&folder, args, &runs);
        assert!(output.status.success(), "{args:?}: {told}");
        assert!(told.contains(&format!("{measure} is NaN: ")), "{args:?}: {told}");
        assert!(told.contains("the output of backbone.layers.0.mixer is not finite"), "{args:?}: {told}");
        assert!(out.contains("NaN"), "{args:?}: {out}");
    }
    // What is chosen by a text that overflows is refused.
    for scheme in ["w4a16-gptq", "w8a8-static", "w8a8-smooth0.5"] {
        let (output, _, told) = run(&folder, &["ppl", "--corpus", &text, "--scheme", scheme], &runs);
        assert_eq!(output.status.code(), Some(2), "{scheme}: {told}");
        assert!(told.contains("its input on the calibration text is not finite"), "{scheme}: {told}");
    }
}

#[test]
fn a_cast_that_overflows_is_refused_for_every_dtype() {
    const OUT: &str = "backbone.layers.1.mixer.out_proj.weight";
    let folder = |value: f64, dtype: DType| {
        let mut tensors = tensors();
        let wide = tensors[OUT].to_dtype(DType::F64).unwrap();
        let huge = (wide.ones_like().unwrap() * value).unwrap().to_dtype(dtype).unwrap();
        tensors.insert(OUT.to_string(), huge);
        Folder::checkpoint(&tensors, Some(&config()))
    };
    for (value, dtype, asked, part) in [
        (1e300, DType::F64, "f32", "too large for f32; lowbit computes in f32"),
        (3.4e38, DType::F32, "bf16", "too large for bf16; ask for f32"),
        (1e300, DType::F64, "bf16", "too large for bf16; ask for f32"),
        (1e6, DType::F32, "f16", "too large for f16; ask for bf16 or f32"),
    ] {
        let folder = folder(value, dtype);
        let output =
            lowbit().args(["info", &folder.path().to_string_lossy(), "--dtype", asked]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && told.contains(OUT) && told.contains(part), "{told}");
    }
}

#[test]
fn a_step_below_zero_is_told_where_it_overflows() {
    let folder = Folder::with_setting("time_step_limit", json!([-40.0, -30.0]));
    let text = folder.write("text.txt", "Time runs backwards, and the state grows without end. ".repeat(20));
    let (output, out, told) =
        run(&folder, &["ppl", "--corpus", &text, "--seq-len", "128"], &folder.text("runs"));
    assert!(output.status.success() && out.contains("NaN"), "{out}{told}");
    assert!(told.contains("perplexity is NaN: ") && told.contains("backbone.layers.0.mixer"), "{told}");
}
