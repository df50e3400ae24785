//! The research kernel of lowbit, and what sets it up: `cargo lab`.
//!
//! | file | holds |
//! |---|---|
//! | `kernel` | Jupyter's side: sockets, requests, replies |
//! | `answer` | what the replies say |
//! | `session` | evcxr's side: compiling and running cells |
//! | `child` | the process that runs the cells: its output, live and in order |
//! | `event` | what that process tells the kernel |
//! | `input` | what comes into that process: cells to run, and what a person types |
//! | `home` | where everything is |
//! | `lab` | setting up, opening JupyterLab, running notebooks headless |

mod answer;
mod child;
mod event;
mod home;
mod input;
mod kernel;
mod lab;
mod session;

use std::process::ExitCode;

fn main() -> ExitCode {
    child::run_if_asked();
    match lab::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("lowbit: {sentence}");
            ExitCode::FAILURE
        }
    }
}
