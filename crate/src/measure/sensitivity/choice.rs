//! A scheme of mixed widths from measured sensitivities: every part gets the width that its own harm at each width earns,
//! under one budget of bits.
//!
//! Where [`mixed`](crate::quantize::mixed) measures one width on a few calibration tokens and extrapolates, this
//! takes what a run has recorded, width by width. The name of a scheme tells parts apart but not their rows, so that
//! a part has one width: the choice is a [`knapsack`], and spends the budget as fully as whole parts allow.

use super::Sensitivity;
use crate::error::{Error, Result};
use crate::format::Coding;
use crate::measure::Measure;
use crate::model::quantization::{Effort, Spent};
use crate::quantize::knapsack::{self, Offer};
use crate::quantize::{Budget, Scheme};
use crate::record::{Row, SUMMARY, read_lines, run_folder};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use wildmatch::WildMatch;

/// What one part offers.
#[derive(Default)]
struct Part {
    /// Its block and its name there.
    layer: Option<u64>,
    name: String,
    weights: u64,
    tried: Vec<Tried>,
}

/// A part in one format.
struct Tried {
    coding: Coding,
    bytes: u64,
    harm: f64,
}

/// A scheme that was chosen from what a run has recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The scheme.
    pub scheme: Scheme,
    /// The budget, and what its parts take.
    pub spent: Spent,
    /// What the readings took that it was chosen from, of all schemes that the run has tried the parts in; tokens as if
    /// each part had been read from the first block on.
    pub measuring: Effort,
}

impl Scheme {
    /// The scheme of a [`Choice`] from a run.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn from_sensitivity(run: impl AsRef<Path>, budget: impl Into<Budget>) -> Result<Self> {
        Ok(Self::choose(run, budget)?.scheme)
    }

    /// The scheme that gives each part of a model one of the formats that a run measured its [`Sensitivity`] to, so that
    /// the summed divergence is least within a budget of so many bits a weight, or bytes, scales included. The run is a
    /// folder, an id or a name, and holds one model by segments or matrices in two schemes or more.
    ///
    /// # Errors
    /// If the run does not hold that, or the narrowest formats need more than the budget.
    pub fn choose(run: impl AsRef<Path>, budget: impl Into<Budget>) -> Result<Choice> {
        let folder = run_folder(run.as_ref())?;
        let rows = read_lines(folder.join("metrics.jsonl"))?.rows;
        chosen(&rows, budget.into()).map_err(|error| error.at(folder.display()))
    }

    /// Bits that a weight takes, scales included, over all parts whose sensitivity to one scheme a run has measured.
    ///
    /// # Errors
    /// If the run holds nothing of that scheme.
    pub fn bits_in_sensitivity(run: impl AsRef<Path>, scheme: &str) -> Result<f64> {
        let [bytes, weights] = sums(run.as_ref(), scheme)?;
        Ok(8.0 * bytes / weights)
    }

    /// Bytes of all these parts, scales included.
    ///
    /// # Errors
    /// As [`bits_in_sensitivity`](Self::bits_in_sensitivity).
    pub fn bytes_in_sensitivity(run: impl AsRef<Path>, scheme: &str) -> Result<u64> {
        let [bytes, _] = sums(run.as_ref(), scheme)?;
        Ok(bytes as u64)
    }
}

/// Bytes and weights of the parts whose sensitivity to a scheme a run has measured.
fn sums(run: &Path, scheme: &str) -> Result<[f64; 2]> {
    let folder = run_folder(run)?;
    let rows = read_lines(folder.join("metrics.jsonl"))?.rows;
    let of_scheme = |row: &&Row| row.get("probe").is_some_and(|probe| probe == scheme);
    let sum =
        |name: &str| rows.iter().filter(of_scheme).filter_map(|row| row.get(name)?.as_f64()).sum::<f64>();
    match sum("n_weights") {
        0.0 => Err(Error::input(format!("no sensitivity to {scheme} was recorded")).at(folder.display())),
        weights => Ok([sum("unit_bytes"), weights]),
    }
}

