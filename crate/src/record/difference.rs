//! Whether two recordings of the same thing are the same.
//!
//! On one processor they are, bit for bit but for times. On another, numbers may differ by as much as sums in another order
//! explain ([`TOLERANCES`](super::TOLERANCES)). In either case a record may not contradict itself, and times and memory are
//! held against wide bounds. [`Kind`] says which column is compared how.

use super::choice::Choices;
use super::machine::Machine;
use super::ratio::{Times, memory_agrees};
use super::relation::contradictions;
use super::tolerance::agree;
use super::unit::{named, text};
use super::{Kind, Row, SUMMARY};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A value that is not what was recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// The measurement.
    pub measure: String,
    /// The scheme, and what else names the unit of work.
    pub unit: String,
    /// The column; empty where a whole row is missing.
    pub column: String,
    /// What was recorded.
    pub recorded: String,
    /// What was found.
    pub found: String,
}

/// How many values of a kind were compared, and how many of them differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Compared.
    pub compared: usize,
    /// Of them not what was recorded.
    pub differ: usize,
}

/// Two recordings of the same thing, side by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// What differs, and what contradicts itself.
    pub differences: Vec<Difference>,
    /// Values by their kinds.
    pub counts: BTreeMap<Kind, Count>,
    /// Rows that are in one of the two only, or are of another version of their measurement.
    pub rows: usize,
    /// Columns of provenance that differ: told, not compared.
    pub provenance: BTreeSet<String>,
    /// The machines that the record is from.
    pub recorded_on: BTreeSet<String>,
    /// The machines that measured again.
    pub found_on: BTreeSet<String>,
    /// Whether they are the same, so that every bit was compared.
    pub same_machine: bool,
}

impl Comparison {
    /// Compares the rows of a run with those of another of the same study: bit for bit where both are of one
    /// [`Machine`], within tolerances where not.
    pub fn of(recorded: &[Row], found: &[Row]) -> Self {
        compare(recorded, found, |a, b| Machine::of(a) == Machine::of(b))
    }

    /// As [`of`](Self::of), within the tolerances of another processor wherever they were measured.
    pub fn across_processors(recorded: &[Row], found: &[Row]) -> Self {
        compare(recorded, found, |_, _| false)
    }

    /// Values of these kinds together.
    pub fn count(&self, kinds: impl Fn(Kind) -> bool) -> Count {
        let of = self.counts.iter().filter(|(kind, _)| kinds(**kind)).map(|(_, count)| count);
        of.fold(Count::default(), |sum, count| Count {
            compared: sum.compared + count.compared,
            differ: sum.differ + count.differ,
        })
    }

    fn compared(&mut self, kind: Kind, count: usize) {
        self.counts.entry(kind).or_default().compared += count;
    }

    fn differs(&mut self, kind: Kind, difference: Difference) {
        self.counts.entry(kind).or_default().differ += 1;
        self.differences.push(difference);
    }
}

