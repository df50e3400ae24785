//! What tells the records of a figure apart, and what they have in common.

use crate::error::Result;
use crate::frame::Frame;

/// Name of the column that [`series`] adds.
pub(super) const SERIES: &str = "series";

/// Columns by which records of one measurement may differ, the most telling first.
const DIFFER: [&str; 8] = ["model", "scheme", "dtype", "device", "threads", "batch_size", "cpu_model", "gpu"];

/// The summary rows of one measurement.
pub(super) fn summaries(frame: &Frame, measure: &str) -> Result<Frame> {
    frame.filter("measure", measure)?.filter("row", crate::record::SUMMARY)
}

/// The frame with a column that names each row's series, and a line of text on what all rows share.
///
/// Only columns that tell rows apart take part in the name: with models × schemes measured at one thread count
/// it reads `bard · int8`. Where nothing differs the name is empty.
pub(super) fn series(frame: &Frame) -> Result<(Frame, String)> {
    let mut names = vec![String::new(); frame.height()];
    let mut shared: Vec<String> = Vec::new();
    for column in DIFFER.into_iter().filter(|column| frame.has(column)) {
        let texts: Vec<String> = frame.texts(column)?.into_iter().map(Option::unwrap_or_default).collect();
        let values: Vec<String> = texts.iter().map(|text| worded(column, text)).collect();
        if values.iter().all(|value| *value == values[0]) {
            if !values[0].is_empty() && !shared.contains(&values[0]) {
                shared.push(values[0].clone());
            }
            continue;
        }
        let longer: Vec<String> = names.iter().zip(&values).map(|(name, value)| join(name, value)).collect();
        // A column that splits no group any further (the dtype beside the scheme) would only repeat.
        if distinct(&longer) > distinct(&names) {
            names = longer;
        }
    }
    Ok((frame.with_texts(SERIES, &names)?, shared.join(" · ")))
}

/// [`series`] for bars: where nothing tells them apart, a bar is named after its model.
pub(super) fn bars(frame: &Frame) -> Result<(Frame, String)> {
    let (rows, shared) = series(frame)?;
    let names = rows.texts(SERIES)?.into_iter().map(Option::unwrap_or_default);
    let models = rows.texts("model")?.into_iter().map(Option::unwrap_or_default);
    let named: Vec<String> =
        names.zip(models).map(|(name, model)| if name.is_empty() { model } else { name }).collect();
    Ok((rows.with_texts(SERIES, &named)?, shared))
}

/// The one text that a column holds, if there is a single one.
pub(super) fn only(frame: &Frame, column: &str) -> Result<Option<String>> {
    if !frame.has(column) {
        return Ok(None);
    }
    let mut values = frame.texts(column)?.into_iter().flatten();
    let first = values.next();
    Ok(first.filter(|first| values.all(|value| value == *first)))
}

fn worded(column: &str, value: &str) -> String {
    match column {
        _ if value.is_empty() => String::new(),
        "threads" if value == "1" => "1 thread".into(),
        "threads" => format!("{value} threads"),
        "batch_size" if value == "1" => String::new(),
        "batch_size" => format!("batch {value}"),
        _ => value.into(),
    }
}

/// Two texts with a dot between them, or the one that is not empty.
pub(super) fn join(name: &str, value: &str) -> String {
    [name, value].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" · ")
}

/// The variant of a model of an ablation, which names it `variant, seed 0`; any other name whole.
pub(super) fn variant(model: &str) -> &str {
    model.rsplit_once(", seed ").map_or(model, |(variant, _)| variant)
}

fn distinct(names: &[String]) -> usize {
    names.iter().collect::<std::collections::BTreeSet<_>>().len()
}
