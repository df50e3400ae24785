//! Bars: values and whiskers that can be zoomed, names that cannot.

use super::axis::{self, number};
use super::{
    ROOM, Sheet, colors, hex, ink, naming, object, plain, point, strength, switches, tell, texts, toggled,
};
use super::{tooltip, zoom};
use crate::figure::Figure;
use crate::figure::axis::Scale;
use crate::figure::bars::{BAR, Plot, layout, size, value_text};
use crate::figure::canvas::{Align, Font, width};
use crate::figure::chart::{Chart, Series};
use crate::figure::palette::{AXIS, GREY, INK};
use serde_json::{Value, json};

pub(super) fn spec(figure: &Figure, chart: &Chart) -> (Sheet, Value) {
    let plot = layout(figure, chart);
    let width = plot.right - plot.left + 2.0 * ROOM;
    // The grid reaches a little above the bars; nothing is cut off there.
    let sheet =
        Sheet { left: plot.left - ROOM, top: plot.top - 4.0, right: plot.right + ROOM, bottom: plot.bottom };
    let x = axis::scale(&figure.y, &plot.y, [json!(ROOM), sheet.x(plot.right)], 0.0);
    let mut below = axis::axis(&figure.y, &plot.y, "v");
    for (name, value) in [("domain", json!(false)), ("ticks", json!(false)), ("grid", json!(true))] {
        below[name] = value;
    }
    (below["labelBaseline"], below["labelPadding"]) = (json!("alphabetic"), json!(18));

    // Bars begin at zero where it is on the axis, else at its end.
    let from_zero = figure.y.scale == Scale::Linear && plot.y.holds(0.0);
    let begin = if from_zero { json!({"datum": 0}) } else { json!({"value": ROOM}) };
    let mut layers = vec![json!({
        "mark": {"type": "rect", "clip": true}, "params": [zoom(&["x"])],
        "encoding": {"x2": begin, "y2": {"field": "y2"}},
    })];
    if plot.bars.iter().any(|(_, _, point)| point.interval.is_some()) {
        layers.extend(whiskers());
    }
    // The value stands on white, so that no grid line runs through it.
    layers.extend([5, 0].map(value_layer));
    let mut line = json!({"data": {"values": [{"v": 0}]}, "mark": {"type": "rule", "clip": true}, "encoding": {
        "y": {"value": 0}, "y2": {"value": sheet.y(plot.bottom)}, "color": {"value": hex(AXIS)}}});
    if !from_zero {
        line["encoding"]["x"] = begin.clone();
    }
    layers.push(line);
    let fields =
        [("series", "series"), ("name", figure.x.label.as_str()), ("value", axis::title(&figure.y, &plot.y))];
    // The whole row tells its values, however short the bar is.
    layers.push(json!({
        "mark": {"type": "rect", "clip": true},
        "params": [{"name": "near", "select": {"type": "point", "on": "mouseover", "clear": "mouseout"}}],
        "encoding": {"x": {"value": 0}, "x2": {"value": number(width)}, "y2": {"field": "y2"},
            "color": {"value": "transparent"}, "tooltip": tooltip(figure, chart, &fields)},
    }));
    let mut transform = vec![naming(&chart.series)];
    if !plot.legend.is_empty() {
        transform.push(toggled());
        layers.extend(legend(chart, &plot, &sheet));
    }
    if figure.y.scale != Scale::Linear {
        // An end of an interval may lie beyond a logarithmic axis.
        transform
            .push(json!({"calculate": format!("max(datum.low,{})", number(plot.y.value(0.0))), "as": "low"}));
    }
    layers.push(furniture(figure, chart, &plot, &sheet));
    let clicks = if plot.legend.is_empty() { "" } else { " · click a name: hide or show" };
    let what = format!("drag: pan · Ctrl + wheel: zoom{clicks} · double click: back");
    layers.push(sheet.hint(&what, f64::from(size(figure, chart).1)));
    let spec = json!({
        "data": {"values": rows(figure, chart, &plot, &sheet)},
        "transform": transform,
        "encoding": {
            "x": {"field": "v", "type": "quantitative", "scale": x, "axis": below},
            "y": point("y"), "color": colors(chart),
        },
        "layer": layers,
    });
    (sheet, spec)
}

