use super::*;
use crate::figure::{Dash, Figure};
use crate::frame::Frame;

fn frame(rows: Vec<Value>) -> Frame {
    let rows: Vec<_> = rows.into_iter().map(|row| row.as_object().unwrap().clone()).collect();
    Frame::from_rows(&rows).unwrap()
}

/// Three series whose whiskers overlap; the last one's third value has no interval.
fn lines() -> Figure {
    let row = |s: u32, k: u32| {
        let y = 0.9 - 0.01 * f64::from(s) - 0.15 * f64::from(k);
        json!({"x": 256 << k, "y": y, "s": format!("scheme \"{s}\""), "low": (s + k < 4).then_some(y - 0.05), "high": y + 0.04})
    };
    let rows = frame((0..3).flat_map(|s| (0..3).map(move |k| row(s, k))).collect());
    let figure = Figure::line(&rows, "x", "y").color("s").interval("low", "high").log2_x().percent_y();
    figure.title("Lines").subtitle("three of them").rule(512.0, "trained at 512")
}

fn values(spec: &Value) -> &Vec<Value> {
    spec["data"]["values"].as_array().unwrap()
}

/// The numbers of a field, with those that a row lacks.
fn column(spec: &Value, field: &str) -> Vec<Option<f64>> {
    values(spec).iter().map(|row| row[field].as_f64()).collect()
}

fn assert_close(found: &[Option<f64>], wanted: impl Iterator<Item = Option<f64>>) {
    let wanted: Vec<Option<f64>> = wanted.collect();
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        let close = match (found, wanted) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * b.abs(),
            (None, None) => true,
            _ => false,
        };
        assert!(close, "{found:?} is not {wanted:?}");
    }
}

/// All values and intervals of a figure are in the data, in the order of its series.
fn assert_complete(figure: &Figure, value: &str) {
    let (spec, chart) = (figure.vega().unwrap(), Chart::of(figure).unwrap());
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let finite = |v: f64| Some(v).filter(|v| v.is_finite());
    assert_close(&column(&spec, value), points().map(|p| finite(p.y)));
    assert_close(&column(&spec, "low"), points().map(|p| Some(p.interval?.0)));
    assert_close(&column(&spec, "high"), points().map(|p| Some(p.interval?.1)));
    assert_eq!(spec, figure.vega().unwrap(), "the same each time");
}

/// What an axis says at first: its ticks and their texts, as arrays in its expressions.
fn ticks(axis: &Value) -> (Vec<f64>, Vec<String>) {
    let values = axis["values"]["expr"].as_str().unwrap().split_once("?null:").unwrap().1;
    let texts = axis["labelExpr"].as_str().unwrap().split_once("[indexof(").unwrap().0;
    (serde_json::from_str(values).unwrap(), serde_json::from_str(texts).unwrap())
}

#[test]
fn lines_carry_all_points_and_the_ticks_of_the_picture() {
    let figure = lines();
    assert_complete(&figure, "y");
    let spec = figure.vega().unwrap();
    let (x, y) = (ticks(&spec["encoding"]["x"]["axis"]), ticks(&spec["encoding"]["y"]["axis"]));
    assert_eq!(x, (vec![256.0, 512.0, 1024.0], ["256", "512", "1k"].map(String::from).into()));
    assert_eq!(y.1, ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]);
    let svg = figure.svg().unwrap();
    assert!(x.1.iter().chain(&y.1).all(|text| svg.contains(text)));
    let row = &values(&spec)[2];
    assert_eq!(
        (&row["place"], &row["value"], &row["interval"]),
        (&json!("1k"), &json!("60 %"), &json!("55 % to 64 %"))
    );
    assert!(values(&spec)[8]["interval"].is_null());
    // Whiskers beside each other: the middle series stands at the value, the others beside it.
    let (at, x) = (column(&spec, "at"), column(&spec, "x"));
    assert!(at[0] < x[0] && (at[3].unwrap() - 256.0).abs() < 0.01 && at[6] > x[6], "{at:?}");
}

#[test]
fn the_picture_and_the_specification_are_of_one_size() {
    let bars = Figure::bar(&frame(vec![json!({"c": "a", "y": 1}), json!({"c": "b", "y": 2})]), "c", "y");
    for figure in [lines(), bars] {
        let (spec, (_, size)) = (figure.vega().unwrap(), figure.prepare().unwrap());
        let number = |value: &Value| value.as_f64().unwrap();
        let padding = |side: &str| number(&spec["padding"][side]);
        assert!(
            (padding("left") + padding("right") + number(&spec["width"]) - f64::from(size.0)).abs() < 1e-3
        );
        assert!(
            (padding("top") + padding("bottom") + number(&spec["height"]) - f64::from(size.1)).abs() < 1e-3
        );
    }
}

