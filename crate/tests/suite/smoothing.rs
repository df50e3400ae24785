//! The products of chunks in few bits against the numbers of the INT4 smoothing experiment (`fixtures/gla-tiny`).

use candle_core::{Device, Tensor};
use lowbit::kernel::scan::channels::{Inputs, Shape, chunked};
use lowbit::kernel::scan::products::{Products, Scores, Share, Smooth};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gla-tiny/smoothing");
const CHUNK: usize = 64;
const TIME: usize = 256;

/// One head: q, divided by √K, k and the decays [256, 128], v [256, 32].
struct Case {
    q: Vec<f32>,
    k: Vec<f32>,
    a: Vec<f32>,
    v: Vec<f32>,
}

/// All but the codes, which candle has no type for.
fn tensors() -> HashMap<String, Tensor> {
    let bytes = fs::read(format!("{FIXTURE}.safetensors")).unwrap();
    let file = candle_core::safetensors::SliceSafetensors::new(&bytes).unwrap();
    let names = file.tensors().into_iter().map(|(name, _)| name).filter(|name| !name.ends_with("_codes"));
    names.map(|name| (name.clone(), file.load(&name, &Device::Cpu).unwrap())).collect()
}

fn values(all: &HashMap<String, Tensor>, name: &str) -> Vec<f32> {
    all[name].flatten_all().unwrap().to_vec1().unwrap()
}

fn case(all: &HashMap<String, Tensor>, kind: &str, gates: bool) -> Case {
    let biased = |name: &str, by: f32| {
        let bias = values(all, &format!("{kind}.{name}_bias"));
        let x = values(all, &format!("{name}0"));
        x.iter().zip(bias.iter().cycle()).map(|(x, bias)| (x + bias) * by).collect()
    };
    let a = values(all, "gk").iter().map(|log| if gates { log.exp() } else { 1.0 }).collect();
    Case { q: biased("q", 128f32.sqrt().recip()), k: biased("k", 1.0), a, v: values(all, "v") }
}

impl Case {
    /// y of `batch` sequences that start from nothing.
    fn run(&self, products: Option<Products>, batch: usize, v: &[f32]) -> Vec<f32> {
        let shape = Shape { batch, time: TIME / batch, heads: 1, groups: 1, key: 128, value: v.len() / TIME };
        let (mut s, mut y) = (vec![0.0; batch * shape.state()], vec![f32::NAN; v.len()]);
        let inputs = Inputs { q: &self.q, k: &self.k, v, a: &self.a };
        chunked(shape, products, inputs, &mut s, &mut y);
        y
    }

    /// What tokens have of one another within their chunk, [256, 64]: y where every value is a unit vector.
    fn scores(&self, products: Option<Products>) -> Vec<f32> {
        let units: Vec<f32> =
            (0..TIME * CHUNK).map(|i| if i / CHUNK % CHUNK == i % CHUNK { 1.0 } else { 0.0 }).collect();
        self.run(products, TIME / CHUNK, &units)
    }

    /// The scores between sub-chunks, of all that is rounded.
    fn between(&self, products: Option<Products>) -> Vec<f32> {
        let between = |i: &usize| i % CHUNK / 16 < i / CHUNK % CHUNK / 16;
        let all = self.scores(products);
        (0..all.len()).filter(between).map(|i| all[i]).collect()
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let sum = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    sum(a, b) / (sum(a, a) * sum(b, b)).sqrt()
}

/// `qk/block`, `none/row/fp8sv` …
fn named(name: &str) -> Products {
    let parts: Vec<&str> = name.split('/').collect();
    let smooth = match parts[0] {
        "none" => Smooth::None,
        "k" => Smooth::K,
        "q" => Smooth::Q,
        "qk" => Smooth::Qk,
        "qk_drop_row_constants" => Smooth::QkDropped,
        other => panic!("{other}"),
    };
    let share = if parts[1] == "row" { Share::Row } else { Share::Block };
    Products { scores: Some(Scores { bits: 4, share, smooth }), fp8_values: parts.len() == 3, sub: 16 }
}

#[test]
fn every_cosine_of_the_experiment_is_reproduced() {
    let all = tensors();
    let about: Value = serde_json::from_str(&fs::read_to_string(format!("{FIXTURE}.json")).unwrap()).unwrap();
    let (mut held, mut worst) = (0, 0.0f64);
    for (gates, kinds) in [(true, "kinds"), (false, "kinds_gk0")] {
        for (kind, of) in about[kinds].as_object().unwrap() {
            let case = case(&all, kind, gates);
            let out = case.run(None, 1, &case.v);
            if gates {
                let cosine = cosine(&out, &values(&all, &format!("{kind}.o")));
                assert!(cosine > 1.0 - 1e-9, "{kind}: {cosine}");
            }
            let (intra, between) = (case.run(None, 4, &case.v), case.between(None));
            for (name, expected) in of["runs"].as_object().unwrap() {
                let products = Some(named(name));
                let bound = if name.ends_with("fp8sv") { 3e-4 } else { 1e-4 };
                for (what, found) in [
                    ("scores", cosine(&case.between(products), &between)),
                    ("intra", cosine(&case.run(products, 4, &case.v), &intra)),
                    ("out", cosine(&case.run(products, 1, &case.v), &out)),
                ] {
                    // FP8 of scores and values leaves no scores of its own.
                    let Some(expected) = expected[what].as_f64() else { continue };
                    assert!(
                        (found - expected).abs() < bound,
                        "{kinds} {kind} {name} {what}: {found}, not {expected}"
                    );
                    (held, worst) = (held + 1, worst.max((found - expected).abs()));
                }
            }
        }
    }
    println!("{held} cosines, at most {worst:.1e} apart");
    assert!(held > 150, "{held}");
}

#[test]
fn the_example_is_reproduced_score_by_score() {
    let all = tensors();
    let case = case(&all, "bias8", true);
    for (name, products) in [("example.scores_full", None), ("example.scores_qk", Some(named("qk/block")))] {
        let (scores, expected) = (case.scores(products), values(&all, name)); // [16, 32]
        let top = expected.iter().fold(0.0f32, |top, x| top.max(x.abs()));
        for (i, expected) in expected.iter().enumerate() {
            let found = scores[(96 + i / 32) * CHUNK + i % 32];
            assert!((found - expected).abs() < 1e-5 * top, "{name} {i}: {found}, not {expected}");
        }
    }
}