fn compare(recorded: &[Row], found: &[Row], same: impl Fn(&Row, &Row) -> bool) -> Comparison {
    let mut all = Comparison { same_machine: true, ..Comparison::default() };
    let (mut times, mut choices) = (Times::default(), Choices::default());
    // Rows and columns that are told of: what contradicts itself is told once.
    let mut told: HashSet<(usize, String)> = HashSet::new();
    let (pairs, alone) = paired(recorded, found);
    for (i, other) in &pairs {
        let (row, same) = (&recorded[*i], same(&recorded[*i], other));
        all.same_machine &= same;
        all.recorded_on.insert(Machine::of(row).to_string());
        all.found_on.insert(Machine::of(other).to_string());
        let [version, now] = [row, other].map(|row| row.get("measure_version").unwrap_or(&Value::Null));
        if version != now {
            let column = "measure_version".to_string();
            all.rows += 1;
            all.differences.push(Difference {
                column,
                recorded: shown(version),
                found: shown(now),
                ..placed(row)
            });
            continue;
        }
        for column in columns(row, other) {
            let values = [row, other].map(|row| row.get(column).unwrap_or(&Value::Null));
            if values.iter().all(|value| value.is_null()) {
                continue;
            }
            let kind = Kind::of(text(row, "row"), column, values);
            let place = || {
                let [recorded, found] = both(values);
                Difference { column: column.clone(), recorded, found, ..placed(row) }
            };
            let agrees = match kind {
                Kind::Provenance => {
                    if values[0] != values[1] {
                        all.provenance.insert(column.clone());
                    }
                    continue;
                }
                // A speed beside its time is held against it.
                Kind::Timing if column == "tokens_per_s" && row.contains_key("runtime_s") => {
                    values[1].is_null() == values[0].is_null()
                }
                Kind::Timing => {
                    let group =
                        [text(row, "measure"), text(row, "row"), column, text(row, "phase")].join(" ");
                    times.add(group, *i, place(), values, same);
                    continue;
                }
                Kind::Memory => memory_agrees(values, same),
                Kind::Exact => values[0] == values[1],
                _ if same => values[0] == values[1],
                Kind::Choice => {
                    all.compared(kind, 1);
                    choices.add(row, column, place(), values);
                    continue;
                }
                Kind::Numeric | Kind::Statistical => agree(row, column, values),
            };
            all.compared(kind, 1);
            if !agrees {
                told.insert((*i, column.clone()));
                all.differs(kind, place());
            }
        }
    }
    let (compared, slow) = times.judged();
    all.compared(Kind::Timing, compared);
    for (i, difference) in slow {
        told.insert((i, difference.column.clone()));
        all.differs(Kind::Timing, difference);
    }
    for difference in choices.judged() {
        all.differs(Kind::Choice, difference);
    }
    for contradiction in contradictions(recorded) {
        let row = &recorded[contradiction.row];
        let value = row.get(&contradiction.column).unwrap_or(&Value::Null);
        if told.insert((contradiction.row, contradiction.column.clone())) {
            let kind = Kind::of(text(row, "row"), &contradiction.column, [value, value]);
            let (column, found) =
                (contradiction.column, format!("contradicts its parts: {}", contradiction.parts));
            all.differs(kind, Difference { column, recorded: shown(value), found, ..placed(row) });
        }
    }
    for contradiction in contradictions(found) {
        let row = &found[contradiction.row];
        let value = row.get(&contradiction.column).unwrap_or(&Value::Null);
        let kind = Kind::of(text(row, "row"), &contradiction.column, [value, value]);
        let found = format!("{} contradicts its parts: {}", shown(value), contradiction.parts);
        all.differs(kind, Difference { column: contradiction.column, found, ..placed(row) });
    }
    all.rows += alone.len();
    all.differences.extend(alone);
    all
}

