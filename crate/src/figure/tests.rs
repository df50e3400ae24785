use super::*;
use crate::record::Row;
use serde_json::json;

fn frame(rows: Vec<serde_json::Value>) -> Frame {
    let rows: Vec<Row> = rows.into_iter().map(|row| serde_json::from_value(row).unwrap()).collect();
    Frame::from_rows(&rows).unwrap()
}

/// Records as the measurements write them: several schemes, a value that is not finite, ties at 100 %.
fn records() -> Frame {
    let schemes = [
        "f32",
        "bf16",
        "W8A8 per channel",
        "W4A8 groups of 64",
        "NF4 double quantized",
        "W2A16 ternary groups of 32",
    ];
    let mut rows = Vec::new();
    for (i, scheme) in schemes.into_iter().enumerate() {
        let common = json!({"model": "bard-3m", "scheme": scheme, "dtype": if i == 0 { "f32" } else { "bf16" }, "device": "cpu",
            "threads": 2, "row": "summary", "batch_size": 1, "schema_version": 1});
        let with = |more: serde_json::Value| {
            let mut row = common.clone();
            row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            row
        };
        let ppl = if i == 5 { json!(null) } else { json!(4.02 + 0.11 * (i * i) as f64) };
        rows.push(with(json!({"measure": "perplexity", "ppl": ppl, "corpus": "shakespeare test"})));
        let kl = if i == 0 { 2e-6 } else { 0.004 * (i * i) as f64 };
        rows.push(with(json!({"measure": "divergence", "kl": kl, "reference": "bard-3m"})));
        for (j, length) in [256, 512, 1024, 2048, 4096].into_iter().enumerate() {
            let hits = [50, 50, 50 - i as u64 / 3, 31 - 4 * i as u64, 9 - i as u64][j];
            let (low, high) = crate::stats::wilson(hits, 50, crate::stats::Z95);
            rows.push(with(
                json!({"measure": "passkey", "context_length": length, "accuracy": hits as f64 / 50.0,
                "accuracy_low": low, "accuracy_high": high, "training_length": 1024}),
            ));
            let speed = (4000 + 900 * i) as f64 * (1.0 + 0.1 * j as f64);
            for (phase, speed) in [("prefill", speed), ("decode", speed / 9.0)] {
                let peak = 3e8 / (1.0 + i as f64)
                    + 9e4 * f64::from(length) * if phase == "prefill" { 1.0 } else { 0.1 };
                rows.push(with(
                    json!({"measure": "cost", "phase": phase, "context_length": length, "tokens_per_s": speed,
                    "tokens_per_s_min": speed * 0.95, "tokens_per_s_max": speed * 1.04, "peak_bytes": peak}),
                ));
            }
        }
    }
    frame(rows)
}

fn training() -> Frame {
    let step = |i: u32| {
        let noise = f64::from(i.wrapping_mul(2_654_435_761) >> 16) / 65_536.0 - 0.5;
        let loss =
            1.3 + 4.2 * (-f64::from(i) / 90.0).exp() + 0.5 * (-f64::from(i) / 900.0).exp() + 0.12 * noise;
        json!({"step": i, "tokens": i * 8192, "loss": loss, "lr": 0.001})
    };
    let validation = |i: u32| json!({"step": i, "tokens": i * 8192, "valid_bits_per_byte": 2.05 + 1.2 * (-f64::from(i) / 700.0).exp()});
    frame((0..3000).map(step).chain((200..3000).step_by(200).map(validation)).collect())
}

#[test]
fn draws_what_the_records_allow() {
    let folder = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("LOWBIT_TEST_FIGURES").map(std::path::PathBuf::from);
    let folder = kept.as_deref().unwrap_or(folder.path());
    let Gallery { drawn, failed } = draw_all(&records(), folder).unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    let names: Vec<_> =
        drawn.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let expected = ["perplexity", "divergence", "passkey", "prefill", "decode", "memory"];
    assert_eq!(
        names,
        expected.iter().flat_map(|n| [format!("{n}.svg"), format!("{n}.png")]).collect::<Vec<_>>()
    );
    for path in &drawn {
        let bytes = std::fs::read(path).unwrap();
        assert!(bytes.starts_with(b"<svg") || bytes.starts_with(b"\x89PNG"), "{}", path.display());
    }
    assert_eq!(draw_all(&training(), folder).unwrap().drawn.len(), 2);
    assert!(draw_all(&frame(vec![json!({"measure": "drift"})]), folder).unwrap().drawn.is_empty());
}

