//! Quantized models against the definition, and against what each method promises.

mod experts;
mod saved;

use super::*;
use crate::kernel::integer::{IntegerRows, quantize_rows};
use crate::layer::linear::Weight;
use crate::layer::quantized::Block;
use crate::layer::recurrence::Recurrence;
use crate::model::{Loading, Positions};
use candle_core::{Device, Tensor};

pub(super) fn model() -> Model {
    let config = crate::family::Config::Mamba2(crate::family::mamba2::Config {
        num_hidden_layers: 2,
        hidden_size: 96, // 3 · 2^5: the rotation has an odd part
        num_heads: 3,
        ..Default::default()
    });
    Model::random("small", config, 3, &Loading::default()).unwrap()
}

pub(super) fn calibration(folder: &tempfile::TempDir) -> Quantizing {
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "Now is the winter of our discontent made glorious summer. ".repeat(40)).unwrap();
    let calibration = Calibration { samples: 8, length: 64, ..Calibration::of(file) };
    Quantizing { calibration, ..Quantizing::default() }
}

fn logits(model: &Model) -> Vec<f32> {
    logits_after(model, &(0..70).map(|i| (i * 37 + 11) % 256).collect::<Vec<u32>>())
}

fn logits_after(model: &Model, ids: &[u32]) -> Vec<f32> {
    let logits = model.forward(&model.tokens(ids).unwrap(), None, Positions::All).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/corpus");

/// Calibration on a text that is large enough to tell of others.
pub(super) fn on_sonnets() -> Quantizing {
    let text = format!("{CORPUS}/train/sonnets.txt");
    let calibration = Calibration { samples: 64, length: 128, ..Calibration::of(text) };
    Quantizing { calibration, ..Quantizing::default() }
}

/// Tokens of that text's first window, and of a play that no calibration has seen.
pub(super) fn seen_and_unseen(model: &Model, how: &Quantizing) -> [Vec<u32>; 2] {
    let sample = how.calibration.sample(model).unwrap();
    let play = std::fs::read(format!("{CORPUS}/test/macbeth.txt")).unwrap();
    [sample.windows[0].1.clone(), play[2000..2000 + 512].iter().map(|byte| u32::from(*byte)).collect()]
}

/// The squared error of the logits after these tokens.
pub(super) fn error_after(model: &Model, exact: &Model, ids: &[u32]) -> f64 {
    let (found, exact) = (logits_after(model, ids), logits_after(exact, ids));
    found.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

fn far(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub(super) fn quantized(name: &str, how: &Quantizing) -> Model {
    model().quantized_with(&name.parse().unwrap(), how).unwrap()
}

#[test]
fn simulated_and_packed_agree() {
    let folder = tempfile::tempdir().unwrap();
    let how = calibration(&folder);
    let names = [
        "w8a8",
        "w4a8",
        "w4a4",
        "w4a16-g32",
        "w3a8-g40-mse",
        "u4a8-g32",
        "u8a8",
        "nf4",
        "nf4dq",
        "fp8",
        "mxfp4",
        "nvfp4a8",
        "ternary",
        "ternarya8",
        "w4a8-b64",
        "w4a8-static",
        "w4a8-static99.5",
        "w4a8-staticmse",
        "w8a8-perchannel",
        "w4a4-g32-rot-gptq",
        "w4a8-smooth0.5-gptq",
        "w4a8+dt=w8+head=w8",
        "w16a8",
        "w16a16+embedding=w4",
        "w4a16-g32-mix4.5",
        "w4a8-x8-bc8-h8ef",
        "w4a8-h4ef8",
        "w3a16-gptqseq",
        "w4a4-g32-rot-gptqtrueseq",
        "w4a8-static99.5-gptqseq",
        "w4a16-g32-gptqseq-mix4.5",
        "w8a8-h16",
        "u3a16-row-gptq",
    ];
    let plain = logits(&model());
    for name in names {
        let packed = quantized(name, &how);
        let fake = quantized(name, &Quantizing { backend: Backend::Fake, ..how.clone() });
        let (a, b) = (logits(&packed), logits(&fake));
        let scale = a.iter().fold(0.0f32, |top, x| top.max(x.abs()));
        // An activation half-way between two integers may fall to either side, when what came before differs in the
        // last bit: then the two differ by a step somewhere. With the same input they never do (see below).
        let bound = if packed.quantization.as_ref().unwrap().a_bits.is_some() { 3e-2 } else { 1e-5 };
        assert!(far(&a, &b) <= bound * scale, "{name}: {} of {scale}", far(&a, &b));
        assert!(far(&a, &plain) > 0.0, "{name} changes nothing");
        assert!(packed.bytes() <= model().bytes(), "{name}");
    }
}

#[test]
fn every_product_of_packed_and_fake_is_equal() {
    let folder = tempfile::tempdir().unwrap();
    let how = calibration(&folder);
    let x: Vec<f32> = (0..5 * 96).map(|i| ((i * 7919 + 13) % 257) as f32 / 128.0 - 1.0).collect();
    for name in [
        "w8a8",
        "w4a8",
        "w4a4",
        "w4a8-g32",
        "u4a8-g40",
        "u8a4",
        "ternarya8",
        "w2a2",
        "nf4a8",
        "fp8",
        "w5a6-b64",
    ] {
        let packed = quantized(name, &how);
        let fake = quantized(name, &Quantizing { backend: Backend::Fake, ..how.clone() });
        for ((path, packed), (_, fake)) in packed.linears().into_iter().zip(fake.linears()) {
            let (_, k) = packed.weight.shape().unwrap();
            let x = Tensor::from_slice(&x[..x.len() / k * k], (x.len() / k, k), &Device::Cpu).unwrap();
            let product = |linear: &crate::layer::linear::Linear| {
                linear.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let (a, b) = (product(packed), product(fake));
            let scale = a.iter().fold(0.0f32, |top, x| top.max(x.abs()));
            assert!(far(&a, &b) <= 1e-5 * scale, "{name} {path}: {} of {scale}", far(&a, &b));
        }
    }
}

/// The accumulators of the packed product are the sums of the integers that the simulated values stand for.
#[test]
fn integer_sums_are_equal_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bits) in [("w8a8", 8), ("w4a8", 8), ("w4a4", 4)] {
        let packed = quantized(name, &calibration(&folder));
        let (_, linear) = packed.linears().swap_remove(0);
        let Weight::Quantized(weight) = &linear.weight else { panic!("not quantized") };
        let [Block::Packed(encoded)] = weight.blocks() else { panic!("not packed") };
        let k = encoded.cols;
        let x: Vec<f32> = (0..k).map(|i| ((i * 31) % 97) as f32 / 40.0 - 1.0).collect();
        let codes = quantize_rows(&x, k, bits, None);
        let (fake_x, fake_w, mut integers) = (codes.values(), encoded.decode(), vec![0; k]);
        for row in 0..encoded.rows {
            encoded.integers(row, &mut integers);
            let scale = encoded.scales.get(row).scale;
            let simulated: i64 = (0..k)
                .map(|j| {
                    let x = (fake_x[j] / codes.scales[0]).round() as i64;
                    let w = (fake_w[row * k + j] / scale).round() as i64;
                    x * w
                })
                .sum();
            assert_eq!(
                i64::from(crate::kernel::integer::dot(&codes.codes, &integers)),
                simulated,
                "{name} {row}"
            );
        }
    }
}

#[test]
fn rotation_and_smoothing_leave_the_function_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (how, plain) = (calibration(&folder), logits(&model()));
    for name in ["w16a16-rot", "w16a16-rot7", "w16a16-smooth0.5+in_proj=keep"] {
        let same = quantized(name, &how);
        assert!(far(&logits(&same), &plain) < 1e-4, "{name}: {}", far(&logits(&same), &plain));
    }
    let untied = crate::family::Config::Mamba2(crate::family::mamba2::Config {
        num_hidden_layers: 1,
        use_bias: true,
        tie_word_embeddings: false,
        ..Default::default()
    });
    let untied = Model::random("untied", untied, 5, &Loading::default()).unwrap();
    let rotated = untied.quantized(&"w16a16-rot".parse().unwrap()).unwrap();
    assert!(far(&logits(&rotated), &logits(&untied)) < 1e-4);
}

/// What feeds o_proj and down_proj are rows of v_proj, shared by the heads of a group, and of up_proj; biases too.
#[test]
fn smoothing_a_llama_leaves_its_function_as_it_is() {
    let shape = crate::family::llama::Config {
        hidden_size: 48,
        intermediate_size: 80,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 16,
        attention_bias: true,
        mlp_bias: true,
        tie_word_embeddings: false,
        ..Default::default()
    };
    let config = crate::family::Config::Llama(shape);
    let mut tensors = crate::model::init::initialize(&config, 5).unwrap();
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.ends_with("bias")) {
        let (len, seed) = (tensor.elem_count(), name.len());
        let values: Vec<f32> = (0..len).map(|i| ((i * 31 + seed * 7) % 23) as f32 / 92.0 - 0.1).collect();
        *tensor = Tensor::from_vec(values, len, &Device::Cpu).unwrap();
    }
    let model = Model::from_tensors("llama", config, tensors, &Loading::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (how, plain) = (calibration(&folder), logits(&model));
    let made = |name: &str| model.quantized_with(&name.parse().unwrap(), &how).unwrap();
    let same = made("w16a16-smooth0.5");
    assert!(far(&logits(&same), &plain) < 1e-5, "{}", far(&logits(&same), &plain));
    // Every matrix of a block reads other numbers now, by the heads that share values in one.
    for role in ["q_proj", "o_proj", "gate_proj", "down_proj"] {
        let weight = |model: &Model| {
            let linears = model.linears();
            let (_, linear) = linears.iter().find(|(path, _)| path.ends_with(role)).unwrap();
            linear.weight.values().unwrap()
        };
        let ratio = (weight(&same) / weight(&model)).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap();
        assert!(ratio.iter().any(|by| (by - 1.0).abs() > 0.01), "{role}");
        if role == "o_proj" {
            assert!((0..48).all(|c| (ratio[c] / ratio[c % 16] - 1.0).abs() < 1e-3), "{ratio:?}");
        }
    }
    let method = |model: Model| model.quantization.unwrap().method;
    assert_eq!(method(same), "smoothing");
    // What nothing gives that could be rescaled is left as it is, and told.
    let head = made("w8a8-smooth0.5+head=w8");
    let told = method(head);
    assert!(
        told.starts_with("smoothing (but of lm_head, whose input comes from no norm of its own"),
        "{told}"
    );
    assert!(method(made("w8a8-perchannel")).contains("nearest"));
}

#[test]
fn gptq_makes_less_error_in_the_outputs_of_texts_it_has_seen_and_of_others() {
    let (how, exact) = (on_sonnets(), model());
    let texts = seen_and_unseen(&exact, &how);
    for bits in [3, 4] {
        let [nearest, gptq] = ["", "-gptq"].map(|method| quantized(&format!("w{bits}a16{method}"), &how));
        for (text, ids) in ["seen", "unseen"].into_iter().zip(&texts) {
            let [nearest, gptq] = [&nearest, &gptq].map(|model| error_after(model, &exact, ids));
            assert!(gptq < 0.5 * nearest, "w{bits} {text}: {gptq} against {nearest}");
        }
    }
}

#[test]
fn a_budget_is_met() {
    let folder = tempfile::tempdir().unwrap();
    let mixed = |budget: Budget| {
        let scheme = "w4a16-g32".parse::<Scheme>().unwrap().budget(budget);
        model().quantized_with(&scheme, &calibration(&folder)).unwrap().quantization.unwrap()
    };
    // The smallest step of a row: a bit of each of 96 columns.
    let step = 96 / 8;
    for bits in [3.9, 4.5, 6.0] {
        let report = mixed(Budget::Bits(bits));
        let used: usize = report.layers[..4].iter().map(LayerReport::bytes).sum();
        let spent = report.budget.unwrap();
        assert!(report.bits_per_weight() <= bits + 1e-9);
        assert_eq!(spent.used, used as u64);
        assert!(spent.used <= spent.asked && spent.asked - spent.used < step, "{spent:?}");
        assert!(report.to_string().contains(&format!("; {} of {} bytes", spent.used, spent.asked)));
        // As many bytes as bits: the same.
        let again = mixed(Budget::Bytes(spent.asked));
        assert_eq!((again.budget, again.layers), (Some(spent), report.layers));
    }
    let error = model().quantized_with(&"w4a16-mix1.5".parse().unwrap(), &calibration(&folder)).unwrap_err();
    assert!(error.to_string().contains("budget"), "{error}");
}

#[test]
fn what_does_not_fit_is_told_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let channel = model().quantized_with(&"w4a8-perchannel+head=w8".parse().unwrap(), &calibration(&folder));
    let channel = channel.unwrap_err().to_string();
    assert!(channel.contains("lm_head: its input does not come from a norm of its own"), "{channel}");
    let error = |name: &str| model().quantized(&name.parse().unwrap()).unwrap_err().to_string();
    assert!(error("w4a8-rot-smooth0.5").contains("choose rot or smooth"));
    assert!(error("w4a8-perchannel-rot").contains("choose rot or perchannel"));
    assert!(error("w4a8-gptq").contains("data/corpus"), "{}", error("w4a8-gptq"));
    let twice =
        quantized("w4a16", &Quantizing::default()).quantized(&Scheme::w8a8()).unwrap_err().to_string();
    assert!(twice.contains("small is quantized already"), "{twice}");
    let mut broken = model().tensors().clone();
    let name = "backbone.layers.1.mixer.out_proj.weight";
    let nan = Tensor::full(f32::NAN, broken[name].shape(), &Device::Cpu).unwrap();
    broken.insert(name.to_string(), nan);
    let broken = Model::from_tensors("broken", model().config, broken, &Loading::default()).unwrap();
    let error = broken.quantized(&Scheme::w4a8()).unwrap_err().to_string();
    assert!(error.contains("layers.1.mixer.out_proj: 18432 of 18432 weights are NaN or infinite"), "{error}");
}

#[test]
fn the_report_tells_every_matrix() {
    let made = quantized("w4a8-g32+dt=w8", &Quantizing::default());
    let report = made.quantization.clone().unwrap();
    assert_eq!(report.layers.len(), made.linears().len());
    let first = &report.layers[0];
    let told: Vec<_> = first.blocks.iter().map(|b| (b.segment.as_deref().unwrap(), b.rows)).collect();
    assert_eq!(told, [("z|x|B|C", 512), ("dt", 3)]);
    assert!(first.blocks[0].error > 5.0 * first.blocks[1].error);
    assert_eq!(report.head().as_deref(), Some("w8"), "the head has a default of its own");
    let text = report.to_string();
    assert!(text.contains("z|x|B|C") && text.contains("w4-g32") && !text.contains("as it is"), "{text}");
    let plain = quantized("w4a16", &Quantizing::default()).quantization.unwrap();
    assert!(plain.head().is_none() && plain.to_string().contains("as it is"), "{plain}");
    assert_eq!(made.quantization.unwrap().recurrence, Recurrence::default());
}
