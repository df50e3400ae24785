//! Lines: whiskers or bands, markers, names at their ends, and the nearest point under the pointer.

use super::axis::{self, number};
use super::{
    BRUSH, ROOM, Sheet, alignment, colors, hex, naming, object, plain, point, strength, switches, tell, texts,
};
use super::{toggled, tooltip, zoom};
use crate::figure::Figure;
use crate::figure::axis::{Scale, alone, binary};
use crate::figure::canvas::{Align, Font, strokes_of, width};
use crate::figure::chart::{Chart, Dash, Series};
use crate::figure::lines::{Label, MARGIN, Plot, SIZE, dodge, layout, placed, rule_label, single, whiskers};
use crate::figure::palette::{AXIS, INK, marker};
use crate::figure::tags::{Tag, tags};
use serde_json::{Value, json};

/// While a part is brushed the lines are pale.
const BRUSHED: &str = "length(data('brush_store'))";

pub(super) fn spec(figure: &Figure, chart: &Chart) -> (Sheet, Value) {
    let plot = layout(figure, chart);
    let offsets = dodge(chart, &plot);
    let sheet = Sheet::around(plot.left, plot.top, plot.right, plot.bottom);
    let (labels, tags) = (placed(chart, &offsets, &plot), tags(chart, &offsets, &plot));
    // Whiskers that stand beside each other do so by their values, and part when they are zoomed.
    let dodged = offsets.iter().any(|offset| *offset != 0.0);
    let place = if dodged { "at" } else { "x" };
    let offsets = dodged.then_some(offsets.as_slice());

    let mut layers = bands(chart);
    layers.extend(figure.rules.iter().map(|rule| {
        let mark = json!({"type": "rule", "strokeDash": [7, 4.5], "strokeWidth": 1.2, "clip": true});
        json!({"data": {"values": [{place: number(rule.x)}]}, "mark": mark, "encoding": {
            "y": {"value": ROOM}, "y2": {"value": sheet.y(plot.bottom)}, "color": {"value": hex(AXIS)}}})
    }));
    layers.extend(whisker_layers(chart));
    layers.extend(line_layers(chart));
    layers.extend(marker_layers(chart));
    layers.extend(tag_layer(&tags));
    layers.push(pointer(figure, chart, &plot));
    if !labels.is_empty() {
        layers.extend(names(chart, &labels, &sheet));
    }
    layers.push(furniture(figure, &plot, &sheet));
    layers.extend(figure.rules.iter().map(|rule| {
        let at = (rule_label(rule, &plot), plot.top - 11.0);
        let mut label = sheet.told(
            json!(rule.label),
            at,
            "center",
            &format!("inrange({},domain('x'))?1:0", number(rule.x)),
        );
        label["data"] = json!({"values": [{}]});
        label["mark"]["fontSize"] = json!(12.5);
        label
    }));
    layers.push(summary(figure, chart, &plot, &sheet));
    let what = "drag: pan · Ctrl + wheel: zoom · Ctrl + drag: brush · click a name: hide or show · double click: back";
    layers.push(sheet.hint(what, f64::from(SIZE.1)));

    let beyond = plot.inset / (plot.right - plot.left - 2.0 * plot.inset);
    let x = axis::scale(&figure.x, &plot.x, [json!(ROOM), sheet.x(plot.right)], beyond);
    let y = axis::scale(&figure.y, &plot.y, [sheet.y(plot.bottom), json!(ROOM)], 0.0);
    let mut transform = vec![naming(&chart.series)];
    if !labels.is_empty() {
        transform.push(toggled());
    }
    if figure.y.scale != Scale::Linear {
        // An end of an interval may lie beyond a logarithmic axis.
        transform
            .push(json!({"calculate": format!("max(datum.low,{})", number(plot.y.value(0.0))), "as": "low"}));
    }
    let (mut below, mut left) = (axis::axis(&figure.x, &plot.x, place), axis::axis(&figure.y, &plot.y, "y"));
    (below["offset"], left["offset"]) = (json!(-ROOM), json!(-ROOM));
    (below["grid"], below["labelBaseline"], below["labelPadding"]) =
        (json!(false), json!("alphabetic"), json!(15));
    (left["ticks"], left["domain"], left["labelPadding"]) = (json!(false), json!(false), json!(10));
    let spec = json!({
        "data": {"values": rows(figure, chart, &plot, offsets, &tags)},
        "transform": transform,
        "encoding": {
            "x": {"field": place, "type": "quantitative", "scale": x, "axis": below},
            "y": {"field": "y", "type": "quantitative", "scale": y, "axis": left},
            "color": colors(chart),
        },
        "layer": layers,
    });
    (sheet, spec)
}

