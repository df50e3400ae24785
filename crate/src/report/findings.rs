//! What the records of a run say, as tables and sentences: the same on a terminal and in a report.

use crate::error::{Error, Result};
use crate::frame::{Comparison, Frame};
use crate::measure::{Instrument, Table};
use crate::record::{LEFT_OUT, SUMMARY};
use crate::study::ablation;
use std::collections::BTreeSet;

/// What is shown of a run's records, wherever it is shown.
pub struct Findings {
    /// A table for each measurement, under its name.
    pub tables: Vec<(&'static str, Frame)>,
    /// Where schemes part by length of context, if that was measured.
    pub contexts: Option<Frame>,
    /// The schemes beside the first that was recorded, where there are several that compare.
    pub comparison: Option<Comparison>,
    /// What the records warn of, each once, with the schemes that it is about where not all are.
    pub warnings: Vec<String>,
}

impl Findings {
    /// Those of a frame of records.
    ///
    /// # Errors
    /// If the records lack columns that every record has.
    pub fn of(frame: &Frame) -> Result<Self> {
        let mut tables = vec![];
        let measured = Instrument::all();
        let listed = measured.iter().flat_map(|measure| measure.tables()).chain([&ablation::TABLE]);
        for &Table { measure, row, columns } in listed {
            let rows = frame.filter("measure", measure)?.filter("row", row)?;
            if rows.height() > 0 {
                // What a measurement had no reason to record has no column.
                let known = columns.iter().filter(|column| rows.has(column));
                tables.push((measure, rows.select(known)?));
            }
        }
        let contexts = Some(frame.contexts()?).filter(|contexts| contexts.height() > 0);
        // Where there is nothing to compare, or not with one baseline, the tables are all.
        let comparison = comparison(frame, None).ok().filter(|comparison| comparison.rows.len() > 1);
        Ok(Self { tables, contexts, comparison, warnings: warnings(frame)? })
    }

    /// What the tests allow to say, a sentence for each family of them.
    ///
    /// # Errors
    /// If the table of contexts lacks a column.
    pub fn sentences(&self) -> Result<Vec<String>> {
        let mut sentences = vec![];
        if let Some(comparison) = &self.comparison {
            let told = comparison.rows.iter().filter(|row| row.scheme != comparison.baseline);
            let several = comparison.rows.iter().any(|row| row.model != comparison.rows[0].model);
            let named = |model: &str, scheme: &str| match several {
                true => format!("{model} in {scheme}"),
                false => scheme.to_string(),
            };
            let groups = grouped(told.map(|row| (row.verdict(), named(&row.model, &row.scheme))));
            if !groups.is_empty() {
                let (baseline, tests) = (&comparison.baseline, comparison.tests);
                sentences.push(format!("Beside {baseline} (Holm over {tests} tests), {groups}."));
            }
        }
        if let Some(contexts) = &self.contexts {
            let (schemes, parts) = (contexts.texts("scheme")?, contexts.numbers("parts_at")?);
            let told = schemes.into_iter().zip(parts).map(|(scheme, at)| {
                let verdict = match at {
                    Some(at) if at.is_nan() => "without numbers".to_string(),
                    Some(at) => format!("worse than the reference from contexts of {at} on"),
                    None => "not told from the reference at any length of context".to_string(),
                };
                (verdict, scheme.unwrap_or_default())
            });
            let groups = grouped(told);
            let mut letters = groups.chars();
            let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
            sentences.push(format!("{first}{}.", letters.as_str()));
        }
        Ok(sentences)
    }
}

/// `worse: a, b; better: c`, in the order of their first; what has no verdict is left to the table.
fn grouped(told: impl Iterator<Item = (String, String)>) -> String {
    let mut groups: Vec<(String, Vec<String>)> = vec![];
    for (verdict, name) in told.filter(|(verdict, _)| !verdict.is_empty()) {
        match groups.iter_mut().find(|(known, _)| *known == verdict) {
            Some((_, names)) => names.push(name),
            None => groups.push((verdict, vec![name])),
        }
    }
    let groups = groups.into_iter().map(|(verdict, names)| format!("{verdict}: {}", names.join(", ")));
    groups.collect::<Vec<_>>().join("; ")
}

fn warnings(frame: &Frame) -> Result<Vec<String>> {
    let rows = frame.filter_any("row", [SUMMARY, LEFT_OUT])?;
    if !rows.has("warning") || !rows.has("scheme") {
        return Ok(vec![]);
    }
    let named = |column: &str| -> Result<Vec<String>> {
        Ok(rows.texts(column)?.into_iter().map(Option::unwrap_or_default).collect())
    };
    let (schemes, warnings) = (named("scheme")?, named("warning")?);
    let all: BTreeSet<&String> = schemes.iter().collect();
    let mut about: Vec<(&String, Vec<&String>)> = vec![];
    for (warning, scheme) in warnings.iter().zip(&schemes).filter(|(warning, _)| !warning.is_empty()) {
        match about.iter_mut().find(|(told, _)| *told == warning) {
            Some((_, schemes)) if schemes.contains(&scheme) => {}
            Some((_, schemes)) => schemes.push(scheme),
            None => about.push((warning, vec![scheme])),
        }
    }
    let told = about.into_iter().map(|(warning, schemes)| match schemes.len() == all.len() {
        true => warning.clone(),
        false => {
            let schemes = schemes.into_iter().map(String::as_str).collect::<Vec<_>>();
            format!("{}: {warning}", schemes.join(", "))
        }
    });
    Ok(told.collect())
}

/// The schemes of the records beside a baseline: the one named, or the first that was recorded.
///
/// # Errors
/// If the records name no scheme, or cannot be compared with that one.
pub fn comparison(frame: &Frame, baseline: Option<&str>) -> Result<Comparison> {
    let first = || -> Result<_> { Ok(frame.texts("scheme")?.into_iter().flatten().next()) };
    match baseline {
        Some(baseline) => frame.compare(baseline),
        None => frame.compare(&first()?.ok_or_else(|| Error::input("the records name no scheme"))?),
    }
}
