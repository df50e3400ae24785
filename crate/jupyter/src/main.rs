//! The research kernel of lowbit, and what sets it up: `cargo lab`.
//!
//! | file | holds |
//! |---|---|
//! | `kernel` | Jupyter's side: sockets, requests, replies |
//! | `front` | what the kernel's threads share: what is shown of a cell, and what stops it |
//! | `widgets` | controls and bars that can be stopped, as ipywidgets has them |
//! | `advice` | a line about the mistakes that are made most |
//! | `answer` | what the replies say |
//! | `session` | evcxr's side: compiling and running cells |
//! | `trouble` | why a cell failed, as it is told |
//! | `child` | the process that runs the cells: its output, live and in order |
//! | `event` | what that process tells the kernel |
//! | `wire` | the pipes between the two, past evcxr |
//! | `input` | what comes into that process: cells to run, and what a person types |
//! | `last_words` | what is printed just before that process ends |
//! | `output` | text on its way: gathered, cut, kept in a file |
//! | `words` | evcxr's words among what the cells print |
//! | `cell`, `types` | the statements of a cell, and the types of its variables, asked of the compiler |
//! | `home` | where everything is |
//! | `lab` | setting up, opening JupyterLab, running notebooks headless |

mod advice;
mod answer;
mod cell;
mod child;
mod event;
mod front;
mod home;
mod input;
mod kernel;
mod lab;
mod last_words;
mod output;
mod session;
mod trouble;
mod types;
mod widgets;
mod wire;
mod words;

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
