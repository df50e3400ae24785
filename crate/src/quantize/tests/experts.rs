//! Experts read different tokens, and some of them none.

use super::{calibration, logits};
use crate::family::{Config, itera};
use crate::model::{Loading, Model};
use crate::quantize::Source;
use crate::quantize::calibrate::{Wanted, observe};
use candle_core::{D, DType, Device, Tensor};

/// Two layers with four experts each, of which the router of the second sends everything to the first.
fn model() -> Model {
    let config = Config::IteraLite(itera::Config {
        vocab_size: 256,
        hidden_size: 32,
        num_layers: 2,
        expert_size: 24,
        top_k_experts: 1,
        moe_layers: vec![0, 1],
        max_seq_length: 80,
        ..itera::Config::default()
    });
    let mut tensors =
        Model::random("experts", config.clone(), 5, &Loading::default()).unwrap().tensors().clone();
    let router = "layers.1.moe.layer.router.gate.weight";
    tensors.insert(router.to_string(), Tensor::zeros((4, 32), DType::F32, &Device::Cpu).unwrap());
    let norm = "layers.0.moe.layer.norm.bias";
    let wave: Vec<f32> = (0..32).map(|c| if c == 3 { 6.0 } else { c as f32 * 0.02 }).collect();
    tensors.insert(norm.to_string(), Tensor::from_vec(wave, 32, &Device::Cpu).unwrap());
    Model::from_tensors("experts", config, tensors, &Loading::default()).unwrap()
}

#[test]
fn what_no_token_reached_gets_scales_of_its_own_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (how, model) = (calibration(&folder), model());
    for scheme in ["w4a8-static", "w4a8-static-gptq", "w4a8-gptqseq", "w4a16-mix4.5"] {
        let made = model.quantized_with(&scheme.parse().unwrap(), &how).unwrap();
        assert!(logits(&made).iter().all(|logit| logit.is_finite()), "{scheme}");
        let report = made.quantization.as_ref().unwrap();
        let told = ["no token of the calibration text reached", "layers.1.moe.layer.experts.1.w1"];
        let told = told.iter().all(|part| report.method.contains(part));
        assert_eq!(told, !scheme.contains("mix"), "{}", report.method);
        if scheme.starts_with("w4a8-static") {
            let fixed = |path: &str| {
                let layer = report.layers.iter().find(|layer| layer.path.ends_with(path)).unwrap();
                layer.activation.unwrap().scale.is_some()
            };
            assert!(fixed("layers.1.moe.layer.experts.0.w1") && fixed("layers.1.ssm.out_proj"));
            assert!(!fixed("layers.1.moe.layer.experts.3.w1") && !fixed("layers.1.moe.layer.experts.1.w2"));
        }
    }
}

#[test]
fn smoothing_goes_by_all_tokens_that_a_norm_gives_and_changes_no_function() {
    let folder = tempfile::tempdir().unwrap();
    let (how, model) = (calibration(&folder), model());
    let plain = logits(&model);
    let same = model.quantized_with(&"w16a16-smooth0.5".parse().unwrap(), &how).unwrap();
    let far = plain.iter().zip(logits(&same)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-5, "{far}");
    // The divisors are those of the largest inputs of all readers, which the router sees.
    let sample = how.calibration.sample(&model).unwrap();
    let inputs = observe(&model, &sample, Wanted::default()).unwrap();
    let sites = model.config.sites();
    let router = sites.iter().position(|site| site.path == "layers.0.moe.layer.router.gate").unwrap();
    let source = Source::of(&sites[router]).unwrap();
    let by = source.smoothing(model.tensors(), &sites, &inputs[router].absmax, 0.5).unwrap();
    let norm = |model: &Model, part: &str| {
        let name = format!("layers.0.moe.layer.norm.{part}");
        model.tensors()[&name].to_vec1::<f32>().unwrap()
    };
    for part in ["weight", "bias"] {
        let (before, after) = (norm(&model, part), norm(&same, part));
        assert!((0..32).all(|c| (before[c] / by[c] - after[c]).abs() < 1e-5), "{part}");
    }
    assert!(by[3] > 1.5 * by[0], "{by:?}");
    let gate = &same.tensors()["layers.0.moe.layer.router.gate.weight"];
    let ratio = (gate / &model.tensors()["layers.0.moe.layer.router.gate.weight"]).unwrap();
    assert!(ratio.dim(D::Minus1).unwrap() == 32);
    assert!((ratio.get(1).unwrap().get(3).unwrap().to_scalar::<f32>().unwrap() - by[3]).abs() < 1e-4);
}
