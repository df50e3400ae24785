//! A comparison as a table: for figures, and for people.

use super::{Compared, Comparison};
use crate::error::Result;
use crate::frame::Frame;
use crate::stats::Estimate;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use std::collections::BTreeSet;
use std::fmt;

impl Comparison {
    /// The numbers as a table for figures: `delta` with `delta_low` and `delta_high`, `kl` likewise, the adjusted p-value
    /// and of how many `tests`, the effective number of `blocks` that the interval of `delta` comes from, and `verdict`.
    ///
    /// # Errors
    /// If the table cannot be made.
    pub fn frame(&self) -> Result<Frame> {
        let row = |row: &Compared| {
            let kl = |end: fn((f64, f64)) -> f64| row.kl.and_then(|(_, interval)| interval).map(end);
            let values = serde_json::json!({
                "model": row.model, "scheme": row.scheme, "weight_bytes": row.weight_bytes,
                "bits_per_byte": row.bits_per_byte,
                "delta": row.delta.map(|delta| delta.value),
                "delta_low": row.delta.map(|delta| delta.low),
                "delta_high": row.delta.map(|delta| delta.high),
                "delta_p": row.delta_p,
                "kl": row.kl.map(|(kl, _)| kl), "kl_low": kl(|(low, _)| low), "kl_high": kl(|(_, high)| high),
                "blocks": row.delta.map(|delta| delta.blocks),
                "tests": self.tests, "verdict": row.verdict(),
            });
            values.as_object().cloned().unwrap_or_default()
        };
        Frame::from_rows(&self.rows.iter().map(row).collect::<Vec<_>>())
    }

    /// The passkeys as a table for figures: a row for each scheme and length, `recalled` as a share, adjusted p-values.
    ///
    /// # Errors
    /// If the table cannot be made.
    pub fn keys(&self) -> Result<Frame> {
        let rows = self.rows.iter().flat_map(|row| {
            row.keys.iter().map(move |keys| {
                let values = serde_json::json!({
                    "model": row.model, "scheme": row.scheme, "context_length": keys.context_length,
                    "recalled": keys.recalled as f64 / keys.prompts.max(1) as f64, "prompts": keys.prompts,
                    "lost": keys.mcnemar.lost, "gained": keys.mcnemar.gained, "p": keys.p, "tests": self.tests,
                });
                values.as_object().cloned().unwrap_or_default()
            })
        });
        Frame::from_rows(&rows.collect::<Vec<_>>())
    }

    /// The tasks as a table for figures: a row for each scheme and task, `accuracy` as a share, adjusted p-values.
    ///
    /// # Errors
    /// If the table cannot be made.
    pub fn tasks(&self) -> Result<Frame> {
        let rows = self.rows.iter().flat_map(|row| {
            row.tasks.iter().map(move |task| {
                let values = serde_json::json!({
                    "model": row.model, "scheme": row.scheme, "task": task.name,
                    "accuracy": task.right as f64 / task.items.max(1) as f64, "items": task.items,
                    "lost": task.mcnemar.lost, "gained": task.mcnemar.gained, "p": task.p, "tests": self.tests,
                });
                values.as_object().cloned().unwrap_or_default()
            })
        });
        Frame::from_rows(&rows.collect::<Vec<_>>())
    }

