//! Measurements of models with experts.

use lowbit::family::{Config, itera};
use lowbit::measure::Measure;
use lowbit::measure::outliers::Outliers;
use lowbit::measure::sqnr::Sqnr;
use lowbit::model::{Loading, Model};
use std::fs;

/// Measurements that look at what matrices read.
#[test]
fn inputs_of_experts_are_compared_by_the_tokens_that_both_models_send_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    fs::write(&file, "Who is sent to whom is what a router says, and rounding says it otherwise. ".repeat(6))
        .unwrap();
    let config =
        itera::Config { vocab_size: 256, hidden_size: 32, num_layers: 2, ..itera::Config::default() };
    let config = itera::Config { moe_layers: vec![1], ..config };
    let model = Model::random("experts", Config::IteraLite(config), 3, &Loading::default()).unwrap();
    let coarse = model.quantized(&"w3a16+router=w2".parse().unwrap()).unwrap();
    let rows = Sqnr { seq_len: 128, ..Sqnr::default() }.on(&file).compare(&model, &coarse).unwrap();
    let of =
        |path: &str| rows.iter().find(|row| row.values.get("layer").is_some_and(|at| at == path)).unwrap();
    for path in ["layers.1.moe.layer.experts.0.w1", "layers.1.moe.layer.experts.3.w2"] {
        let (sent, ratio) = (of(path).number("sent_alike").unwrap(), of(path).number("sqnr_db").unwrap());
        assert!((0.1..1.0).contains(&sent) && (2.0..30.0).contains(&ratio), "{path}: {sent} {ratio}");
    }
    assert!(of("layers.1.moe.layer.router.gate").values.get("sent_alike").is_none());
    let rows = Outliers { seq_len: 64, ..Outliers::default() }.on(&file).measure(&coarse).unwrap();
    let roles: Vec<&str> =
        rows.iter().filter(|row| row.row == "role").map(|row| row.values["role"].as_str().unwrap()).collect();
    let expected = [
        "in_proj",
        "x",
        "Bx",
        "delta_proj",
        "out_proj",
        "ffn_w1",
        "ffn_w2",
        "router",
        "expert_w1",
        "expert_w2",
        "head",
    ];
    assert_eq!(roles, expected);
    let lags = |role: &str| rows.iter().filter(|row| row.row == "lag" && row.values["role"] == role).count();
    assert_eq!((lags("router"), lags("expert_w1")), (6, 0));
}