/// The points: faint series first, since they lie below all others, and without texts, since the pointer passes them.
fn rows(figure: &Figure, chart: &Chart, plot: &Plot, offsets: Option<&[f64]>, tags: &[Tag]) -> Vec<Value> {
    let written = |x: f64| match figure.x.scale {
        Scale::Log2 => binary(x),
        _ => alone(figure.x.unit, x),
    };
    let width = plot.right - plot.left - 2.0 * plot.inset;
    let series = || chart.series.iter().enumerate();
    let ordered = series().filter(|(_, s)| s.faint).chain(series().filter(|(_, s)| !s.faint));
    let mut rows = Vec::new();
    for (index, series) in ordered {
        for (number_of, point) in series.points.iter().enumerate() {
            let mut row = json!({"s": index, "x": number(point.x), "y": number(point.y)});
            if let Some(offsets) = offsets {
                row["at"] = number(plot.x.value(plot.x.at(point.x) + offsets[index] / width));
            }
            if !series.faint {
                row["place"] = json!(written(point.x));
                tell(&mut row, figure, point, alone(figure.y.unit, point.y));
            }
            if let Some(tag) = tags.iter().find(|tag| tag.of == (index, number_of)) {
                row["text"] = json!(tag.text);
                row["align"] = json!(alignment(tag.align));
                (row["dx"], row["dy"]) = (number(tag.offset.0), number(tag.offset.1));
            }
            rows.push(row);
        }
    }
    rows
}

/// The transform that keeps the rows of those series that `kept` is true of; none where there are none.
fn only(chart: &Chart, kept: impl Fn(&Series) -> bool) -> Option<Vec<Value>> {
    let kept: Vec<usize> = (0..chart.series.len()).filter(|index| kept(&chart.series[*index])).collect();
    match kept.len() {
        0 => None,
        all if all == chart.series.len() => Some(vec![]),
        _ => Some(vec![json!({"filter": {"field": "s", "oneOf": kept}})]),
    }
}

/// [`only`], and of those the rows that have an interval.
fn bounded(chart: &Chart, kept: impl Fn(&Series) -> bool) -> Option<Vec<Value>> {
    let mut transform = only(chart, kept)?;
    transform.push(json!({"filter": "isValid(datum.low)"}));
    Some(transform)
}

fn bands(chart: &Chart) -> Vec<Value> {
    let many = |series: &Series| series.points.iter().filter(|point| point.interval.is_some()).count() > 1;
    let transform = bounded(chart, |series| !single(series) && !series.faint && many(series));
    let layer = |transform| {
        json!({"transform": transform, "mark": {"type": "area", "opacity": 0.15, "clip": true},
            "encoding": {"y": {"field": "low"}, "y2": {"field": "high"}}})
    };
    transform.map(layer).into_iter().collect()
}

fn whisker_layers(chart: &Chart) -> Vec<Value> {
    let Some(transform) = bounded(chart, |series| whiskers(series) && !series.faint) else { return vec![] };
    let part = |mark: Value, encoding: Value| {
        let mut layer = json!({"transform": transform, "mark": mark, "encoding": encoding});
        layer["mark"]["clip"] = json!(true);
        layer["encoding"]["opacity"] = brushed(0.55, 0.15);
        layer
    };
    let tick = || json!({"type": "tick", "orient": "horizontal", "size": 7, "thickness": 1.4});
    vec![
        part(
            json!({"type": "rule", "strokeWidth": 1.4}),
            json!({"y": {"field": "low"}, "y2": {"field": "high"}}),
        ),
        part(tick(), json!({"y": {"field": "low"}})),
        part(tick(), json!({"y": {"field": "high"}})),
    ]
}

/// An opacity: `within` the brush, or where nothing is brushed, and `outside` of it.
fn brushed(within: f64, outside: f64) -> Value {
    json!({"condition": {"param": "brush", "value": within}, "value": outside})
}

