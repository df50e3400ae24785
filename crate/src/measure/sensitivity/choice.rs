//! A scheme of mixed widths from measured sensitivities: every part gets the width that its own harm at each width earns,
//! under one budget of bits.
//!
//! Where [`mixed`](crate::quantize::mixed) measures one width on a few calibration tokens and extrapolates, this takes
//! what a run has recorded, width by width.

use super::Sensitivity;
use crate::error::{Error, Result};
use crate::format::Coding;
use crate::measure::Measure;
use crate::quantize::Scheme;
use crate::quantize::allocate::{Choices, allocate};
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

impl Scheme {
    /// The scheme that gives each part of a model one of the formats that a run measured its [`Sensitivity`] to, so that
    /// the summed divergence is least and at most `bits` are spent on a weight, scales included. The run is a
    /// folder, an id or a name, and holds one model by segments or matrices in two schemes or more.
    ///
    /// # Errors
    /// If the run does not hold that, or the narrowest formats need more than `bits`.
    pub fn from_sensitivity(run: impl AsRef<Path>, bits: f64) -> Result<Self> {
        let folder = run_folder(run.as_ref())?;
        let rows = read_lines(folder.join("metrics.jsonl"))?.rows;
        chosen(&rows, bits).map_err(|error| error.at(folder.display()))
    }

    /// Bits that a weight takes, scales included, over all parts whose sensitivity to one scheme a run has measured.
    ///
    /// # Errors
    /// If the run holds nothing of that scheme.
    pub fn bits_in_sensitivity(run: impl AsRef<Path>, scheme: &str) -> Result<f64> {
        let folder = run_folder(run.as_ref())?;
        let rows = read_lines(folder.join("metrics.jsonl"))?.rows;
        let of_scheme = |row: &&Row| row.get("probe").is_some_and(|probe| probe == scheme);
        let sum =
            |name: &str| rows.iter().filter(of_scheme).filter_map(|row| row.get(name)?.as_f64()).sum::<f64>();
        match sum("n_weights") {
            0.0 => Err(Error::input(format!("no sensitivity to {scheme} was recorded")).at(folder.display())),
            weights => Ok(8.0 * sum("unit_bytes") / weights),
        }
    }
}

fn chosen(rows: &[Row], bits: f64) -> Result<Scheme> {
    let text = |row: &Row, name: &str| row.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_string();
    let (mut parts, mut subjects, mut bases) = (BTreeMap::<String, Part>::new(), vec![], vec![]);
    for row in rows {
        if text(row, "measure") != Sensitivity::NAME || text(row, "row") != SUMMARY {
            continue;
        }
        let number = |name: &str| {
            let value = row.get(name).and_then(serde_json::Value::as_f64);
            value.ok_or_else(|| Error::input(format!("a reading of sensitivity has no {name}")))
        };
        subjects.push((text(row, "model_hash"), text(row, "grain")));
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
    // A part counts as one row of as many bits as the whole has: a format is given to whole parts.
    let choices: Vec<Choices> = parts
        .values()
        .map(|part| Choices {
            rows: 1,
            row_bits: part.tried.iter().map(|tried| 8 * tried.bytes).collect(),
            harm: part.tried.iter().map(|tried| tried.harm).collect(),
        })
        .collect();
    let weights: u64 = parts.values().map(|part| part.weights).sum();
    let shares = allocate(&choices, (bits * weights as f64).floor() as u64)?;
    let given = parts.iter().zip(&shares);
    let given: Vec<Given> = given
        .map(|((pattern, part), shares)| (pattern.as_str(), part, part.tried[shares[0].width].coding))
        .collect();
    Ok(named(&given, bases.remove(0)))
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

    #[test]
    fn what_is_measured_to_hurt_most_gets_the_bits() {
        // Six parts of 800 weights: at 3 bits a weight six steps up can be paid, dt's four first.
        let scheme = chosen(&rows(), 3.0).unwrap();
        assert_eq!(scheme.to_string(), "w4a8+x=w3+z=w2");
        assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
        // One step less: one of the two x, which hurt alike, stays.
        assert_eq!(chosen(&rows(), 2.84).unwrap().to_string(), "w2a8+dt=w4+x=w3+*.1.*.x=w2");
        // Two steps: the first of each dt, before the second of the one that hurts more.
        assert_eq!(chosen(&rows(), 2.4).unwrap().to_string(), "w2a8+dt=w3");
        assert_eq!(chosen(&rows(), 2.5).unwrap().to_string(), "w2a8+dt=w3+*.1.*.dt=w4");
        assert_eq!(chosen(&rows(), 2.0).unwrap().to_string(), "w2a8");
        let error = chosen(&rows(), 1.9).unwrap_err().to_string();
        assert!(error.contains("the narrowest widths need"), "{error}");
    }

    #[test]
    fn a_run_of_something_else_is_refused() {
        let mut two = rows();
        two[3].insert("model_hash".into(), "other".into());
        let mut mixed = rows();
        mixed[3].insert("probe".into(), "w2a4".into());
        for rows in [vec![], two, mixed] {
            let error = chosen(&rows, 3.0).unwrap_err().to_string();
            assert!(error.contains("needs the sensitivity of one model"), "{error}");
        }
    }
}
