//! The report of a notebook: text, code, outputs, and who made these.

use super::made::{by, code_cells, faults, note, text};
use super::page::{Page, facts};
use super::provenance::sha256;
use super::{Report, highlight, markdown, output};
use crate::display::html::escape;
use crate::error::{Error, Kind, Result};
use serde_json::Value;
use std::path::Path;

/// Characters of a cell's first line that stand for it while it is closed.
const LINE: usize = 80;

pub(super) fn report(path: &Path) -> Result<Report> {
    let notebook = read(path)?;
    let folder = path.parent().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut page = Page { kind: format!("notebook · {name}"), code: true, ..Page::default() };
    judge(&notebook, &mut page);
    let mut count = 0;
    for (index, cell) in notebook["cells"].as_array().into_iter().flatten().enumerate() {
        let source = text(&cell["source"]);
        match cell["cell_type"].as_str().unwrap_or_default() {
            "markdown" => {
                let done = markdown::render(&source, folder, &cell["attachments"], &format!("cell-{index}"));
                match done.title {
                    Some(title) if page.title.is_empty() => page.title = title,
                    Some(title) => page.body += &format!("<h1>{}</h1>\n", escape(&title)),
                    None => {}
                }
                page.body += &format!("<div class=\"text\">\n{}</div>\n", done.html);
                page.contents.extend(done.headings);
                page.warnings.extend(done.warnings);
            }
            "code" => {
                count += 1;
                page.body += &code(cell, &source, count);
                let outputs = cell["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
                let outputs = output::html(outputs, folder, &mut page);
                page.body += &outputs;
            }
            "raw" => page.body += &format!("<pre>{}</pre>\n", escape(&source)),
            other => {
                page.warnings.push(format!("a cell of the unknown type `{other}` is not shown"));
            }
        }
    }
    if page.title.is_empty() {
        page.title = Path::new(&name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    }
    page.lead = head(path, &notebook)?;
    page.warnings.dedup();
    Ok(Report { html: page.html(), beside: path.with_extension("html"), warnings: page.warnings })
}

/// The notebook in a file.
fn read(path: &Path) -> Result<Value> {
    const INSTEAD: &str = "give a run's folder, id or name, or an .ipynb file";
    let notebook = crate::json::read(path).map_err(|error| match error.kind() {
        Kind::Input => error.hint(INSTEAD),
        _ => error,
    })?;
    if !notebook["cells"].is_array() {
        let error = Error::input("this is no notebook: it has no list of cells").at(path.display());
        return Err(match notebook["worksheets"].is_array() {
            true => error
                .hint("it is one of Jupyter's before 2015: `jupyter nbconvert --to notebook` makes it new"),
            false => error.hint(INSTEAD),
        });
    }
    Ok(notebook)
}

/// Warns of what speaks against the outputs.
fn judge(notebook: &Value, page: &mut Page) {
    let outputs = |cell: &Value| cell["outputs"].as_array().is_some_and(|outputs| !outputs.is_empty());
    if code_cells(notebook).next().is_some() && !code_cells(notebook).any(outputs) {
        page.warnings.push("this notebook has no outputs: run it, and make the report again".into());
    }
    page.warnings.extend(faults(notebook));
    if note(notebook).is_some_and(|note| note["small"] == true) {
        page.warnings.push("it was run on the small setting: a check that it works, and no result".into());
    }
}

/// Who made the outputs, and what the file is.
fn head(path: &Path, notebook: &Value) -> Result<String> {
    let language = text(&notebook["metadata"]["kernelspec"]["display_name"]);
    let made = match note(notebook) {
        Some(note) => format!("Outputs {}.", by(note)),
        None => "Who made the outputs is not noted; cargo lab run notes it.".to_string(),
    };
    let mut list = vec![("file", path.file_name().unwrap_or_default().to_string_lossy().into_owned())];
    list.push(("SHA-256", sha256(path)?));
    list.push(("kernel", language));
    if let Some(note) = note(notebook) {
        for (name, value) in note.as_object().into_iter().flatten().filter(|(name, _)| *name != "cells") {
            let told = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            list.push((name, if value.is_null() { String::new() } else { told }));
        }
    }
    let list = list.into_iter().filter(|(_, value)| !value.is_empty());
    let list: Vec<_> = list.map(|(name, value)| (name.to_string(), vec![value])).collect();
    Ok(format!(
        "<p class=\"about\">{}</p>\n<details class=\"about\"><summary>Provenance</summary>\n{}</details>\n",
        escape(&made),
        facts(&list)
    ))
}

/// A code cell that can be closed.
fn code(cell: &Value, source: &str, number: usize) -> String {
    let first: String = source.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().into();
    let short: String = first.chars().take(LINE).collect();
    let count = cell["execution_count"].as_u64().map_or_else(|| " ".into(), |count| count.to_string());
    format!(
        "<details class=\"code\" open id=\"code-{number}\"><summary>[{count}] <code>{}</code></summary>\
         <pre><code>{}</code></pre></details>\n",
        escape(&short),
        highlight::rust(source)
    )
}
