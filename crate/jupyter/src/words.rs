//! evcxr's words among what the cells print.
//!
//! evcxr and the cells share standard output. A line of evcxr's is told from text by its first characters, also behind a
//! print without a line's end; what stands between two of its words is the content of a display.

use crate::event::{Event, MARK};
use std::collections::BTreeMap;

/// evcxr's words, as its version pinned in Cargo.toml spells them.
const WORDS: &str = "EVCXR_";
/// A cell came to its end.
pub const COMPLETE: &str = "EVCXR_EXECUTION_COMPLETE";
/// A `?` ended it.
pub const FAILED: &str = "EVCXR_ERROR_OCCURRED";
/// A panic ended it.
const PANICKED: &str = "EVCXR_PANIC_NOTIFICATION";
const BEGIN: &str = "EVCXR_BEGIN_CONTENT ";
const END: &str = "EVCXR_END_CONTENT";

/// What is to be done about a line.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// The kernel is told.
    Tell(Event),
    /// evcxr gets the word as it is.
    Pass(String),
    /// The kernel gets the event's line as it is.
    Event(String),
    /// A `?` ended the cell.
    Failed,
    /// The cell came to its end.
    Complete,
}

/// Tells evcxr's lines from the cells'.
#[derive(Default)]
pub struct Parser {
    /// MIME type and lines of the content that is being read.
    content: Option<(String, Vec<String>)>,
    /// Contents of one display that are complete.
    display: BTreeMap<String, String>,
    /// The last panic, until it is known whether the cell outlives it: of a thread it may, or catch its own.
    panic: Option<String>,
}

impl Parser {
    /// What is to be done about the next line.
    pub fn line(&mut self, line: &str) -> Vec<Step> {
        if let Some((mime, lines)) = &mut self.content {
            let Some(last) = line.strip_suffix(END) else {
                if ![COMPLETE, PANICKED].iter().any(|word| line.ends_with(word)) && !line.starts_with(MARK) {
                    lines.push(line.to_string());
                    return vec![];
                }
                // It did not come to its end: the cell panicked, or only printed how a content begins.
                let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
                let begun = Step::Tell(Event::Stdout(format!("{BEGIN}{mime}\n{text}")));
                self.content = None;
                return std::iter::once(begun).chain(self.line(line)).collect();
            };
            if !last.is_empty() {
                lines.push(last.to_string());
            }
            let (mime, content) = (std::mem::take(mime), lines.join("\n"));
            self.content = None;
            self.display.insert(mime.clone(), content);
            // Plain text closes a display of lowbit's; the next line or the cell's end closes any other.
            let closed = if mime == "text/plain" { self.end_display() } else { None };
            return closed.map(Step::Tell).into_iter().collect();
        }
        // A print without a line's end stands before the word.
        let at = line.find(MARK).or_else(|| line.find(WORDS).filter(|at| is_word(&line[*at..])));
        let (before, word) = line.split_at(at.unwrap_or(line.len()));
        let begins = word.strip_prefix(BEGIN);
        let mut steps = vec![];
        if begins.is_none_or(|mime| self.display.contains_key(mime)) || !before.is_empty() {
            steps.extend(self.end_display().map(Step::Tell));
        }
        match (at, before) {
            (None, _) => steps.push(Step::Tell(Event::Stdout(format!("{line}\n")))),
            (Some(_), "") => {}
            (Some(_), text) => steps.push(Step::Tell(Event::Stdout(text.to_string()))),
        }
        match word {
            "" => {}
            COMPLETE => {
                steps.extend(self.outlived());
                steps.push(Step::Complete);
            }
            FAILED => steps.push(Step::Failed),
            _ => match (begins, Event::parse(word)) {
                (Some(mime), _) => self.content = Some((mime.to_string(), vec![])),
                (None, Some(Event::Panic(text))) => {
                    steps.extend(self.outlived());
                    self.panic = Some(text);
                }
                (None, _) if word.starts_with(MARK) => steps.push(Step::Event(format!("{word}\n"))),
                (None, _) => {
                    if word == PANICKED {
                        steps.extend(self.panic.take().map(|text| Step::Tell(Event::Panic(text))));
                    }
                    steps.push(Step::Pass(word.to_string()));
                }
            },
        }
        steps
    }

    /// Tells of a panic that did not end the cell.
    fn outlived(&mut self) -> Option<Step> {
        let text = self.panic.take()?;
        Some(Step::Tell(Event::Stderr(format!("a panic that did not end the cell: {text}\n"))))
    }

    /// The display that has not ended yet.
    pub fn end_display(&mut self) -> Option<Event> {
        (!self.display.is_empty()).then(|| Event::Display(std::mem::take(&mut self.display)))
    }