#[test]
fn bars_carry_what_has_no_value_too() {
    let row = |c: &str, s: &str, y: Option<f64>| json!({"c": c, "s": s, "y": y, "low": y.map(|y| y / 2.0), "high": y.map(|y| 2.0 * y)});
    let rows = frame(vec![
        row("a", "x", Some(1.5)),
        row("b", "x", None),
        row("a", "y", Some(3.0)),
        row("b", "y", Some(1e-7)),
    ]);
    let figure = Figure::bar(&rows, "c", "y").color("s").interval("low", "high");
    let spec = figure.vega().unwrap();
    let told: Vec<_> = values(&spec).iter().map(|row| (row["name"].clone(), row["value"].clone())).collect();
    let wanted = [("a", "1.5"), ("a", "3"), ("b", "no value"), ("b", "1e−7")];
    assert_eq!(told, wanted.map(|(name, value)| (json!(name), json!(value))));
    assert_close(&column(&spec, "low"), [Some(0.75), Some(1.5), None, Some(5e-8)].into_iter());
    let svg = figure.svg().unwrap();
    assert!(ticks(&spec["encoding"]["x"]["axis"]).1.iter().all(|text| svg.contains(text)));
    // On a logarithmic axis bars begin at its end, and intervals may reach below it.
    let logarithmic = figure.clone().log_y().vega().unwrap();
    assert!(logarithmic["transform"].to_string().contains("max(datum.low,"), "{logarithmic}");
}

#[test]
fn cells_have_the_colours_and_the_texts_of_the_picture() {
    let row = |c: u32, r: &str, y: f64| json!({"c": c, "r": r, "y": y, "low": y - 1.0, "high": y + 1.0});
    let rows = frame(vec![row(0, "up", 1.0), row(1, "up", 100.0), row(0, "down", 0.5), row(1, "down", 7.0)]);
    let figure = Figure::heat(&rows, "c", "r", "y").log_y().interval("low", "high");
    assert_complete(&figure, "v");
    let spec = figure.vega().unwrap();
    let cells: Vec<_> = values(&spec).iter().map(|row| (row["text"].clone(), row["fill"].clone())).collect();
    assert_eq!(cells[1].0, json!("100"));
    let svg = figure.svg().unwrap().to_lowercase();
    assert!(cells.iter().all(|(_, fill)| svg.contains(fill.as_str().unwrap())), "{cells:?}");
    assert_eq!(cells[2].0, json!("(.5)"), "an interval that holds 0");
    // Bounds of something else than the value are told to be.
    let titles = |figure: Figure| figure.vega().unwrap()["layer"][3]["encoding"]["tooltip"].to_string();
    assert!(titles(figure.clone()).contains("\"interval\""), "{}", titles(figure));
    let rows = frame(vec![json!({"c": 0, "r": "up", "kl": 1, "delta_nll_low": 0, "delta_nll_high": 2})]);
    let figure = Figure::heat(&rows, "c", "r", "kl").interval("delta_nll_low", "delta_nll_high");
    assert!(titles(figure.clone()).contains("interval of delta nll"), "{}", titles(figure));
}

#[test]
fn bands_points_dashes_and_faint_series_are_layers_of_their_own() {
    let marks = |figure: &Figure| -> Vec<String> {
        let spec = figure.vega().unwrap();
        let kind = |layer: &Value| layer["mark"]["type"].as_str().unwrap().to_string();
        spec["layer"].as_array().unwrap().iter().map(kind).collect()
    };
    let many = |dash, faint| Series {
        label: if faint { String::new() } else { "name".into() },
        points: (0..60)
            .map(|i| Point { interval: Some((0.0, 9.0)), ..Point::new(f64::from(i), 3.0) })
            .collect(),
        dash,
        faint,
        ..Series::default()
    };
    let figure = Figure::of_series(vec![many(Dash::Dashed, false), many(Dash::Solid, true)]);
    let found = marks(&figure);
    assert_eq!(found[..3], ["area", "line", "line"], "a band, the faint line below the other");
    let spec = figure.vega().unwrap();
    assert_eq!(
        values(&spec)[0],
        json!({"s": 1, "x": 0, "y": 3}),
        "faint points come first and carry no texts"
    );
    assert_eq!(spec["layer"][2]["encoding"]["strokeDash"]["scale"]["range"], json!([[7.0, 4.5], [1, 0]]));
    let found = marks(&Figure::of_series(vec![many(Dash::Points, false)]));
    assert_eq!(found.iter().filter(|mark| *mark == "line").count(), 0);
}

#[test]
fn texts_go_with_their_points() {
    let rows = frame((1..4).map(|i| json!({"x": i, "y": i * i, "s": format!("scheme {i}")})).collect());
    let spec = Figure::line(&rows, "x", "y").points().text("s").vega().unwrap();
    let texts: Vec<_> = values(&spec).iter().map(|row| row["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["scheme 1", "scheme 2", "scheme 3"]);
    let layers = spec["layer"].as_array().unwrap();
    let told = layers.iter().find(|layer| layer["mark"]["dx"] == json!({"expr": "datum.dx"})).unwrap();
    assert!(values(&spec).iter().all(|row| row["dx"].is_number() && row["align"].is_string()), "{told}");
}

#[test]
fn numbers_are_short_and_what_is_not_finite_is_null() {
    let found = [1.0 / 3.0, 256.0, -0.1 - 0.2, 1e-9, f64::NAN, f64::INFINITY].map(number);
    assert_eq!(json!(found).to_string(), "[0.3333333,256,-0.3,1e-9,null,null]");
}
