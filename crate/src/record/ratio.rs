//! Times and memory of two recordings, compared as ratios.
//!
//! Nobody's machine is as fast as another's, nor twice the same; but its rows are slow and fast together. So each time is
//! set against the median of its column over the rows of the run, and that median against wide bounds of its own.

use super::difference::Difference;
use serde_json::Value;
use std::collections::BTreeMap;

/// How far a time may be from the median of its kind, as a factor: on the same processor, on another. Single calls of
/// milliseconds are held up by whatever else runs; other kernels favour other schemes.
pub const WITHIN_RUN: [f64; 2] = [10.0, 25.0];

/// How far the times of a whole run may be from those that were recorded, as a factor: on the same processor, on another.
/// A Zen 3 that had other work took 2 to 24 times as long as a Xeon with AMX that had none.
pub const WHOLE_RUN: [f64; 2] = [20.0, 40.0];

/// Seconds by which a time may differ in any case: another program's turn.
pub const TIME_SLACK: f64 = 0.1;

/// How far memory in use may be from what was recorded, as a factor: on the same processor, on another, where kernels keep
/// other copies of the weights.
pub const MEMORY: [f64; 2] = [2.0, 3.0];

/// Bytes by which memory may differ in any case: what an allocator keeps for itself, and what ran before.
pub const MEMORY_SLACK: f64 = 16.0 * 1024.0 * 1024.0;

/// The times of a run, by the kind that they are compared within.
#[derive(Default)]
pub(super) struct Times(BTreeMap<String, Vec<Time>>);

struct Time {
    row: usize,
    place: Difference,
    /// Found over recorded; none where a value is no positive number.
    ratio: Option<f64>,
    /// Both are so short that nothing follows.
    short: bool,
    same: bool,
}

fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|x| *x > 0.0 && x.is_finite())
}

impl Times {
    /// Adds the two values of a row's column; `kind` is what they are compared within, `place` says where they stand.
    pub fn add(&mut self, kind: String, row: usize, place: Difference, [a, b]: [&Value; 2], same: bool) {
        let both = positive(a).zip(positive(b));
        let seconds = place.column.ends_with("_s") && !place.column.ends_with("_per_s");
        let short = seconds && both.is_some_and(|(a, b)| (b - a).abs() <= TIME_SLACK);
        let ratio = both.map(|(a, b)| b / a);
        if !(a.is_null() && b.is_null()) {
            self.0.entry(kind).or_default().push(Time { row, place, ratio, short, same });
        }
    }

    /// How many were compared, and those that are beyond the bounds, each with the number of its row.
    pub fn judged(self) -> (usize, Vec<(usize, Difference)>) {
        let compared = self.0.values().map(Vec::len).sum();
        (compared, self.0.into_values().flat_map(judged).collect())
    }
}

fn judged(times: Vec<Time>) -> Vec<(usize, Difference)> {
    let which = usize::from(!times.iter().all(|time| time.same));
    let times: Vec<Time> = times.into_iter().filter(|time| !time.short).collect();
    let mut ratios: Vec<f64> = times.iter().filter_map(|time| time.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    // Of the two in the middle the one that says less.
    let middle = match (ratios.len(), ratios.len() / 2) {
        (0, _) => 1.0,
        (n, half) if n % 2 == 0 && ratios[half - 1].ln().abs() < ratios[half].ln().abs() => ratios[half - 1],
        (_, half) => ratios[half],
    };
    let beyond = |ratio: f64, bound: f64| ratio.ln().abs() > bound.ln();
    let (count, whole) = (times.len(), beyond(middle, WHOLE_RUN[which]));
    let mut all = vec![];
    for (i, Time { row, mut place, ratio, .. }) in times.into_iter().enumerate() {
        match ratio {
            Some(_) if whole && i == 0 => {
                place.found = format!("{middle:.3} times as much in the median of {count} rows");
                all.push((row, place));
            }
            Some(ratio) if !whole && beyond(ratio / middle, WITHIN_RUN[which]) => {
                place.found += &format!(" ({:.3} times what the other rows say)", ratio / middle);
                all.push((row, place));
            }
            None => all.push((row, place)),
            _ => {}
        }
    }
    all
}

/// Whether two sizes of memory agree.
pub(super) fn memory_agrees([a, b]: [&Value; 2], same: bool) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => {
            let factor = MEMORY[usize::from(!same)];
            a >= 0.0 && ((b - a).abs() <= MEMORY_SLACK || (a <= factor * b && b <= factor * a))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The rows that are told of, for these ratios of found to recorded.
    fn told(ratios: &[f64], same: bool) -> Vec<usize> {
        let mut times = Times::default();
        for (row, ratio) in ratios.iter().enumerate() {
            times.add("t".into(), row, Difference::default(), [&json!(1.0), &json!(ratio)], same);
        }
        let (compared, told) = times.judged();
        assert_eq!(compared, ratios.len());
        told.into_iter().map(|(row, _)| row).collect()
    }

    #[test]
    fn a_slow_machine_is_no_difference_and_a_row_of_its_own_is() {
        assert!(told(&[3.0, 4.0, 2.5], true).is_empty());
        assert!(told(&[0.1, 0.3, 0.06], false).is_empty());
        assert_eq!(told(&[1.0, 0.01, 1.2], true), [1]);
        assert_eq!(told(&[1.0, 0.01], false), [1]);
        assert_eq!(told(&[100.0, 1.0], false), [0]);
        // All of them a hundredth: the whole is told, once.
        assert_eq!((told(&[0.01, 0.012, 0.01], true), told(&[0.02], false)), (vec![0], vec![0]));
    }

    #[test]
    fn a_moment_more_or_less_says_nothing() {
        let told = |column: &str, a: f64, b: f64| {
            let mut times = Times::default();
            let place = Difference { column: column.into(), ..Difference::default() };
            times.add("t".into(), 0, place, [&json!(a), &json!(b)], true);
            times.judged().1.len()
        };
        assert_eq!((told("runtime_s", 0.002, 0.05), told("runtime_s", 0.02, 2.0)), (0, 1));
        assert_eq!(told("tokens_per_s", 0.002, 0.05), 1, "a speed is no time");
    }

    #[test]
    fn no_time_at_all_is_told() {
        for (a, b, count) in
            [(json!(0.0), json!(1.0), 1), (json!(1.0), json!(null), 1), (json!(null), json!(null), 0)]
        {
            let mut times = Times::default();
            times.add("t".into(), 0, Difference::default(), [&a, &b], true);
            assert_eq!(times.judged().1.len(), count, "{a} {b}");
        }
    }

    #[test]
    fn memory_is_of_its_size() {
        let agrees = |a: u64, b: u64, same| memory_agrees([&json!(a), &json!(b)], same);
        assert!(agrees(57_000_000, 60_000_000, true) && agrees(100_000_000, 190_000_000, true));
        assert!(
            !agrees(1, 57_000_000, true)
                && !agrees(1, 57_000_000, false)
                && !agrees(100_000_000, 210_000_000, true)
        );
        assert!(agrees(100_000_000, 290_000_000, false) && !memory_agrees([&json!(null), &json!(1)], true));
    }
}
