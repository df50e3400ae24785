//! What requests are answered with, as Jupyter's messages hold it.

use crate::session::{Session, Shown};
use jupyter_protocol::messaging::*;
use jupyter_protocol::{Media, MediaType};
use serde_json::json;

/// Content by MIME type as a message holds it.
pub fn media(parts: &Shown) -> Media {
    // What is JSON goes as JSON, not as text that holds it.
    let value = |mime: &str, content: &str| match mime.ends_with("json") {
        true => serde_json::from_str(content).unwrap_or_else(|_| json!(content)),
        false => json!(content),
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
