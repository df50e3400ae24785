//! Markdown as HTML, with its images inside.

use crate::report::made::text;
use data_encoding::BASE64;
use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};
use serde_json::Value;
use std::path::Path;

/// What became of a piece of Markdown.
#[derive(Default)]
pub(super) struct Rendered {
    pub html: String,
    /// The text of a first-level heading that it begins with; the page shows that.
    pub title: Option<String>,
    /// Ids and texts of the second-level headings.
    pub headings: Vec<(String, String)>,
    /// What is not shown as it was meant, one sentence each.
    pub warnings: Vec<String>,
}

/// Renders Markdown whose images lie in `folder` or are `attachments` of its cell. Ids of headings begin with `prefix`.
pub(super) fn render(source: &str, folder: &Path, attachments: &Value, prefix: &str) -> Rendered {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_MATH;
    let mut done = Rendered::default();
    let mut events: Vec<Event> = vec![];
    // The heading that is open: where it began, its level, its text.
    let mut heading: Option<(usize, HeadingLevel, String)> = None;
    // Whether the image that is open has become a link.
    let mut linked = false;
    for event in Parser::new_ext(source, options) {
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                heading = Some((events.len(), level, String::new()));
                events.push(event);
            }
            Event::End(TagEnd::Heading(_)) => {
                events.push(event);
                let Some((at, level, text)) = heading.take() else { continue };
                if at == 0 && level == HeadingLevel::H1 && done.title.is_none() {
                    done.title = Some(text);
                    events.clear();
                } else if level == HeadingLevel::H2 {
                    let name = format!("{prefix}-{}", done.headings.len() + 1);
                    if let Event::Start(Tag::Heading { id, .. }) = &mut events[at] {
                        *id = Some(name.clone().into());
                    }
                    done.headings.push((name, text));
                }
            }
            Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
                match image(&dest_url, folder, attachments) {
                    Ok(data) => {
                        events.push(Event::Start(Tag::Image { link_type, dest_url: data.into(), title, id }));
                    }
                    Err(why) => {
                        linked = true;
                        done.warnings.push(format!("the image {dest_url} is not in this report: {why}"));
                        events.push(Event::Start(Tag::Link { link_type, dest_url, title, id }));
                    }
                }
            }
            Event::End(TagEnd::Image) if linked => {
                linked = false;
                events.push(Event::End(TagEnd::Link));
            }
            Event::Html(ref raw) | Event::InlineHtml(ref raw) => {
                done.warnings.extend(outside(raw));
                events.push(event);
            }
            event => {
                if let (Some((_, _, text)), Event::Text(part) | Event::Code(part)) = (&mut heading, &event) {
                    text.push_str(part);
                }
                events.push(event);
            }
        }
    }
    html::push_html(&mut done.html, events.into_iter());
    done
}

/// An image as a `data:` address; else why there is none.
fn image(address: &CowStr, folder: &Path, attachments: &Value) -> Result<String, String> {
    if address.starts_with("data:") {
        return Ok(address.to_string());
    }
    if let Some(name) = address.strip_prefix("attachment:") {
        let data = attachments[name].as_object().and_then(|data| data.iter().next());
        let (kind, data) = data.ok_or("its cell has no such attachment")?;
        return Ok(format!("data:{kind};base64,{}", text(data).replace(char::is_whitespace, "")));
    }
    if address.contains("://") || address.starts_with("//") {
        return Err("a report loads nothing from elsewhere".into());
    }
    let end = address.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let kind = match end.as_str() {
        "png" | "gif" | "webp" | "avif" => end.as_str(),
        "jpg" | "jpeg" => "jpeg",
        "svg" => "svg+xml",
        _ => return Err("no image is known by the end of this name".into()),
    };
    let bytes = std::fs::read(folder.join(address.replace("%20", " ")))
        .map_err(|_| "there is no such file beside the notebook".to_string())?;
    Ok(format!("data:image/{kind};base64,{}", BASE64.encode(&bytes)))
}

/// What HTML asks for that is not in it, and that a report does not load: a sentence each.
pub(super) fn outside(html: &str) -> Vec<String> {
    let mut found = vec![];
    for (before, after) in [("src=\"", '"'), ("src='", '\''), ("url(", ')'), ("@import \"", '"')] {
        for part in html.split(before).skip(1) {
            let address = part.split(after).next().unwrap_or_default().trim_matches(['"', '\'']);
            let within = ["data:", "#", "blob:"].iter().any(|start| address.starts_with(start));
            let sentence = format!("{address} is not in this report, which loads nothing from elsewhere");
            if !within && !address.is_empty() && !found.contains(&sentence) {
                found.push(sentence);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(source: &str) -> Rendered {
        let attachments = json!({"a.png": {"image/png": "QUJD\n"}});
        render(source, Path::new("/nowhere"), &attachments, "h")
    }

    #[test]
    fn a_first_heading_is_the_title_and_second_ones_are_linked() {
        let done = of("# A `b` c\n\nText.\n\n## One\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n# Other\n\n## Two");
        assert_eq!(done.title.as_deref(), Some("A b c"));
        assert_eq!(done.headings, [("h-1".into(), "One".into()), ("h-2".into(), "Two".to_string())]);
        assert!(!done.html.contains("A <code>") && done.html.contains("<h2 id=\"h-1\">One</h2>"));
        assert!(done.html.contains("<table>") && done.html.contains("<h1>Other</h1>"), "{}", done.html);
        assert_eq!(of("Text.\n\n# Later").title, None);
    }

    #[test]
    fn images_are_inside_or_told() {
        let done = of("![own](attachment:a.png) ![far](https://x.y/z.png) ![lost](z.png)");
        assert!(done.html.contains("<img src=\"data:image/png;base64,QUJD\" alt=\"own\""), "{}", done.html);
        assert!(done.html.contains("<a href=\"https://x.y/z.png\">far</a>"), "{}", done.html);
        assert_eq!(done.warnings.len(), 2, "{:?}", done.warnings);
        assert!(done.warnings[1].contains("z.png") && done.warnings[1].contains("no such file"));
        assert_eq!(of("a <img src=\"x.png\"> b").warnings.len(), 1);
        assert!(outside("<img src='data:x'><b style=\"background:url(#a)\">").is_empty());
    }
}
