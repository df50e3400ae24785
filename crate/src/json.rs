//! Model configurations in JSON, as they are found and as they are written: Python has `Infinity` and `NaN`, which JSON
//! does not know.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::path::Path;

/// The key of the object that stands for a number which JSON cannot write: `{"__float__": "Infinity"}`.
/// Newer writers use it in files; [`parse`] uses it for the bare words.
pub const FLOAT: &str = "__float__";

/// What model configurations call their number of layers.
pub const LAYERS: [&str; 3] = ["num_hidden_layers", "n_layer", "n_layers"];

/// Reads a JSON file, bare `Infinity`, `-Infinity` and `NaN` allowed, and a byte order mark at its beginning.
///
/// # Errors
/// The file cannot be read or is not JSON; then the sentence gives line and column.
pub fn read(path: impl AsRef<Path>) -> Result<Value> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        Error::input(format!("not JSON: the byte at offset {offset} is not UTF-8")).at(path.display())
    })?;
    parse(text.strip_prefix('\u{feff}').unwrap_or(&text)).map_err(|e| e.at(path.display()))
}

/// Parses JSON text in which numbers may also be the bare words `Infinity`, `-Infinity` and `NaN`; each becomes
/// `{"__float__": …}`, which [`float`] reads.
///
/// # Errors
/// The text is not JSON otherwise; the sentence gives line and column.
pub fn parse(text: &str) -> Result<Value> {
    // Digits as wide as the words keep every column where the reader of the message will find it.
    let same_width = replace_words(text, |word| "1".repeat(word.len()));
    let value: Value = serde_json::from_str(&same_width).map_err(|e| {
        // serde_json ends its message with the position, which ours puts in front.
        let (line, column) = (e.line(), e.column());
        let message = e.to_string();
        let what = message.split(" at line ").next().unwrap_or(&message);
        Error::input(format!("not JSON: {what}")).at(format!("line {line}, column {column}"))
    })?;
    match same_width {
        Cow::Borrowed(_) => Ok(value),
        Cow::Owned(_) => {
            serde_json::from_str(&replace_words(text, |word| format!(r#"{{"{FLOAT}":"{word}"}}"#)))
                .map_err(|e| Error::internal(format!("JSON was valid only without its bare words: {e}")))
        }
    }
}

/// The number that a JSON value stands for: a number, a string such as `"Infinity"` or `"-inf"`, or
/// `{"__float__": "Infinity"}`. `null` and everything else is `None`.
pub fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Object(fields) => fields.get(FLOAT).and_then(float),
        _ => None,
    }
}

/// The JSON value of a number, whether JSON can write it or not; the reverse of [`float`].
pub fn number(x: f64) -> Value {
    match x {
        x if x.is_finite() => x.into(),
        x if x.is_nan() => json!({ FLOAT: "NaN" }),
        x => json!({ FLOAT: if x > 0.0 { "Infinity" } else { "-Infinity" } }),
    }
}

/// JSON text as Python's library writes it, indented, with the bare words for what [`number`] gives: every version of
/// transformers reads these, only the newest the objects.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    print(value, 0, &mut out);
    out + "\n"
}

fn print(value: &Value, depth: usize, out: &mut String) {
    let line = |depth: usize| format!("\n{}", "  ".repeat(depth));
    match value {
        Value::Object(fields) if fields.len() == 1 && fields.get(FLOAT).is_some_and(is_word) => {
            out.push_str(fields[FLOAT].as_str().unwrap_or_default());
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (i, (key, value)) in fields.iter().enumerate() {
                let start = if i == 0 { "{" } else { "," };
                out.push_str(&format!("{start}{}{}: ", line(depth + 1), json!(key)));
                print(value, depth + 1, out);
            }
            out.push_str(&(line(depth) + "}"));
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, value) in items.iter().enumerate() {
                let start = if i == 0 { "[" } else { "," };
                out.push_str(&format!("{start}{}", line(depth + 1)));
                print(value, depth + 1, out);
            }
            out.push_str(&(line(depth) + "]"));
        }
        plain => out.push_str(&plain.to_string()),
    }
}

fn is_word(value: &Value) -> bool {
    value.as_str().is_some_and(|text| WORDS.contains(&text))
}

