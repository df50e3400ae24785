//! What requests are answered with, as Jupyter's messages hold it.

use crate::session::{Session, Shown};
use jupyter_protocol::messaging::*;
use jupyter_protocol::{Media, MediaType};
use serde_json::json;

/// Content by MIME type as a message holds it: text, and objects where the type is one of JSON.
pub fn media(parts: &Shown) -> Media {
    let value = |mime: &str, content: &str| {
        let parsed = mime.ends_with("+json").then(|| serde_json::from_str(content).ok()).flatten();
        parsed.unwrap_or_else(|| json!(content))
    };
    let json: serde_json::Map<String, serde_json::Value> =
        parts.iter().map(|(mime, content)| (mime.clone(), value(mime, content))).collect();
    let text = || MediaType::Plain(parts.get("text/plain").cloned().unwrap_or_default());
    serde_json::from_value(json.into()).unwrap_or_else(|_| Media::new(vec![text()]))
}

/// What may stand at the cursor.
pub fn complete(session: &mut Session, asked: &CompleteRequest) -> CompleteReply {
    let position = byte_at(&asked.code, asked.cursor_pos);
    let (start, end, found) = session.completions(&asked.code, position);
    let characters = |byte: usize| asked.code[..byte.min(asked.code.len())].chars().count();
    let (cursor_start, cursor_end) = (characters(start), characters(end));
    let kinds: Vec<_> = found
        .iter()
        .map(|(text, kind)| json!({"start": cursor_start, "end": cursor_end, "text": text, "type": kind}))
        .collect();
    let mut metadata = serde_json::Map::new();
    metadata.insert("_jupyter_types_experimental".into(), kinds.into());
    let mut matches: Vec<String> = found.into_iter().map(|(text, _)| text).collect();
    matches.dedup();
    CompleteReply { matches, cursor_start, cursor_end, metadata, ..CompleteReply::default() }
}

/// What is known of the expression at the cursor.
pub fn inspect(session: &mut Session, asked: &InspectRequest) -> InspectReply {
    let position = byte_at(&asked.code, asked.cursor_pos);
    match session.inspect(&asked.code, position) {
        Some((text, html)) => {
            let parts = [("text/plain".to_string(), text), ("text/html".to_string(), html)];
            InspectReply { found: true, data: media(&parts.into()), ..InspectReply::default() }
        }
        None => InspectReply::default(),
    }
}

/// Jupyter counts characters, evcxr bytes.
fn byte_at(code: &str, characters: usize) -> usize {
    code.char_indices().nth(characters).map_or(code.len(), |(byte, _)| byte)
}

/// Whether a console should run what was typed: brackets, quotes and statements are closed.
pub fn is_complete(code: &str) -> IsCompleteReply {
    let code = &code[crate::cell::code_begins(code)..];
    let (status, depth) = match crate::cell::brackets(code) {
        Err(()) => (IsCompleteReplyStatus::Invalid, 0),
        Ok(0) => (IsCompleteReplyStatus::Complete, 0),
        Ok(depth) => (IsCompleteReplyStatus::Incomplete, depth),
    };
    IsCompleteReply::new(status, "    ".repeat(depth))
}

/// What this kernel is.
pub fn about() -> KernelInfoReply {
    KernelInfoReply {
        status: ReplyStatus::Ok,
        protocol_version: "5.3".into(),
        implementation: "lowbit".into(),
        implementation_version: env!("CARGO_PKG_VERSION").into(),
        language_info: LanguageInfo {
            name: "rust".into(),
            version: String::new(),
            mimetype: Some("text/rust".into()),
            file_extension: Some(".rs".into()),
            pygments_lexer: Some("rust".into()),
            codemirror_mode: Some(CodeMirrorMode::Simple("rust".into())),
            nbconvert_exporter: Some("script".into()),
        },
        banner: "lowbit: a research lab for low-bit sequence models".into(),
        help_links: vec![],
        debugger: false,
        error: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_json_are_objects_and_others_texts() {
        let vega = "application/vnd.vegalite.v5+json";
        let parts = [(vega, r#"{"mark":"bar"}"#), ("text/plain", r#"{"a":1}"#)];
        let parts = parts.map(|(mime, content)| (mime.to_string(), content.to_string()));
        let sent = serde_json::to_value(media(&parts.into())).unwrap();
        assert_eq!(sent, json!({vega: {"mark": "bar"}, "text/plain": r#"{"a":1}"#}));
    }
}
