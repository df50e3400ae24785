//! What the steps of a pipeline gave and cost, one after the other; and what pruning costs by the share that is left.

use super::compare::{join, only, summaries};
use super::{Figure, Point, Series, Unit};
use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::record::Row;
use serde_json::json;

/// A model in a scheme, as its records have it.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    model: String,
    scheme: String,
    bytes: f64,
    perplexity: f64,
    /// Seconds of a token, decoded and in a prompt.
    decode: Option<f64>,
    prefill: Option<f64>,
}

fn steps(frame: &Frame) -> Result<Vec<Step>> {
    let words = |rows: &Frame, column: &str| -> Result<Vec<String>> {
        Ok(rows.texts(column)?.into_iter().map(Option::unwrap_or_default).collect())
    };
    let scores = summaries(frame, "perplexity")?;
    let (models, schemes) = (words(&scores, "model")?, words(&scores, "scheme")?);
    let (bytes, ppl) = (scores.numbers("weight_bytes")?, scores.numbers("ppl")?);
    let costs = summaries(frame, "cost")?;
    let known = costs.height() > 0 && costs.has("phase");
    let (names, phases, speeds) = match known {
        true => {
            let names: Vec<_> = words(&costs, "model")?.into_iter().zip(words(&costs, "scheme")?).collect();
            (names, words(&costs, "phase")?, costs.numbers("tokens_per_s")?)
        }
        false => (vec![], vec![], vec![]),
    };
    let seconds = |i: usize, phase: &str| {
        let own = |j: &usize| names[*j].0 == models[i] && names[*j].1 == schemes[i] && phases[*j] == phase;
        (0..names.len()).find(own).and_then(|j| speeds[j]).map(|speed| 1.0 / speed)
    };
    let mut all: Vec<Step> = vec![];
    for i in 0..scores.height() {
        let (Some(bytes), Some(perplexity)) = (bytes[i], ppl[i]) else { continue };
        let (model, scheme) = (models[i].clone(), schemes[i].clone());
        let (decode, prefill) = (seconds(i, "decode"), seconds(i, "prefill"));
        all.push(Step { model, scheme, bytes, perplexity, decode, prefill });
    }
    Ok(all)
}

/// For each model and scheme, in the order of the records, bytes of weights, time of a decoded token and of a token of a prompt, and
/// perplexity, each as a share of the first's.
///
/// # Errors
/// If the frame holds no perplexities of two steps at least.
pub fn waterfall(frame: &Frame) -> Result<Figure> {
    let steps = steps(frame)?;
    let [first, _, ..] = steps.as_slice() else {
        return Err(Error::input("there are no steps to set one beside the other")
            .hint("measure perplexity and cost of a model before and after"));
    };
    let share = |own: Option<f64>, before: Option<f64>| Some(own? / before?);
    let mut rows: Vec<Row> = vec![];
    for step in &steps {
        let name = match steps.iter().all(|other| other.model == first.model) {
            true => step.scheme.clone(),
            false => join(&step.model, &step.scheme),
        };
        for (what, share) in [
            ("bytes of weights", Some(step.bytes / first.bytes)),
            ("time of a decoded token", share(step.decode, first.decode)),
            ("time of a token of a prompt", share(step.prefill, first.prefill)),
            ("perplexity", Some(step.perplexity / first.perplexity)),
        ] {
            let Some(share) = share else { continue };
            let row = json!({"step": name, "what": what, "share": share});
            rows.push(serde_json::from_value(row).map_err(Error::internal)?);
        }
    }
    let mut figure = Figure::bar(&Frame::from_rows(&rows)?, "step", "share").color("what");
    (figure.y.label, figure.y.unit) = ("share of the first".into(), Unit::Percent);
    let text = only(&summaries(frame, "perplexity")?, "corpus")?.unwrap_or_default();
    Ok(figure.title("What each step gave, and what it cost").subtitle(join(&text, "the first is 100 %")))
}