    /// How many bytes of an unfinished line can be told now: those before anything that may become a word, and no
    /// half of a character.
    pub fn safe_part(&self, text: &[u8]) -> usize {
        if self.content.is_some() || !self.display.is_empty() {
            return 0;
        }
        let starts = |word: &[u8], at: usize| word.starts_with(&text[at..text.len().min(at + word.len())]);
        let word = |at: &usize| starts(WORDS.as_bytes(), *at) || starts(MARK.as_bytes(), *at);
        let safe = (0..text.len()).find(word).unwrap_or(text.len());
        match std::str::from_utf8(&text[..safe]) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => safe,
        }
    }
}

fn is_word(text: &str) -> bool {
    let known = [COMPLETE, FAILED, PANICKED];
    let prefixes = [BEGIN, "EVCXR_VARIABLE_CHANGED_TYPE:", "EVCXR_INPUT_REQUEST"];
    known.contains(&text) || prefixes.iter().any(|prefix| text.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(lines: &[&str]) -> Vec<Step> {
        let mut parser = Parser::default();
        lines.iter().flat_map(|line| parser.line(line)).collect()
    }

    fn out(text: &str) -> Step {
        Step::Tell(Event::Stdout(text.to_string()))
    }

    fn display(parts: &[(&str, &str)]) -> Step {
        let parts = parts.iter().map(|(mime, content)| ((*mime).to_string(), (*content).to_string()));
        Step::Tell(Event::Display(parts.collect()))
    }

    #[test]
    fn text_is_told_and_words_are_passed_even_behind_an_unfinished_line() {
        assert_eq!(
            steps(&["hello", "12EVCXR_EXECUTION_COMPLETE"]),
            [out("hello\n"), out("12"), Step::Complete]
        );
        assert_eq!(steps(&["EVCXR_ERROR_OCCURRED"]), [Step::Failed]);
        let panic = Step::Pass("EVCXR_PANIC_NOTIFICATION".into());
        assert_eq!(steps(&["xEVCXR_PANIC_NOTIFICATION"]), [out("x"), panic]);
        assert_eq!(steps(&["EVCXR_ is a prefix"]), [out("EVCXR_ is a prefix\n")]);
        let line = Event::Done.line();
        assert_eq!(steps(&[&format!("half{}", line.trim_end())])[1], Step::Event(line));
    }

    #[test]
    fn a_panic_is_the_cells_only_if_it_ends_it() {
        let line = |text: &str| Event::Panic(text.into()).line().trim_end().to_string();
        let told = steps(&[&line("a"), "EVCXR_PANIC_NOTIFICATION", COMPLETE]);
        let passed = Step::Pass("EVCXR_PANIC_NOTIFICATION".into());
        assert_eq!(told, [Step::Tell(Event::Panic("a".into())), passed, Step::Complete]);
        let told = steps(&[&line("a"), &line("b"), COMPLETE]);
        let outlived =
            |text: &str| Step::Tell(Event::Stderr(format!("a panic that did not end the cell: {text}\n")));
        assert_eq!(told, [outlived("a"), outlived("b"), Step::Complete]);
    }

    #[test]
    fn a_content_without_an_end_is_text() {
        let begun = out("EVCXR_BEGIN_CONTENT text/html\na\n");
        assert_eq!(steps(&["EVCXR_BEGIN_CONTENT text/html", "a", COMPLETE]), [begun, Step::Complete]);
    }

    #[test]
    fn contents_of_one_value_are_one_display() {
        let block = |mime: &str| [format!("EVCXR_BEGIN_CONTENT {mime}"), "a".into(), "b".into(), END.into()];
        let value = [block("text/html"), block("text/plain")].concat();
        let twice = [value.clone(), value].concat();
        let lines: Vec<&str> = twice.iter().map(String::as_str).collect();
        let one = || display(&[("text/html", "a\nb"), ("text/plain", "a\nb")]);
        assert_eq!(steps(&lines), [one(), one()]);
        // Values of other crates may bring HTML alone: the next thing closes them.
        let html = block("text/html");
        let lines: Vec<&str> = html.iter().map(String::as_str).chain(["text"]).collect();
        assert_eq!(steps(&lines), [display(&[("text/html", "a\nb")]), out("text\n")]);
    }

    #[test]
    fn of_an_unfinished_line_only_what_may_be_a_word_waits() {
        let parser = Parser::default();
        assert_eq!(parser.safe_part(b"12 of 30"), 8);
        assert_eq!(parser.safe_part(b"12EVCXR_EXEC"), 2);
        assert_eq!(parser.safe_part(b"12EV"), 2);
        assert_eq!(parser.safe_part(b"12 \x01low"), 3);
        assert_eq!(parser.safe_part("é".as_bytes()), 2);
        assert_eq!(parser.safe_part(&"é".as_bytes()[..1]), 0);
    }
}
