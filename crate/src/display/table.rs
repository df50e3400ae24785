//! Tables: frames of records, schemes beside a baseline, and any table of polars.

use super::{Draw, Drawing, html};
use crate::frame::{Comparison, Frame};
use polars::prelude::{AnyValue, DataFrame};

/// Rows of a polars table that are shown from its head and from its tail.
const HEAD: usize = 10;
const TAIL: usize = 5;
/// Characters of a cell.
const WIDTH: usize = 60;

impl Draw for Frame {
    fn draw(&self) -> Drawing {
        let shown = self.shown();
        let columns: Vec<_> = shown
            .columns
            .iter()
            .map(|column| {
                let (name, unit) = column.heading.split_once('\n').unwrap_or((&column.heading, ""));
                html::Column { name: name.into(), below: unit.into(), numeric: column.numeric }
            })
            .collect();
        let rows: Vec<Vec<String>> = shown.rows().collect();
        let below: String = shown.notes.iter().map(|note| html::small(note)).collect();
        let html = html::table(&columns, &rows, None) + &below;
        Drawing { text: self.to_string(), html: Some(html), ..Drawing::default() }
    }
}

impl Draw for Comparison {
    fn draw(&self) -> Drawing {
        let (heads, rows) = self.table();
        let words = [0, heads.len() - 1]; // the first column and the last are words
        let columns: Vec<_> = heads
            .iter()
            .enumerate()
            .map(|(i, name)| html::Column {
                name: name.clone(),
                below: String::new(),
                numeric: !words.contains(&i) && *name != "scheme",
            })
            .collect();
        let html = html::table(&columns, &rows, None) + &html::small(&self.note());
        Drawing { text: self.to_string(), html: Some(html), ..Drawing::default() }
    }
}

impl Draw for DataFrame {
    fn draw(&self) -> Drawing {
        let height = self.height();
        let left_out = height.saturating_sub(HEAD + TAIL);
        let picked: Vec<usize> =
            (0..height).filter(|row| left_out == 0 || *row < HEAD || *row >= height - TAIL).collect();
        let columns: Vec<_> = self
            .columns()
            .iter()
            .map(|column| html::Column {
                name: column.name().to_string(),
                below: column.dtype().to_string(),
                numeric: column.dtype().is_primitive_numeric(),
            })
            .collect();
        let row = |at: usize| -> Vec<String> {
            self.columns().iter().map(|column| cell(&column.get(at).unwrap_or(AnyValue::Null))).collect()
        };
        let rows: Vec<Vec<String>> = picked.iter().map(|at| row(*at)).collect();
        let gap = (left_out > 0).then(|| (HEAD, format!("… {left_out} rows …")));
        let size = format!("{height} rows × {} columns", self.width());
        let html = html::table(&columns, &rows, gap) + &html::small(&size);
        Drawing { text: self.to_string(), html: Some(html), ..Drawing::default() }
    }
}

fn cell(value: &AnyValue) -> String {
    let text = match value {
        AnyValue::Null => String::new(),
        AnyValue::Float64(x) => float(*x),
        AnyValue::Float32(x) => float(f64::from(*x)),
        value => value.str_value().into_owned(),
    };
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Six significant digits, without an exponent where none is needed.
pub(super) fn float(x: f64) -> String {
    match x.abs() {
        _ if !x.is_finite() => x.to_string(),
        size if size != 0.0 && !(1e-4..1e7).contains(&size) => format!("{x:.4e}"),
        size => {
            let digits = 5 - (size.max(1e-4).log10().floor() as i32).clamp(-4, 5);
            let text = format!("{x:.*}", digits as usize);
            match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
                false => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::prelude::{Column, NamedFrom, Series};

    #[test]
    fn a_long_table_shows_head_and_tail_with_types() {
        let numbers: Vec<i64> = (0..100).collect();
        let names: Vec<String> = numbers.iter().map(|n| format!("<{n}>")).collect();
        let columns: Vec<Column> =
            vec![Series::new("n".into(), numbers).into(), Series::new("name".into(), names).into()];
        let html = DataFrame::new(100, columns).unwrap().draw().html.unwrap();
        assert!(html.contains("i64") && html.contains("text-align:right"));
        assert!(html.contains("&lt;9&gt;") && html.contains("… 85 rows …") && html.contains("&lt;95&gt;"));
        assert!(!html.contains("&lt;10&gt;") && html.contains("100 rows × 2 columns"));
    }

    #[test]
    fn floats_keep_six_digits() {
        for (x, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.1 + 0.2, "0.3"),
            (1234.5678, "1234.57"),
            (-0.000123456789, "-0.000123457"),
            (1e-7, "1.0000e-7"),
            (123456789.0, "1.2346e8"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(float(x), text);
        }
    }
}
