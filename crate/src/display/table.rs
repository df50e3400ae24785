//! Tables: frames of records, schemes beside a baseline, and any table of polars.

use super::{Draw, Drawing, html};
use crate::frame::{Comparison, Frame};
use polars::prelude::{AnyValue, Column, DataFrame, Series};

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
                let (name, unit) = column.name_and_unit();
                html::Column { name: name.into(), below: unit.into(), numeric: column.numeric }
            })
            .collect();
        let rows: Vec<Vec<String>> = shown.rows().collect();
        let all = (rows.len() < self.height()).then(|| {
            let most = html::Rows::most(columns.len());
            html::Rows::of(self.height(), self.shown_to(most).rows())
        });
        let mut notes = shown.notes.iter().map(|note| html::small(note));
        // The first note counts the rows that are left out.
        let cut = if all.is_some() { notes.next().unwrap_or_default() } else { String::new() };
        let html = html::lively(&columns, &rows, None, all, &cut) + &notes.collect::<String>();
        Drawing { text: self.to_string(), html: Some(html), ..Drawing::default() }
    }
}

impl Draw for Comparison {
    fn draw(&self) -> Drawing {
        let (heads, rows) = self.table();
        let columns: Vec<_> = heads
            .iter()
            .map(|name| html::Column {
                name: name.clone(),
                below: String::new(),
                numeric: Self::is_numeric(name),
            })
            .collect();
        let html = html::lively(&columns, &rows, None, None, "") + &html::small(&self.note());
        Drawing { text: self.to_string(), html: Some(html), ..Drawing::default() }
    }
}

impl Draw for Column {
    fn draw(&self) -> Drawing {
        self.clone().into_frame().draw()
    }
}

impl Draw for Series {
    fn draw(&self) -> Drawing {
        self.clone().into_frame().draw()
    }
}

impl Draw for DataFrame {
    fn draw(&self) -> Drawing {
        let height = self.height();
        let left_out = height.saturating_sub(HEAD + TAIL);
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
        let picked = (0..height).filter(|at| left_out == 0 || *at < HEAD || *at >= height - TAIL);
        let rows: Vec<Vec<String>> = picked.map(row).collect();
        let gap = (left_out > 0).then(|| (HEAD, format!("… {left_out} rows …")));
        let all = (left_out > 0).then(|| html::Rows::of(height, (0..height).map(row)));
        let size = format!("{height} rows × {} columns", self.width());
        let html = html::lively(&columns, &rows, gap, all, "") + &html::small(&size);
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
    use polars::prelude::NamedFrom;

    #[test]
    fn a_long_table_shows_head_and_tail_with_types() {
        let numbers: Vec<i64> = (0..100).collect();
        let names: Vec<String> = numbers.iter().map(|n| format!("<{n}>")).collect();
        let columns: Vec<Column> =
            vec![Series::new("n".into(), numbers).into(), Series::new("name".into(), names).into()];
        let frame = DataFrame::new(100, columns).unwrap();
        let html = frame.draw().html.unwrap();
        assert!(html.contains("i64") && html.contains("text-align:right"));
        assert!(html.contains("&lt;9&gt;") && html.contains("… 85 rows …") && html.contains("&lt;95&gt;"));
        assert!(!html.contains("&lt;10&gt;") && html.contains("100 rows × 2 columns"));
        assert_eq!(html, frame.draw().html.unwrap(), "the same each time");
        // The script has all rows, and nothing in them is markup.
        let (rows, total) = carried(&html);
        assert_eq!((rows.len(), total), (100, 100));
        assert_eq!(rows[42], ["42", "<42>"]);
        assert_eq!(html.matches("</script>").count(), 1);
    }

    /// The rows that a table's script has, and how many it says that there are.
    fn carried(html: &str) -> (Vec<Vec<String>>, usize) {
        let call = html.split_once("\n})(").unwrap().1.split_once(")</script>").unwrap().0;
        let arguments: serde_json::Value = serde_json::from_str(&format!("[{call}]")).unwrap();
        let [_, rows, total, _] = &arguments.as_array().unwrap()[..] else { panic!("{call}") };
        (serde_json::from_value(rows.clone()).unwrap(), total.as_u64().unwrap() as usize)
    }

    fn words(texts: Vec<String>) -> DataFrame {
        DataFrame::new(texts.len(), vec![Series::new("word".into(), texts).into()]).unwrap()
    }

    #[test]
    fn a_cell_cannot_end_the_script() {
        let texts: Vec<String> = (0..20).map(|n| format!("{n} </script><b>\"\\\u{2028}")).collect();
        let html = words(texts.clone()).draw().html.unwrap();
        assert_eq!(html.matches("</script>").count(), 1);
        let rows: Vec<String> = carried(&html).0.into_iter().flatten().collect();
        assert_eq!(rows, texts);
    }

    #[test]
    fn a_table_says_how_many_rows_it_carries() {
        let html = words((0..50_000).map(|n| format!("word {n}")).collect()).draw().html.unwrap();
        let (rows, total) = carried(&html);
        assert!((5_000..10_000).contains(&rows.len()) && html.len() < 150 << 10, "{}", rows.len());
        assert_eq!((total, rows.last().unwrap()), (50_000, &vec![format!("word {}", rows.len() - 1)]));
    }

    #[test]
    fn a_table_too_wide_to_carry_its_rows_stays_still() {
        let column = |n: usize| Series::new(format!("c{n}").into(), vec!["x".repeat(60); 30]).into();
        let html = DataFrame::new(30, (0..600).map(column).collect()).unwrap().draw().html.unwrap();
        assert!(!html.contains("<script>") && html.contains("… 15 rows …"));
    }

    #[test]
    fn small_tables_are_not_cluttered() {
        let still = words(vec!["one".into()]).draw().html.unwrap();
        assert!(!still.contains("<script>"), "{still}");
        let two = words(vec!["one".into(), "two".into()]).draw().html.unwrap();
        assert!(two.contains("null,2,25)</script>"), "all rows are in the table itself: {two}");
    }

    #[test]
    fn a_frame_carries_the_rows_it_does_not_show() {
        let row = |n: u32| serde_json::json!({"n": n, "name": format!("r{n}")}).as_object().unwrap().clone();
        let frame = Frame::from_rows(&(0..90).map(row).collect::<Vec<_>>()).unwrap();
        let drawn = frame.draw();
        let html = drawn.html.unwrap();
        assert!(drawn.text.contains("… 50 more rows") && html.contains("… 50 more rows"));
        let (rows, total) = carried(&html);
        assert_eq!((rows.len(), total, rows[89].clone()), (90, 90, vec!["89".to_string(), "r89".into()]));
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