#[test]
fn one_figure_that_cannot_be_drawn_does_not_take_the_others_with_it() {
    let row = |more: serde_json::Value| {
        let mut row = json!({"row": "summary", "model": "m", "scheme": "f32"});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    let rows = frame(vec![
        row(json!({"measure": "perplexity", "ppl": 4.0, "bits_per_byte": 2.0, "weight_bytes": 0})),
        row(json!({"measure": "passkey", "context_length": 0, "accuracy": 1.0})),
        row(json!({"measure": "stability", "together_median": 3.0})),
        row(json!({"measure": "cost", "phase": "decode", "context_length": 512, "tokens_per_s": 9.0})),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let Gallery { drawn, failed } = draw_all(&rows, folder.path()).unwrap();
    let names: Vec<_> = drawn.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["perplexity.svg", "perplexity.png", "decode.svg", "decode.png"]);
    let failed: Vec<String> = failed.iter().map(|(name, error)| format!("{name}: {error}")).collect();
    assert_eq!(failed.len(), 3, "{failed:?}");
    assert!(
        failed[0].starts_with("size: ") && failed[0].contains("a logarithmic axis cannot show values of 0")
    );
    assert!(
        failed[1].starts_with("stability: ") && failed[1].contains("no column `together_q25`"),
        "{failed:?}"
    );
    assert!(failed[2].starts_with("passkey: "), "{failed:?}");
}

#[test]
fn values_that_are_not_finite_have_no_place() {
    let odd =
        |y: f64| crate::record::Reading::default().value("x", 1).value("y", y).value("s", format!("{y}"));
    let rows = |readings: Vec<crate::record::Reading>| {
        let record = |reading| crate::record::Record { reading, ..Default::default() };
        Frame::from_records(&readings.into_iter().map(record).collect::<Vec<_>>()).unwrap()
    };
    let all = rows([f64::NAN, f64::INFINITY, 2.0].map(odd).to_vec());
    for figure in
        [Figure::line(&all, "x", "y").color("s"), Figure::line(&all, "x", "y").color("s").log_y().points()]
    {
        assert_eq!(chart::Chart::of(&figure).unwrap().series.len(), 1);
        figure.svg().unwrap();
    }
    // A mean of which one value is none is none: the point is left out.
    assert!(Figure::line(&all, "x", "y").svg().unwrap_err().to_string().contains("no row has a value"));
    let none = rows([f64::NAN, f64::INFINITY].map(odd).to_vec());
    for figure in [
        Figure::bar(&none, "s", "y"),
        Figure::bar(&none, "s", "y").log_y(),
        Figure::heat(&none, "x", "s", "y").log_y(),
        Figure::bar(&all, "s", "y"),
    ] {
        assert!(figure.svg().unwrap().starts_with("<svg"));
    }
    let svg = Figure::bar(&all, "s", "y").svg().unwrap();
    assert!(svg.contains("no value") && svg.contains("infinite"));
}

#[test]
fn odd_data_is_drawn_too() {
    let rows = |xs: &[f64], ys: &[f64]| {
        frame(xs.iter().zip(ys).map(|(x, y)| json!({"x": x, "y": y, "s": format!("series {x}")})).collect())
    };
    let cases: [(&[f64], &[f64]); 4] = [
        (&[1024.0], &[0.0]),
        (&[1.0, 2.0, 3.0], &[5.0; 3]),
        (&[1.0, 1e6], &[1e-9, 1e9]),
        (&[3.0, 5.0], &[-1.0, -2.0]),
    ];
    for (i, (xs, ys)) in cases.into_iter().enumerate() {
        let data = rows(xs, ys);
        let line = Figure::line(&data, "x", "y").log2_x().color("s").title("a very long title ".repeat(8));
        assert!(line.svg().unwrap().contains("…"));
        let bar = Figure::bar(&data, "s", "y").color("s");
        assert!(bar.svg().unwrap().contains("series"));
        keep(&line, &format!("odd-line-{i}"));
        keep(&bar, &format!("odd-bar-{i}"));
    }
    // More series than labels fit at their usual distance, dashes of two kinds, a logarithmic value axis.
    let many = (0..28).flat_map(|s| (0..4).map(move |x| {
        json!({"x": 256 << x, "y": (1.0 + f64::from(s % 14)) * 2_f64.powi(x), "s": format!("scheme {}", s % 14), "d": s / 14})
    }));
    let figure =
        Figure::line(&frame(many.collect()), "x", "y").color("s").dash("d").log2_x().log_y().title("Many");
    assert!(figure.svg().unwrap().contains("scheme 13 · 1"));
    keep(&figure, "odd-many");
}

/// Saves a figure where LOWBIT_TEST_FIGURES says, for people to look at.
fn keep(figure: &Figure, name: &str) {
    if let Some(folder) = std::env::var_os("LOWBIT_TEST_FIGURES") {
        for ending in ["png", "json"] {
            figure.save(std::path::Path::new(&folder).join(format!("{name}.{ending}"))).unwrap();
        }
    }
}

#[test]
fn one_figure_is_the_same_bytes() {
    let figure = passkey(&records()).unwrap();
    assert_eq!(figure.svg().unwrap(), figure.svg().unwrap());
    let png = figure.png(1).unwrap();
    assert_eq!(png, passkey(&records()).unwrap().png(1).unwrap());
    // The header chunk of a PNG: width and height, big-endian, from byte 16.
    assert_eq!(png[16..24], [0, 0, 3, 32, 0, 0, 1, 244]);
    assert!(figure.svg().unwrap().starts_with("<svg width=\"800\" height=\"500\" viewBox=\"0 0 3200 2000\""));
}

#[test]
fn the_figure_shows_what_it_should() {
    let svg = passkey(&records()).unwrap().svg().unwrap();
    for text in [
        "Passkey retrieval",
        "trained at 1k",
        "W4A8 groups of 64",
        "context length (tokens)",
        "100 %",
        "bard-3m · cpu · 2 threads",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    let svg = perplexity(&records()).unwrap().svg().unwrap();
    assert!(
        svg.contains("no value") && svg.contains("4.02") && svg.contains("shakespeare test · bard-3m"),
        "{svg}"
    );
}

#[test]
fn divergences_of_all_sizes_are_seen() {
    let figure = divergence(&records()).unwrap();
    assert_eq!(figure.y.scale, Scale::Log10);
    let svg = figure.svg().unwrap();
    assert!(["from bard-3m", "2e−6", "0.016"].iter().all(|text| svg.contains(text)), "{svg}");
    // Zero has no place on a logarithmic axis.
    let row = |kl: f64| json!({"measure": "divergence", "row": "summary", "model": "m", "scheme": kl.to_string(), "kl": kl});
    let figure = divergence(&frame(vec![row(0.0), row(1e-6), row(1.0)])).unwrap();
    assert_eq!(figure.y.scale, Scale::Linear);
    figure.svg().unwrap();
}

#[test]
fn a_perplexity_that_means_nothing_is_said_to() {
    let row = |ppl: f64| json!({"measure": "perplexity", "row": "summary", "model": "m", "ppl": ppl, "vocab_size": 256});
    let warns =
        |ppl: f64| perplexity(&frame(vec![row(ppl)])).unwrap().subtitle.contains("worse than guessing");
    assert!(warns(256.0) && warns(25_080.0) && !warns(255.0));
}

#[test]
fn rows_of_one_place_are_averaged_within_their_widest_interval() {
    let row = |x: u32, y: f64, s: &str| json!({"x": x, "y": y, "low": y - 0.1, "high": y + 0.2, "s": s});
    let rows =
        frame(vec![row(2, 1.0, "a"), row(1, 5.0, "a"), row(2, 2.0, "a"), row(1, 0.0, "b"), json!({"x": 3})]);
    let chart = chart::Chart::of(&Figure::line(&rows, "x", "y").color("s").interval("low", "high")).unwrap();
    let point = |x: f64, y: f64, low: f64, high: f64| Point { x, y, interval: Some((low, high)) };
    assert_eq!(chart.series.len(), 2, "a row without a value makes no series");
    assert_eq!(chart.series[0].points, [point(1.0, 5.0, 4.9, 5.2), point(2.0, 1.5, 0.9, 2.2)]);
    assert_eq!((chart.series[1].label.as_str(), chart.series[1].color), ("b", 1));
}

#[test]
fn bands_repeat_their_colours_in_dashes() {
    let row = |s: u32, x: u32| json!({"x": x, "y": s + x, "low": s, "high": s + 2 * x, "s": format!("s{s}")});
    let rows = frame((0..9).flat_map(|s| (1..6).map(move |x| row(s, x))).collect());
    let figure = Figure::line(&rows, "x", "y").color("s").interval("low", "high").bands().title("Bands");
    let chart = chart::Chart::of(&figure).unwrap();
    let dashes: Vec<Dash> = chart.series.iter().map(|series| series.dash).collect();
    assert_eq!(
        (dashes[0], dashes[6], dashes[7], dashes[8]),
        (Dash::Solid, Dash::Solid, Dash::Dashed, Dash::Dashed)
    );
    let svg = figure.svg().unwrap();
    // A band is a polygon of its own, and no marker stands on the line.
    assert_eq!(svg.matches("<polygon").count(), 9, "{svg}");
    assert_eq!(svg.matches("<circle").count(), 0);
    keep(&figure, "bands");
}

#[test]
fn an_interval_may_reach_below_a_logarithmic_axis() {
    let row = |x: u32, low: f64| json!({"x": x, "y": 10_u32.pow(x), "low": low, "high": 2 * 10_u32.pow(x)});
    let rows = frame(vec![row(1, -3.0), row(2, 0.0), row(3, 500.0)]);
    for figure in [Figure::line(&rows, "x", "y"), Figure::bar(&rows, "x", "y")] {
        let figure = figure.interval("low", "high").log_y();
        let svg = figure.svg().unwrap();
        assert!(["10", "100", "1000"].iter().all(|tick| svg.contains(&format!(">\n{tick}\n<"))), "{svg}");
        // Nothing is drawn at the edge, where what has no place would end.
        assert!(!svg.contains("points=\"0,") && !svg.contains(",0 "), "{svg}");
        let spec = figure.vega().unwrap();
        assert!(spec["data"]["values"].to_string().contains("\"low\":-3"), "told as it is");
    }
}

#[test]
fn points_stand_alone() {
    let rows = frame((0..60).map(|i| json!({"x": 1 + i % 7, "y": i})).collect());
    let figure = Figure::line(&rows, "x", "y").points();
    assert_eq!(chart::Chart::of(&figure).unwrap().series[0].points.len(), 60, "none is averaged away");
    // Each has a white edge.
    assert_eq!(figure.svg().unwrap().matches("<circle").count(), 120);
}

#[test]
fn texts_beside_points_keep_out_of_each_others_way() {
    let rows =
        frame((0..12).map(|i| json!({"x": i % 4, "y": i / 4, "s": format!("a scheme {i}")})).collect());
    let figure = Figure::line(&rows, "x", "y").points().text("s");
    let svg = figure.svg().unwrap();
    assert!((0..12).all(|i| svg.contains(&format!("a scheme {i}\n"))), "{svg}");
    keep(&figure, "texts");
    let error = Figure::line(&rows, "x", "y").text("s").svg().unwrap_err().to_string();
    assert_eq!(error, "figure of `y`: texts stand beside points, and lines were asked for; add .points()");
    // What has no place takes its text along.
    let rows = frame(vec![json!({"x": 1, "y": 2, "s": "kept"}), json!({"x": 2, "s": "left out"})]);
    let chart = chart::Chart::of(&Figure::line(&rows, "x", "y").points().text("s")).unwrap();
    assert_eq!(chart.series[0].texts, ["kept"]);
}

#[test]
fn saved_bytes_have_a_price_beside_each_models_own_baseline() {
    let row = |model: &str, scheme: &str, ppl: f64, bytes: u64| {
        json!({"measure": "perplexity", "row": "summary", "model": model, "scheme": scheme, "ppl": ppl,
            "weight_bytes": bytes, "corpus_hash": model, "corpus": model, "seq_len": 8, "n_tokens": 9})
    };
    let rows = vec![
        row("large", "f32", 20.0, 1000),
        row("large", "w8a8", 21.0, 250),
        row("large", "w4a4", 9000.0, 130),
        row("small", "f32", 4.0, 100),
        row("small", "bf16", 3.99, 50),
        row("small", "w8a8", 4.01, 25),
    ];
    let figure = price(&frame(rows.clone()), "f32").unwrap();
    assert!(figure.subtitle.ends_with("no worse: bf16 of small"), "{}", figure.subtitle);
    let points: Vec<_> = figure.series.iter().map(|series| (series.label.as_str(), &series.points)).collect();
    assert_eq!(points[0], ("large", &vec![Point::new(0.25, 21.0 / 20.0 - 1.0), Point::new(0.13, 449.0)]));
    assert_eq!(points[1].1.len(), 1);
    assert!(figure.svg().unwrap().contains("w4a4"));
    keep(&figure, "price");
    let error = price(&frame(rows[4..].to_vec()), "f32").unwrap_err().to_string();
    assert!(error.starts_with("there is no perplexity of small in f32 on the same text"), "{error}");
}

#[test]
fn drift_is_drawn_against_time_and_prediction() {
    let mut rows = Vec::new();
    for (i, scheme) in ["f32", "w4a16", "w16a16-h8"].into_iter().enumerate() {
        let with = |more: serde_json::Value| {
            let mut row = json!({"measure": "drift", "model": "m", "scheme": scheme, "row": "summary"});
            row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            row
        };
        let size = 0.01 * i as f64;
        for k in 0..10 {
            let drift = size * f64::from(k + 1);
            rows.push(with(json!({"row": "position", "position": 1 << k, "drift_median": drift,
                "drift_q25": 0.6 * drift, "drift_q75": 1.5 * drift})));
            rows.push(with(json!({"row": "head", "layer": 0, "head": k, "gain_measured": 1.5 + f64::from(k), "drift": drift})));
        }
        let tau = (i > 0).then_some(0.25 * i as f64);
        rows.push(with(
            json!({"drift_median": size, "tau_measured": tau, "tau_measured_low": tau.map(|t| t - 0.1),
            "tau_measured_high": tau.map(|t| t + 0.1)}),
        ));
    }
    let records = frame(rows);
    let svg = drift(&records).unwrap().svg().unwrap();
    assert!(svg.contains("w16a16-h8") && !svg.contains("f32"), "what never drifts is left out: {svg}");
    let svg = drift_prediction(&records).unwrap().svg().unwrap();
    assert!(svg.contains("w4a16 · τ 0.25 [0.15, 0.35]") && svg.contains("predicted gain"), "{svg}");
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(draw_all(&records, folder.path()).unwrap().drawn.len(), 4);
    keep(&drift(&records).unwrap(), "drift");
}

#[test]
fn bad_figures_are_one_sentence() {
    let data = frame(vec![json!({"length": 0, "accuracy": 0.5})]);
    let error = Figure::line(&data, "lenght", "accuracy").svg().unwrap_err().to_string();
    assert_eq!(error, "there is no column `lenght`; did you mean `length`?");
    let error = Figure::line(&data, "length", "accuracy").title("T").log2_x().svg().unwrap_err().to_string();
    assert_eq!(error, "figure `T`: a logarithmic axis cannot show values of 0 or less; use a linear axis");
    assert!(Figure::of_series(Vec::new()).svg().unwrap_err().to_string().contains("nothing to draw"));
    let error = Figure::line(&data, "length", "accuracy").save("figure.pdf").unwrap_err().to_string();
    assert_eq!(error, "figure.pdf: a figure is saved as .svg, .png or .json");
}
