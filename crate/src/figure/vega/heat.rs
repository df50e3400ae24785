//! Heat maps: the cell under the pointer is framed and told in full.

use super::axis::number;
use super::{Sheet, hex, naming, object, plain, point, tell, texts, tooltip};
use crate::figure::Figure;
use crate::figure::axis::alone;
use crate::figure::canvas::{Align, Font};
use crate::figure::chart::Chart;
use crate::figure::heat::{CELL, Plot, axes, layout, row_name, written};
use crate::figure::palette::{GREY, GRID, INK};
use serde_json::{Value, json};

pub(super) fn spec(figure: &Figure, chart: &Chart) -> (Sheet, Value) {
    let plot = layout(figure, chart);
    let Plot { left, right, top, bottom, cell, .. } = plot;
    let sheet = Sheet::around(left, top, right, bottom);
    let mut rows = Vec::new();
    for (index, series) in chart.series.iter().enumerate() {
        for value in &series.points {
            let (fill, ink) = plot.colors(value);
            let mut row = object([
                ("s", json!(index)),
                ("column", json!(chart.categories[value.x as usize])),
                ("x", sheet.x(left + cell * value.x)),
                ("y", sheet.y(top + CELL * index as f64)),
                ("v", number(value.y)),
                ("fill", json!(hex(fill))),
                ("ink", json!(hex(ink))),
                ("text", json!(written(figure, value))),
            ]);
            let told = if value.y.is_finite() { alone(figure.y.unit, value.y) } else { "no value".into() };
            tell(&mut row, figure, value, told);
            rows.push(row);
        }
    }
    let lines: Vec<Value> =
        (0..=chart.series.len()).map(|line| json!({"y": sheet.y(top + CELL * line as f64)})).collect();
    let fields = [("series", "row"), ("column", figure.x.label.as_str()), ("value", &figure.y.label)];
    let frame = json!({"condition": {"param": "near", "empty": false, "value": hex(INK)}, "value": null});
    let spec = json!({
        "data": {"values": rows},
        "transform": [
            naming(&chart.series),
            {"calculate": format!("datum.x+{}", number(cell)), "as": "x2"},
            {"calculate": format!("datum.y+{CELL}"), "as": "y2"},
            {"calculate": format!("datum.x+{}", number(cell / 2.0)), "as": "middle"},
        ],
        "encoding": {"x": point("x"), "y": point("y")},
        "layer": [
            {"mark": "rect", "encoding": {"x2": {"field": "x2"}, "y2": {"field": "y2"}, "color": plain("fill")}},
            {"data": {"values": lines}, "mark": {"type": "rule", "color": hex(GRID)},
                "encoding": {"x": {"value": sheet.x(left)}, "x2": {"value": sheet.x(right)}}},
            {"mark": {"type": "text", "baseline": "alphabetic", "dy": CELL / 2.0 + 4.7, "fontSize": number(plot.font.size)},
                "encoding": {"x": {"field": "middle"}, "text": {"field": "text", "type": "nominal"}, "color": plain("ink")}},
            // The topmost layer is the one that the pointer meets.
            {"mark": {"type": "rect", "fill": "transparent", "strokeWidth": 2},
                "params": [{"name": "near", "select": {"type": "point", "on": "mouseover", "clear": "mouseout"}}],
                "encoding": {"x2": {"field": "x2"}, "y2": {"field": "y2"}, "stroke": frame, "tooltip": tooltip(figure, chart, &fields)}},
            texts(furniture(figure, chart, &plot, &sheet)),
        ],
    });
    (sheet, spec)
}

/// Headlines, the names of rows, columns and axes.
fn furniture(figure: &Figure, chart: &Chart, plot: &Plot, sheet: &Sheet) -> Vec<Value> {
    let name = Font::new(13.0, INK);
    let mut rows = sheet.headlines(figure);
    rows.extend(chart.series.iter().enumerate().map(|(index, series)| {
        let base = plot.top + CELL * (index as f64 + 0.5) + 4.7;
        sheet.text(&row_name(series), (plot.left - 10.0, base), Align::Right, name)
    }));
    let columns = plot.columns(chart).into_iter();
    rows.extend(columns.map(|(label, middle)| {
        sheet.text(&label, (middle, plot.bottom + 18.0), Align::Center, Font::new(12.5, GREY))
    }));
    let below = ((plot.left + plot.right) / 2.0, plot.bottom + 44.0);
    rows.push(sheet.text(&axes(figure), below, Align::Center, name));
    rows
}