fn chosen(rows: &[Row], budget: Budget) -> Result<Choice> {
    let text = |row: &Row, name: &str| row.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_string();
    let (mut parts, mut subjects, mut bases) = (BTreeMap::<String, Part>::new(), vec![], vec![]);
    let mut measuring = Effort::default();
    for row in rows {
        if text(row, "measure") != Sensitivity::NAME || text(row, "row") != SUMMARY {
            continue;
        }
        let number = |name: &str| {
            let value = row.get(name).and_then(serde_json::Value::as_f64);
            value.ok_or_else(|| Error::input(format!("a reading of sensitivity has no {name}")))
        };
        subjects.push((text(row, "model_hash"), text(row, "grain")));
        measuring.seconds += number("runtime_s")?;
        measuring.tokens += number("n_tokens")? as u64;
        let probe: Scheme = text(row, "probe").parse()?;
        bases.push(Scheme { weights: None, rules: vec![], ..probe });
        let part = parts.entry(text(row, "unit")).or_default();
        part.layer = row.get("layer").and_then(serde_json::Value::as_u64);
        (part.name, part.weights) = (text(row, "part"), number("n_weights")? as u64);
        let (coding, bytes) = (text(row, "format").parse()?, number("unit_bytes")? as u64);
        part.tried.push(Tried { coding, bytes, harm: number("kl")?.max(0.0) });
    }
    subjects.dedup();
    bases.dedup();
    let (Some((_, grain)), 1, 1) = (subjects.first(), subjects.len(), bases.len()) else {
        return Err(Error::input(
            "a choice of widths needs the sensitivity of one model by one grain to one kind of scheme",
        )
        .hint("record Sensitivity::to([\"w2a16\", \"w3a16\", \"w4a16\"]) into a run of its own"));
    };
    if grain == "layer" {
        return Err(
            Error::input("the parts of a layer were not measured apart").hint("measure by segment or matrix")
        );
    }
    for part in parts.values_mut() {
        part.tried.sort_by_key(|tried| tried.bytes);
        part.tried.dedup_by_key(|tried| tried.bytes);
    }
    let offer = |tried: &Tried| Offer { bytes: tried.bytes, harm: tried.harm };
    let offers: Vec<Vec<Offer>> = parts.values().map(|part| part.tried.iter().map(offer).collect()).collect();
    let weights: u64 = parts.values().map(|part| part.weights).sum();
    let asked = budget.bits(weights) / 8;
    let widths = knapsack::best(&offers, asked)?;
    let used = offers.iter().zip(&widths).map(|(offers, width)| offers[*width].bytes).sum();
    let given = parts.iter().zip(&widths);
    let given: Vec<Given> =
        given.map(|((pattern, part), width)| (pattern.as_str(), part, part.tried[*width].coding)).collect();
    Ok(Choice { scheme: named(&given, bases.remove(0)), spent: Spent { asked, used }, measuring })
}

/// A part by its pattern, and the format that it is given.
type Given<'a> = (&'a str, &'a Part, Coding);

/// The scheme in few words: the commonest format of all blocks, then that of each kind of part, then the exceptions.
fn named(given: &[Given], base: Scheme) -> Scheme {
    let of_blocks = || given.iter().filter(|(_, part, _)| part.layer.is_some());
    let common = commonest(of_blocks().map(|(_, _, coding)| *coding));
    let mut scheme = Scheme { weights: common, ..base };
    let kinds: BTreeSet<&str> = of_blocks().map(|(_, part, _)| part.name.as_str()).collect();
    let mut usual = BTreeMap::new();
    for kind in kinds {
        let Some(coding) = commonest(of_blocks().filter(|(_, p, _)| p.name == kind).map(|(_, _, c)| *c))
        else {
            continue;
        };
        usual.insert(kind, coding);
        if Some(coding) != common {
            scheme = scheme.with(kind, coding);
        }
    }
    for (pattern, part, coding) in given {
        if part.layer.is_none() || usual.get(part.name.as_str()) != Some(coding) {
            scheme = scheme.with(&short(pattern, given), *coding);
        }
    }
    scheme
}

fn commonest(codings: impl Iterator<Item = Coding>) -> Option<Coding> {
    let mut counts: Vec<(Coding, usize)> = vec![];
    for coding in codings {
        match counts.iter_mut().find(|(other, _)| *other == coding) {
            Some((_, count)) => *count += 1,
            None => counts.push((coding, 1)),
        }
    }
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(coding, _)| coding)
}

