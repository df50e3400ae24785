//! Where schemes part from their references by length of context, all of a frame's schemes and bins in one family.

use super::ALPHA;
use crate::error::Result;
use crate::frame::Frame;
use crate::frame::subject::Subject;
use crate::record::Reading;
use crate::stats::{Estimate, holm};
use std::collections::BTreeMap;

/// Level of the intervals.
const LEVEL: f64 = 0.95;

/// One bin of contexts.
struct Bin {
    low: f64,
    high: f64,
    rise: Estimate,
    trained: Option<f64>,
}

impl Frame {
    /// What the rows of contexts (measure `context`) allow to say of each scheme, a row each:
    ///
    /// | column | |
    /// |---|---|
    /// | `parts_at` | the first context from which it predicts worse than its reference; Holm over all schemes and bins |
    /// | `widening` | how much larger its rise is at the longest contexts than in the last bin within the training length, in nats per token, with `widening_low` and `widening_high` |
    /// | `widens_at` | the first bin beyond the training length where the rise is larger than there; Holm over all schemes and bins beyond |
    /// | `tests`, `tests_beyond` | how many tests these families are of |
    ///
    /// As in [`compare`](Self::compare), a filtered frame remembers what it was filtered from.
    ///
    /// # Errors
    /// If a column is not of numbers.
    pub fn contexts(&self) -> Result<Self> {
        let (bins, whole) = (self.bins()?, self.whole().bins()?);
        let rises: Vec<(Test, f64)> = whole
            .iter()
            .flat_map(|(subject, bins)| bins.iter().map(move |bin| (test(subject, bin), bin.rise.p)))
            .collect();
        let changes: Vec<(Test, f64)> = whole
            .iter()
            .flat_map(|(subject, bins)| {
                beyond(bins).into_iter().map(move |(bin, change)| (test(subject, bin), change.p))
            })
            .collect();
        let (rise, change) = (adjusted(&rises), adjusted(&changes));
        let found = |family: &BTreeMap<Test, f64>, subject: &Subject, bin: &Bin, value: f64| {
            value > 0.0 && family.get(&test(subject, bin)).is_some_and(|p| *p < ALPHA)
        };
        let rows: Vec<_> = bins
            .iter()
            .map(|(subject, bins)| {
                let parts = bins.iter().find(|bin| found(&rise, subject, bin, bin.rise.value));
                let beyond = beyond(bins);
                let widens = beyond.iter().find(|(bin, by)| found(&change, subject, bin, by.value));
                let last = beyond.last().map(|(_, by)| by);
                // Where there are no numbers, it is not known whether they part.
                let unknown = bins.iter().any(|bin| bin.rise.value.is_nan()).then_some(f64::NAN);
                let row = Reading::default()
                    .value("model", subject.model.as_str())
                    .value("scheme", subject.scheme.as_str())
                    .value("parts_at", parts.map(|bin| bin.low).or(unknown))
                    .value("widens_at", widens.map(|(bin, _)| bin.low))
                    .value("widening", last.map(|by| by.value))
                    .value("widening_low", last.map(|by| by.low))
                    .value("widening_high", last.map(|by| by.high))
                    .value("tests", rises.len())
                    .value("tests_beyond", changes.len());
                row.values
            })
            .collect();
        Self::from_rows(&rows)
    }

    /// The bins of each subject, from the shortest contexts to the longest, in the order of the records.
    fn bins(&self) -> Result<Vec<(Subject, Vec<Bin>)>> {
        let rows = self.rows_of("context", "bin")?;
        let numbers = |name: &str| rows.known(name, Self::numbers);
        let (low, high) = (numbers("context_low")?, numbers("context_high")?);
        let (value, error, blocks) =
            (numbers("delta_nll")?, numbers("delta_nll_error")?, numbers("delta_nll_blocks")?);
        let (from, to, p) = (numbers("delta_nll_low")?, numbers("delta_nll_high")?, numbers("delta_nll_p")?);
        let trained = numbers("training_length")?;
        let mut all: Vec<(Subject, Vec<Bin>)> = vec![];
        for (i, subject) in rows.each_subject()?.into_iter().enumerate() {
            let (Some(low), Some(high), Some(value)) = (low[i], high[i], value[i]) else { continue };
            let known = |number: Option<f64>| number.unwrap_or(f64::NAN);
            let rise = Estimate {
                value,
                error: known(error[i]),
                low: known(from[i]),
                high: known(to[i]),
                p: known(p[i]),
                blocks: known(blocks[i]),
            };
            let bin = Bin { low, high, rise, trained: trained[i] };
            match all.iter_mut().find(|(known, _)| *known == subject) {
                Some((_, bins)) => bins.push(bin),
                None => all.push((subject, vec![bin])),
            }
        }
        Ok(all)
    }
}

