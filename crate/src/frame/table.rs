//! A frame in the terminal: the columns that differ as a table, those that do not as one line below.

use super::Frame;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use std::fmt;

/// Rows shown before the rest is only counted.
const ROWS: usize = 40;
/// Columns shown before the rest is only named.
const COLUMNS: usize = 12;

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.height() == 0 {
            return write!(f, "no rows (columns: {})", self.columns().join(", "));
        }
        let mut differing = Vec::new();
        let mut constant = Vec::new();
        for name in self.columns() {
            let texts = self.texts(&name).map_err(|_| fmt::Error)?;
            match texts.iter().all(|text| *text == texts[0]) && self.height() > 1 {
                true => constant.extend(texts[0].as_ref().map(|text| format!("{name} {text}"))),
                false if texts.iter().any(Option::is_some) => differing.push(name),
                false => {}
            }
        }
        let shown: Vec<&String> = differing.iter().take(COLUMNS).collect();
        let rows = self.height().min(ROWS);
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(shown.iter().map(|name| heading(name)));
        let cells: Vec<Vec<Cell>> = shown.iter().map(|name| self.cells(name, rows)).collect();
        for row in 0..rows {
            table.add_row(cells.iter().map(|column| column[row].clone()));
        }
        write!(f, "{table}")?;
        if rows < self.height() {
            write!(f, "\n… {} more rows", self.height() - rows)?;
        }
        if differing.len() > shown.len() {
            write!(f, "\nmore columns: {}", differing[shown.len()..].join(", "))?;
        }
        if !constant.is_empty() {
            write!(f, "\nin all rows: {}", constant.join(" · "))?;
        }
        Ok(())
    }
}

impl Frame {
    fn cells(&self, name: &str, rows: usize) -> Vec<Cell> {
        match self.numbers(name) {
            Ok(numbers) => {
                let texts =
                    numbers.into_iter().take(rows).map(|v| v.map_or_else(String::new, |v| number(name, v)));
                texts.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)).collect()
            }
            Err(_) => self
                .texts(name)
                .unwrap_or_default()
                .into_iter()
                .take(rows)
                .map(|v| Cell::new(v.unwrap_or_default()))
                .collect(),
        }
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
