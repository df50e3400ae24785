//! The few elements that drawings are made of. Styles stand inline, because a front end may drop a style sheet.

use sha2::{Digest, Sha256};

const TABLE: &str = "border-collapse:collapse;font-size:13px;color:inherit;background:transparent";
const LINE: &str = "1px solid rgba(128,128,128,.35)";

/// `text` with the characters that HTML reads as markup replaced.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A column of a table: its name, a second line below it, and whether its cells are numbers.
pub(super) struct Column {
    pub name: String,
    pub below: String,
    pub numeric: bool,
}

/// A table of text. `gap` is the row before which rows were left out, with what to say of them.
pub(super) fn table(columns: &[Column], rows: &[Vec<String>], gap: Option<(usize, String)>) -> String {
    let align = |column: &Column| if column.numeric { "right" } else { "left" };
    let head: String = columns
        .iter()
        .map(|column| {
            let below = match column.below.as_str() {
                "" => String::new(),
                below => {
                    format!("<br><small style=\"opacity:.6;font-weight:normal\">{}</small>", escape(below))
                }
            };
            let style = format!("text-align:{};border-bottom:{LINE};padding:3px 10px", align(column));
            format!("<th style=\"{style}\">{}{below}</th>", escape(&column.name))
        })
        .collect();
    let mut body = String::new();
    for (index, row) in rows.iter().enumerate() {
        if let Some((_, text)) = gap.as_ref().filter(|(at, _)| *at == index) {
            let style = "text-align:center;opacity:.6;padding:2px 10px";
            body += &format!(
                "<tr><td colspan=\"{}\" style=\"{style}\">{}</td></tr>",
                columns.len(),
                escape(text)
            );
        }
        let cells = row.iter().zip(columns).map(|(cell, column)| {
            let style =
                format!("text-align:{};padding:2px 10px;font-variant-numeric:tabular-nums", align(column));
            format!("<td style=\"{style}\">{}</td>", escape(cell))
        });
        body += &format!("<tr>{}</tr>", cells.collect::<String>());
    }
    format!("<table style=\"{TABLE}\"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
}

/// Bytes of rows that a table carries beside those it shows.
const ROOM: usize = 128 << 10;

/// The rows of a table of which some are left out: as many of the first as there is room for.
pub(super) struct Rows {
    json: String,
    carried: usize,
    /// How many the frame has.
    total: usize,
}

impl Rows {
    /// How many rows of so many columns there is room for at most: a cell takes three bytes, its quotes and a comma.
    pub(super) fn most(columns: usize) -> usize {
        ROOM / (3 * columns).max(1)
    }

    pub(super) fn of(total: usize, rows: impl Iterator<Item = Vec<String>>) -> Self {
        let (mut json, mut carried) = (String::new(), 0);
        for row in rows {
            // In a script `</script>` would end it even within a text.
            let row = serde_json::json!(row).to_string().replace('<', "\\u003c");
            if json.len() + row.len() + 2 > ROOM {
                break;
            }
            json += if json.is_empty() { "[" } else { "," };
            json += &row;
            carried += 1;
        }
        json += if json.is_empty() { "[]" } else { "]" };
        Self { json, carried, total }
    }
}

/// A function that makes the tables of a mark sort, filter, page and copy: of its mark, rows that are not shown or `null`,
/// how many there are in all, and how many a page shows.
pub(crate) fn table_script() -> String {
    let lines = include_str!("table.js").lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// A [`table`] that sorts, filters, pages and copies where scripts run. `left_out` are all rows where `rows` are only some;
/// `note`, below the table, says so where scripts do not run.
pub(super) fn lively(
    columns: &[Column],
    rows: &[Vec<String>],
    gap: Option<(usize, String)>,
    left_out: Option<Rows>,
    note: &str,
) -> String {
    let still = table(columns, rows, gap) + note;
    // Where there is no room for more rows than are shown there is nothing to page.
    if rows.len() < 2 || left_out.as_ref().is_some_and(|all| all.carried <= rows.len()) {
        return still;
    }
    let (all, total, size) =
        left_out.map_or(("null".into(), rows.len(), 25), |rows| (rows.json, rows.total, 10));
    // Equal tables have equal names, and each script finds all of them: nothing in an output is random.
    let hash = Sha256::new().chain_update(&still).chain_update(&all).finalize();
    let mark = data_encoding::HEXLOWER.encode(&hash[..8]);
    let call = format!("{}({mark:?},{all},{total},{size})", table_script());
    format!(
        "<div data-rows=\"{mark}\" data-lm-suppress-shortcuts=\"true\">{still}</div><script>{call}</script>"
    )
}

/// A headline with lines of name and value below it.
pub(super) fn card(title: &str, about: &str, lines: &[(String, String)]) -> String {
    let rows = lines.iter().map(|(name, value)| {
        let name =
            format!("<td style=\"text-align:left;padding:1px 14px 1px 0;opacity:.65\">{}</td>", escape(name));
        format!("<tr>{name}<td style=\"text-align:left;padding:1px 0\">{}</td></tr>", escape(value))
    });
    let title = format!("<b>{}</b> <span style=\"opacity:.65\">{}</span>", escape(title), escape(about));
    let rows: String = rows.collect();
    format!(
        "<div style=\"border-left:3px solid #0072b2;padding:2px 12px;color:inherit\">{title}\
         <table style=\"{TABLE};margin:2px 0\">{rows}</table></div>"
    )
}

/// A sentence on what went wrong.
pub(super) fn alarm(text: &str) -> String {
    format!(
        "<div style=\"border-left:3px solid #d55e00;padding:2px 12px;color:inherit\">{}</div>",
        escape(text)
    )
}

/// Small print below something.
pub(super) fn small(text: &str) -> String {
    format!("<div style=\"font-size:12px;opacity:.65;padding:2px 0\">{}</div>", escape(text))
}
