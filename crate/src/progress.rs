//! Progress of long work, and the flag that stops it.
//!
//! Every long loop of the crate ticks a [`Progress`]; the tick also checks whether the user asked to stop.

use crate::error::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static QUIET: AtomicBool = AtomicBool::new(false);

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

/// A progress bar with rate and time left, drawn on standard error when that is a terminal.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Starts a bar over `total` units of work, for example `Progress::new("perplexity", 64, "windows")`.
    pub fn new(label: &str, total: u64, unit: &str) -> Self {
        let quiet = QUIET.load(Ordering::SeqCst);
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = format!(
            "{{prefix:<14}} {{bar:28}} {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{eta}} left  {{msg}}"
        );
        // The template is ours; should it ever not parse, the default bar serves.
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸─"));
        bar.set_prefix(label.to_string());
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar }
    }

    /// Counts `n` units as done; fails if the user asked to stop.
    pub fn tick(&self, n: u64) -> Result<()> {
        self.bar.inc(n);
        check_interrupt()
    }

    /// Shows a short message at the end of the bar, such as the current loss.
    pub fn message(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
