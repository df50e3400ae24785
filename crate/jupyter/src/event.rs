//! What the process that runs the cells tells the kernel, one line each, between the lines that evcxr itself reads.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What such a line begins with.
pub const MARK: &str = "\u{1}lowbit ";

/// Something that a cell did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// Its code, compiled, begins to run.
    Began,
    /// It printed to standard output.
    Stdout(String),
    /// It printed to standard error.
    Stderr(String),
    /// It showed a value: content by MIME type.
    Display(BTreeMap<String, String>),
    /// Long work moved on.
    Progress(Progress),
    /// It panicked, and said this.
    Panic(String),
    /// A `?` ended it with this error.
    Failed(String),
    /// It showed controls, and what their closure made of their first values.
    Controls(Controls),
    /// What a closure made of the values of controls that were moved.
    Answer(Answer),
    /// It came to its end; everything that it printed was told before.
    Done,
}

/// Controls that are bound to one closure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Controls {
    /// Tells groups of controls of one process apart.
    pub id: u64,
    /// The controls, in order.
    pub parts: Vec<Part>,
    /// What is shown below them: content by MIME type.
    pub shown: BTreeMap<String, String>,
}

/// One control.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Part {
    /// `slider`, `choice`, `toggle` or `button`.
    pub kind: String,
    /// What stands beside it.
    pub label: String,
    /// A slider's number, the index of a choice, 1 for a toggle that is on.
    pub value: f64,
    /// A slider's lowest number.
    pub min: f64,
    /// A slider's highest number.
    pub max: f64,
    /// The distance of its numbers.
    pub step: f64,
    /// Whether its numbers are whole.
    pub whole: bool,
    /// What can be chosen.
    pub options: Vec<String>,
    /// The control and its first value as text.
    pub text: String,
}

/// What a closure made of new values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The group of controls.
    pub id: u64,
    /// The last move that is in it, and all before it.
    pub serial: u64,
    /// Content by MIME type; None if the process does not know the group.
    pub shown: Option<BTreeMap<String, String>>,
}

/// How far some long work is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Tells bars apart.
    pub id: u64,
    /// What is being done.
    pub label: String,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// What is counted.
    pub unit: String,
    /// Seconds since the start.
    pub elapsed_s: f64,
    /// A word on the state of it, such as the current loss.
    pub message: String,
    /// Whether the work has ended, well or not.
    pub finished: bool,
}

impl Event {
    /// The event as a line.
    pub fn line(&self) -> String {
        // Strings, numbers and maps of strings always have a JSON form.
        format!("{MARK}{}\n", serde_json::to_string(self).unwrap_or_default())
    }

    /// The event of a line; None for any other text.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(MARK)?).ok()
    }
}

impl Progress {
    /// The bar as text.
    pub fn text(&self) -> String {
        let message = if self.message.is_empty() { String::new() } else { format!("  {}", self.message) };
        let count = format!("{}  {}/{} {}", self.label, self.done, self.total, self.unit);
        match self.finished {
            true => format!("{count} in {}{message}", clock(self.elapsed_s)),
            false => format!("{count}  {}{message}", self.pace()),
        }
    }

    /// The bar as HTML, colours inherited from the page.
    pub fn html(&self) -> String {
        let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        if self.finished {
            let style = "font-size:12px;opacity:.65;font-family:monospace";
            return format!("<div style=\"{style}\">{}</div>", escape(&self.text()));
        }
        let share = 100.0 * self.done as f64 / self.total.max(1) as f64;
        let bar = format!(
            "<span style=\"display:inline-block;width:220px;height:8px;border-radius:4px;\
             background:rgba(128,128,128,.3);vertical-align:middle\"><span style=\"display:block;width:{share:.1}%;\
             height:8px;border-radius:4px;background:#0072b2\"></span></span>"
        );
        let count = format!("{}/{} {}  {}  {}", self.done, self.total, self.unit, self.pace(), self.message);
        format!(
            "<div style=\"font-size:13px;font-family:monospace;white-space:pre\">{} {bar} {}</div>",
            escape(&self.label),
            escape(count.trim_end())
        )
    }

    /// Rate, and time left.
    fn pace(&self) -> String {
        let rate = self.done as f64 / self.elapsed_s.max(1e-9);
        if self.done == 0 {
            return String::new();
        }
        let digits = if rate < 10.0 { 2 } else { 0 };
        format!("{rate:.digits$}/s  {} left", clock(self.total.saturating_sub(self.done) as f64 / rate))
    }
}

fn clock(seconds: f64) -> String {
    match seconds {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 5_970.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_and_comes_back() {
        let display = BTreeMap::from([("text/plain".to_string(), "a\nb".to_string())]);
        for event in [Event::Stdout("x\n".into()), Event::Display(display), Event::Done] {
            let line = event.line();
            assert_eq!(line.matches('\n').count(), 1);
            assert_eq!(Event::parse(line.trim_end()), Some(event));
        }
        assert_eq!(Event::parse("lowbit says hello"), None);
    }

    #[test]
    fn a_bar_tells_rate_and_time_left_and_ends_as_one_line() {
        let mut bar = Progress {
            label: "passkey <256>".into(),
            done: 10,
            total: 50,
            unit: "prompts".into(),
            ..Progress::default()
        };
        bar.elapsed_s = 5.0;
        assert_eq!(bar.text(), "passkey <256>  10/50 prompts  2.00/s  20 s left");
        assert!(bar.html().contains("width:20.0%") && bar.html().contains("&lt;256&gt;"));
        bar = Progress { done: 50, finished: true, elapsed_s: 75.0, ..bar };
        assert_eq!(bar.text(), "passkey <256>  50/50 prompts in 75 s");
        assert!(!bar.html().contains("width"));
    }
}
