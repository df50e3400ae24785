use super::*;
use crate::record::Row;
use serde_json::{Value, json};

/// Perplexity of 80 windows whose losses go up and down together, `above` that of the text and a bit of its own.
fn perplexity(scheme: &str, above: f64, own: f64) -> Value {
    let nll: Vec<f64> = (0..80)
        .map(|i| 700.0 + 80.0 * (f64::from(i) / 9.0).sin() + above + own * (f64::from(i) * 2.3).sin())
        .collect();
    let bits = nll.iter().sum::<f64>() / 40_960.0 / std::f64::consts::LN_2;
    json!({
        "measure": "perplexity", "row": "summary", "model": "m", "model_hash": "1", "scheme": scheme,
        "weight_bytes": 2_000_000, "corpus_hash": "c", "seq_len": 512, "stride": 512, "n_tokens": 40_960,
        "n_bytes": 40_960, "bits_per_byte": bits, "window_nll": nll, "window_tokens": vec![512; 80],
    })
}

fn passkeys(scheme: &str, passed: usize) -> Vec<Value> {
    let common = json!({"measure": "passkey", "model": "m", "model_hash": "1", "scheme": scheme, "seed": 7});
    let with = |more: Value| {
        let mut row = common.as_object().unwrap().clone();
        row.extend(more.as_object().unwrap().clone());
        Value::Object(row)
    };
    let trial = |i: usize| {
        with(json!({
            "row": "trial", "trial": i, "context_length": 256, "depth": 0.5, "key": format!("{i:05}"),
            "correct": u8::from(i < passed),
        }))
    };
    (0..40).map(trial).chain([with(json!({"row": "summary"}))]).collect()
}

fn frame(rows: Vec<Value>) -> Frame {
    let rows: Vec<Row> = rows.into_iter().map(|row| row.as_object().unwrap().clone()).collect();
    Frame::from_rows(&rows).unwrap()
}