/// Whose test, and in the bin that begins at which context.
type Test = (Subject, u64);

fn test(subject: &Subject, bin: &Bin) -> Test {
    (subject.clone(), bin.low as u64)
}

/// The p-values of a family, adjusted.
fn adjusted(tests: &[(Test, f64)]) -> BTreeMap<Test, f64> {
    let p: Vec<f64> = tests.iter().map(|(_, p)| *p).collect();
    tests.iter().map(|(test, _)| test.clone()).zip(holm(&p)).collect()
}

/// How much larger the rise is in each bin beyond the training length than in the last one within it.
fn beyond(bins: &[Bin]) -> Vec<(&Bin, Estimate)> {
    let within =
        |bin: &Bin| bin.trained.is_some_and(|length| bin.high < (length as u64).next_power_of_two() as f64);
    let Some(last) = bins.iter().rposition(within) else { return vec![] };
    bins[last + 1..].iter().map(|bin| (bin, bin.rise.above(&bins[last].rise, LEVEL))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Row;
    use serde_json::{Value, json};

    /// Bins of 1, 2, 4 and 8 on, with rises and their errors from 16 blocks each; trained at 4.
    fn scheme(name: &str, rises: [(f64, f64); 4]) -> Vec<Value> {
        let bin = |(k, (value, error)): (usize, (f64, f64))| {
            let found = Estimate { value, error, low: 0.0, high: 0.0, p: 0.0, blocks: 16.0 };
            let none = Estimate { value: 0.0, error: 0.0, ..found };
            let found = found.above(&none, LEVEL);
            json!({"measure": "context", "row": "bin", "model": "m", "model_hash": "1", "scheme": name,
                   "context_low": 1 << k, "context_high": (2 << k) - 1, "training_length": 4, "delta_nll": value,
                   "delta_nll_low": found.low, "delta_nll_high": found.high, "delta_nll_p": found.p,
                   "delta_nll_error": error, "delta_nll_blocks": 16})
        };
        rises.into_iter().enumerate().map(bin).collect()
    }

    fn frame(rows: Vec<Value>) -> Frame {
        let rows: Vec<Row> = rows.into_iter().map(|row| row.as_object().unwrap().clone()).collect();
        Frame::from_rows(&rows).unwrap()
    }

    #[test]
    fn all_schemes_and_bins_are_one_family() {
        // The second parts at 2 with p = .013 alone, which is none of eight; the first beyond doubt.
        let first = scheme("w4", [(0.0, 0.01), (0.1, 0.01), (0.1, 0.01), (0.2, 0.01)]);
        let second = scheme("w3", [(0.0, 0.01), (0.028, 0.01), (0.02, 0.01), (0.02, 0.01)]);
        let both = frame([first.clone(), second.clone()].concat());
        let found = both.contexts().unwrap();
        assert_eq!(found.numbers("parts_at").unwrap(), [Some(2.0), None]);
        assert_eq!(found.numbers("tests").unwrap(), [Some(8.0); 2]);
        assert_eq!(found.numbers("tests_beyond").unwrap(), [Some(4.0); 2]);
        // Trained at 4: the bin of 2 and 3 is the last within.
        assert_eq!(found.numbers("widens_at").unwrap(), [Some(8.0), None]);
        let by = found.numbers("widening").unwrap()[0].unwrap();
        let low = found.numbers("widening_low").unwrap()[0].unwrap();
        // Welch: 30 degrees of freedom, √2 · .01 · 2.042.
        assert!((by - 0.1).abs() < 1e-12 && (low - (0.1 - 0.028_88)).abs() < 1e-4, "{by} {low}");
        // Looked at alone it is still one of eight.
        let one = both.filter("scheme", "w3").unwrap().contexts().unwrap();
        assert_eq!((one.height(), one.numbers("tests").unwrap()[0]), (1, Some(8.0)));
        assert_eq!(one.numbers("parts_at").unwrap(), [None]);
        // Measured alone it is one of four: .013 · 4 = .054, and of another text with less error .02.
        let alone = frame(scheme("w3", [(0.0, 0.01), (0.032, 0.01), (0.02, 0.01), (0.02, 0.01)]));
        assert_eq!(alone.contexts().unwrap().numbers("parts_at").unwrap(), [Some(2.0)]);
    }
}
