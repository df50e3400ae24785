use super::*;
use serde_json::json;

fn frame(rows: Value) -> Frame {
    let rows: Vec<Row> = serde_json::from_value(rows).unwrap();
    Frame::from_rows(&rows).unwrap()
}

#[test]
fn records_of_different_versions_load_together() {
    let old = r#"{"schema_version":1,"model":"a","ppl":4,"gone":true,"mixed":1}"#;
    let new = r#"{"schema_version":9,"model":"b","ppl":4.5,"fresh":[1,null,2.5],"mixed":"x","big":18446744073709551615}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    std::fs::write(&path, format!("{old}\n{new}\n")).unwrap();
    let frame = Frame::load(&path).unwrap();
    assert!(
        frame.warnings()[0].contains("1 records were written by a newer lowbit"),
        "{:?}",
        frame.warnings()
    );
    assert_eq!(frame.columns(), ["schema_version", "model", "big", "fresh", "gone", "mixed", "ppl"]);
    assert_eq!(frame.numbers("ppl").unwrap(), [Some(4.0), Some(4.5)]);
    assert_eq!(frame.numbers("big").unwrap(), [None, Some(u64::MAX as f64)]);
    assert_eq!(frame.texts("mixed").unwrap(), [Some("1".into()), Some("x".into())]);
    assert_eq!(frame.data().column("fresh").unwrap().dtype(), &DataType::List(Box::new(DataType::Float64)));
    assert!(frame.has("gone") && !frame.has("never"));
}

#[test]
fn what_is_not_finite_is_a_number_again() {
    let reading = |ppl: f64, nll: Vec<f64>| {
        let reading = crate::record::Reading::default().value("ppl", ppl).value("nll", nll);
        crate::record::Record { reading, ..Record::default() }
    };
    let records = [reading(f64::NAN, vec![1.0, f64::NAN, f64::NEG_INFINITY]), reading(4.0, vec![2.0])];
    let frame = Frame::from_records(&records).unwrap();
    assert!(!frame.columns().iter().any(|name| name.ends_with("_nonfinite")), "{:?}", frame.columns());
    assert!(frame.numbers("ppl").unwrap()[0].unwrap().is_nan());
    let lists = frame.lists("nll").unwrap();
    let list = lists[0].as_ref().unwrap();
    assert!(list[0] == 1.0 && list[1].is_nan() && list[2] == f64::NEG_INFINITY, "{list:?}");
    // A mean over it is none either.
    assert!(frame.mean("ppl", ["model"]).unwrap().numbers("ppl").unwrap()[0].unwrap().is_nan());
    let alone = Frame::from_records(&records[..1]).unwrap().select(["ppl"]).unwrap();
    assert!(alone.has("ppl") && alone.to_string().contains("NaN"), "{alone}");
}

#[test]
fn the_mean_is_sorted_and_ignores_rows_without_value() {
    let frame = frame(json!([
        {"scheme": "int8", "context_length": 512, "correct": 1},
        {"scheme": "bf16", "context_length": 512, "correct": 1},
        {"scheme": "bf16", "context_length": 256, "correct": 0},
        {"scheme": "bf16", "context_length": 512, "correct": 0},
        {"scheme": "bf16", "context_length": 256, "accuracy": 0.5},
        {"scheme": "int4", "context_length": 256, "accuracy": 0.5},
    ]));
    let mean = frame.mean("correct", ["scheme", "context_length"]).unwrap();
    assert_eq!(mean.columns(), ["scheme", "context_length", "correct"]);
    assert_eq!(mean.texts("scheme").unwrap(), ["bf16", "bf16", "int8"].map(|s| Some(s.to_string())));
    assert_eq!(mean.numbers("context_length").unwrap(), [256.0, 512.0, 512.0].map(Some));
    assert_eq!(mean.numbers("correct").unwrap(), [0.0, 0.5, 1.0].map(Some));
    assert!(frame.mean("scheme", ["scheme"]).unwrap_err().to_string().contains("holds no numbers"));
}

#[test]
fn filters_compare_text_numbers_and_truth() {
    let frame = frame(
        json!([{"s": "a", "n": 1, "b": true}, {"s": "b", "n": 2.5, "b": false}, {"s": null, "n": null}]),
    );
    assert_eq!(frame.filter("s", "a").unwrap().height(), 1);
    assert_eq!(frame.filter("n", 1).unwrap().height(), 1);
    assert_eq!(frame.filter("n", 2.5).unwrap().height(), 1);
    assert_eq!(frame.filter("b", false).unwrap().height(), 1);
    assert_eq!(frame.filter("s", Value::Null).unwrap().height(), 1);
    assert_eq!(frame.filter("s", 7).unwrap().height(), 0);
    assert_eq!(
        frame.filter_any("s", ["b", "c", "a"]).unwrap().texts("s").unwrap(),
        ["a", "b"].map(|s| Some(s.into()))
    );
    assert_eq!(frame.above_zero("n").unwrap().height(), 2);
    assert_eq!(frame.select(["n", "s"]).unwrap().columns(), ["n", "s"]);
}

#[test]
fn an_unknown_column_names_its_neighbours() {
    let frame = frame(json!([{"context_length": 1, "accuracy": 1, "accuracy_low": 0}]));
    let error = frame.filter("context_lenght", 1).unwrap_err().to_string();
    assert_eq!(error, "there is no column `context_lenght`; did you mean `context_length`?");
    let error = frame.mean("acc", ["context_length"]).unwrap_err().to_string();
    assert!(error.ends_with("did you mean `accuracy` or `accuracy_low`?"), "{error}");
    assert!(frame.numbers("zebra").unwrap_err().to_string().contains("`columns()` lists"));
}

#[test]
fn the_table_shows_what_differs() {
    let frame = frame(json!([
        {"model": "bard", "scheme": "f32", "peak_bytes": 18_900_000, "ppl": 4.123_456},
        {"model": "bard", "scheme": "bf16", "peak_bytes": 9_450_000, "ppl": null},
    ]));
    let text = frame.to_string();
    assert!(text.contains("18.900") && text.contains("(MB)") && text.contains("4.123"), "{text}");
    assert!(text.ends_with("in all rows: model bard"), "{text}");
    assert!(Frame::default().to_string().starts_with("no rows"));
}
