//! Reports: one file that holds what a run or a notebook says, and loads nothing.

use super::command_line::{lowbit, refused};
use super::fixture::{FIXTURE, Folder};
use lowbit::Report;
use lowbit::frame::Frame;
use lowbit::record::read_lines;
use lowbit::report::Findings;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const TEXT: &str = "Whoever reads a report has no server, and may have no network. ";

fn repository(folder: &str, end: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(end)).collect();
    all.sort();
    all
}

/// The page without what is in it as data: pictures, fonts and Vega's own program.
fn page(html: &str) -> String {
    let start = html.find("</head>\n<body>").unwrap();
    let end = html[start..].find("<script>\n").map_or(html.len(), |at| start + at);
    html[start..end].to_string()
}

fn loads_nothing(html: &str) {
    let policy = "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:";
    assert!(html.contains(policy));
    let page = page(html);
    for part in
        ["src=\"http", "src='http", "url(http", "url(\"http", "@import", "<link", "<iframe", "src=\"//"]
    {
        assert!(!page.contains(part), "{part}");
    }
}

/// What stands in the page of a text.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Every table, figure and setting of a run, and where its records come from.
fn holds_all(html: &str, run: &Path) {
    let frame = Frame::load(run).unwrap();
    let findings = Findings::of(&frame).unwrap();
    for (measure, table) in &findings.tables {
        let heading = format!(">{}{}</h2>", measure[..1].to_uppercase(), &measure[1..]);
        let at = html.find(&heading).unwrap_or_else(|| panic!("{measure}: no table"));
        let section = &html[at..at + html[at..].find("</section>").unwrap()];
        assert_eq!(section.matches("<tr>").count(), table.height() + 1, "{measure}");
    }
    for sentence in findings.sentences().unwrap() {
        assert!(html.contains(&format!("<p class=\"finding\">{}</p>", escaped(&sentence))), "{sentence}");
    }
    let drawn = repository(&run.join("plots").to_string_lossy(), ".svg");
    assert_eq!(html.matches("<figure>").count(), drawn.len(), "{}", run.display());
    // A run that a notebook made has no configuration, and its report says so.
    match fs::read_to_string(run.join("config_resolved.yaml")) {
        Ok(config) => assert!(html.contains(&escaped(config.trim_end()))),
        Err(_) => assert!(html.contains("holds no config_resolved.yaml"), "{}", run.display()),
    }
    for row in read_lines(run.join("metrics.jsonl")).unwrap().rows {
        for column in ["git_commit", "host", "cpu_model", "rustc", "model_hash", "lowbit_version"] {
            assert!(html.contains(&escaped(row[column].as_str().unwrap())), "{column}");
        }
    }
    loads_nothing(html);
}

#[test]
fn a_run_is_one_file() {
    let folder = Folder::new();
    let (runs, text) = (folder.text("runs"), folder.write("text.txt", TEXT.repeat(20)));
    let notes = "a <note>";
    let args = ["ppl", FIXTURE, "--corpus", &text, "--runs", &runs, "--notes", notes];
    assert!(lowbit().args(args).output().unwrap().status.success());
    let run = fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let id = run.file_name().unwrap().to_string_lossy().into_owned();

    let output = lowbit().args(["report", &run.to_string_lossy()]).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let beside = run.join(format!("{id}.html"));
    assert!(told.starts_with("report    ") && told.contains(&id), "{told}");
    let html = fs::read_to_string(&beside).unwrap();
    assert!(html.contains("<h1>ppl</h1>") && html.contains("<p>a &lt;note&gt;</p>"));
    holds_all(&html, &run);

    // The same by name, to standard output, and from a cell; a second report takes the place of the first.
    let output = lowbit().args(["report", "ppl", "--out", "-"]).env("LOWBIT_RUNS", &runs).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), html);
    let records = run.join("metrics.jsonl");
    Report::of(&records).unwrap().save(&beside).unwrap();
    lowbit::Run::open(&run).unwrap().report(folder.at("own.html")).unwrap();
    assert_eq!(fs::read_to_string(folder.at("own.html")).unwrap(), html);

    // Nothing else is replaced.
    let (code, sentence) = refused(&["report", &run.to_string_lossy(), "--out", &text]);
    assert_eq!(code, 2);
    assert!(sentence.contains("this file is no report, and would be lost"), "{sentence}");
    assert!(fs::read_to_string(&text).unwrap().starts_with(TEXT));
}

#[test]
fn the_runs_of_the_repository_have_reports() {
    for run in repository("runs", "").into_iter().filter(|path| path.join("metrics.jsonl").is_file()) {
        holds_all(Report::of(&run).unwrap().html(), &run);
    }
}

#[test]
fn the_notebooks_of_the_repository_have_reports() {
    for path in repository("notebooks", ".ipynb") {
        let report = Report::of(&path).unwrap();
        let notebook: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let outputs =
            notebook["cells"].as_array().unwrap().iter().flat_map(|cell| cell["outputs"].as_array());
        let outputs: Vec<&Value> = outputs.flatten().collect();
        let figures = outputs.iter().filter(|output| output["data"].get("image/png").is_some()).count();
        let html = report.html();
        assert_eq!(html.matches("<figure>").count(), figures, "{}", path.display());
        assert_eq!(html.matches("<div class=\"out\">").count(), outputs.len(), "{}", path.display());
        let claims = notebook["cells"].to_string().matches("**Claim.**").count();
        let shown = html.matches("<b>Claim.</b>").count() + html.matches("<strong>Claim.</strong>").count();
        assert_eq!(shown, claims, "{}", path.display());
        assert_eq!(report.beside(), path.with_extension("html"));
        loads_nothing(html);
    }
}

