//! A frame in the terminal: the columns that differ as a table, those that do not as one line below.

use super::Frame;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use std::fmt;

/// Rows shown before the rest is only counted.
const ROWS: usize = 40;
/// Columns shown before the rest is only named.
const COLUMNS: usize = 12;

/// What of a frame is shown, wherever it is shown.
pub(crate) struct Shown {
    /// Columns whose values differ, at most [`COLUMNS`].
    pub(crate) columns: Vec<ShownColumn>,
    /// Rows that are written out.
    rows: usize,
    /// What was left out, and what all rows have in common.
    pub(crate) notes: Vec<String>,
}

/// One column as text.
pub(crate) struct ShownColumn {
    /// Its name, and on a second line the unit.
    pub(crate) heading: String,
    /// Whether the cells are numbers.
    pub(crate) numeric: bool,
    /// One text a row.
    pub(crate) cells: Vec<String>,
}

impl ShownColumn {
    /// Its name, and the unit; empty where there is none.
    pub(crate) fn name_and_unit(&self) -> (&str, &str) {
        self.heading.split_once('\n').unwrap_or((&self.heading, ""))
    }
}

impl Shown {
    /// The cells row by row.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        (0..self.rows).map(|row| self.columns.iter().map(|column| column.cells[row].clone()).collect())
    }
}

impl Frame {
    pub(crate) fn shown(&self) -> Shown {
        self.shown_to(ROWS)
    }

    /// The same columns with all rows.
    pub(crate) fn shown_whole(&self) -> Shown {
        self.shown_to(self.height())
    }

    /// The same columns with at most so many rows.
    pub(crate) fn shown_to(&self, most: usize) -> Shown {
        let (mut differing, mut constant) = (Vec::new(), Vec::new());
        for name in self.columns() {
            let texts = self.texts(&name).unwrap_or_default();
            match texts.iter().all(|text| *text == texts[0]) && self.height() > 1 {
                true => constant.extend(texts[0].as_ref().map(|text| format!("{name} {text}"))),
                false if texts.iter().any(Option::is_some) => differing.push(name),
                false => {}
            }
        }
        let rows = self.height().min(most);
        let mut notes = Vec::new();
        if rows < self.height() {
            notes.push(format!("… {} more rows", self.height() - rows));
        }
        if self.height() == 0 {
            notes.push(format!("no rows (columns: {})", self.columns().join(", ")));
        }
        if differing.len() > COLUMNS {
            notes.push(format!("more columns: {}", differing.split_off(COLUMNS).join(", ")));
        }
        if !constant.is_empty() {
            notes.push(format!("in all rows: {}", constant.join(" · ")));
        }
        Shown { columns: differing.iter().map(|name| self.shown_column(name, rows)).collect(), rows, notes }
    }

    fn shown_column(&self, name: &str, rows: usize) -> ShownColumn {
        let numbers = self.numbers(name);
        let numeric = numbers.is_ok();
        let cells = match numbers {
            Ok(numbers) => numbers
                .into_iter()
                .take(rows)
                .map(|v| v.map_or_else(String::new, |v| number(name, v)))
                .collect(),
            Err(_) => self
                .texts(name)
                .unwrap_or_default()
                .into_iter()
                .take(rows)
                .map(Option::unwrap_or_default)
                .collect(),
        };
        ShownColumn { heading: heading(name), numeric, cells }
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.shown();
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(shown.columns.iter().map(|column| column.heading.as_str()));
        for row in 0..shown.rows {
            table.add_row(shown.columns.iter().map(|column| {
                let side = if column.numeric { CellAlignment::Right } else { CellAlignment::Left };
                Cell::new(&column.cells[row]).set_alignment(side)
            }));
        }
        let table = (self.height() > 0).then(|| table.to_string());
        let lines: Vec<String> = table.into_iter().chain(shown.notes).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Column name, with the unit that the cells are shown in.
fn heading(name: &str) -> String {
    match name {
        _ if name.contains("_per_s") => format!("{name}\n(1/s)"),
        _ if name.ends_with("_bytes") => format!("{name}\n(MB)"),
        _ if name.ends_with("_s") => format!("{name}\n(s)"),
        _ => name.to_string(),
    }
}

fn number(name: &str, value: f64) -> String {
    let value = if name.ends_with("_bytes") { value / 1e6 } else { value };
    match value.abs() {
        _ if value == value.trunc() && value.abs() < 1e15 => format!("{value}"),
        size if !(1e-3..1e6).contains(&size) => format!("{value:.3e}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}
