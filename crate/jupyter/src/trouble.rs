//! Why a cell did not come to a good end, as it is told: by a sentence, or in the compiler's words with the places in the
//! cell and a line of advice.

use crate::advice::advice;
use crate::cell::{brackets, code_begins};
use ariadne::Source;
use evcxr::{CompilationError, Theme};

/// The kind of mistakes that are not in the cell.
pub const FOREIGN: &str = "CompileErrorOutside";

/// The kind of what is wrong before a compiler is asked.
pub const OTHER: &str = "CellError";

/// The process that ran the cells has ended.
pub const ENDED: &str = "SessionEnded";

/// Why a cell did not come to a good end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The kind, as Jupyter calls it `ename`.
    pub name: String,
    /// One sentence.
    pub sentence: String,
    /// What is shown: the sentence, or the compiler's words with the places in the code.
    pub lines: Vec<String>,
}

impl Trouble {
    /// Trouble that one sentence tells.
    pub fn new(name: &str, sentence: impl Into<String>) -> Self {
        let sentence = sentence.into();
        Self { name: name.to_string(), lines: vec![sentence.clone()], sentence }
    }
}

/// An error of evcxr's.
pub fn other(error: impl std::fmt::Display) -> Trouble {
    Trouble::new(OTHER, error.to_string().trim_end())
}

/// The process that runs the cells ended.
pub fn ended(why: &str) -> Trouble {
    let status = why.lines().last().unwrap_or_default();
    let status = status.split_once("status: ").map_or(status, |(_, status)| status);
    let why = match status.split(['(', ')']).nth(1) {
        Some("SIGKILL") => "it was killed: interrupted twice, or by the system when memory ran out",
        Some("SIGABRT") => "SIGABRT: a full stack, no memory left, a panic within a panic, or `abort`",
        Some("SIGSEGV" | "SIGBUS") => "SIGSEGV: unsafe code reached for memory that is not there",
        _ => status,
    };
    Trouble::new(
        ENDED,
        format!(
            "the process that runs the cells ended ({why}); it was started anew, and all variables are gone"
        ),
    )
}

/// What the compiler found, with the places marked in the cell.
pub fn mistakes(code: &str, errors: &[CompilationError], unkept: &[(String, String)]) -> Trouble {
    let drawn = |error: &CompilationError| {
        let report = error.build_report("cell".to_string(), code.to_string(), Theme::Light);
        let mut bytes = vec![];
        match report.map(|report| report.write(("cell".to_string(), Source::from(code)), &mut bytes)) {
            Some(Ok(())) => String::from_utf8_lossy(&bytes).trim_end().to_string(),
            // The drawing needs plain ASCII; the compiler's own text does not.
            _ => error.rendered(),
        }
    };
    // evcxr hands on warnings as well, of earlier cells among them, and of an error in its own code only the help.
    let of_level = |level| errors.iter().filter(move |error| error.level() == level);
    let mut failing: Vec<&CompilationError> = of_level("error").collect();
    let first = failing.first().map(|error| error.message());
    let sentence = first.map_or_else(|| "the cell does not compile".into(), |first| unclosed(code, first));
    if failing.is_empty() {
        failing = errors.iter().filter(|error| error.level() != "warning").collect();
    }
    let advised = |error: &&CompilationError| {
        let line = advice(error.code(), &error.message(), unkept);
        drawn(error) + &line.map(|line| format!("\n{line}")).unwrap_or_default()
    };
    let foreign = !failing.iter().any(|error| error.is_from_user_code());
    let name = if foreign { FOREIGN } else { "CompileError" };
    Trouble { name: name.into(), lines: failing.iter().map(advised).collect(), sentence }
}

/// A message of the compiler's, or what is behind it: it sees the brackets that evcxr puts around a cell, too.
fn unclosed(code: &str, message: String) -> String {
    if !message.contains("delimiter") {
        return message;
    }
    match brackets(&code[code_begins(code)..]) {
        Ok(0) => message,
        Ok(_) => "a bracket of the cell is opened and not closed".into(),
        Err(()) => "a bracket of the cell is closed that was not opened, or by another kind".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::{ended, unclosed};

    #[test]
    fn brackets_that_do_not_close_are_told_as_such() {
        let of = |code: &str| unclosed(code, "mismatched closing delimiter: `)`".into());
        assert!(of("for i in 0..3 {").contains("not closed"));
        assert!(of(":dep a\n(1 + 1]").contains("not opened"));
        assert!(of("(1 + 1)").contains("delimiter"));
    }

    #[test]
    fn an_end_is_told_in_one_sentence() {
        let of = |status: &str| {
            ended(&format!("last words\nSubprocess terminated with status: {status}")).sentence
        };
        assert!(of("exit status: 3").contains("ended (exit status: 3); it was started anew"));
        assert!(of("signal: 6 (SIGABRT) (core dumped)").contains("a full stack"));
        assert!(of("signal: 9 (SIGKILL)").contains("it was killed"));
        assert!(of("signal: 11 (SIGSEGV)").contains("unsafe code"));
    }
}
