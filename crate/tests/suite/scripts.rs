//! What the published scripts of the low-rank-Q transformer do beside their model: optimizers, exporters, initialization, sizes,
//! adaptation.

use super::lowrankq::{FIXTURE, far, inputs_and_targets, scalars, tensors};
use candle_core::safetensors::SliceSafetensors;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use lowbit::family::{Config, Gradients, Tensors};
use lowbit::format::{Coding, Encoded};
use lowbit::measure::adaptation::Bias;
use lowbit::model::{Model, artifact, init};
use lowbit::quantize::rows;
use lowbit::train::optimizer::muon::Precision;
use lowbit::train::optimizer::{AdamW, Group, Muon, Optimizer, Settings};
use std::collections::BTreeMap;
use std::fs;

/// The loss of the fixture's batch under these weights, and its gradients, by the differentiable definition.
fn loss_and_gradients(config: &Config, tensors: &Tensors) -> (f64, Gradients) {
    let vars: BTreeMap<String, Var> =
        tensors.iter().map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap())).collect();
    let tracked = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let stack = config.stack(&tracked, &Default::default()).unwrap();
    let (tokens, targets) = inputs_and_targets(&super::lowrankq::tensors("golden"));
    let logits = stack.logits(&stack.hidden(&tokens, None).unwrap()).unwrap().reshape(((), 256)).unwrap();
    let loss = cross_entropy(&logits, &targets.flatten_all().unwrap()).unwrap();
    let grads = loss.backward().unwrap();
    let grad = |var: &Var| grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let grads = vars.iter().map(|(name, var)| (name.clone(), grad(var))).collect();
    (f64::from(loss.to_scalar::<f32>().unwrap()), grads)
}

/// Two steps on one batch: the weights after each, and the losses before them and after.
fn two_steps(muon: Muon) -> ([Tensors; 2], Vec<f64>) {
    let model = Model::load(FIXTURE).unwrap();
    let group = |suffix: &str, lr: f64| Group { suffix: suffix.into(), lr, decay: 1.0, muon: None };
    let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, clip: 0.0 };
    // What Muon moves takes the rate of its group as a factor.
    let groups = ["tok_emb.weight", "bigram.embed.weight"].map(|name| group(name, 0.03));
    let others = ["skip_weights", "scale", "resid_mix", "q_gain", "smear.gate"].map(|name| group(name, 0.02));
    let groups = groups.into_iter().chain(others).collect();
    let settings = Settings { adamw, muon: Some(Muon { lr: 0.02, ..muon }), groups };
    let mut optimizer = Optimizer::new(settings, &model.config, model.tensors()).unwrap();
    let mut losses = vec![];
    let steps = [(); 2].map(|()| {
        let (loss, grads) = loss_and_gradients(&model.config, &optimizer.tensors());
        losses.push(loss);
        optimizer.update(&grads, 1.0).unwrap();
        let copied = optimizer.tensors().into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap()));
        copied.collect::<Tensors>()
    });
    losses.push(loss_and_gradients(&model.config, &steps[1]).0);
    (steps, losses)
}

#[test]
fn optimizer_steps_are_those_of_the_scripts() {
    let (expected, scalars) = (tensors("step"), scalars());
    let muon = Muon { weight_decay: 0.04, ..Muon::default() };
    let (steps, losses) = two_steps(muon.clone());
    let golden = &scalars["optimizer"]["losses_before_step1_step2_after"];
    let losses_of = |name: &str| -> Vec<f64> {
        golden[name].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect()
    };
    for (found, expected) in losses.iter().zip(losses_of("f64")) {
        assert!((found - expected).abs() < 1e-4, "{losses:?}");
    }
    let moved: Vec<&str> = scalars["optimizer"]["groups"]["muon"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (step, tensors) in ["step1", "step2"].into_iter().zip(&steps) {
        for (name, expected) in expected.iter().filter_map(|(name, x)| Some((name.strip_prefix(step)?, x))) {
            let name = &name[1..];
            let (found, expected) = (values(&tensors[name]), values(expected)); // of tok_emb the first rows
            let errors: Vec<f32> = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).collect();
            let most = errors.iter().fold(0.0f32, |most, error| most.max(*error));
            let bound = if moved.contains(&name) { 1e-5 } else { 1e-4 };
            assert!(most < bound, "{step} {name}: {most}");
            let far = errors.iter().filter(|error| **error >= 1e-5).count();
            assert!(far * 1000 <= errors.len(), "{step} {name}: {far} of {}", errors.len());
        }
        for (name, found) in tensors {
            let sums = &scalars["optimizer"]["checksums"][step][name];
            let found = values(found);
            let square: f64 = found.iter().map(|x| f64::from(*x).powi(2)).sum();
            let expected = sums[1].as_f64().unwrap();
            assert!((square / expected - 1.0).abs() < 1e-4, "{step} {name}: {square} for {expected}");
        }
    }
    // In bf16, and with the decay behind the step.
    let name = "blocks.1.attn.c_q_up.weight";
    let bf16 = two_steps(Muon { precision: Precision::Bf16, ..muon });
    let last = two_steps(Muon { weight_decay: 0.02, decay_last: true, ..Muon::default() });
    for (of, (steps, losses), bound) in [("script_bf16", bf16, 2e-3), ("pr316_order", last, 1e-5)] {
        for (step, tensors) in ["step1", "step2"].into_iter().zip(&steps) {
            let error = far(&tensors[name], &expected[&format!("{of}.{step}.{name}")]);
            println!("{of} {step}: within {error:.1e}");
            assert!(error < bound, "{of} {step}: {error}");
        }
        for (found, expected) in losses.iter().zip(losses_of(of)) {
            assert!(
                (found - expected).abs() < if of == "script_bf16" { 2e-3 } else { 1e-4 },
                "{of}: {losses:?}"
            );
        }
    }
}

