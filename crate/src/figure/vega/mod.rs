//! Figures in Vega-Lite 5: the picture of plotters from the same layout, which answers to the pointer.
//!
//! | file | holds |
//! |---|---|
//! | `mod` | what all kinds share: the sheet, texts, names to click, the pointer |
//! | `axis` | ticks as in the picture, and numbers written in the browser once it is zoomed |
//! | `lines`, `bars`, `heat` | one kind each |
//!
//! Everything is placed in points of the picture; only values go through scales, so that they can be zoomed. In a figure
//! of lines a drag pans, with Ctrl (or ⌘) the wheel zooms and a drag brushes (the wheel alone scrolls the page), a click on a
//! name hides and shows its series, and a double click undoes all of it.

mod axis;
mod bars;
mod heat;
mod lines;

use super::canvas::{Align, FAMILY, Font};
use super::chart::{Chart, Point, Series};
use super::lines::{MARGIN, headlines};
use super::palette::{INK, color};
use super::{Figure, Kind, axis as numbers};
use crate::error::Result;
use axis::number;
use plotters::style::RGBColor;
use serde_json::{Map, Value, json};

/// Room around the plot in which marks are not cut off: half a marker at its edge.
const ROOM: f64 = 8.0;
/// Events of a drag, alone and with Ctrl. With Shift JupyterLab would select cells.
const DRAG: &str = "[mousedown[!event.ctrlKey&&!event.metaKey], window:mouseup] > window:mousemove!";
const BRUSH: &str = "[mousedown[event.ctrlKey||event.metaKey], window:mouseup] > window:mousemove!";
const WHEEL: &str = "wheel![event.ctrlKey||event.metaKey]";

impl Figure {
    /// The figure as a specification of Vega-Lite 5, data included: the same picture, with values under the pointer.
    /// Values have seven significant digits.
    ///
    /// # Errors
    /// As [`svg`](Self::svg).
    pub fn vega(&self) -> Result<Value> {
        let (chart, size) = self.prepare()?;
        let (sheet, mut spec) = match self.kind {
            Kind::Line => lines::spec(self, &chart),
            Kind::Bar => bars::spec(self, &chart),
            Kind::Heat => heat::spec(self, &chart),
        };
        let told = [&self.title, &self.subtitle].map(String::as_str);
        let told: Vec<&str> = told.into_iter().filter(|line| !line.is_empty()).collect();
        spec["$schema"] = json!("https://vega.github.io/schema/vega-lite/v5.json");
        spec["description"] = json!(told.join("\n"));
        spec["background"] = json!("white");
        spec["width"] = number(sheet.right - sheet.left);
        spec["height"] = number(sheet.bottom - sheet.top);
        spec["padding"] = json!({
            "left": number(sheet.left), "top": number(sheet.top),
            "right": number(f64::from(size.0) - sheet.right), "bottom": number(f64::from(size.1) - sheet.bottom),
        });
        spec["autosize"] = json!({"type": "none"});
        spec["config"] = json!({"font": FAMILY, "view": {"stroke": null}});
        // The menu beside the figure saves it and shows its source, and leads to no other site.
        spec["usermeta"] = json!({"embedOptions": {"actions": {"export": true, "source": true, "compiled": false, "editor": false}}});
        Ok(spec)
    }
}

/// The rectangle that marks are placed in, in points of the picture; those of the marks count from its corner.
struct Sheet {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Sheet {
    /// A plot with the room around it.
    fn around(left: f64, top: f64, right: f64, bottom: f64) -> Self {
        Self { left: left - ROOM, top: top - ROOM, right: right + ROOM, bottom: bottom + ROOM }
    }

    fn x(&self, x: f64) -> Value {
        number(x - self.left)
    }

    fn y(&self, y: f64) -> Value {
        number(y - self.top)
    }

    /// Title and subtitle.
    fn headlines(&self, figure: &Figure) -> Vec<Value> {
        let lines = headlines(figure).into_iter().filter(|(text, _, _)| !text.is_empty());
        lines.map(|(text, base, font)| self.text(&text, (MARGIN, base), Align::Left, font)).collect()
    }

    /// A row of [`texts`].
    fn text(&self, text: &str, (x, y): (f64, f64), align: Align, font: Font) -> Value {
        let mut row = json!({"text": text, "x": self.x(x), "y": self.y(y), "align": alignment(align),
            "size": number(font.size), "color": hex(font.color)});
        if font.bold {
            row["weight"] = json!(600);
        }
        row
    }

    /// One text that an expression gives, with the share of its ink.
    fn told(&self, text: Value, (x, y): (f64, f64), align: &str, opacity: &str) -> Value {
        json!({
            "mark": {"type": "text", "clip": false, "baseline": "alphabetic", "align": align, "fontSize": 11.5,
                "text": text, "opacity": {"expr": opacity}},
            "encoding": {"x": {"value": self.x(x)}, "y": {"value": self.y(y)}, "color": {"value": hex(super::palette::GREY)}},
        })
    }

