//! The command line of lowbit: the verbs of the library, with flags.

mod args;
mod commands;
mod flags;
mod report;

use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
use lowbit::error::Kind;
use std::process::ExitCode;

fn main() -> ExitCode {
    // candle keeps a second, spinning thread pool for elementwise operations; beside rayon's it only costs time.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") }
    }
    let args = match args::Args::given() {
        Ok(args) => args,
        // Help and version are what was asked for, not mistakes.
        Err(error) if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        Err(error) => {
            eprintln!("lowbit: {}", one_sentence(&error.to_string()));
            return ExitCode::from(2);
        }
    };
    match commands::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lowbit: {error}");
            ExitCode::from(match error.kind() {
                Kind::Internal | Kind::Differs => 1,
                Kind::Input => 2,
                Kind::Io => 3,
                Kind::Interrupted => 130,
            })
        }
    }
}

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