#[test]
fn codes_are_those_of_the_scripts() {
    let bytes = fs::read(format!("{FIXTURE}/quant.safetensors")).unwrap();
    let golden = SliceSafetensors::new(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let tensor = golden.load(name, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    // candle reads no i8.
    let integers = |name: &str| -> Vec<f32> {
        golden.get(name).unwrap().data().iter().map(|byte| f32::from(*byte as i8)).collect()
    };
    let matrix = |name: &str| -> (Vec<f32>, usize, usize) {
        let shape = golden.get(name).unwrap().shape().to_vec();
        (floats(name), shape[0], shape[1])
    };
    let encode = |scheme: &str, (values, rows, cols): &(Vec<f32>, usize, usize)| -> Encoded {
        scheme.parse::<Coding>().unwrap().encode(values, *rows, *cols).unwrap()
    };
    let codes = |encoded: &Encoded, bits: u8| -> Vec<f32> {
        let mut codes = vec![0; encoded.rows * encoded.cols];
        codes.chunks_mut(encoded.cols).enumerate().for_each(|(row, codes)| encoded.row_codes(row, codes));
        codes.into_iter().map(|code| f32::from(((code << (8 - bits)) as i8) >> (8 - bits))).collect()
    };
    let scales = |encoded: &Encoded| -> Vec<f32> {
        (0..encoded.rows).map(|row| encoded.row_scales(row).next().unwrap().1.scale).collect()
    };
    let w = matrix("W");
    for bits in [7, 6, 5] {
        let fake = encode(&format!("w{bits}-sf32-floor0.00000001"), &w).decode();
        assert_eq!(fake, floats(&format!("qat{bits}")), "{bits}");
    }
    for bits in [8, 7, 6, 5, 4] {
        let encoded = encode(&format!("w{bits}-q99.99984-sf16late-floor1"), &w);
        assert_eq!(codes(&encoded, bits), integers(&format!("export{bits}.codes")), "{bits}");
        let expected = floats(&format!("export{bits}.scale_f16"));
        assert!(scales(&encoded).iter().zip(&expected).all(|(a, b)| (a / b - 1.0).abs() < 1e-3), "{bits}");
    }
    let record = encode("w6-sf16", &w);
    assert_eq!(codes(&record, 6), integers("record_int6.codes"));
}

/// Widths by row as published as "FTLE": widths, codes and scales, and a mean that is not the one that was asked for.
#[test]
fn widths_of_rows_are_those_of_the_scripts() {
    let bytes = fs::read(format!("{FIXTURE}/quant.safetensors")).unwrap();
    let golden = SliceSafetensors::new(&bytes).unwrap();
    let load = |name: &str| golden.load(name, &Device::Cpu).unwrap();
    let values = load("W").flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let scores = load("ftle.scores").to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    let coding: Coding = "w8-q99.99984-sf16late-floor1".parse().unwrap();
    for mean in [5, 6, 7] {
        let widths = rows::published(&scores, f64::from(mean));
        // candle reads no i32 and no i8.
        let integers = golden.get(&format!("ftle{mean}.bits")).unwrap().data();
        let expected: Vec<u8> = integers.chunks(4).map(|bytes| bytes[0]).collect();
        assert_eq!(widths, expected, "{mean}");
        let given = f64::from(widths.iter().map(|bits| u32::from(*bits)).sum::<u32>()) / 16.0;
        let told = &scalars()["quant"][format!("ftle{mean}")];
        assert_eq!(given, told["average_bits_really_given"].as_f64().unwrap());
        let encoded = coding.encode_rows(&values, 16, 96, &widths).unwrap();
        let mut codes = vec![0; 16 * 96];
        codes.chunks_mut(96).enumerate().for_each(|(row, codes)| encoded.row_codes(row, codes));
        assert_eq!(codes, golden.get(&format!("ftle{mean}.codes")).unwrap().data(), "{mean}");
        let scales = load(&format!("ftle{mean}.scale_f16")).to_dtype(DType::F32).unwrap();
        for (row, expected) in scales.to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let found = encoded.row_scales(row).next().unwrap().1.scale;
            assert!((found / expected - 1.0).abs() < 1e-3, "{mean}, row {row}: {found} {expected}");
        }
        let back = encoded.decode();
        let squares = values.iter().zip(back).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        let rmse = (squares / values.len() as f64).sqrt();
        assert!((rmse / told["rmse"].as_f64().unwrap() - 1.0).abs() < 1e-3, "{mean}: {rmse}");
    }
}

/// The shaped embedding has the singular values of the fixture's, and is as far from what it was.
#[test]
fn overtone_shapes_singular_values() {
    let bytes = fs::read(format!("{FIXTURE}/quant.safetensors")).unwrap();
    let golden = SliceSafetensors::new(&bytes).unwrap();
    for shape in ["tall", "wide"] {
        let tensor = |end: &str| golden.load(&format!("overtone.{shape}.{end}"), &Device::Cpu).unwrap();
        let shaped = init::overtone(Tensors::from([("x".to_string(), tensor("in"))]), "x").unwrap();
        let error = far(&shaped["x"], &tensor("out"));
        assert!(error < 1e-6, "{shape}: {error}");
    }
}

/// The sizes of the fixture's codes by the same encoder, and their entropies.
#[test]
fn compressed_sizes_are_those_of_the_scripts() {
    let bytes = fs::read(format!("{FIXTURE}/quant.safetensors")).unwrap();
    let (golden, sizes) = (SliceSafetensors::new(&bytes).unwrap(), scalars());
    for name in ["pr316_int6", "record_int6"] {
        let codes = golden.get(&format!("zstd.{name}.codes")).unwrap().data().to_vec();
        let expected = &sizes["quant"][format!("zstd.{name}")];
        assert_eq!(codes.len() as u64, expected["raw"].as_u64().unwrap());
        assert_eq!(artifact::compressed(&codes).unwrap().len() as u64, expected["zstd22"].as_u64().unwrap());
        let entropy = expected["entropy_bytes"].as_f64().unwrap();
        assert!((artifact::entropy(&codes) / entropy - 1.0).abs() < 1e-6, "{}", artifact::entropy(&codes));
    }
}

/// The bias after each batch, and the loss with it and without.
#[test]
fn a_bias_adapts_as_in_the_scripts() {
    let bytes = fs::read(format!("{FIXTURE}/quant.safetensors")).unwrap();
    let (golden, scalars) = (SliceSafetensors::new(&bytes).unwrap(), scalars());
    let load = |name: &str| golden.load(name, &Device::Cpu).unwrap();
    let table = load("ogd.table").to_vec2::<f32>().unwrap();
    let tokens = load("ogd.tokens").to_dtype(DType::U32).unwrap().to_vec1::<u32>().unwrap();
    let expected = load("ogd.bias_after_batch").to_vec2::<f32>().unwrap();
    let (mut bias, mut sums, mut count) = (Bias::new(32, 0.1), [0.0, 0.0], 0);
    let windows = [(0, 0), (4, 8), (8, 8), (12, 8), (16, 8)];
    for (batch, expected) in windows.chunks(2).zip(&expected) {
        for (start, first) in batch {
            let places = start + first..start + 12;
            let logits: Vec<f32> = places.clone().flat_map(|at| table[tokens[at] as usize].clone()).collect();
            let targets = &tokens[places.start + 1..places.end + 1];
            let plain = Bias::new(32, 0.0).score(&logits, targets);
            for (sum, nll) in sums.iter_mut().zip([plain, bias.score(&logits, targets)]) {
                *sum += nll.iter().map(|nll| f64::from(*nll)).sum::<f64>();
            }
            count += targets.len();
        }
        bias.step();
        assert!(bias.values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    assert_eq!(count, 28);
    for (sum, name) in sums.iter().zip(["off", "on"]) {
        let expected = scalars["quant"][format!("ogd.{name}")]["val_loss"].as_f64().unwrap();
        assert!((sum / 28.0 - expected).abs() < 1e-6, "{name}: {}", sum / 28.0);
    }
}