#[test]
fn differences_are_told_from_chance() {
    let mut rows = vec![
        perplexity("f32", 0.0, 0.0),
        perplexity("same", 0.0, 0.0),
        perplexity("noise", 0.05, 5.0),
        perplexity("worse", 3.0, 5.0),
        json!({"measure": "divergence", "row": "summary", "model": "m", "model_hash": "1", "scheme": "worse",
               "kl": 0.0123, "kl_low": 0.01, "kl_high": 0.015}),
    ];
    for (scheme, passed) in [("f32", 40), ("same", 40), ("noise", 38), ("worse", 10)] {
        rows.extend(passkeys(scheme, passed));
    }
    let comparison = frame(rows).compare("f32").unwrap();
    let verdicts: Vec<String> = comparison.rows.iter().map(Compared::verdict).collect();
    assert_eq!(verdicts, ["", "not distinguishable", "not distinguishable", "worse, fewer keys at 256"]);
    let delta = comparison.rows[3].delta.unwrap();
    assert!((delta.value - 3.0 / 512.0 / std::f64::consts::LN_2).abs() < 3e-4, "{delta:?}");
    assert!(delta.low > 0.0 && delta.high < 2.0 * delta.value);
    // Unpaired, the text's own ups and downs would hide it.
    let apart = comparison.rows[3].bits_per_byte.unwrap() - comparison.rows[0].bits_per_byte.unwrap();
    assert!((apart - delta.value).abs() < 1e-9);
    let keys = comparison.rows[3].keys[0];
    assert_eq!((keys.mcnemar.lost, keys.recalled, keys.prompts), (30, 10, 40));
    // Three schemes are tested on text and on keys; 0 and 2 prompts that differ have no p-value as small as that of 30.
    assert_eq!(
        (comparison.tests, comparison.family.as_str()),
        (6, "3 schemes × (bits per byte; keys at 256 tokens)")
    );
    assert!((keys.p.unwrap() - 4.0 * keys.mcnemar.exact).abs() < 1e-15);
    let text = comparison.to_string();
    for part in [
        "baseline",
        "not distinguishable",
        "worse, fewer keys at 256",
        "6 tests, each counted by the values that it can have: 3 schemes",
        ".0123 [.0100, .0150]",
        "10/40 p <.001",
        "keys at 256",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let numbers = comparison.frame().unwrap();
    assert_eq!(numbers.numbers("delta").unwrap()[1], Some(0.0));
    assert_eq!(numbers.numbers("kl_high").unwrap()[3], Some(0.015));
}

/// Who looks at one length or one scheme of many has chosen it among all.
#[test]
fn a_part_of_the_records_stays_in_the_family_of_the_whole() {
    let at = |length: u64, scheme: &str, passed: usize| {
        let mut rows = passkeys(scheme, passed);
        rows.iter_mut().for_each(|row| row["context_length"] = json!(length));
        rows
    };
    let rows: Vec<Value> = [256, 512, 1024, 2048]
        .into_iter()
        .flat_map(|length| [at(length, "f32", 40), at(length, "w4", 40), at(length, "w3", 35)].concat())
        .collect();
    let all = frame(rows);
    let beside = all.compare("f32").unwrap();
    assert_eq!((beside.tests, beside.rows[2].keys.len()), (8, 4));
    let one = all.filter("context_length", 1024).unwrap().compare("f32").unwrap();
    assert_eq!((one.tests, one.rows[2].keys.len(), &one.family), (8, 1, &beside.family));
    // Five of forty lost, alone p = .0625; four such are not told from chance. The other four, where none is lost, cannot be small.
    let keys = one.rows[2].keys[0];
    assert!((keys.mcnemar.exact - 0.0625).abs() < 1e-9 && keys.p == beside.rows[2].keys[2].p, "{keys:?}");
    let four = |p: Option<f64>| (p.unwrap() - 4.0 * 0.0625).abs() < 1e-9;
    assert!(four(keys.p) && one.rows[2].verdict() == "not distinguishable", "{keys:?}");
    let schemes = all.filter_any("scheme", ["f32", "w3"]).unwrap().filter("context_length", 512).unwrap();
    assert!(four(schemes.compare("f32").unwrap().rows[1].keys[0].p));
    let long = beside.keys().unwrap();
    assert_eq!((long.height(), long.numbers("lost").unwrap()[4]), (12, Some(0.0)));
}

#[test]
fn too_little_text_is_said() {
    let short = |scheme: &str, above: f64| {
        let mut row = perplexity(scheme, above, 0.3);
        for column in ["window_nll", "window_tokens"] {
            let three = row[column].as_array().unwrap()[..3].to_vec();
            row[column] = json!(three);
        }
        row
    };
    let beside = frame(vec![short("f32", 0.0), short("w4", 2.0)]).compare("f32").unwrap();
    assert_eq!((beside.rows[1].verdict().as_str(), beside.tests), ("too little text", 0));
}

#[test]
fn a_divergence_from_the_baseline_tells_the_difference() {
    let divergence = |scheme: &str, kl: f64, delta: f64| {
        json!({"measure": "divergence", "row": "summary", "model": "m", "model_hash": "1", "scheme": scheme,
               "weight_bytes": 1, "kl": kl, "delta_bits_per_byte": delta, "delta_bits_per_byte_low": delta - 0.01,
               "delta_bits_per_byte_high": delta + 0.01, "ln_ppl_ratio_p": if delta > 0.01 { 0.002 } else { 0.6 }})
    };
    let rows =
        frame(vec![divergence("f32", 0.0, 0.0), divergence("w4", 0.01, 0.1), divergence("w8", 0.001, 0.001)]);
    let beside = rows.compare("f32").unwrap();
    assert_eq!([1, 2].map(|i| beside.rows[i].verdict()), ["worse", "not distinguishable"]);
    assert_eq!((beside.rows[1].delta_p, beside.rows[1].delta.unwrap().low), (Some(0.004), 0.1 - 0.01));
    // Another baseline is not what the records compared with.
    assert!(rows.compare("w8").unwrap().rows.iter().all(|row| row.delta.is_none()));
}

#[test]
fn what_cannot_be_paired_is_refused() {
    let mut other = perplexity("w4", 1.0, 0.0);
    let rows = frame(vec![perplexity("f32", 0.0, 0.0), other.clone()]);
    let sentence = rows.compare("bf16").unwrap_err().to_string();
    assert_eq!(sentence, "there is no reading of m in bf16; the records hold f32, w4");
    other["corpus_hash"] = json!("another");
    let sentence = frame(vec![perplexity("f32", 0.0, 0.0), other]).compare("f32").unwrap_err().to_string();
    assert!(sentence.contains("w4: the texts or the windows are not those of the baseline"), "{sentence}");
    let nothing = frame(vec![
        json!({"measure": "cost", "row": "summary", "model": "m", "model_hash": "1", "scheme": "f32", "weight_bytes": 1}),
    ]);
    assert!(nothing.compare("f32").unwrap_err().to_string().contains("nothing to compare"));
}

#[test]
fn items_are_compared_one_by_one() {
    let rows = |scheme: &str, right: usize| -> Vec<Value> {
        let common = json!({"measure": "lambada", "model": "m", "model_hash": "1", "scheme": scheme});
        let with = |more: Value| {
            let mut row = common.as_object().unwrap().clone();
            row.extend(more.as_object().unwrap().clone());
            Value::Object(row)
        };
        let item = |i: usize| {
            with(json!({"row": "item", "item": i, "corpus_hash": "c", "correct": u8::from(i < right)}))
        };
        (0..60).map(item).chain([with(json!({"row": "summary"}))]).collect()
    };
    let all = [rows("f32", 50), rows("same", 49), rows("worse", 20)].concat();
    let comparison = frame(all).compare("f32").unwrap();
    let verdicts: Vec<String> = comparison.rows.iter().map(Compared::verdict).collect();
    assert_eq!(verdicts, ["", "not distinguishable", "fewer words"]);
    let task = comparison.rows[2].tasks[0];
    assert_eq!((task.name, task.right, task.items, task.mcnemar.lost), ("words", 20, 60, 30));
    // One item that differs can be nothing else than chance: it is no test that counts.
    assert_eq!((comparison.tests, comparison.family.as_str()), (2, "2 schemes × (words)"));
    assert!((task.p.unwrap() - 2.0_f64.powi(-29)).abs() < 1e-12);
    let told = comparison.to_string();
    assert!(
        told.contains("20/60 p <.001") && told.contains("words: item by item, McNemar's exact test"),
        "{told}"
    );
    assert_eq!(comparison.tasks().unwrap().numbers("lost").unwrap(), [Some(0.0), Some(1.0), Some(30.0)]);
}