/// The bars from top to bottom.
fn rows(figure: &Figure, chart: &Chart, plot: &Plot, sheet: &Sheet) -> Vec<Value> {
    let zero = if plot.y.holds(0.0) { 0.0 } else { plot.y.value(0.0) };
    let number_of = |series: &Series| chart.series.iter().position(|other| std::ptr::eq(other, series));
    let row = |(upper, series, point): &(f64, &Series, &crate::figure::Point)| {
        let known = point.y.is_finite();
        let end = point.interval.map_or(zero, |(_, high)| high).max(if known { point.y } else { zero });
        let mut row = object([
            ("s", json!(number_of(series))),
            ("name", json!(chart.categories[point.x as usize])),
            ("y", sheet.y(*upper)),
            ("middle", sheet.y(upper + BAR / 2.0)),
            ("y2", sheet.y(upper + BAR)),
            ("v", number(point.y)),
            ("end", number(end.max(zero))),
            ("ink", json!(hex(if known { INK } else { GREY }))),
        ]);
        tell(&mut row, figure, point, value_text(figure, point));
        row
    };
    plot.bars.iter().map(row).collect()
}

fn whiskers() -> Vec<Value> {
    let layer = |mark: Value, encoding: Value| {
        let mut layer = json!({"mark": mark, "encoding": encoding});
        (layer["mark"]["opacity"], layer["mark"]["clip"]) = (json!(0.7), json!(true));
        (layer["encoding"]["y"], layer["encoding"]["color"]) = (point("middle"), ink());
        layer
    };
    let tick = || json!({"type": "tick", "orient": "vertical", "size": 8, "thickness": 1.4});
    vec![
        layer(
            json!({"type": "rule", "strokeWidth": 1.4}),
            json!({"x": {"field": "low"}, "x2": {"field": "high"}}),
        ),
        layer(tick(), json!({"x": {"field": "low"}})),
        layer(tick(), json!({"x": {"field": "high"}})),
    ]
}

/// The values beside their bars, as wide as a white `halo` around them.
fn value_layer(halo: u32) -> Value {
    let mut mark = json!({"type": "text", "clip": false, "align": "left", "baseline": "alphabetic", "fontSize": 13,
        "dx": 7, "dy": 4.7, "opacity": {"expr": "inrange(datum.end,domain('x'))?1:0"}});
    if halo > 0 {
        (mark["stroke"], mark["strokeWidth"], mark["strokeJoin"]) =
            (json!("white"), json!(halo), json!("round"));
    }
    json!({"mark": mark, "encoding": {"x": {"field": "end"}, "y": point("middle"),
        "text": {"field": "value", "type": "nominal"}, "color": plain("ink")}})
}

/// The names of the series, which hide and show them.
fn legend(chart: &Chart, plot: &Plot, sheet: &Sheet) -> Vec<Value> {
    let places = || chart.series.iter().enumerate().zip(&plot.legend);
    let row = |((index, series), (x, base)): ((usize, &Series), &(f64, f64))| {
        json!({"s": index, "text": series.label, "x": sheet.x(*x), "x2": sheet.x(x + 14.0),
            "y": sheet.y(base - 11.0), "y2": sheet.y(base + 2.0)})
    };
    let area = |((index, series), (x, base)): ((usize, &Series), &(f64, f64))| {
        let end = x + 24.0 + width(&series.label, Font::new(13.0, INK));
        json!({"s": index, "x": sheet.x(*x), "x2": sheet.x(end), "y": sheet.y(base - 14.0), "y2": sheet.y(base + 5.0)})
    };
    let layer = |mark: Value, encoding: Value| {
        let mut layer = json!({"data": {"values": places().map(row).collect::<Vec<_>>()}, "mark": mark, "encoding": encoding});
        (layer["encoding"]["x"], layer["encoding"]["y"]) = (point("x"), point("y"));
        (layer["encoding"]["opacity"], layer["mark"]["clip"]) = (strength(), json!(false));
        layer
    };
    vec![
        layer(json!({"type": "rect"}), json!({"x2": {"field": "x2"}, "y2": {"field": "y2"}})),
        layer(
            json!({"type": "text", "align": "left", "baseline": "alphabetic", "fontSize": 13, "dx": 20, "dy": 11}),
            json!({"text": {"field": "text", "type": "nominal"}, "color": ink()}),
        ),
        switches(places().map(area).collect(), &chart.series),
    ]
}

/// Headlines, the names of the bars and of the axis.
fn furniture(figure: &Figure, chart: &Chart, plot: &Plot, sheet: &Sheet) -> Value {
    let name = Font::new(13.0, INK);
    let mut rows = sheet.headlines(figure);
    let named = plot.names(chart).into_iter();
    rows.extend(
        named.map(|(text, middle)| sheet.text(&text, (plot.left - 10.0, middle + 4.7), Align::Right, name)),
    );
    let below = ((plot.left + plot.right) / 2.0, plot.bottom + 42.0);
    rows.push(sheet.text(&plot.y.label, below, Align::Center, name));
    texts(rows)
}