/// Bits per byte of text against the share of parameters that is left: a line for each way of pruning, by what the names of models
/// have before a last `-` and a number. The model with most parameters is where all lines begin.
///
/// # Errors
/// If the frame holds no perplexities of a model and of what pruning left of it.
pub fn pruning(frame: &Frame) -> Result<Figure> {
    let rows = summaries(frame, "perplexity")?;
    let (names, sizes, bits) =
        (rows.texts("model")?, rows.numbers("parameters")?, rows.numbers("bits_per_byte")?);
    let points = names.into_iter().zip(sizes.into_iter().zip(bits));
    let points: Vec<(String, f64, f64)> =
        points.filter_map(|(name, (size, bits))| Some((name?, size?, bits?))).collect();
    let whole = points.iter().max_by(|a, b| a.1.total_cmp(&b.1)).cloned();
    let Some((whole, most, at)) = whole.filter(|(_, most, _)| points.iter().any(|(_, size, _)| size < most))
    else {
        return Err(Error::input(
            "there is no model and nothing that pruning left of it among these records",
        )
        .hint("measure the perplexity of both"));
    };
    let mut series: Vec<Series> = vec![];
    for (name, size, bits) in points.into_iter().filter(|(name, ..)| *name != whole) {
        let way = match name.rsplit_once('-') {
            Some((way, share)) if share.parse::<f64>().is_ok() => way.to_string(),
            _ => name,
        };
        let own = series.iter().position(|series| series.label == way).unwrap_or_else(|| {
            let (color, points) = (series.len(), vec![Point::new(1.0, at)]);
            series.push(Series { label: way, color, points, ..Series::default() });
            series.len() - 1
        });
        series[own].points.push(Point::new(size / most, bits));
    }
    series.iter_mut().for_each(|series| series.points.sort_by(|a, b| a.x.total_cmp(&b.x)));
    let mut figure = Figure::of_series(series);
    figure.x.unit = Unit::Percent;
    let text = only(&rows, "corpus")?.unwrap_or_default();
    Ok(figure
        .title("What pruning costs")
        .subtitle(join(&text, &whole))
        .x_label("parameters left")
        .y_label("bits per byte of text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(rows: Vec<serde_json::Value>) -> Frame {
        let rows: Vec<Row> = rows.into_iter().map(|row| serde_json::from_value(row).unwrap()).collect();
        Frame::from_rows(&rows).unwrap()
    }

    fn score(model: &str, scheme: &str, parameters: f64, bytes: f64, ppl: f64) -> serde_json::Value {
        json!({"measure": "perplexity", "row": "summary", "model": model, "scheme": scheme, "parameters": parameters,
            "weight_bytes": bytes, "ppl": ppl, "bits_per_byte": ppl / 5.0})
    }

    #[test]
    fn steps_are_shares_of_the_first() {
        let cost = |scheme: &str, phase: &str, speed: f64| json!({"measure": "cost", "row": "summary", "model": "m", "scheme": scheme, "phase": phase, "tokens_per_s": speed});
        let rows = vec![
            score("m", "f32", 10.0, 40.0, 8.0),
            score("m", "nf4dq", 10.0, 10.0, 8.8),
            cost("f32", "decode", 100.0),
            cost("nf4dq", "decode", 250.0),
        ];
        let found = steps(&frame(rows.clone())).unwrap();
        assert_eq!((found[1].decode, found[1].prefill), (Some(0.004), None));
        let drawn = waterfall(&frame(rows)).unwrap().svg().unwrap();
        for text in ["nf4dq", "bytes of weights", "25 %", "40 %", "110 %"] {
            assert!(drawn.contains(&format!("\n{text}\n")), "{text}: {drawn}");
        }
        assert!(!drawn.contains("token of a prompt"));
        assert!(waterfall(&frame(vec![score("m", "f32", 1.0, 1.0, 1.0)])).is_err());
    }

    #[test]
    fn ways_of_pruning_are_lines_from_the_whole_model() {
        let rows = vec![
            score("whole", "f32", 100.0, 1.0, 10.0),
            score("gradient-80", "f32", 80.0, 1.0, 11.0),
            score("gradient-60", "f32", 60.0, 1.0, 14.0),
            score("gradient-tuned-60", "f32", 60.0, 1.0, 12.0),
        ];
        let figure = pruning(&frame(rows)).unwrap();
        let points = |at: usize| figure.series[at].points.iter().map(|p| (p.x, p.y)).collect::<Vec<_>>();
        assert_eq!(
            figure.series.iter().map(|s| s.label.as_str()).collect::<Vec<_>>(),
            ["gradient", "gradient-tuned"]
        );
        assert_eq!(points(0), [(0.6, 2.8), (0.8, 2.2), (1.0, 2.0)]);
        assert_eq!(points(1), [(0.6, 2.4), (1.0, 2.0)]);
    }
}