/// Python's words for the numbers that JSON cannot write.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Replaces the bare words outside of strings.
fn replace_words(text: &str, with: impl Fn(&str) -> String) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let in_word = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || b"_-+.".contains(b));
    let (mut out, mut copied) = (String::new(), 0);
    let (mut at, mut quoted) = (0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quoted => at += 1, // whatever follows, a quote too, is part of the string
            b'"' => quoted = !quoted,
            b'-' | b'I' | b'N' if !quoted && !in_word(at.checked_sub(1).and_then(|i| bytes.get(i))) => {
                let found = WORDS.iter().find(|word| bytes[at..].starts_with(word.as_bytes()));
                if let Some(word) = found.filter(|word| !in_word(bytes.get(at + word.len()))) {
                    out.push_str(&text[copied..at]);
                    out.push_str(&with(word));
                    copied = at + word.len();
                    at = copied;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn infinity_is_read_in_every_spelling() {
        let text = r#"{"bare": [0.0, Infinity], "minus":-Infinity,"nan": NaN, "null": null,
            "new": {"__float__": "Infinity"}, "text": "-inf", "plain": 0.5}"#;
        let value = parse(text).unwrap();
        assert_eq!(float(&value["bare"][1]), Some(f64::INFINITY));
        assert_eq!(float(&value["bare"][0]), Some(0.0));
        assert_eq!(float(&value["minus"]), Some(f64::NEG_INFINITY));
        assert!(float(&value["nan"]).unwrap().is_nan());
        assert_eq!(float(&value["null"]), None);
        assert_eq!(float(&value["new"]), Some(f64::INFINITY));
        assert_eq!(float(&value["text"]), Some(f64::NEG_INFINITY));
        assert_eq!(float(&value["plain"]), Some(0.5));
        assert_eq!(float(&value["absent"]), None);
    }

    #[test]
    fn words_inside_strings_stay() {
        let text = r#"{"NaN": "say \"Infinity\", NaN \\", "x": NaN, "y": "-Infinity"}"#;
        let value = parse(text).unwrap();
        assert_eq!(value["NaN"], r#"say "Infinity", NaN \"#);
        assert_eq!(value["y"], "-Infinity");
        assert!(float(&value["x"]).unwrap().is_nan());
        for bad in
            [r#"{"x": Infinityy}"#, r#"{"x": 1Infinity}"#, r#"{"x": --Infinity}"#, "{NaN: 1}", r#"["a"#]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "\u{feff}{\"a\": Infinity}").unwrap();
        assert_eq!(float(&read(&path).unwrap()["a"]), Some(f64::INFINITY));
        std::fs::write(&path, "\u{feff}{\"a\"}").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 1, column 5: not JSON"));
    }

    #[test]
    fn errors_point_at_line_and_column_of_the_file() {
        let error = parse("{\n  \"a\": Infinity, oops\n}").unwrap_err().to_string();
        assert!(error.starts_with("line 2, column 18: not JSON: "), "{error}");
        assert!(read("/nowhere/config.json").unwrap_err().to_string().ends_with("no such file or folder"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let limits = [0.0, f64::INFINITY, f64::NEG_INFINITY, 1e-5].map(number);
        let value =
            json!({"limit": limits, "empty": [{}, []], "text": "a \"b\"\n", "none": null, "yes": true});
        let written = text(&value);
        assert!(written.contains("\n    0.0,\n    Infinity,\n    -Infinity,\n"), "{written}");
        assert_eq!(parse(&written).unwrap(), value);
        assert!(float(&parse(&text(&number(f64::NAN))).unwrap()).unwrap().is_nan());
    }

    proptest! {
        #[test]
        fn plain_json_is_read_as_it_is(text in "[-INaftinyN\"\\\\ é,]{0,40}", number: i64) {
            let value = serde_json::json!({ "text": text, &text: [number, text], });
            prop_assert_eq!(&parse(&value.to_string()).unwrap(), &value);
            prop_assert_eq!(parse(&super::text(&value)).unwrap(), value);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-INaftinyN\"\\\\ é,:{}\\[\\]]{0,60}") {
            let _ = parse(&text);
        }
    }
}
