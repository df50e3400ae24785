use super::*;
use crate::family::llama;
use candle_core::Device;

/// A model of which a few tensors are under optimization, by names of its own.
fn optimizer(settings: Settings, tensors: &Tensors) -> Optimizer {
    Optimizer::new(settings, &Config::Llama(llama::Config::default()), tensors).unwrap()
}

const MATRIX: &str = "model.layers.0.mlp.up_proj.weight";

/// Three steps on w with loss Σ w³/3, against the published update written out for one number.
#[test]
fn updates_are_adamw() {
    let start = [0.7f32, -0.4];
    let tensors = Tensors::from([(MATRIX.to_string(), Tensor::new(&[start], &Device::Cpu).unwrap())]);
    let settings = Settings { adamw: AdamW { clip: 0.0, ..AdamW::default() }, ..Settings::default() };
    let mut optimizer = optimizer(settings, &tensors);
    let (mut w, mut m, mut v) = (f64::from(start[0]), 0.0, 0.0);
    for t in 1..=3 {
        let x = optimizer.tensors()[MATRIX].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let grad = x.iter().map(|x| x * x).collect();
        optimizer.update(&Gradients::from([(MATRIX.to_string(), grad)]), 0.1).unwrap();
        let g = w * w;
        m = 0.9 * m + 0.1 * g;
        v = 0.95 * v + 0.05 * g * g;
        let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.95f64.powi(t)));
        w = w - 0.1 * 0.1 * w - 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
    }
    let found = optimizer.tensors()[MATRIX].to_vec2::<f32>().unwrap()[0][0];
    assert!((f64::from(found) - w).abs() < 1e-6, "{found} instead of {w}");
}

#[test]
fn clipping_bounds_the_step_and_groups_set_their_own_rate() {
    let one = || Tensor::new(&[[1.0f32, 1.0]], &Device::Cpu).unwrap();
    let tensors = Tensors::from([("a.slow".to_string(), one()), ("b".to_string(), one())]);
    let groups = vec![Group { suffix: "slow".into(), lr: 0.0, decay: 0.0, muon: None }];
    let mut optimizer = optimizer(Settings { groups, ..Settings::default() }, &tensors);
    let grads = [("a.slow".to_string(), vec![30.0; 2]), ("b".to_string(), vec![40.0; 2])].into();
    let norm = optimizer.update(&grads, 0.1).unwrap();
    assert!((norm - (2.0f64 * (900.0 + 1600.0)).sqrt()).abs() < 1e-4);
    assert_eq!(optimizer.tensors()["a.slow"].to_vec2::<f32>().unwrap(), [[1.0, 1.0]]);
    assert!(optimizer.tensors()["b"].to_vec2::<f32>().unwrap()[0][0] < 0.95);
}

#[test]
fn muon_moves_the_matrices_of_products() {
    let config = Config::Llama(llama::Config { num_hidden_layers: 1, ..Default::default() });
    let tensors = crate::model::init::initialize(&config, 0).unwrap();
    let settings = |groups| Settings { muon: Some(Muon::default()), groups, ..Settings::default() };
    let moved = |groups| -> Result<Vec<String>> {
        let optimizer = Optimizer::new(settings(groups), &config, &tensors)?;
        let by_muon = |p: &Parameter| matches!(p.moments, Moments::Muon { .. });
        Ok(optimizer.parameters.iter().filter(|(_, p)| by_muon(p)).map(|(name, _)| name.clone()).collect())
    };
    let all = moved(vec![]).unwrap();
    assert_eq!(all.len(), 7);
    assert!(all.iter().all(|name| name.ends_with("_proj.weight")), "{all:?}");
    let group = |suffix: &str, muon| Group { suffix: suffix.into(), lr: 1.0, decay: 1.0, muon: Some(muon) };
    let some = moved(vec![group("down_proj.weight", false), group("embed_tokens.weight", true)]).unwrap();
    assert_eq!((some.len(), some.iter().any(|name| name.contains("down_proj"))), (7, false));
    let error = moved(vec![group("norm.weight", true)]).unwrap_err().to_string();
    assert!(error.contains("Muon moves matrices"), "{error}");
}

/// Of singular values from 1e-3 of the largest on, those of the result lie near 1.
#[test]
fn newton_schulz_brings_singular_values_near_one() {
    for (rows, cols) in [(24, 40), (40, 24), (17, 17), (1, 9)] {
        let wave = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
        let mut x: Vec<f32> = (0..rows * cols).map(wave).collect();
        muon::orthogonalize(&mut x, rows, cols, 5, muon::Precision::F32);
        let least = rows.min(cols);
        let gram = |i: usize, j: usize| -> f64 {
            (0..rows.max(cols))
                .map(|k| {
                    let at = |i: usize| if rows <= cols { x[i * cols + k] } else { x[k * cols + i] };
                    f64::from(at(i)) * f64::from(at(j))
                })
                .sum()
        };
        let trace: f64 = (0..least).map(|i| gram(i, i)).sum::<f64>() / least as f64;
        assert!((0.45..1.5).contains(&trace), "[{rows}, {cols}]: {trace}");
    }
}