/// `*.0.*.x` for `backbone.layers.0.mixer.in_proj.x`, where that fits no other part.
fn short(pattern: &str, given: &[Given]) -> String {
    let words: Vec<&str> = pattern.split('.').collect();
    let number = words.iter().find(|word| word.parse::<usize>().is_ok());
    let (Some(number), Some(last)) = (number, words.last()) else { return pattern.to_string() };
    let short = format!("*.{number}.*.{last}");
    let glob = WildMatch::new(&short);
    match given.iter().filter(|(other, _, _)| glob.matches(other)).count() {
        1 => short,
        _ => pattern.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(layer: usize, part: &str, width: u8, harm: f64) -> Row {
        let bytes = 100 * u64::from(width);
        match json!({
            "measure": "sensitivity", "row": "summary", "model_hash": "m", "grain": "segment",
            "probe": format!("w{width}a8"), "unit": format!("net.{layer}.mixer.{part}"), "layer": layer, "part": part,
            "format": format!("w{width}"), "n_weights": 800, "unit_bytes": bytes, "kl": harm,
            "runtime_s": 0.5, "n_tokens": 100,
        }) {
            serde_json::Value::Object(row) => row,
            _ => unreachable!(),
        }
    }

    fn rows() -> Vec<Row> {
        let mut all = vec![];
        for layer in 0..2 {
            for (part, harm) in [("x", 1.0), ("dt", 9.0 + layer as f64), ("z", 0.1)] {
                for (width, factor) in [(2, 1.0), (3, 0.25), (4, 0.06)] {
                    all.push(row(layer, part, width, harm * factor));
                }
            }
        }
        all
    }

    fn at(bits: f64) -> Choice {
        chosen(&rows(), bits.into()).unwrap()
    }

    #[test]
    fn what_is_measured_to_hurt_most_gets_the_bits() {
        // Six parts of 800 weights, a bit a weight of one of them 100 bytes: at 3 bits a weight six steps up can be
        // paid, dt's four first.
        let choice = at(3.0);
        assert_eq!(choice.scheme.to_string(), "w4a8+x=w3+z=w2");
        assert_eq!(choice.scheme.to_string().parse::<Scheme>().unwrap(), choice.scheme);
        assert_eq!(choice.spent, Spent { asked: 1800, used: 1800 });
        assert_eq!(choice.measuring, Effort { seconds: 9.0, tokens: 1800 });
        // One step less: one of the two x, which hurt alike, stays.
        assert_eq!(at(2.84).scheme.to_string(), "w2a8+dt=w4+*.1.*.x=w3");
        // Two steps: the first of each dt, before the second of the one that hurts more.
        assert_eq!(at(2.4).scheme.to_string(), "w2a8+dt=w3");
        assert_eq!(at(2.5).scheme.to_string(), "w2a8+dt=w3+*.1.*.dt=w4");
        assert_eq!(at(2.0).scheme.to_string(), "w2a8");
        let error = chosen(&rows(), Budget::Bits(1.9)).unwrap_err().to_string();
        assert!(error.contains("the narrowest widths need"), "{error}");
    }

    #[test]
    fn a_budget_in_bytes_is_spent_as_far_as_a_part_goes() {
        let bytes = |budget| chosen(&rows(), Budget::Bytes(budget)).unwrap().spent;
        assert_eq!(bytes(1500), Spent { asked: 1500, used: 1500 });
        assert_eq!(bytes(1599), Spent { asked: 1599, used: 1500 });
        assert_eq!(bytes(99_999), Spent { asked: 99_999, used: 2400 });
        // The large part's step no longer fits: the smaller ones take what is left, where a greedy choice had stopped.
        let mut rows = rows();
        for row in rows.iter_mut().filter(|row| row["part"] == "dt") {
            let bytes = row["unit_bytes"].as_u64().unwrap();
            row.insert("unit_bytes".into(), (10 * bytes).into());
        }
        let choice = chosen(&rows, Budget::Bytes(4 * 200 + 2 * 2000 + 999)).unwrap();
        assert_eq!(choice.scheme.to_string(), "w4a8+dt=w2");
        assert_eq!(choice.spent, Spent { asked: 5799, used: 5600 });
    }

    #[test]
    fn a_run_of_something_else_is_refused() {
        let mut two = rows();
        two[3].insert("model_hash".into(), "other".into());
        let mut mixed = rows();
        mixed[3].insert("probe".into(), "w2a4".into());
        for rows in [vec![], two, mixed] {
            let error = chosen(&rows, 3.0.into()).unwrap_err().to_string();
            assert!(error.contains("needs the sensitivity of one model"), "{error}");
        }
    }
}