/// The patterns of broken lines by the number of the series; null where all are solid.
fn dashes(chart: &Chart) -> Value {
    let pattern =
        |series: &Series| strokes_of(series.dash).map_or(json!([1, 0]), |(on, off)| json!([on, off]));
    if chart.series.iter().all(|series| strokes_of(series.dash).is_none()) {
        return Value::Null;
    }
    json!({"field": "s", "type": "nominal", "legend": null, "scale": {
        "domain": (0..chart.series.len()).collect::<Vec<_>>(),
        "range": chart.series.iter().map(pattern).collect::<Vec<_>>(),
    }})
}

fn line_layers(chart: &Chart) -> Vec<Value> {
    let layer = |faint: bool, stroke: f64, opacity: f64| {
        let transform = only(chart, |series| series.faint == faint && series.dash != Dash::Points)?;
        let opacity = json!({"expr": format!("{BRUSHED}?{}:{opacity}", 0.3 * opacity)});
        Some(json!({"transform": transform,
            "mark": {"type": "line", "strokeWidth": stroke, "opacity": opacity, "clip": true},
            "encoding": object([("strokeDash", dashes(chart)), ("detail", json!({"field": "s", "type": "nominal"}))])}))
    };
    [layer(true, 1.0, 0.3), layer(false, 2.2, 1.0)].into_iter().flatten().collect()
}

/// The markers by the number of the series, as paths around the origin.
fn shapes(chart: &Chart) -> Value {
    let path = |series: &Series| match marker(series.color).as_slice() {
        [] => "circle".to_string(),
        corners => {
            let corners: Vec<String> = corners.iter().map(|(x, y)| format!("{x},{y}")).collect();
            format!("M{}Z", corners.join("L"))
        }
    };
    json!({"field": "s", "type": "nominal", "legend": null, "scale": {
        "domain": (0..chart.series.len()).collect::<Vec<_>>(),
        "range": chart.series.iter().map(path).collect::<Vec<_>>(),
    }})
}

/// A marker of a radius, its white edge included.
fn mark(radius: f64) -> Value {
    json!({"type": "point", "filled": true, "opacity": 1, "stroke": "white", "strokeWidth": 1.2,
        "size": number((2.0 * radius + 1.2).powi(2)), "clip": true})
}

fn marker_layers(chart: &Chart) -> Vec<Value> {
    let transform = only(chart, |series| single(series) && !series.faint);
    let layer = |transform| {
        json!({"transform": transform, "mark": mark(4.2),
            "encoding": {"shape": shapes(chart), "opacity": brushed(1.0, 0.15)}})
    };
    transform.map(layer).into_iter().collect()
}

/// The texts beside points, which go with them.
fn tag_layer(tags: &[Tag]) -> Option<Value> {
    let font = tags.first()?.font;
    let own = |name: &str| json!({"expr": format!("datum.{name}")});
    Some(json!({"transform": [{"filter": "isValid(datum.text)"}],
        "mark": {"type": "text", "clip": true, "baseline": "alphabetic", "fontSize": number(font.size),
            "align": own("align"), "dx": own("dx"), "dy": own("dy")},
        "encoding": {"text": {"field": "text", "type": "nominal"}, "opacity": brushed(1.0, 0.15)}}))
}

/// The point that is nearest to the pointer: larger, with its texts; and all that the pointer does to the plot.
fn pointer(figure: &Figure, chart: &Chart, plot: &Plot) -> Value {
    let transform = only(chart, |series| !series.faint).unwrap_or_default();
    let mut fields = vec![
        ("series", "series"),
        ("place", axis::title(&figure.x, &plot.x)),
        ("value", axis::title(&figure.y, &plot.y)),
    ];
    if chart.series.iter().any(|series| !series.texts.is_empty()) {
        fields.insert(1, ("text", "name"));
    }
    json!({
        "transform": transform, "mark": mark(6.0),
        "params": [
            zoom(&["x", "y"]),
            {"name": "brush", "select": {"type": "interval", "on": BRUSH, "translate": BRUSH, "zoom": false}},
            {"name": "near", "select": {"type": "point", "on": "mousemove", "nearest": true, "clear": "mouseout"}},
        ],
        "encoding": {"shape": shapes(chart), "tooltip": tooltip(figure, chart, &fields),
            "opacity": {"condition": {"param": "near", "empty": false, "value": 1}, "value": 0}},
    })
}

