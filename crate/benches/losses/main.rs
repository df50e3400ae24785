//! Real losses for the tests of intervals: `cargo bench --bench losses -- FILE` writes `rises.json` of
//! `crate/tests/fixtures/losses`. About a quarter of an hour; the figures differ in their last digits between processors.
//!
//! From the middle of each long play of the corpus 12,000 bytes are read by the default model, at full precision and in two
//! schemes, in windows of 1,024 bytes from a state of zeros. What is kept is the rise of the loss in bits per byte, the mean
//! of every 100 bytes.

use lowbit::error::{Error, Result};
use lowbit::model::Model;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

const SCHEMES: [&str; 2] = ["w4a16-rot-gptq", "w4a4"];
/// The part of a play that is read, in bytes; shorter ones are left out.
const PART: std::ops::Range<usize> = 28_000..40_000;
const LONG: usize = 80_000;
const WINDOW: usize = 1024;
const CELL: usize = 100;

fn main() -> Result<()> {
    // `cargo test --benches` and `cargo bench` without a file name have nothing to write.
    let Some(file) = std::env::args().skip(1).find(|argument| !argument.starts_with("--")) else {
        println!("losses: give the file to write");
        return Ok(());
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let whole = Model::load(root.join("data/models/bard").to_string_lossy().as_ref())?;
    let plays = plays(&root.join("data/corpus"))?;
    let losses = |model: &Model| plays.iter().map(|(_, text)| read(model, text)).collect::<Result<Vec<_>>>();
    let exact = losses(&whole)?;
    let mut rises = Map::new();
    for name in SCHEMES {
        let found = losses(&whole.quantized(&name.parse()?)?)?;
        let of_play = |(found, exact): (&Vec<f32>, &Vec<f32>)| -> Vec<Value> {
            let rise = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)) / std::f64::consts::LN_2;
            let rise: Vec<f64> = found.iter().zip(exact).map(rise).collect();
            let mean = |cell: &[f64]| cell.iter().sum::<f64>() / CELL as f64;
            rise.chunks_exact(CELL).map(|cell| json!((mean(cell) * 1e5).round() / 1e5)).collect()
        };
        rises.insert(name.into(), json!(found.iter().zip(&exact).map(of_play).collect::<Vec<_>>()));
    }
    let names: Vec<&String> = plays.iter().map(|(name, _)| name).collect();
    let all = json!({"plays": names, "bytes_of_a_value": CELL, "rises": rises});
    std::fs::write(&file, all.to_string() + "\n").map_err(|e| Error::io(&file, &e))
}

/// Part of each long play, by its name.
fn plays(corpus: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all = vec![];
    for split in ["train", "valid", "test"] {
        let folder = corpus.join(split);
        let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, &e))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = std::fs::read(&path).map_err(|e| Error::io(PathBuf::from(&path), &e))?;
            if text.len() > LONG && !name.starts_with("bible") {
                all.push((name, text[PART].to_vec()));
            }
        }
    }
    all.sort();
    Ok(all)
}

/// The loss of every byte but the first, in nats.
fn read(model: &Model, text: &[u8]) -> Result<Vec<f32>> {
    let ids: Vec<u32> = text.iter().map(|byte| u32::from(*byte)).collect();
    let mut all = vec![];
    for done in (1..ids.len()).step_by(WINDOW) {
        let end = (done + WINDOW).min(ids.len());
        all.extend(model.nll(&ids[done - 1..end], end - done)?);
    }
    Ok(all)
}
