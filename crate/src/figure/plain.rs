//! A figure as text: what `{}` prints, where no picture can be shown.

use super::chart::{Chart, Point};
use super::{Figure, Kind};
use std::fmt;

/// Title, subtitle, and a line for each series with its values and intervals.
impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in [&self.title, &self.subtitle].into_iter().filter(|line| !line.is_empty()) {
            writeln!(f, "{line}")?;
        }
        let chart = match Chart::of(self) {
            Ok(chart) => chart,
            Err(error) => return write!(f, "{error}"),
        };
        write!(f, "{} by {}", self.y.label, self.x.label)?;
        for series in &chart.series {
            let label = if series.label.is_empty() { "" } else { "\n" };
            write!(f, "{label}{}:", series.label)?;
            for Point { x, y, interval } in &series.points {
                match chart.categories.get(*x as usize).filter(|_| self.kind != Kind::Line) {
                    Some(category) => write!(f, "  {category} {y:.4}")?,
                    None => write!(f, "  {x} {y:.4}")?,
                }
                if let Some((low, high)) = interval {
                    write!(f, " [{low:.4}, {high:.4}]")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::figure::Figure;
    use crate::frame::Frame;
    use serde_json::json;

    #[test]
    fn a_figure_is_printed_with_its_values() {
        let rows = [json!({"x": 1, "y": 2.5, "s": "a"}), json!({"x": 2, "y": 3.5, "s": "a"})];
        let rows: Vec<_> = rows.iter().map(|row| row.as_object().unwrap().clone()).collect();
        let mut figure = Figure::line(&Frame::from_rows(&rows).unwrap(), "x", "y").color("s");
        figure.title = "Title".into();
        let text = figure.to_string();
        assert!(text.starts_with("Title\n") && text.ends_with("a:  1 2.5000  2 3.5000"), "{text}");
    }
}
