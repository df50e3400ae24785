//! From rows of JSON to typed columns, whatever versions of the schema wrote them.

use crate::error::Result;
use crate::record::{COLUMNS, Row};
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

impl Kind {
    fn of(value: &Value) -> Self {
        match value {
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
    let others = all.iter().copied().filter(|name| !COLUMNS.contains(name));
    let columns = known.chain(others).map(|name| column(name, rows));
    Ok(DataFrame::new(rows.len(), columns.collect::<Result<_>>()?)?)
}

fn column(name: &str, rows: &[Row]) -> Result<Column> {
    let values: Vec<&Value> = rows.iter().map(|row| row.get(name).unwrap_or(&Value::Null)).collect();
    let kind = values.iter().map(|v| Kind::of(v)).fold(Kind::Null, Kind::join);
    let name = name.into();
    let series = match kind {
        Kind::Null => Series::new_null(name, values.len()),
        Kind::Boolean => Series::new(name, values.iter().map(|v| v.as_bool()).collect::<Vec<_>>()),
        Kind::Integer => Series::new(name, values.iter().map(|v| v.as_i64()).collect::<Vec<_>>()),
        Kind::Fraction => Series::new(name, values.iter().map(|v| v.as_f64()).collect::<Vec<_>>()),
        Kind::Text => Series::new(name, values.iter().map(|v| text(v)).collect::<Vec<_>>()),
        Kind::Numbers => {
            let lists: Vec<Option<Series>> = values.iter().map(|v| list(v)).collect();
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

fn list(value: &Value) -> Option<Series> {
    let items: Vec<Option<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
    Some(Series::new("".into(), items))
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
