//! What close calls decide on two processors: counted, and their share judged.

use super::Row;
use super::difference::Difference;
use super::tolerance::{agree, share};
use super::unit::text;
use serde_json::Value;
use std::collections::BTreeMap;

/// The choices of a run, by measurement, scheme and column.
#[derive(Default)]
pub(super) struct Choices(BTreeMap<[String; 4], Calls>);

struct Calls {
    share: f64,
    count: usize,
    changed: Vec<Difference>,
}

impl Choices {
    /// Adds the two values of a row's column.
    pub fn add(&mut self, row: &Row, column: &str, place: Difference, values: [&Value; 2]) {
        let [measure, scheme, kind] = ["measure", "scheme", "row"].map(|name| text(row, name).to_string());
        let share = share(row, column);
        let none = Calls { share, count: 0, changed: vec![] };
        let calls = self.0.entry([measure, scheme, kind, column.to_string()]).or_insert(none);
        calls.count += 1;
        if values[0] != values[1] && !(values[0].is_f64() && agree(row, column, values)) {
            calls.changed.push(place);
        }
    }

    /// Those of which more changed than another processor explains: a share of them and one.
    pub fn judged(self) -> impl Iterator<Item = Difference> {
        self.0.into_values().flat_map(|calls| {
            let (count, changed) = (calls.count, calls.changed.len());
            let allowed = 1 + (calls.share * count as f64) as usize;
            let much = changed > allowed;
            calls.changed.into_iter().filter(move |_| much).map(move |mut difference| {
                difference.found += &format!(" (one of {changed} that changed, of {count}; {allowed} may)");
                difference
            })
        })
    }
}
