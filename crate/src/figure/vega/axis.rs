//! Axes of Vega-Lite: the ticks of the picture until it is zoomed, then Vega's own in the same way of writing.

use super::hex;
use crate::figure::axis::{Axis, Fitted, Scale, Unit};
use crate::figure::palette::{AXIS, GREY, GRID};
use serde_json::{Value, json};

/// A number to seven significant digits; null for what is not finite.
pub(super) fn number(value: f64) -> Value {
    if !value.is_finite() {
        return Value::Null;
    }
    let short: f64 = format!("{value:.6e}").parse().unwrap_or(value);
    if short.fract() == 0.0 && short.abs() < 1e15 { json!(short as i64) } else { json!(short) }
}

/// The expression that writes the number `v` as the figure does; on a linear axis with as many significant `digits`.
pub(super) fn writing(axis: &Axis, fitted: &Fitted, v: &str, digits: usize) -> String {
    if let Some((divisor, suffix)) = fitted.shared {
        return format!("format({v}/{divisor},'.{digits}~r')+'{suffix}'");
    }
    match (axis.unit, axis.scale) {
        (Unit::Percent, _) => format!("format({v}*100,'.4~r')+' %'"),
        (Unit::Milli, _) => format!("format({v}*1000,'.4~r')"),
        (Unit::Bytes, _) => format!("replace(format({v},'.4~s')+'B',/([kMGT]?B)$/,' $1')"),
        (Unit::Plain, Scale::Log2) => format!("{v}>=1024&&{v}%1024==0?{v}/1024+'k':format({v},'.4~r')"),
        (Unit::Plain, _) => {
            format!("abs({v})>=1e4?format({v},'.4~s'):abs({v})<1e-4?format({v},'.1~e'):format({v},'.4~r')")
        }
    }
}

/// What a value is, written as [`alone`](crate::figure::axis::alone) does: bytes have their unit with them.
pub(super) fn title<'a>(axis: &'a Axis, fitted: &'a Fitted) -> &'a str {
    if axis.unit == Unit::Bytes { &axis.label } else { &fitted.label }
}

/// The scale of an axis whose ends lie at the two places of `range`, `beyond` a share of the way outside its values.
pub(super) fn scale(axis: &Axis, fitted: &Fitted, range: [Value; 2], beyond: f64) -> Value {
    let domain = [fitted.value(-beyond), fitted.value(1.0 + beyond)].map(number);
    let mut scale = json!({"domain": domain, "range": range, "nice": false});
    match axis.scale {
        Scale::Linear => scale["zero"] = json!(false),
        Scale::Log2 => (scale["type"], scale["base"]) = (json!("log"), json!(2)),
        Scale::Log10 => scale["type"] = json!("log"),
    }
    scale
}

/// The ticks and the grid of an axis; `zoomed` is the field that the zoom knows it by.
pub(super) fn axis(axis: &Axis, fitted: &Fitted, zoomed: &str) -> Value {
    let ticks: Vec<Value> = fitted.ticks.iter().map(|tick| number(tick.value)).collect();
    let texts: Vec<&str> = fitted.ticks.iter().map(|tick| tick.text.as_str()).collect();
    let (ticks, texts) = (json!(ticks), json!(texts));
    let other = writing(axis, fitted, "datum.value", 6);
    json!({
        "title": null, "values": {"expr": format!("zoom.{zoomed}?null:{ticks}")}, "tickCount": {"expr": format!("zoom.{zoomed}?6:99")},
        "labelExpr": format!("{texts}[indexof({ticks},datum.value)]||({other})"),
        "labelColor": hex(GREY), "labelFontSize": 12.5, "labelFlush": false, "labelOverlap": {"expr": format!("zoom.{zoomed}?'greedy':false")},
        "gridColor": hex(GRID), "domainColor": hex(AXIS), "tickColor": hex(AXIS),
    })
}