    /// What the pointer does, told while it is over the figure.
    fn hint(&self, what: &str, height: f64) -> Value {
        let mut hint =
            self.told(json!(what), (MARGIN, height - 6.0), "left", "length(data('near_store'))?1:0");
        hint["data"] = json!({"values": [{}]});
        hint["mark"]["fontSize"] = json!(10.5);
        hint
    }
}

/// An alignment in words.
fn alignment(align: Align) -> &'static str {
    match align {
        Align::Left => "left",
        Align::Center => "center",
        Align::Right => "right",
    }
}

/// A layer of texts that stay where they are.
fn texts(rows: Vec<Value>) -> Value {
    json!({
        "data": {"values": rows},
        "mark": {"type": "text", "clip": false, "baseline": "alphabetic", "align": {"expr": "datum.align"},
            "fontSize": {"expr": "datum.size"}, "fontWeight": {"expr": "datum.weight||400"}},
        "encoding": {"x": point("x"), "y": point("y"), "text": {"field": "text", "type": "nominal"}, "color": plain("color")},
    })
}

/// An encoding of points that no scale changes.
fn point(field: &str) -> Value {
    json!({"field": field, "type": "quantitative", "scale": null, "axis": null})
}

/// An encoding of colours that no scale changes.
fn plain(field: &str) -> Value {
    json!({"field": field, "type": "nominal", "scale": null})
}

/// The colours of the series by their numbers.
fn colors(chart: &Chart) -> Value {
    let range: Vec<String> = chart.series.iter().map(|series| hex(color(series.color))).collect();
    json!({"field": "s", "type": "nominal", "legend": null,
        "scale": {"domain": (0..chart.series.len()).collect::<Vec<_>>(), "range": range}})
}

/// The transform that adds the name of each row's series.
fn naming(series: &[Series]) -> Value {
    let names: Vec<&str> = series.iter().map(|series| series.label.as_str()).collect();
    json!({"calculate": format!("{}[datum.s]", json!(names)), "as": "series"})
}

/// The transform that leaves out the series that were clicked away.
fn toggled() -> Value {
    json!({"filter": {"not": {"param": "off", "empty": false}}})
}

/// How strong a name is: pale while its series is hidden.
fn strength() -> Value {
    json!({"condition": {"param": "off", "empty": false, "value": 0.3}, "value": 1})
}

/// The areas of the names that hide and show their series; rows of `s`, `x`, `y`, `x2`, `y2`.
fn switches(rows: Vec<Value>, series: &[Series]) -> Value {
    json!({
        "data": {"values": rows},
        "transform": [naming(series)],
        "params": [{"name": "off", "select": {"type": "point", "fields": ["s"], "toggle": "true"}}],
        "mark": {"type": "rect", "clip": false, "cursor": "pointer"},
        "encoding": {"x": point("x"), "x2": {"field": "x2"}, "y": point("y"), "y2": {"field": "y2"},
            "color": {"value": "transparent"}, "tooltip": {"field": "series", "title": "click: hide or show"}},
    })
}

/// A value's interval, and the texts that the pointer finds, put into its row.
fn tell(row: &mut Value, figure: &Figure, point: &Point, value: String) {
    row["value"] = json!(value);
    if let Some((low, high)) = point.interval {
        (row["low"], row["high"]) = (number(low), number(high));
        let written = [low, high].map(|bound| numbers::alone(figure.y.unit, bound));
        row["interval"] = json!(written.join(" to "));
    }
}

/// The lines of the tooltip: fields with their titles, and the interval where there is one.
fn tooltip(figure: &Figure, chart: &Chart, fields: &[(&str, &str)]) -> Value {
    let interval = interval_of(figure);
    let fields: Vec<_> = fields.iter().copied().chain([("interval", interval.as_str())]).collect();
    let named = chart.series.iter().any(|series| !series.label.is_empty());
    let known = chart.series.iter().flat_map(|series| &series.points).any(|point| point.interval.is_some());
    let shown = fields.iter().filter(|(field, _)| match *field {
        "series" => named,
        "interval" => known,
        _ => true,
    });
    shown.map(|(field, title)| json!({"field": field, "type": "nominal", "title": title})).collect()
}

/// What the bounds are of, where it is not the value: `delta_nll_low` beside `kl`.
fn interval_of(figure: &Figure) -> String {
    let source = figure.source.as_ref();
    let columns =
        source.and_then(|source| Some((source.y.as_str(), source.interval.as_ref()?.0.rsplit_once('_')?.0)));
    match columns {
        Some((value, bounded)) if !value.starts_with(bounded) => {
            format!("interval of {}", bounded.replace('_', " "))
        }
        _ => "interval".into(),
    }
}

/// Panning and zooming of the given channels.
fn zoom(channels: &[&str]) -> Value {
    json!({"name": "zoom", "bind": "scales",
        "select": {"type": "interval", "encodings": channels, "on": DRAG, "translate": DRAG, "zoom": WHEEL}})
}

fn hex(RGBColor(r, g, b): RGBColor) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// An object of what is not null.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
    kept.map(|(name, value)| (name.to_string(), value)).collect::<Map<_, _>>().into()
}

/// The colour of texts that are part of the figure.
fn ink() -> Value {
    json!({"value": hex(INK)})
}

#[cfg(test)]
mod tests;
