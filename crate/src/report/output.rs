//! The outputs of a cell: the richest form of each that a page can hold.

use super::made::text;
use super::page::Page;
use super::{ansi, markdown};
use crate::display::html::escape;
use data_encoding::BASE64;
use serde_json::Value;
use std::path::Path;

/// The outputs as HTML; what is not shown as it was meant becomes a warning of the page.
pub(super) fn html(outputs: &[Value], folder: &Path, page: &mut Page) -> String {
    outputs.iter().map(|output| one(output, folder, page)).collect()
}

fn one(output: &Value, folder: &Path, page: &mut Page) -> String {
    let shown = match output["output_type"].as_str().unwrap_or_default() {
        "stream" => {
            let name = if output["name"] == "stderr" { " stderr" } else { "" };
            format!("<pre class=\"stream{name}\">{}</pre>", ansi::html(&text(&output["text"])))
        }
        "error" => {
            let lines: Vec<&str> =
                output["traceback"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let told = match lines.is_empty() {
                true => format!("{}: {}", text(&output["ename"]), text(&output["evalue"])),
                false => lines.join("\n"),
            };
            format!("<pre class=\"failure\">{}</pre>", ansi::html(&told))
        }
        "display_data" | "execute_result" => data(&output["data"], folder, page),
        other => {
            page.warnings.push(format!("an output of the unknown kind `{other}` is not shown"));
            String::new()
        }
    };
    if shown.is_empty() { shown } else { format!("<div class=\"out\">{shown}</div>\n") }
}

/// A value in several MIME types.
fn data(data: &Value, folder: &Path, page: &mut Page) -> String {
    let of = |kind: &str| data.get(kind).filter(|content| !content.is_null());
    let plain = of("text/plain").map(text).unwrap_or_default();
    let picture = picture(data, &plain);
    let chart = data.as_object().into_iter().flatten().find(|(kind, chart)| {
        let known = ["application/vnd.vegalite.v5", "application/vnd.vega.v5"];
        known.iter().any(|start| kind.starts_with(start)) && chart.is_object()
    });
    if let Some((_, chart)) = chart {
        let picture = picture.unwrap_or_else(|| format!("<pre>{}</pre>", escape(&plain)));
        return page.figure(&picture, &plain, Some(chart));
    }
    if let Some(html) = of("text/html").map(text) {
        page.warnings.extend(markdown::outside(&html));
        return html;
    }
    if let Some(picture) = picture {
        return page.figure(&picture, &plain, None);
    }
    if let Some(source) = of("text/markdown").map(text) {
        let done = markdown::render(&source, folder, &Value::Null, "output");
        page.warnings.extend(done.warnings);
        return done.title.map_or_else(String::new, |title| format!("<h1>{}</h1>", escape(&title)))
            + &done.html;
    }
    for kind in ["text/plain", "text/latex", "application/json"] {
        if let Some(content) = of(kind) {
            let shown = if kind == "application/json" { format!("{content:#}") } else { text(content) };
            return format!("<pre>{}</pre>", ansi::html(&shown));
        }
    }
    let kinds: Vec<&str> = data.as_object().into_iter().flatten().map(|(kind, _)| kind.as_str()).collect();
    if !kinds.is_empty() {
        page.warnings.push(format!("an output is not shown: a page cannot hold {}", kinds.join(", ")));
    }
    String::new()
}

/// The sharpest picture among the types.
fn picture(data: &Value, about: &str) -> Option<String> {
    let about = escape(about);
    if let Some(svg) = data.get("image/svg+xml").map(text) {
        // Names and styles in it would be those of the whole page.
        let apart = ["id=", "<style", "<script", "href"].iter().any(|part| svg.contains(part));
        return Some(match (svg.find("<svg"), apart) {
            (Some(start), false) => svg[start..].to_string(),
            _ => {
                let svg = BASE64.encode(svg.as_bytes());
                format!("<img alt=\"{about}\" src=\"data:image/svg+xml;base64,{svg}\">")
            }
        });
    }
    ["png", "jpeg", "gif", "webp"].into_iter().find_map(|kind| {
        let bytes = text(data.get(format!("image/{kind}"))?).replace(char::is_whitespace, "");
        Some(format!("<img alt=\"{about}\" src=\"data:image/{kind};base64,{bytes}\">"))
    })
}
