//! From rows of JSON to typed columns, whatever versions of the schema wrote them.
//!
//! JSON has no NaN and no infinities: a record says beside the value what it was (see [`crate::record`]), and here it is
//! that number again.

use crate::error::Result;
use crate::record::{COLUMNS, NONFINITE, Row};
use polars::prelude::{Column, DataFrame, DataType, IntoColumn, NamedFrom, Series};
use serde_json::Value;
use std::collections::BTreeSet;

/// The type that holds all values of a column; the order is that of widening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Null,
    Boolean,
    Integer,
    Fraction,
    Numbers,
    Text,
}

/// A value of a row, and what is noted of it where it is not finite.
#[derive(Clone, Copy)]
struct Cell<'a> {
    value: &'a Value,
    note: Option<&'a str>,
}

impl<'a> Cell<'a> {
    fn of(row: &'a Row, name: &str, note: &str) -> Self {
        Self { value: row.get(name).unwrap_or(&Value::Null), note: row.get(note).and_then(Value::as_str) }
    }

    fn number(self) -> Option<f64> {
        self.value.as_f64().or_else(|| self.note?.parse().ok())
    }

    fn list(self) -> Option<Series> {
        let mut items: Vec<Option<f64>> = self.value.as_array()?.iter().map(Value::as_f64).collect();
        // Such as `3: NaN, 7: inf`.
        for (place, what) in
            self.note.into_iter().flat_map(|note| note.split(", ")).filter_map(|s| s.split_once(": "))
        {
            if let Some(item) = place.parse().ok().and_then(|place: usize| items.get_mut(place)) {
                *item = what.parse().ok();
            }
        }
        Some(Series::new("".into(), items))
    }
}

impl Kind {
    fn of(cell: &Cell) -> Self {
        match cell.value {
            Value::Null if cell.number().is_some() => Self::Fraction,
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(n) if n.is_i64() => Self::Integer,
            Value::Number(_) => Self::Fraction,
            Value::Array(items) if items.iter().all(|v| v.is_number() || v.is_null()) => Self::Numbers,
            _ => Self::Text,
        }
    }

    fn join(self, other: Self) -> Self {
        match (self.min(other), self.max(other)) {
            (low, high) if low == high || low == Self::Null => high,
            (Self::Integer, Self::Fraction) => Self::Fraction,
            _ => Self::Text,
        }
    }
}

/// The schema's columns come first and in its order, then all others by name.
pub(super) fn data_frame(rows: &[Row]) -> Result<DataFrame> {
    let all: BTreeSet<&str> = rows.iter().flat_map(|row| row.keys().map(String::as_str)).collect();
    let known = COLUMNS.iter().copied().filter(|name| all.contains(name));
    let noted = |name: &str| name.strip_suffix(NONFINITE).is_some_and(|of| all.contains(of));
    let others = all.iter().copied().filter(|name| !COLUMNS.contains(name) && !noted(name));
    let columns = known.chain(others).map(|name| column(name, rows));
    Ok(DataFrame::new(rows.len(), columns.collect::<Result<_>>()?)?)
}

fn column(name: &str, rows: &[Row]) -> Result<Column> {
    let note = format!("{name}{NONFINITE}");
    let values: Vec<Cell> = rows.iter().map(|row| Cell::of(row, name, &note)).collect();
    let kind = values.iter().map(Kind::of).fold(Kind::Null, Kind::join);
    let name = name.into();
    let series = match kind {
        Kind::Null => Series::new_null(name, values.len()),
        Kind::Boolean => Series::new(name, values.iter().map(|v| v.value.as_bool()).collect::<Vec<_>>()),
        Kind::Integer => Series::new(name, values.iter().map(|v| v.value.as_i64()).collect::<Vec<_>>()),
        Kind::Fraction => Series::new(name, values.iter().map(|v| v.number()).collect::<Vec<_>>()),
        Kind::Text => Series::new(name, values.iter().map(|v| text(v.value)).collect::<Vec<_>>()),
        Kind::Numbers => {
            let lists: Vec<Option<Series>> = values.iter().map(|v| v.list()).collect();
            Series::new(name, lists).cast(&DataType::List(Box::new(DataType::Float64)))?
        }
    };
    Ok(series.into_column())
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Up to three names that look like `name`: they share its letters, or differ by a few.
pub(super) fn nearest(name: &str, names: &[String]) -> Vec<String> {
    let mut near: Vec<(usize, &String)> = names
        .iter()
        .map(|other| {
            (
                if other.contains(name) || name.contains(other.as_str()) { 0 } else { distance(name, other) },
                other,
            )
        })
        .filter(|(distance, other)| *distance <= other.len().max(name.len()) / 3)
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(_, name)| format!("`{name}`")).collect()
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
