//! What columns say of each other: a statistic is recomputed from its parts, a share from its trials, an interval holds its
//! value. A record that contradicts itself was changed after it was measured, on whatever processor that was.

use super::unit::text;
use super::{Row, SUMMARY};
use crate::stats::{Z95, quantile, wilson};
use serde_json::Value;
use std::collections::BTreeMap;
use std::f64::consts::LN_2;

/// A number that a statistic is made of.
#[derive(Clone, Copy)]
enum Part {
    /// A number of the same row.
    Own(&'static str),
    /// The sum of a list of the same row.
    Sum(&'static str),
    /// How many rows of this kind the unit has, where they are kept.
    Count(&'static str),
    /// The mean of a column over the unit's rows of this kind that know it.
    Mean(&'static str, &'static str),
    /// A quantile of a column over these rows, 0 the smallest and 1 the largest.
    Quantile(&'static str, &'static str, f64),
}
use Part::{Count, Mean, Own, Quantile, Sum};

/// A statistic and its parts.
struct Relation {
    measure: &'static str,
    row: &'static str,
    column: &'static str,
    parts: &'static [Part],
    formula: fn(&[f64]) -> f64,
    /// How far the statistic may be from what its parts say, as a share of it, or of 1 where that is more.
    slack: f64,
}

/// A relation that holds but for the last bits of sums in another order.
const fn is(
    [measure, row, column]: [&'static str; 3],
    parts: &'static [Part],
    formula: fn(&[f64]) -> f64,
) -> Relation {
    Relation { measure, row, column, parts, formula, slack: 1e-9 }
}

/// A bound of a share, from the share and how many there were; older records take 1.96 for the normal deviate.
const fn bound(place: [&'static str; 3], parts: &'static [Part], formula: fn(&[f64]) -> f64) -> Relation {
    Relation { slack: 2e-5, ..is(place, parts, formula) }
}

/// Bits a byte from nats a token: n_tokens, n_bytes.
const PER_BYTE: fn(&[f64]) -> f64 = |p| p[0] * p[1] / p[2] / LN_2;
const LOW: fn(&[f64]) -> f64 = |p| wilson((p[0] * p[1]).round() as u64, p[1] as u64, Z95).0;
const HIGH: fn(&[f64]) -> f64 = |p| wilson((p[0] * p[1]).round() as u64, p[1] as u64, Z95).1;
const SAME: fn(&[f64]) -> f64 = |p| p[0];
const LESS: fn(&[f64]) -> f64 = |p| p[0] - p[1];
const EXP: fn(&[f64]) -> f64 = |p| p[0].exp();

const RELATIONS: &[Relation] = &[
    is(["*", "*", "tokens_per_s"], &[Own("n_tokens"), Own("runtime_s")], |p| p[0] / p[1]),
    is(["perplexity", SUMMARY, "n_tokens"], &[Sum("window_tokens")], SAME),
    is(["perplexity", SUMMARY, "nll"], &[Sum("window_nll"), Own("n_tokens")], |p| p[0] / p[1]),
    is(["perplexity", SUMMARY, "ppl"], &[Own("nll")], EXP),
    is(["perplexity", SUMMARY, "bits_per_byte"], &[Own("nll"), Own("n_tokens"), Own("n_bytes")], PER_BYTE),
    is(["divergence", SUMMARY, "ppl_ratio"], &[Own("ln_ppl_ratio")], EXP),
    is(["divergence", SUMMARY, "ppl_ratio_low"], &[Own("ln_ppl_ratio_low")], EXP),
    is(["divergence", SUMMARY, "ppl_ratio_high"], &[Own("ln_ppl_ratio_high")], EXP),
    is(["divergence", SUMMARY, "ln_ppl_ratio"], &[Own("ppl"), Own("reference_ppl")], |p| (p[0] / p[1]).ln()),
    is(["divergence", SUMMARY, "delta_ppl"], &[Own("ppl"), Own("reference_ppl")], LESS),
    is(["divergence", SUMMARY, "delta_logprob"], &[Own("ln_ppl_ratio")], |p| -p[0]),
    is(
        ["divergence", SUMMARY, "delta_bits_per_byte"],
        &[Own("ln_ppl_ratio"), Own("n_tokens"), Own("n_bytes")],
        PER_BYTE,
    ),
    is(
        ["divergence", SUMMARY, "delta_bits_per_byte_low"],
        &[Own("ln_ppl_ratio_low"), Own("n_tokens"), Own("n_bytes")],
        PER_BYTE,
    ),
    is(
        ["divergence", SUMMARY, "delta_bits_per_byte_high"],
        &[Own("ln_ppl_ratio_high"), Own("n_tokens"), Own("n_bytes")],
        PER_BYTE,
    ),
    bound(["divergence", SUMMARY, "same_top_low"], &[Own("same_top"), Own("n_tokens")], LOW),
    bound(["divergence", SUMMARY, "same_top_high"], &[Own("same_top"), Own("n_tokens")], HIGH),
    is(["context", "bin", "nll"], &[Own("reference_nll"), Own("delta_nll")], |p| p[0] + p[1]),
    is(["passkey", SUMMARY, "trials"], &[Count("trial")], SAME),
    is(["passkey", SUMMARY, "accuracy"], &[Mean("trial", "correct")], SAME),
    bound(["passkey", SUMMARY, "accuracy_low"], &[Own("accuracy"), Own("trials")], LOW),
    bound(["passkey", SUMMARY, "accuracy_high"], &[Own("accuracy"), Own("trials")], HIGH),
    is(["passkey", SUMMARY, "key_logprob"], &[Mean("trial", "key_logprob")], SAME),
    is(["copying", SUMMARY, "trials"], &[Count("item")], SAME),
    is(["copying", SUMMARY, "accuracy"], &[Mean("item", "correct")], SAME),
    bound(["copying", SUMMARY, "accuracy_low"], &[Own("accuracy"), Own("trials")], LOW),
    bound(["copying", SUMMARY, "accuracy_high"], &[Own("accuracy"), Own("trials")], HIGH),
    is(["copying", SUMMARY, "value_accuracy"], &[Mean("item", "values_right"), Own("keys")], |p| p[0] / p[1]),
    is(["copying", SUMMARY, "key_logprob"], &[Mean("item", "key_logprob")], SAME),
    is(["lambada", SUMMARY, "ppl"], &[Own("nll")], EXP),
    is(["stability", SUMMARY, "prompts"], &[Count("prompt")], SAME),
    is(["stability", SUMMARY, "never_parted"], &[Mean("prompt", "parted")], |p| 1.0 - p[0]),
    bound(["stability", SUMMARY, "never_parted_low"], &[Own("never_parted"), Own("prompts")], LOW),
    bound(["stability", SUMMARY, "never_parted_high"], &[Own("never_parted"), Own("prompts")], HIGH),
    is(["stability", SUMMARY, "together_q25"], &[Quantile("prompt", "together", 0.25)], SAME),
    is(["stability", SUMMARY, "together_median"], &[Quantile("prompt", "together", 0.5)], SAME),
    is(["stability", SUMMARY, "together_q75"], &[Quantile("prompt", "together", 0.75)], SAME),
    is(["stability", SUMMARY, "entropy"], &[Mean("prompt", "entropy")], SAME),
    is(["stability", SUMMARY, "repetition"], &[Mean("prompt", "repetition")], SAME),
    is(["stability", SUMMARY, "reference_entropy"], &[Mean("prompt", "reference_entropy")], SAME),
    is(["stability", SUMMARY, "reference_repetition"], &[Mean("prompt", "reference_repetition")], SAME),
    is(["stability", SUMMARY, "delta_entropy"], &[Own("entropy"), Own("reference_entropy")], LESS),
    is(["stability", SUMMARY, "delta_repetition"], &[Own("repetition"), Own("reference_repetition")], LESS),
    is(["drift", SUMMARY, "heads"], &[Count("head")], SAME),
    is(["drift", SUMMARY, "drift_median"], &[Quantile("head", "drift", 0.5)], SAME),
    is(["drift", SUMMARY, "drift_max"], &[Quantile("head", "drift", 1.0)], SAME),
    is(["drift", SUMMARY, "gain_max"], &[Quantile("head", "gain", 1.0)], SAME),
    is(["drift", SUMMARY, "gain_measured_max"], &[Quantile("head", "gain_measured", 1.0)], SAME),
    is(["outliers", SUMMARY, "kurtosis_max"], &[Quantile("layer", "kurtosis", 1.0)], SAME),
    is(["sinks", SUMMARY, "first_share"], &[Mean("attention", "first_share")], SAME),
    is(["sqnr", SUMMARY, "sqnr_db"], &[Mean("layer", "sqnr_db")], SAME),
    is(["sqnr", SUMMARY, "worst_sqnr_db"], &[Quantile("layer", "sqnr_db", 0.0)], SAME),
];

/// Columns that rise from one to the next, in every row that has them, beside every `x_low`, `x` and `x_high`.
const ORDERS: [&[&str]; 4] = [
    &["tokens_per_s_min", "tokens_per_s", "tokens_per_s_max"],
    &["kl_median", "kl_q90", "kl_q99", "kl_q999", "kl_max"],
    &["drift_q25", "drift_median", "drift_q75", "drift_max"],
    &["added_peak_bytes", "peak_bytes"],
];

/// A column that is not what other columns of the same record say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contradiction {
    /// The number of its row.
    pub row: usize,
    pub column: String,
    /// What the others say.
    pub parts: String,
}

/// What in these rows contradicts itself.
pub(super) fn contradictions(rows: &[Row]) -> Vec<Contradiction> {
    let mut units: BTreeMap<[&str; 2], Vec<&Row>> = BTreeMap::new();
    for row in rows {
        units.entry(place(row)).or_default().push(row);
    }
    let mut all = vec![];
    for (i, row) in rows.iter().enumerate() {
        let mut tell =
            |column: &str, parts: String| all.push(Contradiction { row: i, column: column.into(), parts });
        let unit = &units[&place(row)];
        for relation in RELATIONS.iter().filter(|relation| relation.is_of(row)) {
            if let (Some(value), Some(said)) = (number(row, relation.column), relation.value(row, unit))
                && (value - said).abs() > relation.slack * said.abs().max(1.0)
            {
                tell(relation.column, format!("{said}, as its parts say"));
            }
        }
        disordered(row).into_iter().for_each(|(column, parts)| tell(&column, parts));
        if let Some(parts) = misjudged(row) {
            tell("correct", parts);
        }
    }
    all
}

/// Rows of one unit of work stand together; what has no fingerprint stands alone with its kind.
fn place(row: &Row) -> [&str; 2] {
    ["fingerprint", "measure"].map(|column| text(row, column))
}

fn number(row: &Row, column: &str) -> Option<f64> {
    row.get(column)?.as_f64()
}

impl Relation {
    fn is_of(&self, row: &Row) -> bool {
        let fits = |pattern: &str, column| pattern == "*" || pattern == text(row, column);
        fits(self.measure, "measure") && fits(self.row, "row")
    }

    /// What the parts say; nothing where one of them is not known.
    fn value(&self, row: &Row, unit: &[&Row]) -> Option<f64> {
        let parts = self.parts.iter().map(|part| part.value(row, unit)).collect::<Option<Vec<_>>>()?;
        Some((self.formula)(&parts)).filter(|value| value.is_finite())
    }
}

impl Part {
    fn value(self, row: &Row, unit: &[&Row]) -> Option<f64> {
        let of = |kind: &str, column: &str| -> Vec<f64> {
            unit.iter().filter(|row| text(row, "row") == kind).filter_map(|row| number(row, column)).collect()
        };
        match self {
            Own(column) => number(row, column),
            Sum(column) => match row.get(column)? {
                Value::Array(items) => items.iter().map(Value::as_f64).sum(),
                _ => None,
            },
            Count(kind) => {
                let count = unit.iter().filter(|row| text(row, "row") == kind).count();
                (count > 0).then_some(count as f64)
            }
            Mean(kind, column) => {
                let values = of(kind, column);
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            }
            Quantile(kind, column, share) => {
                let mut values = of(kind, column);
                values.sort_by(f64::total_cmp);
                quantile(&values, share)
            }
        }
    }
}

/// Columns that are not in the order that their names say.
fn disordered(row: &Row) -> Vec<(String, String)> {
    let intervals = row.keys().filter_map(|column| column.strip_suffix("_low"));
    let intervals =
        intervals.map(|name| vec![format!("{name}_low"), name.to_string(), format!("{name}_high")]);
    let stated = ORDERS.iter().map(|order| order.iter().map(ToString::to_string).collect());
    let mut all = vec![];
    for order in intervals.chain(stated) {
        let known: Vec<(&String, f64)> =
            order.iter().filter_map(|column| Some((column, number(row, column)?))).collect();
        for pair in known.windows(2) {
            let [(below, low), (column, value)] = [pair[0], pair[1]];
            if low - value > 1e-9 * low.abs().max(1.0) {
                all.push((column.clone(), format!("{below} is {low}")));
            }
        }
    }
    all
}

/// Whether a trial calls right what is not the key, or wrong what is.
fn misjudged(row: &Row) -> Option<String> {
    let (answer, key, correct) =
        (row.get("answer")?.as_str()?, row.get("key")?.as_str()?, number(row, "correct")?);
    // A vocabulary that spells no digits gives the key within what was said.
    let wrong = if correct == 0.0 { answer == key } else { !answer.contains(key) };
    wrong.then(|| format!("the answer is {answer}, the key {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows(value: Value) -> Vec<Row> {
        serde_json::from_value(value).unwrap()
    }

    fn columns(value: Value) -> Vec<String> {
        contradictions(&rows(value)).into_iter().map(|found| found.column).collect()
    }

    #[test]
    fn a_statistic_is_held_against_its_parts() {
        let row = |change: Value| {
            let mut row = json!([{
                "measure": "perplexity", "row": "summary", "fingerprint": "a", "window_nll": [100.0, 50.0],
                "window_tokens": [60, 40], "n_tokens": 100, "n_bytes": 200, "nll": 1.5, "ppl": 1.5_f64.exp(),
                "bits_per_byte": 0.75 / LN_2, "runtime_s": 4.0, "tokens_per_s": 25.0,
            }]);
            row[0].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            columns(row)
        };
        assert!(row(json!({})).is_empty());
        assert_eq!(row(json!({"bits_per_byte": 1.0})), ["bits_per_byte"]);
        assert_eq!(row(json!({"runtime_s": 0.04})), ["tokens_per_s"]);
        assert_eq!(row(json!({"window_nll": [100.0, 51.0]})), ["nll"]);
        assert!(row(json!({"ppl": null, "bits_per_byte": null})).is_empty(), "what is not known is not told");
    }

    #[test]
    fn a_share_is_that_of_its_trials() {
        let trial = |unit: &str, answer: &str, correct: u8| {
            json!({"measure": "passkey", "row": "trial", "fingerprint": unit, "key": "123", "answer": answer,
                   "correct": correct, "key_logprob": -1.0})
        };
        let summary = |unit: &str, accuracy: f64| {
            json!({"measure": "passkey", "row": "summary", "fingerprint": unit, "trials": 2, "accuracy": accuracy,
                   "key_logprob": -1.0})
        };
        assert!(
            columns(json!([
                trial("a", "123", 1),
                trial("a", "7", 0),
                summary("a", 0.5),
                trial("b", "1", 0),
                trial("b", "1", 0),
                summary("b", 0.0)
            ]))
            .is_empty()
        );
        assert_eq!(
            columns(json!([trial("a", "123", 1), trial("a", "7", 0), summary("a", 1.0)])),
            ["accuracy"]
        );
        assert_eq!(
            columns(json!([trial("a", "123", 1), trial("a", "7", 1), summary("a", 1.0)])),
            ["correct"]
        );
        assert_eq!(columns(json!([trial("a", "123", 0)])), ["correct"]);
    }

    #[test]
    fn an_interval_holds_its_value() {
        let row = |low: f64, value: f64, high: f64| json!([{"measure": "m", "row": "summary", "x_low": low, "x": value, "x_high": high}]);
        assert!(columns(row(-1.0, 0.0, 0.5)).is_empty() && columns(row(0.5, 0.5, 0.5)).is_empty());
        assert_eq!(columns(row(0.1, 0.0, 0.5)), ["x"]);
        assert_eq!(columns(row(0.1, 0.2, 0.15)), ["x_high"]);
        let tail = json!([{"measure": "divergence", "row": "summary", "kl_median": 0.1, "kl_q90": 0.05, "kl_max": 2.0}]);
        assert_eq!(columns(tail), ["kl_q90"]);
    }
}
