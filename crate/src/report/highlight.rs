//! Rust in colours: keywords, texts, numbers, comments, types, macros.

use crate::display::html::escape;

const KEYWORDS: &[&str] = &[
    "as", "async", "await", "break", "const", "continue", "crate", "dyn", "else", "enum", "extern", "false",
    "fn", "for", "if", "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub", "ref", "return",
    "self", "Self", "static", "struct", "super", "trait", "true", "type", "unsafe", "use", "where", "while",
];

/// The code as HTML.
pub(super) fn rust(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let (length, class) = token(rest, first);
        let (text, after) = rest.split_at(length);
        let text = escape(text);
        out += &if class.is_empty() { text } else { format!("<span class=\"{class}\">{text}</span>") };
        rest = after;
    }
    out
}

/// The length of the token that `code` begins with, and its class.
fn token(code: &str, first: char) -> (usize, &'static str) {
    let while_ = |of: fn(char) -> bool| code.find(|c| !of(c)).unwrap_or(code.len());
    let word = |c: char| c.is_alphanumeric() || c == '_';
    match first {
        _ if code.starts_with("//") => (code.find('\n').unwrap_or(code.len()), "c"),
        _ if code.starts_with("/*") => (comment(code), "c"),
        '"' => (text(code, 1), "s"),
        '\'' => quoted(code),
        _ if first.is_ascii_digit() => {
            let mut length = while_(|c| c.is_alphanumeric() || c == '_' || c == '.');
            // A range and a method are none of the number.
            for end in ["..", "."] {
                let at = code[..length].find(end);
                let part = |at: usize| end == ".." || code[at + 1..].starts_with(|c: char| c.is_alphabetic());
                length = at.filter(|at| part(*at)).unwrap_or(length);
            }
            (length.max(1), "d")
        }
        _ if word(first) => {
            let length = while_(|c| c.is_alphanumeric() || c == '_');
            let (name, after) = code.split_at(length);
            match name {
                "r" | "b" | "br" if after.starts_with(['"', '#']) => raw(code, length),
                name if KEYWORDS.contains(&name) => (length, "k"),
                _ if after.starts_with('!') && !after.starts_with("!=") => (length + 1, "m"),
                _ if first.is_uppercase() => (length, "t"),
                _ => (length, ""),
            }
        }
        _ => (first.len_utf8(), ""),
    }
}

/// The length of a comment in which comments may stand.
fn comment(code: &str) -> usize {
    let (mut at, mut depth) = (0, 0);
    while let Some(found) = code[at..].find(['/', '*']) {
        at += found;
        match &code[at..] {
            part if part.starts_with("/*") => (depth, at) = (depth + 1, at + 2),
            part if part.starts_with("*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// The length of a text whose content begins at `from`.
fn text(code: &str, from: usize) -> usize {
    let mut escaped = false;
    let end = code[from..].char_indices().find(|(_, c)| {
        let ends = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map_or(code.len(), |(at, _)| from + at + 1)
}

/// A text after `prefix` bytes of `r`, `b` or `br`; a raw name (`r#type`) is none.
fn raw(code: &str, prefix: usize) -> (usize, &'static str) {
    let hashes = code[prefix..].bytes().take_while(|byte| *byte == b'#').count();
    let from = prefix + hashes;
    match code[from..].starts_with('"') {
        false => (from, ""),
        true if hashes == 0 && code.starts_with('b') && prefix == 1 => (text(code, from + 1), "s"),
        true => {
            let end = format!("\"{}", "#".repeat(hashes));
            (code[from + 1..].find(&end).map_or(code.len(), |at| from + 1 + at + end.len()), "s")
        }
    }
}

/// A character, or a lifetime.
fn quoted(code: &str) -> (usize, &'static str) {
    let mut letters = code.char_indices().skip(1);
    match (letters.next(), letters.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let from = at + escaped.len_utf8();
            (code[from..].find('\'').map_or(1, |at| from + at + 1), "s")
        }
        (Some(_), Some((at, '\''))) => (at + 1, "s"),
        _ => (1, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rust_has_its_colours() {
        for (code, html) in [
            ("let x = 1.5;", "<span class=\"k\">let</span> x = <span class=\"d\">1.5</span>;"),
            ("0..10", "<span class=\"d\">0</span>..<span class=\"d\">10</span>"),
            ("2.max(3)", "<span class=\"d\">2</span>.max(<span class=\"d\">3</span>)"),
            (
                "df!(\"a\\\"<\")",
                "<span class=\"m\">df!</span>(<span class=\"s\">&quot;a\\&quot;&lt;&quot;</span>)",
            ),
            ("r#\"a\"b\"#;", "<span class=\"s\">r#&quot;a&quot;b&quot;#</span>;"),
            (
                "&'a T '\\n' 'x'",
                "&amp;'a <span class=\"t\">T</span> <span class=\"s\">'\\n'</span> <span class=\"s\">'x'</span>",
            ),
            (
                "/* a /* b */ */ // c",
                "<span class=\"c\">/* a /* b */ */</span> <span class=\"c\">// c</span>",
            ),
        ] {
            assert_eq!(rust(code), html);
        }
    }

    proptest! {
        #[test]
        fn every_character_stays(code in "[a-zA-Z0-9_\"'#/*\\\\.!<&é \n]{0,40}") {
            let html = rust(&code);
            let mut plain = String::new();
            let mut inside = false;
            for c in html.chars() {
                match c {
                    '<' => inside = true,
                    '>' if inside => inside = false,
                    c if !inside => plain.push(c),
                    _ => {}
                }
            }
            prop_assert_eq!(plain, escape(&code));
        }
    }
}
