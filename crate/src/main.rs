//! The command line of lowbit: the verbs of the library, with flags.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod commands;
mod finished;
mod out;

use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
use lowbit::error::Kind;
use out::{complain, say};
use std::process::ExitCode;

/// What a newcomer does next: the answer to a call without arguments.
const WELCOME: &str = "\
lowbit: a research lab for low-bit sequence models

  lowbit reproduce glance                      first tables and figures: the default model, whole and in four bits
  lowbit ppl data/models/bard --scheme w4a8    one measurement of one model; yours: a folder, a file or a hub id
  lowbit generate \"ACT I. SCENE 1.\"            a text continued, as it is said
  cargo lab                                    the same in notebooks, in the repository

lowbit --help tells all commands, lowbit schemes all schemes.";

fn main() -> ExitCode {
    // candle keeps a second, spinning thread pool for elementwise operations; beside rayon's it only costs time.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") }
    }
    if std::env::args_os().len() <= 1 {
        return ended(say!("{WELCOME}"));
    }
    stop_on_interrupt();
    let args = match args::Asked::given() {
        Ok(args) => args,
        // Help and version are what was asked for, not mistakes.
        Err(error) if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        Err(error) => {
            complain(one_sentence(&error.to_string()));
            return ExitCode::from(2);
        }
    };
    ended(commands::run(args))
}

/// The exit code, with the sentence where there is something to complain about.
fn ended(result: lowbit::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(match error.kind() {
                Kind::Internal | Kind::Differs => 1,
                Kind::Input => 2,
                Kind::Io => 3,
                Kind::Interrupted => 130,
            })
        }
    }
}

/// Lets the first Ctrl-C stop the work at its next tick, with what was recorded kept and a sentence; the second ends the
/// program at once.
#[cfg(unix)]
fn stop_on_interrupt() {
    extern "C" fn stop(_: libc::c_int) {
        lowbit::progress::interrupt();
        // SAFETY: `signal` may be called in a handler.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    }
    // SAFETY: the handler stores a flag and calls what a handler may call.
    let before = unsafe { libc::signal(libc::SIGINT, stop as *const () as libc::sighandler_t) };
    if before == libc::SIG_IGN {
        // In the background of a script: what the terminal says is for others.
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGINT, before) };
    }
}

#[cfg(not(unix))]
fn stop_on_interrupt() {}

/// A complaint about flags without its layout: what is wrong, tips, and where the flags are told.
fn one_sentence(complaint: &str) -> String {
    let complaint = complaint.strip_prefix("error: ").unwrap_or(complaint);
    let (usage, told): (Vec<&str>, Vec<&str>) = complaint
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .partition(|line| line.starts_with("Usage:"));
    let mut sentence = String::new();
    for line in told {
        let tip = line.strip_prefix("tip: ");
        sentence.push_str(if sentence.is_empty() {
            ""
        } else if tip.is_some() {
            "; "
        } else {
            " "
        });
        sentence.push_str(tip.unwrap_or(line));
    }
    let command = usage.first().and_then(|usage| usage.split_whitespace().nth(2));
    match command.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())) {
        Some(command) => format!("{sentence}; see lowbit {command} --help"),
        None => format!("{sentence}; see lowbit --help"),
    }
}
