use super::super::Measure;
use super::*;
use crate::record::{PART, Run, read_lines};
use serde_json::Value;
use std::fmt::Write;

/// A file of these texts, and the measurement of it.
fn file(texts: &[&str]) -> (tempfile::TempDir, Lambada) {
    let folder = tempfile::tempdir().unwrap();
    let lines = texts.iter().fold(String::new(), |mut lines, text| {
        writeln!(lines, "{}", serde_json::json!({"text": text})).unwrap();
        lines
    });
    let path = folder.path().join("words.jsonl");
    std::fs::write(&path, lines).unwrap();
    (folder, Lambada::of(path))
}

fn items(rows: &[Reading]) -> Vec<&Reading> {
    rows.iter().filter(|row| row.row == "item").collect()
}

#[test]
fn the_word_is_what_follows_the_last_blank() {
    let (_folder, lambada) = file(&["one two three", "a  b", "line\nbreak here,\nnow"]);
    let found: Vec<(String, String)> = lambada
        .items()
        .unwrap()
        .all
        .into_iter()
        .map(|item| (item.context, item.continuations[0].clone()))
        .collect();
    let expected = [("one two", " three"), ("a ", " b"), ("line\nbreak", " here,\nnow")];
    assert_eq!(found, expected.map(|(context, word)| (context.to_string(), word.to_string())));
    let (_folder, lambada) = file(&["good text", "word"]);
    let told = |lambada: Lambada| lambada.items().err().unwrap().to_string();
    let sentence = told(lambada);
    assert!(sentence.contains("words.jsonl: words:2: the text has no blank"), "{sentence}");
    let (_folder, lambada) = file(&["good text", "other text", "blank "]);
    assert!(told(lambada.clone()).contains("words:3: the text ends in a blank"));
    assert_eq!(Lambada { items: Some(2), ..lambada.clone() }.items().unwrap().all.len(), 2);
    assert!(told(Lambada { items: Some(0), ..lambada }).contains("items must be at least 1"));
    assert!(told(Lambada::default()).contains("no file is named"));
}

#[test]
fn a_word_is_right_where_greedy_decoding_says_it() {
    let model = Model::load("random:mamba2-tiny").unwrap();
    // A text of printed letters that the model itself goes on with, where it says a blank and letters.
    let texts =
        ["The cat sat on the mat", "To be, or not to be", "Now is the winter", "Out, out, brief candle"];
    let (_folder, lambada) = file(&texts);
    let rows = lambada.measure(&model).unwrap();
    let items = items(&rows);
    let mut nll = 0.0;
    for (row, text) in items.iter().zip(texts) {
        let word = text.len() - text.rfind(' ').unwrap();
        let ids = model.tokenizer.encode(text).unwrap();
        let own: f64 = model.nll(&ids, word).unwrap().iter().map(|x| f64::from(*x)).sum();
        assert!((row.number("logprob").unwrap() + own).abs() < 1e-4, "{text}");
        let said = model.continue_greedily(&ids[..ids.len() - word], word).unwrap();
        assert_eq!(row.number("correct"), Some(f64::from(u8::from(said == ids[ids.len() - word..]))));
        nll += own / texts.len() as f64;
    }
    let summary = rows.last().unwrap();
    assert!((summary.number("ppl").unwrap() / nll.exp() - 1.0).abs() < 1e-4);
    assert!(
        summary.number("ppl_low") < summary.number("ppl")
            && summary.number("ppl") < summary.number("ppl_high")
    );
    let share = items.iter().filter_map(|row| row.number("correct")).sum::<f64>() / 4.0;
    assert_eq!((summary.number("accuracy"), summary.number("items")), (Some(share), Some(4.0)));
}

#[test]
fn what_is_cut_is_counted() {
    let (_folder, lambada) =
        file(&["a short text", "this text is longer than the model can read", "one more", "b c"]);
    let [cut, whole] = [20, 100].map(|most| lambada.measure(&Model::that_reads(most)).unwrap());
    let numbers =
        |rows: &[Reading], name: &str| items(rows).iter().map(|row| row.number(name)).collect::<Vec<_>>();
    assert_eq!(numbers(&cut, "cut_tokens"), [None, Some(43.0 - 21.0), None, None]);
    assert_eq!(
        (cut.last().unwrap().number("cut_items"), whole.last().unwrap().number("cut_items")),
        (Some(1.0), Some(0.0))
    );
    let [cut, whole] = [&cut, &whole].map(|rows| numbers(rows, "logprob"));
    assert!(cut[1] != whole[1] && cut[0] == whole[0]);
}

#[test]
fn a_run_goes_on_after_the_last_whole_part() {
    let texts: Vec<String> = (0..150).map(|i| format!("item {i} of many")).collect();
    let (folder, lambada) = file(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let model = Model::load("random:mamba2-tiny").unwrap();
    let run = Run::create_in(folder.path(), "lambada").unwrap();
    lambada.record(&model, &run).unwrap();
    let path = run.path().join("metrics.jsonl");
    drop(run);
    let lines: Vec<String> = std::fs::read_to_string(&path).unwrap().lines().map(String::from).collect();
    // 64, 64 and 22 items, each part with its closing row; the summary.
    assert_eq!(lines.len(), 150 + 3 + 1);
    // Cut within the second part.
    std::fs::write(&path, lines[..100].join("\n") + "\n").unwrap();
    let run = Run::open(path.parent().unwrap()).unwrap();
    assert_eq!(run.units(), 1);
    lambada.record(&model, &run).unwrap();
    lambada.record(&model, &run).unwrap(); // nothing is left to do
    let again = read_lines(&path).unwrap().rows;
    assert_eq!(again.len(), lines.len());
    for (row, line) in again.iter().zip(&lines) {
        let before: Value = serde_json::from_str(line).unwrap();
        for column in
            ["row", "item", "logprob", "correct", "ppl", "ppl_low", "accuracy", "fingerprint", "items"]
        {
            assert_eq!(row.get(column), before.get(column), "{column}");
        }
    }
    assert_eq!(again.iter().filter(|row| row["row"] == PART).count(), 3);
    // Other items are other parts.
    let fewer = Lambada { items: Some(100), ..lambada };
    assert_ne!(fewer.fingerprint(&model).unwrap(), again[153]["fingerprint"]);
}
