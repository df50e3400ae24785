//! Questions with choices, in JSON Lines.
//!
//! ```json
//! {"query": "The opposite of hot is", "choices": ["cold", "warm", "wet"], "gold": 0}
//! ```
//!
//! The names are those that lm-evaluation-harness gives its documents; what data sets call the same is known too: `context`,
//! `ctx` and `question`; `endings`; `label` and `answer`. `gold` counts from 0. Other fields are left alone.

use super::{file_name, file_stem, sha256};
use crate::error::{Error, Result};
use crate::text;
use serde::Deserialize;
use std::path::Path;

/// The questions of a file, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Questions {
    /// The name of the file.
    pub name: String,
    /// The questions.
    pub all: Vec<Question>,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The file's name without its ending, and the line: `arc:17`.
    pub name: String,
    /// What stands before the choices.
    pub query: String,
    /// The choices: at least two, each with some text.
    pub choices: Vec<String>,
    /// The index of the right one.
    pub gold: usize,
}

#[derive(Deserialize)]
struct Line {
    #[serde(alias = "context", alias = "ctx", alias = "question")]
    query: String,
    #[serde(alias = "endings")]
    choices: Vec<String>,
    #[serde(alias = "label", alias = "answer")]
    gold: usize,
}

impl Questions {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read or is not UTF-8, a line is not a question, or there is none: the sentence gives file and line.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
        let sha256 = sha256(&bytes);
        let text = text::decode(bytes).map_err(|e| e.at(path.display()))?;
        let (stem, mut all) = (file_stem(path), vec![]);
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let number = index + 1;
            let question = question(line).map_err(|e| e.at(format!("line {number}")).at(path.display()))?;
            all.push(Question { name: format!("{stem}:{number}"), ..question });
        }
        match all.is_empty() {
            true => Err(Error::input("there is no question in it").at(path.display())),
            false => Ok(Self { name: file_name(path), all, sha256 }),
        }
    }
}

fn question(line: &str) -> Result<Question> {
    let Line { query, choices, gold } = serde_json::from_str(line).map_err(|e| {
        Error::input(format!("not a JSON object with a question: {e}"))
            .hint(r#"each line looks like {"query": "…", "choices": ["…", "…"], "gold": 0}"#)
    })?;
    let wrong = |what: String| Err(Error::input(what));
    if choices.len() < 2 {
        return wrong(format!("a question needs at least two choices, found {}", choices.len()));
    }
    if let Some(empty) = choices.iter().position(String::is_empty) {
        return wrong(format!("choice {empty} is empty: it has no likelihood"));
    }
    if gold >= choices.len() {
        return wrong(format!("gold is choice {gold}, but they are {}, counted from 0", choices.len()));
    }
    Ok(Question { name: String::new(), query, choices, gold })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_and_bad_lines_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.jsonl");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Questions::load(&path)
        };
        let good = "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 1, \"id\": 7}\n";
        let other = "\n{\"ctx\": \"c\", \"endings\": [\"d\", \"e\"], \"label\": 0}\n";
        let found = read(&format!("{good}{other}")).unwrap();
        assert_eq!(
            (found.name.as_str(), found.all.len(), found.all[1].name.as_str()),
            ("set.jsonl", 2, "set:3")
        );
        assert_eq!((found.all[0].gold, found.all[1].choices[1].as_str()), (1, "e"));
        for (line, part) in [
            ("{\"query\": 1}", "not a JSON object with a question"),
            ("{\"query\": \"q\", \"choices\": [\"a\", \"b\"]}", "missing field `gold`"),
            ("{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}", "at least two choices, found 1"),
            ("{\"query\": \"q\", \"choices\": [\"a\", \"\"], \"gold\": 0}", "choice 1 is empty"),
            (
                "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 2}",
                "gold is choice 2, but they are 2",
            ),
        ] {
            let error = read(&format!("{good}{line}\n")).unwrap_err().to_string();
            assert!(error.contains("set.jsonl: line 2: ") && error.contains(part), "{error}");
        }
        assert!(read("\n").unwrap_err().to_string().contains("there is no question in it"));
    }
}