    /// The table for people: headings, and the cells of each row as text. Columns that nothing was measured for are
    /// left out.
    pub(crate) fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let p = |p: Option<f64>| p.map(|p| if p < 0.001 { "<.001".into() } else { short(p, 3) });
        let base = |row: &Compared| row.scheme == self.baseline;
        type Cell<'a> = Box<dyn Fn(&Compared) -> Option<String> + 'a>;
        type Column<'a> = (String, Cell<'a>);
        let before: [(&str, Cell); 6] = [
            ("scheme", Box::new(|row| Some(row.scheme.clone()))),
            ("MB", Box::new(|row| row.weight_bytes.map(|bytes| format!("{:.2}", bytes / 1e6)))),
            ("bits/byte", Box::new(|row| row.bits_per_byte.map(|bits| format!("{bits:.4}")))),
            (
                "Δ [95 %]",
                Box::new(|row| {
                    let Estimate { value, low, high, .. } = row.delta.filter(|_| !base(row))?;
                    Some(format!("{} [{}, {}]", signed(value), signed(low), signed(high)))
                }),
            ),
            ("p", Box::new(|row| p(row.delta_p))),
            (
                "KL [95 %]",
                Box::new(|row| {
                    let (kl, interval) = row.kl?;
                    let interval = interval.map(|(low, high)| format!(" [{}, {}]", small(low), small(high)));
                    Some(small(kl) + &interval.unwrap_or_default())
                }),
            ),
        ];
        let lengths: BTreeSet<u64> =
            self.rows.iter().flat_map(|row| &row.keys).map(|keys| keys.context_length).collect();
        let at = |length: u64| -> Column {
            let cell = move |row: &Compared| {
                let keys = row.keys.iter().find(|keys| keys.context_length == length)?;
                let recalled = format!("{}/{}", keys.recalled, keys.prompts);
                Some(p(keys.p).map_or_else(|| recalled.clone(), |p| format!("{recalled} p {p}")))
            };
            (format!("keys at {length}"), Box::new(cell))
        };
        let tasks: BTreeSet<&'static str> =
            self.rows.iter().flat_map(|row| &row.tasks).map(|task| task.name).collect();
        let task = |name: &'static str| -> Column {
            let cell = move |row: &Compared| {
                let task = row.tasks.iter().find(|task| task.name == name)?;
                let right = format!("{}/{}", task.right, task.items);
                Some(p(task.p).map_or_else(|| right.clone(), |p| format!("{right} p {p}")))
            };
            (name.to_string(), Box::new(cell))
        };
        let verdict: Column = (
            "beside the baseline".into(),
            Box::new(|row| Some(if base(row) { "baseline".into() } else { row.verdict() })),
        );
        let before = before.into_iter().map(|(name, cell)| (name.to_string(), cell));
        let columns =
            before.chain(lengths.into_iter().map(at)).chain(tasks.into_iter().map(task)).chain([verdict]);
        let several = self.rows.iter().any(|row| row.model != self.rows[0].model);
        let model: Column = ("model".into(), Box::new(|row| Some(row.model.clone())));
        let all: Vec<Column> = several.then_some(model).into_iter().chain(columns).collect();
        let told: Vec<_> =
            all.into_iter().filter(|(_, cell)| self.rows.iter().any(|row| cell(row).is_some())).collect();
        let cells = self
            .rows
            .iter()
            .map(|row| told.iter().map(|(_, cell)| cell(row).unwrap_or_default()).collect::<Vec<_>>());
        let cells = cells.collect();
        (told.iter().map(|(name, _)| name.clone()).collect(), cells)
    }

    /// Whether the column of that heading holds numbers, which stand to the right.
    pub(crate) fn is_numeric(heading: &str) -> bool {
        !["model", "scheme", "beside the baseline"].contains(&heading)
    }

    /// What the table does not say of itself.
    pub(crate) fn note(&self) -> String {
        let keys = self.rows.iter().any(|row| !row.keys.is_empty());
        let tasks: BTreeSet<&'static str> =
            self.rows.iter().flat_map(|row| &row.tasks).map(|task| task.name).collect();
        let blocks: BTreeSet<String> =
            self.rows.iter().filter_map(|row| row.delta).map(|d| format!("{:.0}", d.blocks)).collect();
        let blocks: Vec<String> = blocks.into_iter().filter(|blocks| blocks != "NaN").collect();
        let parts = [
            (!blocks.is_empty()).then(|| {
                format!(
                    "Δ: bits per byte above {}, paired, t intervals from blocks or documents ({})",
                    self.baseline,
                    blocks.join(", ")
                )
            }),
            keys.then(|| "keys: McNemar's exact test".to_string()),
            (!tasks.is_empty()).then(|| {
                let names = tasks.into_iter().collect::<Vec<_>>().join(", ");
                format!("{names}: item by item, McNemar's exact test")
            }),
            (self.tests > 0).then(|| {
                format!(
                    "p adjusted by Holm over {} tests, each counted by the values that it can have: {}",
                    self.tests, self.family
                )
            }),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// A number without the zero before its point.
fn short(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.split_once("0.") {
        Some((sign @ ("" | "-"), rest)) => format!("{sign}.{rest}"),
        _ => text,
    }
}

/// Four decimals, or two digits where these would say nothing.
fn small(value: f64) -> String {
    if value != 0.0 && value.abs() < 9.5e-4 { format!("{value:.1e}") } else { short(value, 4) }
}

/// With its sign, as differences are written.
fn signed(value: f64) -> String {
    let text = short(value.abs(), 4);
    match text.chars().any(|c| ('1'..='9').contains(&c)) {
        true => format!("{}{text}", if value < 0.0 { '−' } else { '+' }),
        false => text,
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (heads, rows) = self.table();
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(&heads).add_rows(rows);
        for (column, head) in table.column_iter_mut().zip(&heads) {
            if Self::is_numeric(head) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        write!(f, "{table}\n{}", self.note())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0123, -0.5, 1.25].map(|v| short(v, 2)), [".01", "-.50", "1.25"]);
        assert_eq!([0.0123, 0.000_123, 0.0].map(small), [".0123", "1.2e-4", ".0000"]);
        assert_eq!([0.0123, -0.5, 0.000_01, 0.0].map(signed), ["+.0123", "−.5000", ".0000", ".0000"]);
    }
}