/// The names at the ends of the lines, which hide and show them.
fn names(chart: &Chart, labels: &[Label], sheet: &Sheet) -> Vec<Value> {
    let row = |label: &Label| {
        let (start, height) = (label.start, label.height);
        json!({"s": label.index, "text": label.text, "ink": hex(label.font.color),
            "x": sheet.x(start), "x2": sheet.x(start + 16.0), "y": sheet.y(height)})
    };
    let area = |label: &Label| {
        let end = label.start + 24.0 + width(&label.text, label.font);
        json!({"s": label.index, "x": sheet.x(label.start), "x2": sheet.x(end),
            "y": sheet.y(label.height - 8.0), "y2": sheet.y(label.height + 8.0)})
    };
    let leader = |label: &Label| {
        json!({"s": label.index, "x": sheet.x(label.end.0 + 7.0), "y": sheet.y(label.end.1),
            "x2": sheet.x(label.start), "y2": sheet.y(label.height)})
    };
    let layer = |rows: Vec<Value>, mark: Value, encoding: Value| {
        let mut layer = json!({"data": {"values": rows}, "mark": mark, "encoding": encoding});
        layer["mark"]["clip"] = json!(false);
        (layer["encoding"]["x"], layer["encoding"]["y"]) = (point("x"), point("y"));
        layer
    };
    let led: Vec<Value> = labels.iter().filter(|label| label.led()).map(leader).collect();
    let marked: Vec<Value> = labels.iter().filter(|label| label.marked()).map(row).collect();
    let rows: Vec<Value> = labels.iter().map(row).collect();
    let mut layers = vec![];
    if !led.is_empty() {
        // They lead to where the lines end before anything is zoomed.
        let mark = json!({"type": "rule", "strokeDash": [2.2, 3.6], "strokeWidth": 1,
            "opacity": {"expr": "length(data('zoom_store'))?0:0.6"}});
        layers.push(layer(led, mark, json!({"x2": {"field": "x2"}, "y2": {"field": "y2"}})));
    }
    let lines: Vec<Value> =
        labels.iter().filter(|label| chart.series[label.index].dash != Dash::Points).map(row).collect();
    let dash =
        object([("strokeDash", dashes(chart)), ("x2", json!({"field": "x2"})), ("opacity", strength())]);
    layers.push(layer(lines, json!({"type": "rule", "strokeWidth": 2.2}), dash));
    let mut sample = mark(3.4);
    sample["xOffset"] = json!(8);
    layers.push(layer(marked, sample, json!({"shape": shapes(chart), "opacity": strength()})));
    let text = json!({"type": "text", "align": "left", "baseline": "alphabetic", "fontSize": 13, "dx": 22, "dy": 4.5});
    let shown =
        json!({"text": {"field": "text", "type": "nominal"}, "color": plain("ink"), "opacity": strength()});
    layers.push(layer(rows, text, shown));
    layers.push(switches(labels.iter().map(area).collect(), &chart.series));
    layers
}

/// Headlines and the names of the axes.
fn furniture(figure: &Figure, plot: &Plot, sheet: &Sheet) -> Value {
    let name = Font::new(13.0, INK);
    let mut rows = sheet.headlines(figure);
    rows.push(sheet.text(&plot.y.label, (MARGIN, plot.top - 31.0), Align::Left, name));
    let below = ((plot.left + plot.right) / 2.0, plot.bottom + 46.0);
    rows.push(sheet.text(&plot.x.label, below, Align::Center, name));
    texts(rows)
}

/// What is brushed: how many points, from where to where, and their mean.
fn summary(figure: &Figure, chart: &Chart, plot: &Plot, sheet: &Sheet) -> Value {
    let write =
        |field: &str| format!("({})", axis::writing(&figure.y, &plot.y, &format!("datum.{field}"), 4));
    let text = format!(
        "datum.n?datum.n+' points brushed: '+{}+' to '+{}+', mean '+{}:''",
        write("least"),
        write("most"),
        write("mean")
    );
    let mut layer = sheet.told(json!({"expr": text}), (plot.right, plot.top - 31.0), "right", "1");
    let op = |op: &str, name: &str| json!({"op": op, "field": "y", "as": name});
    let mut transform = only(chart, |series| !series.faint).unwrap_or_default();
    transform.push(json!({"filter": {"param": "brush", "empty": false}}));
    let ops = [op("count", "n"), op("min", "least"), op("max", "most"), op("mean", "mean")];
    transform.push(json!({"aggregate": ops}));
    layer["transform"] = json!(transform);
    layer
}
