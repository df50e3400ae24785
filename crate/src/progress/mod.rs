//! Progress of long work, and the flag that stops it.
//!
//! Every long loop of the crate ticks a [`Progress`]; the tick also checks whether the user asked to stop. On a terminal it
//! is a bar; where standard error goes into a file, a line now and then. A [`Job`] is what bars are parts of.

mod job;

use crate::error::{Error, Result};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
pub use job::{Job, roughly};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static QUIET: AtomicBool = AtomicBool::new(false);
static SINK: OnceLock<Sink> = OnceLock::new();
static BARS: AtomicU64 = AtomicU64::new(0);

/// When a line of a log was written last, or the first bar began.
static LOGGED: Mutex<Option<Instant>> = Mutex::new(None);

/// Time between two updates of a bar that go to a sink.
const PACE: Duration = Duration::from_millis(100);
/// Time between two lines of a log.
const LOG_PACE: Duration = Duration::from_secs(30);

/// Where bars go instead of the terminal.
pub type Sink = Box<dyn Fn(&Update) + Send + Sync>;

/// The state of a bar, as a [`Sink`] is told it.
#[derive(Clone, Debug)]
pub struct Update {
    /// Tells the bars of this process apart.
    pub id: u64,
    /// What is being done.
    pub label: String,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// What is counted.
    pub unit: String,
    /// Time since the bar began.
    pub elapsed: Duration,
    /// A word on the state of the work, such as the current loss.
    pub message: String,
    /// Whether the work has ended, well or not.
    pub finished: bool,
}

/// Sends all bars to `sink`, such as a notebook's display, from now on. Only the first call counts.
pub fn set_sink(sink: Sink) {
    let _ = SINK.set(sink);
}

/// Asks all long work to stop at its next tick. Safe to call from a signal handler.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Fails once, with an error of kind `Interrupted`, if [`interrupt`] was called since the last check.
pub fn check_interrupt() -> Result<()> {
    if INTERRUPTED.swap(false, Ordering::SeqCst) { Err(Error::interrupted()) } else { Ok(()) }
}

/// Switches all progress bars off (`--quiet`, scripts, tests).
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::SeqCst);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::SeqCst)
}

/// Whether nothing is written to standard error: a sink shows it, or nobody wants it.
fn is_silent() -> bool {
    is_quiet() || SINK.get().is_some()
}

/// Says on standard error what is about to be done, where bars are shown too.
pub fn announce(what: &str) {
    if !is_silent() {
        let _ = writeln!(std::io::stderr(), "lowbit: {what}");
    }
}

/// A progress bar with rate and time left, drawn on standard error when that is a terminal; else a line now and then.
pub struct Progress {
    bar: ProgressBar,
    id: u64,
    unit: String,
    started: Instant,
    /// When the sink was told, or the bar's end written, last.
    told: Mutex<Option<Instant>>,
    /// Whether lines take the place of a bar.
    logs: bool,
}

impl Progress {
    /// Starts a bar over `total` units of work, for example `Progress::new("perplexity", 64, "windows")`.
    pub fn new(label: &str, total: u64, unit: &str) -> Self {
        let quiet = is_silent();
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = format!(
            "{{prefix:<14}} {{bar:28}} {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{eta}} left  {{msg}}"
        );
        // The template is ours; should it ever not parse, the default bar serves.
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸─"));
        bar.set_prefix(label.to_string());
        bar.set_message(job::status().unwrap_or_default());
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        let id = BARS.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        LOGGED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(started);
        let logs = !quiet && !std::io::stderr().is_terminal();
        let new = Self { bar, id, unit: unit.to_string(), started, told: Mutex::new(None), logs };
        new.tell(false);
        new
    }

    /// Writes a line where there is no bar to be seen, unless one was written a moment ago.
    fn log(&self) {
        let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_some_and(|logged| logged.elapsed() < LOG_PACE) {
            return;
        }
        *logged = Some(Instant::now());
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let left = self.started.elapsed().mul_f64(total.saturating_sub(done) as f64 / done.max(1) as f64);
        let left = job::status().unwrap_or_else(|| format!("{} left", roughly(left)));
        let (done, total) = (HumanCount(done), HumanCount(total));
        let (label, unit) = (self.bar.prefix(), &self.unit);
        let _ = writeln!(std::io::stderr(), "lowbit: {label}: {done} of {total} {unit}; {left}");
    }

    /// Brings the end of a bar up to date with the job that it is part of.
    fn refresh(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bar.is_hidden() || told.is_some_and(|told| told.elapsed() < Duration::from_secs(1)) {
            return;
        }
        *told = Some(Instant::now());
        if let Some(status) = job::status() {
            self.bar.set_message(status);
        }
    }

    /// Tells the sink, if there is one, unless it was told a moment ago.
    fn tell(&self, finished: bool) {
        let Some(sink) = SINK.get().filter(|_| !is_quiet()) else { return };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !finished && told.is_some_and(|told| told.elapsed() < PACE) {
            return;
        }
        *told = Some(Instant::now());
        sink(&Update {
            id: self.id,
            label: self.bar.prefix(),
            done: self.bar.position(),
            total: self.bar.length().unwrap_or_default(),
            unit: self.unit.clone(),
            elapsed: self.started.elapsed(),
            message: Some(self.bar.message())
                .filter(|message| !message.is_empty())
                .or_else(job::status)
                .unwrap_or_default(),
            finished,
        });
    }

    /// Counts `n` units as done; fails if the user asked to stop.
    pub fn tick(&self, n: u64) -> Result<()> {
        self.bar.inc(n);
        if self.logs {
            self.log()
        } else {
            self.refresh()
        }
        self.tell(false);
        check_interrupt()
    }

    /// Shows a short message at the end of the bar, such as the current loss.
    pub fn message(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            let _ = writeln!(std::io::stderr(), "{text}"); // nobody may be reading
        } else {
            self.bar.println(text);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.tell(true);
        self.bar.finish_and_clear();
    }
}