/// The rows that belong together, those recorded by their numbers, and what is said of those that stand alone.
fn paired<'a>(recorded: &[Row], found: &'a [Row]) -> (Vec<(usize, &'a Row)>, Vec<Difference>) {
    let (mut pairs, mut alone) = (vec![], vec![]);
    let units: HashSet<&str> = recorded.iter().map(|row| text(row, "fingerprint")).collect();
    let mut left: Vec<&Row> = found.iter().collect();
    for (i, row) in recorded.iter().enumerate() {
        // Rows of a unit of work are written in one order, and taken in that order. A unit with a fingerprint of another
        // version, or of something that changed, is known by its names.
        let same = |other: &&Row| same_place(row, other);
        let named = |other: &&Row| named(row) == named(other) && !units.contains(text(other, "fingerprint"));
        match left.iter().position(same).or_else(|| left.iter().position(named)) {
            Some(place) => pairs.push((i, left.remove(place))),
            None => alone.push(missing(row, "recorded", "not measured")),
        }
    }
    alone.extend(left.into_iter().map(|row| missing(row, "not recorded", "measured")));
    (pairs, alone)
}

/// The columns of two rows that are compared: an older record lacks newer columns, and its fingerprints cover less.
fn columns<'a>(row: &'a Row, other: &'a Row) -> impl Iterator<Item = &'a String> {
    let version = |row: &Row| row.get("schema_version").and_then(Value::as_u64);
    let older = version(row).is_some() && version(row) < version(other);
    let covers = !older && text(row, "row") == SUMMARY;
    let new = other.keys().filter(move |column| !older && !row.contains_key(*column));
    row.keys().chain(new).filter(move |column| match column.as_str() {
        "fingerprint" => covers,
        "schema_version" => !older,
        _ => true,
    })
}

/// Whether two rows are of one kind in one unit of work.
fn same_place(row: &Row, other: &Row) -> bool {
    ["fingerprint", "measure", "row"].iter().all(|column| row.get(*column) == other.get(*column))
}

fn missing(row: &Row, recorded: &str, found: &str) -> Difference {
    Difference { recorded: recorded.into(), found: found.into(), ..placed(row) }
}

/// A difference that says where it is, and not yet what.
fn placed(row: &Row) -> Difference {
    let text = |column: &str| row.get(column).map(shown).filter(|text| text != "null").unwrap_or_default();
    let kind = text("row");
    let names = [
        text("scheme"),
        text("probe"),
        text("unit"),
        text("context_length"),
        text("context_low"),
        text("phase"),
        text("layer"),
        text("trial"),
        text("item"),
        if kind == SUMMARY { String::new() } else { kind },
    ];
    let names: Vec<String> = names.into_iter().filter(|name| !name.is_empty()).collect();
    Difference { measure: text("measure"), unit: names.join(" · "), ..Difference::default() }
}

/// Two values as cells of a table; of two lists of one length the first items that differ.
fn both(values: [&Value; 2]) -> [String; 2] {
    if let [Value::Array(a), Value::Array(b)] = values
        && let Some(i) = (0..a.len()).find(|i| b.get(*i).is_some_and(|b| *b != a[*i]))
        && a.len() == b.len()
    {
        return [&a[i], &b[i]].map(|item| format!("[{i}] {}", shown(item)));
    }
    values.map(shown)
}

/// A value as a cell of a table; a long one is cut.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(value: Value) -> Row {
        let mut row: Row = serde_json::from_value(json!({
            "schema_version": 1, "measure": "perplexity", "row": "summary", "fingerprint": "a", "scheme": "w4a8", "host": "here",
            "cpu_model": "one", "cpu_features": "avx2", "threads": 2, "dtype": "f32", "a_bits": 8.0,
            "nll": 1.5, "n_tokens": 100, "window_loss": [1.0, 2.0], "kl": 0.01, "runtime_s": 3.0, "corpus": "plays",
            "delta_nll": 1e-4, "answer": "7", "peak_bytes": 90_000_000,
        }))
        .unwrap();
        let changes: Row = serde_json::from_value(value).unwrap();
        row.extend(changes);
        row
    }

    fn columns(change: Value) -> Vec<String> {
        let all = Comparison::of(&[row(json!({}))], &[row(change)]);
        all.differences.into_iter().map(|difference| difference.column).collect()
    }

    #[test]
    fn on_one_processor_the_last_bit_is_told() {
        for (change, column) in [
            (json!({"nll": 1.500_000_000_000_000_2}), "nll"),
            (json!({"nll": null}), "nll"),
            (json!({"n_tokens": 101}), "n_tokens"),
            (json!({"window_loss": [1.0, 2.000_000_000_000_000_4]}), "window_loss"),
            (json!({"window_loss": [1.0]}), "window_loss"),
            (json!({"corpus": "bible"}), "corpus"),
            (json!({"answer": "8"}), "answer"),
            (json!({"peak_bytes": 1}), "peak_bytes"),
            (json!({"runtime_s": 300.0}), "runtime_s"),
            (json!({"new": 1}), "new"),
        ] {
            assert_eq!(columns(change.clone()), [column], "{change}");
        }
        assert!(columns(json!({"host": "there", "runtime_s": 9.0, "peak_bytes": 95_000_000})).is_empty());
    }

    #[test]
    fn on_another_processor_sums_in_another_order_are_not() {
        let there = |mut change: Value| {
            change["cpu_model"] = json!("another");
            columns(change)
        };
        let within = json!({"nll": 1.500_001, "window_loss": [1.000_001, 2.0], "answer": "8"});
        assert_eq!(there(within), Vec::<String>::new());
        assert_eq!(columns(json!({"threads": 3, "nll": 1.500_001})), Vec::<String>::new());
        for (change, column) in [
            (json!({"nll": 1.6}), "nll"),
            (json!({"n_tokens": 101}), "n_tokens"),
            (json!({"kl": 0.012}), "kl"),
            (json!({"delta_nll": 0.01}), "delta_nll"),
            (json!({"window_loss": [1.0, 2.1]}), "window_loss"),
            (json!({"runtime_s": 300.0}), "runtime_s"),
            (json!({"peak_bytes": 1}), "peak_bytes"),
        ] {
            assert_eq!(there(change.clone()), [column], "{change}");
        }
    }

    #[test]
    fn a_report_counts_what_was_measured_apart_from_what_was_asked() {
        let all = Comparison::of(&[row(json!({}))], &[row(json!({"host": "there", "nll": 2.0}))]);
        let measured = all.count(Kind::is_measured);
        assert_eq!((measured.compared, measured.differ, all.same_machine), (5, 1, true)); // nll, list, kl, delta, answer
        assert_eq!(all.counts[&Kind::Timing], Count { compared: 1, differ: 0 });
        assert_eq!(all.provenance.iter().collect::<Vec<_>>(), ["host"]);
        assert_eq!(all.recorded_on.iter().collect::<Vec<_>>(), ["one (avx2; 2 threads)"]);
    }

    #[test]
    fn a_record_of_an_older_version_is_compared_by_what_it_holds() {
        let newer = json!({"schema_version": 2, "fingerprint": "b", "config_hash": "c", "new": 1});
        assert_eq!(columns(newer), Vec::<String>::new());
        let changed = json!({"schema_version": 2, "fingerprint": "b", "nll": 5.0});
        assert_eq!(columns(changed), ["nll"]);
        // Of one version, a fingerprint is of something else.
        assert_eq!(columns(json!({"fingerprint": "b"})), ["fingerprint"]);
        // What a measurement of another version reads is not comparable, whatever it is.
        assert_eq!(columns(json!({"measure_version": 2, "nll": 5.0})), ["measure_version"]);
    }

    #[test]
    fn rows_that_are_missing_are_told() {
        let (one, other) = (row(json!({})), row(json!({"fingerprint": "b", "scheme": "nf4"})));
        let all = Comparison::of(&[one.clone(), other.clone()], std::slice::from_ref(&one)).differences;
        assert_eq!((all.len(), all[0].unit.as_str(), all[0].found.as_str()), (1, "nf4", "not measured"));
        let all = Comparison::of(std::slice::from_ref(&one), &[other, one.clone()]).differences;
        assert_eq!((all.len(), all[0].recorded.as_str()), (1, "not recorded"));
    }

    #[test]
    fn a_record_that_contradicts_itself_is_told_on_any_processor() {
        let (a, b) = (json!({"ppl": 9.0}), json!({"ppl": 9.0, "cpu_model": "another"}));
        let all = Comparison::of(&[row(a)], &[row(b)]).differences;
        assert_eq!((all.len(), all[0].column.as_str()), (2, "ppl"));
        assert!(all[0].found.starts_with("contradicts its parts: 4.48"), "{all:?}");
    }
}
