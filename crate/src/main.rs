//! The command line of lowbit: the verbs of the library, with flags.

mod args;
mod commands;

use lowbit::error::Kind;
use std::process::ExitCode;

fn main() -> ExitCode {
    // candle keeps a second, spinning thread pool for elementwise operations; beside rayon's it only costs time.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") }
    }
    let args = args::Args::given();
    match commands::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lowbit: {error}");
            ExitCode::from(match error.kind() {
                Kind::Internal => 1,
                Kind::Input => 2,
                Kind::Io => 3,
                Kind::Interrupted => 130,
            })
        }
    }
}