fn notebook(cells: Value) -> Value {
    json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})
}

fn code(source: &str, count: Option<u64>, outputs: Value) -> Value {
    json!({"cell_type": "code", "source": source, "execution_count": count, "metadata": {}, "outputs": outputs})
}

#[test]
fn outputs_are_shown_or_told() {
    let folder = Folder::new();
    let chart =
        json!({"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "title": "a </script> b"});
    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"><text>picture</text></svg>";
    let cells = json!([
        {"cell_type": "markdown", "source": ["# A title\n", "\n", "Text & <b>more</b>.\n\n## Part\n\n![lost](no.png)"]},
        code("let a = \"<\"; // seen", Some(1), json!([
            {"output_type": "stream", "name": "stdout", "text": ["one\n", "\u{1b}[31mtwo\u{1b}[0m\n"]},
            {"output_type": "display_data", "metadata": {}, "data": {"text/plain": "x", "text/html": "<i>as it is</i>"}},
            {"output_type": "display_data", "metadata": {}, "data": {"text/html": "<img src=\"https://far.away/a.png\">"}},
            {"output_type": "display_data", "metadata": {}, "data": {
                "application/vnd.vegalite.v5+json": chart, "image/svg+xml": [svg], "text/plain": "A figure"}},
            {"output_type": "display_data", "metadata": {}, "data": {"application/x-unknown": "1"}},
        ])),
        code("fail()", Some(2), json!([
            {"output_type": "error", "ename": "Error", "evalue": "bad", "traceback": ["\u{1b}[1mError\u{1b}[0m: bad <T>"]}])),
        code("later()", None, json!([])),
    ]);
    let path = folder.write("a.ipynb", notebook(cells).to_string());
    let report = Report::of(&path).unwrap();
    let html = report.html();
    let page = page(html);
    for part in [
        "<h1>A title</h1>",
        "Text &amp; <b>more</b>.",
        ">Part</h2>",
        "<span class=\"k\">let</span> a = <span class=\"s\">&quot;&lt;&quot;</span>",
        "<i>as it is</i>",
        "<span style=\"color:#d1453b\">two</span>",
        "<div class=\"picture\" role=\"img\" aria-label=\"A figure\"><svg xmlns=\"http://www.w3.org/2000/svg\"><text>picture</text></svg></div>",
        "<span style=\"font-weight:600\">Error</span>: bad &lt;T&gt;",
        "\"title\":\"a \\u003c/script> b\"",
        "Who made the outputs is not noted",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(html.contains("vegaEmbed"));
    for sentence in [
        "the image no.png is not in this report: there is no such file beside the notebook",
        "https://far.away/a.png is not in this report, which loads nothing from elsewhere",
        "an output is not shown: a page cannot hold application/x-unknown",
        "code cell 2 ended in an error",
        "code cell 3 was not run",
    ] {
        assert!(
            report.warnings().iter().any(|warning| warning == sentence),
            "{sentence}: {:?}",
            report.warnings()
        );
        assert!(page.contains(&escaped(sentence)), "{sentence}");
    }

    let empty = folder.write("b.ipynb", notebook(json!([code("1", None, json!([]))])).to_string());
    let output = lowbit().args(["report", &empty]).output().unwrap();
    assert!(output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("warning: this notebook has no outputs"), "{told}");
    let html = fs::read_to_string(folder.at("b.html")).unwrap();
    assert!(html.contains("<h1>b</h1>"));
    assert!(!html.contains("vegaEmbed="), "Vega is put into no page without its charts");
}

#[test]
fn what_is_neither_run_nor_notebook_gets_one_sentence() {
    let folder = Folder::new();
    let (text, other) = (folder.write("text.txt", TEXT), folder.write("a.ipynb", "{\"a\": 1}"));
    let old = folder.write("old.ipynb", "{\"worksheets\": []}");
    fs::create_dir(folder.at("training")).unwrap();
    fs::write(folder.at("training/log.jsonl"), "").unwrap();
    for (what, code, part) in [
        ("stagde", 2, "stagde: no such run, nor one of that name in"),
        ("notebooks/07-none.ipynb", 3, "no such file or folder"),
        (text.as_str(), 2, "not JSON"),
        (other.as_str(), 2, "this is no notebook: it has no list of cells"),
        (old.as_str(), 2, "nbconvert --to notebook"),
        (&folder.text("training"), 2, "a training has no report"),
    ] {
        let (found, sentence) = refused(&["report", what]);
        assert!(found == code && sentence.contains(part), "{what}: {sentence}");
    }
    let nowhere = folder.text("no/such/folder/a.html");
    let (code, sentence) = refused(&["report", "notebooks/01-first-look.ipynb", "--out", &nowhere]);
    assert!(code == 3 && sentence.contains("no such file or folder"), "{sentence}");
}
