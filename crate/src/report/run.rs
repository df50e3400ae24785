//! The report of a run.

use super::Report;
use super::findings::Findings;
use super::page::{Page, facts, table};
use super::provenance::{self, distinct, text};
use crate::display::html::escape;
use crate::error::Result;
use crate::figure::ready_made;
use crate::frame::{Comparison, Frame};
use crate::record::{Row, read_lines, run_folder};
use crate::study::Study;
use std::path::Path;

pub(super) fn report(what: &Path) -> Result<Report> {
    let folder = run_folder(what)?;
    let folder = std::fs::canonicalize(&folder).unwrap_or(folder);
    let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let frame = Frame::load(&folder)?;
    let rows = read_lines(folder.join("metrics.jsonl"))?.rows;
    let findings = Findings::of(&frame)?;
    let name = name(&id);
    let mut page = Page { kind: format!("run · {id}"), ..Page::default() };
    page.lead = lead(name, &rows, &findings)?;
    page.title = name.to_string();
    page.warnings.extend(frame.warnings().iter().chain(&findings.warnings).cloned());
    if !folder.join("finished").is_file() {
        page.warnings.push("this run is not finished: the same command goes on with it".into());
    }
    let figures = figures(&frame, &mut page);
    if !figures.is_empty() {
        page.section("Figures", &figures);
    }
    if let Some(comparison) = &findings.comparison {
        page.section("Schemes", &schemes(comparison));
    }
    if let Some(contexts) = &findings.contexts {
        let about = "<p class=\"note\">All schemes and bins in one family (Holm).</p>\n";
        page.section("By length of context", &format!("{about}{}", frame_table(contexts)));
    }
    for (measure, table) in &findings.tables {
        let mut letters = measure.chars();
        let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
        page.section(&format!("{first}{}", letters.as_str()), &frame_table(table));
    }
    page.section("Settings", &settings(&folder));
    page.section("Provenance", &facts(&provenance::facts(&rows, &folder, &id)?));
    let beside = folder.join(format!("{id}.html"));
    Ok(Report { html: page.html(), warnings: page.warnings, beside })
}

/// The name within a run's id: `staged` of `20261129-065535-staged-9238b2`.
fn name(id: &str) -> &str {
    let dated = id.splitn(3, '-').nth(2).and_then(|rest| Some(rest.rsplit_once('-')?.0));
    dated.unwrap_or(id)
}

/// What was asked, of what, and what the tests allow to say.
fn lead(name: &str, rows: &[Row], findings: &Findings) -> Result<String> {
    let column = |column: &str| distinct(rows, |row| text(row, column));
    let counted = |values: Vec<String>, word: &str| match values.len() {
        0..=3 => values.join(", "),
        count => format!("{count} {word}"),
    };
    let about = [
        counted(column("model"), "models"),
        counted(column("scheme"), "schemes"),
        column("measure").join(", "),
        column("cpu_model").join(", "),
    ];
    let about: Vec<String> = about.into_iter().filter(|part| !part.is_empty()).collect();
    let mut lead = String::new();
    if let Some(question) = Study::question(name) {
        lead += &format!("<p class=\"question\">{}</p>\n", escape(question));
    }
    lead += &format!("<p class=\"about\">{}</p>\n", escape(&about.join(" · ")));
    for notes in column("notes") {
        lead += &format!("<p>{}</p>\n", escape(&notes));
    }
    for sentence in findings.sentences()? {
        lead += &format!("<p class=\"finding\">{}</p>\n", escape(&sentence));
    }
    Ok(lead)
}

/// The ready-made figures; what is wrong with one becomes a warning.
fn figures(frame: &Frame, page: &mut Page) -> String {
    let mut figures = String::new();
    for (name, figure) in ready_made(frame) {
        // The picture stands by itself where Vega has no form of it.
        match figure.and_then(|figure| Ok((figure.svg()?, figure.title.clone(), figure.vega().ok()))) {
            Ok((svg, about, chart)) => figures += &page.figure(&svg, &about, chart.as_ref()),
            Err(error) => page.warnings.push(format!("the figure {name} was not drawn: {error}")),
        }
    }
    figures
}

/// A frame with all of its rows: a page has room.
fn frame_table(frame: &Frame) -> String {
    let shown = frame.shown_whole();
    let columns: Vec<_> = shown
        .columns
        .iter()
        .map(|column| {
            let (name, unit) = column.name_and_unit();
            (name.to_string(), unit.to_string(), column.numeric)
        })
        .collect();
    table(&columns, &shown.rows().collect::<Vec<_>>(), &shown.notes)
}

fn schemes(comparison: &Comparison) -> String {
    let (heads, rows) = comparison.table();
    let columns: Vec<_> =
        heads.iter().map(|name| (name.clone(), String::new(), Comparison::is_numeric(name))).collect();
    table(&columns, &rows, &[comparison.note()])
}

/// The configuration, as the run keeps it.
fn settings(folder: &Path) -> String {
    match std::fs::read_to_string(folder.join("config_resolved.yaml")) {
        Ok(yaml) => format!("<div class=\"settings\"><pre>{}</pre></div>", escape(yaml.trim_end())),
        Err(_) => "<p class=\"note\">The run holds no config_resolved.yaml: it was made by hand.</p>".into(),
    }
}
