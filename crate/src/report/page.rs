//! The page: head, style, sections, and what makes its figures interactive.

use crate::display::html::{escape, table_script};
use data_encoding::BASE64;
use serde_json::Value;

/// How the element begins that says what made the page.
pub(super) const GENERATOR: &str = "<meta name=\"generator\" content=\"lowbit";

/// What browsers are told to allow: what is in the file, and nothing else. Vega compiles its expressions.
const POLICY: &str = "default-src 'none'; img-src data:; font-src data:; media-src data:; style-src 'unsafe-inline'; \
    script-src 'unsafe-inline' 'unsafe-eval'";

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");

/// The fonts of the figures, which name them.
const FONTS: [(u16, &[u8]); 2] = [
    (400, include_bytes!("../../assets/fonts/Inter-Regular.otf")),
    (600, include_bytes!("../../assets/fonts/Inter-SemiBold.otf")),
];

/// What draws interactive figures, in the order in which the files need one another.
const VEGA: [&str; 3] = [
    include_str!("../../assets/vega/vega.min.js"),
    include_str!("../../assets/vega/vega-lite.min.js"),
    include_str!("../../assets/vega/vega-embed.min.js"),
];

/// Their licences, which go with them.
const LICENSES: &str = include_str!("../../assets/vega/LICENSES");

/// A page under construction.
#[derive(Default)]
pub(super) struct Page {
    pub title: String,
    /// What it is a page of, above the title.
    pub kind: String,
    /// HTML below the title.
    pub lead: String,
    /// One sentence each.
    pub warnings: Vec<String>,
    /// Links to the parts: id and text.
    pub contents: Vec<(String, String)>,
    /// HTML of the rest.
    pub body: String,
    /// Whether there is a figure for Vega.
    pub interactive: bool,
    /// Whether there is code that can be hidden.
    pub code: bool,
}

impl Page {
    /// Adds a part with a heading, which the contents link to.
    pub fn section(&mut self, title: &str, html: &str) {
        let id = format!("part-{}", self.contents.len() + 1);
        self.body += &format!("<section id=\"{id}\">\n<h2>{}</h2>\n{html}\n</section>\n", escape(title));
        self.contents.push((id, title.to_string()));
    }

    /// A picture, what it is of in words, and what Vega draws in its place where scripts run. `picture` is HTML.
    pub fn figure(&mut self, picture: &str, about: &str, chart: Option<&Value>) -> String {
        let chart = chart.map_or_else(String::new, |chart| {
            self.interactive = true;
            format!("<script type=\"application/json\" class=\"chart\">{}</script>", data(chart))
        });
        let about = escape(about);
        format!(
            "<figure><div class=\"picture\" role=\"img\" aria-label=\"{about}\">{picture}</div>{chart}</figure>\n"
        )
    }

    /// The whole file.
    pub fn html(&self) -> String {
        let fonts: String = FONTS
            .iter()
            .map(|(weight, font)| {
                format!(
                    "@font-face{{font-family:Inter;font-weight:{weight};src:url(data:font/otf;base64,{})}}\n",
                    BASE64.encode(font)
                )
            })
            .collect();
        let vega: String = match self.interactive {
            true => {
                let programs: String = VEGA.into_iter().map(program).collect();
                format!("<!-- What draws the charts, and its licences:\n\n{LICENSES}-->\n{programs}")
            }
            false => String::new(),
        };
        let warnings: String =
            self.warnings.iter().map(|text| format!("<li>{}</li>", escape(text))).collect();
        let warnings = match warnings.is_empty() {
            true => String::new(),
            false => {
                format!("<aside class=\"warnings\"><b>To be known</b><ul>{warnings}</ul></aside>\n")
            }
        };
        let links: String = self
            .contents
            .iter()
            .map(|(id, text)| format!("<a href=\"#{id}\">{}</a>", escape(text)))
            .collect();
        let hide = "<button type=\"button\" id=\"hide-code\" hidden>Hide code</button>";
        let hide = if self.code { hide } else { "" };
        let title = escape(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n{GENERATOR} {version} report\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
             <style>\n{fonts}{STYLE}</style>\n</head>\n<body>\n<header>\n<p class=\"kind\">{kind}</p>\n\
             <h1>{title}</h1>\n{lead}</header>\n{warnings}<nav>{links}{hide}</nav>\n<main>\n{body}</main>\n\
             {vega}{script}</body>\n</html>\n",
            version = env!("CARGO_PKG_VERSION"),
            kind = escape(&self.kind),
            lead = self.lead,
            body = self.body,
            script = program(&format!("{SCRIPT}{}(\"report\",null,0,1e9);\n", table_script())),
        )
    }
}

/// JSON in a `script` element, which `<` may not end; it stands in texts only.
fn data(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

/// A program in a `script` element, which a text in it may not end.
fn program(text: &str) -> String {
    format!("<script>\n{}</script>\n", text.replace("</script", "<\\/script"))
}

/// Characters of a cell that stay in one line.
const LONG: usize = 40;

/// A table with sortable columns. A column is a heading, its second line, and whether it holds numbers.
pub(super) fn table(columns: &[(String, String, bool)], rows: &[Vec<String>], notes: &[String]) -> String {
    let side = |numeric: bool| if numeric { " class=\"n\"" } else { "" };
    let head: String = columns
        .iter()
        .map(|(name, unit, numeric)| {
            let unit =
                if unit.is_empty() { String::new() } else { format!("<small>{}</small>", escape(unit)) };
            format!("<th scope=\"col\"{}>{}{unit}</th>", side(*numeric), escape(name))
        })
        .collect();
    let cell = |cell: &String, numeric: bool| {
        let class = match (numeric, cell.chars().count() > LONG) {
            (true, _) => " class=\"n\"",
            (false, true) => " class=\"w\"",
            (false, false) => "",
        };
        format!("<td{class}>{}</td>", escape(cell))
    };
    let cells = |row: &Vec<String>| -> String {
        row.iter().zip(columns).map(|(text, (_, _, numeric))| cell(text, *numeric)).collect()
    };
    let body: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", cells(row))).collect();
    let notes: String =
        notes.iter().map(|note| format!("<p class=\"note\">{}</p>\n", escape(note))).collect();
    let table = format!("<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>");
    match rows.is_empty() {
        true => notes,
        // One row alone has no order.
        false if rows.len() == 1 => format!("<div class=\"table\">{table}</div>\n{notes}"),
        false => format!("<div class=\"table\" data-rows=\"report\">{table}</div>\n{notes}"),
    }
}

/// Names with what is to be said of them.
pub(super) fn facts(facts: &[(String, Vec<String>)]) -> String {
    let each = facts.iter().map(|(name, values)| {
        let values: String = values.iter().map(|value| format!("<dd>{}</dd>", escape(value))).collect();
        format!("<div><dt>{}</dt>{values}</div>\n", escape(name))
    });
    format!("<dl class=\"facts\">\n{}</dl>\n", each.collect::<String>())
}
